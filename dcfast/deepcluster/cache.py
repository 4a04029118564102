"""A file of decoded images: they are decoded once, and every later pass reads their bytes through a memory map.

The file holds, one after the other: eight bytes that name the format; the pixels of each image; a JSON text with the
layout and the names; a table of fixed-size records (see `_RECORD`); and a trailer that says where the text and the
table are, with their digest. It is written under another name and renamed when it is whole, so that there is never half
a cache, and the digest and the checksum of each image tell of every other damage.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from dcfast._files import is_full, locked, replacing
from dcfast.deepcluster.sources import Source, Stamp
from dcfast.nn import IMAGENET_STD

__all__ = ["CacheLayout", "CachedImages", "Checked", "check_place", "open_cache", "write_cache"]

_MAGIC = b"dcfast\x00\x01"  # the last byte is the version of the format
_TRAILER = struct.Struct("<qq16s")  # where the text begins, its length, digest of text and table
_RECORD = np.dtype(
    [
        ("size", "<i8"),
        ("changed", "<i8"),
        ("label", "<i8"),
        ("start", "<i8"),  # of the pixels in the file
        ("width", "<i4"),
        ("height", "<i4"),
        ("checksum", "<u4"),  # crc32 of the pixels
        ("side", "<i4"),  # the shorter one of the image itself
        ("digest", "u1", 16),
    ]
)
# The networks see Sobel's gradients of (R + G + B) / 3 of the normalised image, which is a mean of the bytes with the
# inverse deviations as weights, but for a constant that the gradients lose.
_GREY = (1 / np.array(IMAGENET_STD) / (1 / np.array(IMAGENET_STD)).sum()).astype(np.float32)


@dataclass(frozen=True)
class Checked:
    """What decoding an image told.

    Attributes
    ----------
    digest : bytes
        16 of them, of the size, the label and the pixels; none if the image cannot be decoded.
    label : int
        -1 without.
    side : int
        Shorter side in pixels.
    error : str
        Why it cannot be decoded, or nothing.
    pixels : ndarray of uint8, shape (h, w) or (h, w, 3), optional
        What a cache keeps of it.
    """

    digest: bytes
    label: int
    side: int
    error: str
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class CacheLayout:
    """Where a cache is, and what it keeps of an image.

    Images keep their shape, so that random crops have their published distribution over the whole frame. Those whose
    shorter side is longer than ``side`` are scaled down to it, with antialiasing; others are kept to the byte.

    Attributes
    ----------
    path : str
        The file.
    side : int
        Longest shorter side, in pixels. With the published 256 the centre crop of 224 is cut, not scaled.
    grey : bool
        Keep one byte per pixel instead of three: the grey that networks see which look at Sobel gradients, rounded.
    """

    path: str
    side: int
    grey: bool

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Return what is kept of an RGB image: uint8 (h, w) of a grey cache, else (h, w, 3)."""
        if min(image.size) > self.side:
            scale = self.side / min(image.size)
            width, height = (round(length * scale) for length in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        rgb = np.asarray(image)
        return np.rint(rgb @ _GREY).astype(np.uint8) if self.grey else rgb

    def describe(self) -> dict[str, Any]:
        """Return what the bytes of a cache depend on beside the images."""
        return {"side": self.side, "grey": self.grey, "pillow": PIL.__version__}


class CachedImages:
    """The images of a cache that belong to a source.

    Parameters
    ----------
    layout : CacheLayout
    records : structured ndarray
        The table of the file.
    rows : ndarray of int64
        The row of the table for every image of the source, -1 for images that are not in the cache.
    errors : dict of int to str
        By row, why images could not be decoded.
    """

    def __init__(self, layout: CacheLayout, records: np.ndarray, rows: np.ndarray, errors: dict[int, str]) -> None:
        self.layout, self._records, self._rows, self._errors = layout, records, rows, errors

    @cached_property
    def _bytes(self) -> np.memmap:
        return np.memmap(self.layout.path, dtype=np.uint8, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled with all it maps; a process maps the file anew.
        return {name: value for name, value in self.__dict__.items() if name != "_bytes"}

    def holds(self, index: int, stamp: Stamp) -> bool:
        """Whether image ``index`` of the source is in the cache with this stamp."""
        row = self._rows[index]
        record = self._records[row]
        return row >= 0 and (record["size"], record["changed"], record["label"]) == stamp

    def checked(self, index: int) -> Checked:
        """Return what decoding image ``index`` of the source told when the cache was made."""
        row = int(self._rows[index])
        record, error = self._records[row], self._errors.get(row, "")
        digest = b"" if error else record["digest"].tobytes()
        return Checked(digest, int(record["label"]), int(record["side"]), error)

    def image(self, index: int) -> Image.Image:
        """Return image ``index`` of the source, grey or RGB; OSError if its bytes are not those that were written."""
        record = self._records[self._rows[index]]
        shape = (int(record["height"]), int(record["width"]), 1 if self.layout.grey else 3)
        start = int(record["start"])
        pixels = np.asarray(self._bytes[start : start + shape[0] * shape[1] * shape[2]])
        if zlib.crc32(pixels.data) != record["checksum"]:
            raise OSError(
                f"image {index} of the cache {self.layout.path} is damaged: delete the file, and the next run, resumed "
                "or new, makes it again"
            )
        return Image.fromarray(pixels.reshape(shape[:2] if self.layout.grey else shape))


def check_place(path: str | None) -> None:
    """Raise ValueError if no cache can be at ``path``, which is a folder or lies in a file."""
    if path is None:
        return
    place = Path(path).absolute()
    there = next(parent for parent in place.parents if parent.exists())
    if place.is_dir() or not there.is_dir():
        what = f"{path} is a folder" if place.is_dir() else f"{there} is a file"
        raise ValueError(f"{what}: give --cache the name of a file in a folder")


def open_cache(
    layout: CacheLayout, source: Source, candidates: np.ndarray, stamps: Sequence[Stamp]
) -> CachedImages | None:
    """Open a cache, if there is one that holds these images as they are now.

    Parameters
    ----------
    layout : CacheLayout
    source : Source
    candidates : ndarray of int64
        The images that are needed, by their number in the source; the cache may hold more.
    stamps : sequence of Stamp
        Of the same images.

    Returns
    -------
    CachedImages, or None
        None where a cache is yet to be made, or to be made again.

    Raises
    ------
    ValueError
        If the file is something else, or a cache of another layout: it is not replaced.

    Warns
    -----
    UserWarning
        If the file is damaged, or holds images that have changed since.
    """
    if not os.path.exists(layout.path) or None in stamps:
        return None
    found = _read(layout, source)
    if found is None:
        warnings.warn(f"the cache {layout.path} is damaged, and is made again", stacklevel=3)
        return None
    changed = sum(not found.holds(int(index), stamp) for index, stamp in zip(candidates, stamps, strict=True))
    if changed:
        warnings.warn(
            f"{changed} of {len(candidates)} images are not in the cache {layout.path} as they are now: it is made "
            "again",
            stacklevel=3,
        )
        return None
    return found


def write_cache(
    layout: CacheLayout, source: Source, candidates: np.ndarray, stamps: Sequence[Stamp], looked: Iterable[Checked]
) -> CachedImages:
    """Write a cache, and open it. A file of that name is replaced once the new one is whole.

    Nothing is left behind by an error or an interruption.

    Parameters
    ----------
    layout, source, candidates, stamps
        As for `open_cache`.
    looked : iterable of Checked
        The same images, with their pixels; taken one at a time.

    Raises
    ------
    FileExistsError
        If another process is making it.
    OSError
        If the disk is full; the message estimates the bytes that the cache needs.
    """
    path = Path(layout.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    records = np.zeros(len(candidates), dtype=_RECORD)
    errors: dict[int, str] = {}
    start = len(_MAGIC)
    busy = f"another process is making the cache {path}: wait for it, or give --cache the name of another file"
    try:
        with locked(path.with_name(f"{path.name}.lock"), busy), replacing(path) as file:
            file.write(_MAGIC)
            for row, (stamp, one) in enumerate(zip(stamps, looked, strict=True)):
                record = records[row]
                record["size"], record["changed"], record["label"] = stamp or (0, 0, one.label)
                if one.pixels is None:
                    errors[row] = one.error
                    continue
                pixels = one.pixels.tobytes()
                file.write(pixels)
                record["start"], record["side"], record["checksum"] = start, one.side, zlib.crc32(pixels)
                record["height"], record["width"] = one.pixels.shape[:2]
                record["digest"] = np.frombuffer(one.digest, dtype=np.uint8)
                start += len(pixels)
            names = [source.names[index] for index in candidates]
            text = json.dumps({**layout.describe(), "names": names, "errors": errors}).encode()
            table = text + records.tobytes()
            file.write(table + _TRAILER.pack(start, len(text), _digest(table)))
    except OSError as error:
        if not is_full(error):
            raise
        written = int(np.count_nonzero(records["start"])) + len(errors)
        needed = start * len(candidates) // max(1, written)
        raise OSError(
            f"no space left for --cache {path}: it needs about {needed:,} bytes and {_free(path):,} are free. Make "
            "room, choose another disk, or lower --cache-side"
        ) from None
    cache = _read(layout, source)
    assert cache is not None
    return cache


def _read(layout: CacheLayout, source: Source) -> CachedImages | None:
    """Read everything but the pixels; None if it is damaged."""
    with open(layout.path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{layout.path} is no cache of images: give --cache the name of another file")
        end = file.seek(0, os.SEEK_END) - _TRAILER.size
        if end < len(_MAGIC):
            return None
        file.seek(end)
        start, length, digest = _TRAILER.unpack(file.read())
        if not len(_MAGIC) <= start <= start + length <= end:
            return None
        file.seek(start)
        table = file.read(end - start)
    if _digest(table) != digest:
        return None
    header = json.loads(table[:length])
    expected = layout.describe()
    for name, value in expected.items():
        if header[name] != value:
            raise ValueError(
                f"the cache {layout.path} was made with {name} {header[name]}, this run has {value}: give --cache the "
                "name of another file, or delete this one"
            )
    where = {name: row for row, name in enumerate(header["names"])}
    rows = np.array([where.get(name, -1) for name in source.names])
    errors = {int(row): error for row, error in header["errors"].items()}
    return CachedImages(layout, np.frombuffer(table, _RECORD, offset=length), rows, errors)


def _digest(table: bytes) -> bytes:
    return hashlib.blake2b(table, digest_size=16).digest()


def _free(path: Path) -> int:
    return shutil.disk_usage(path.parent).free
