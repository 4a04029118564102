"""The images of a run: those that decode, checked once, and what of them a network or a report sees."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from dcfast.deepcluster.cache import CachedImages, CacheLayout, Checked, open_cache, write_cache
from dcfast.deepcluster.crops import centre_box, resized
from dcfast.deepcluster.keyed import Stream, generator
from dcfast.deepcluster.loader import Loader
from dcfast.deepcluster.sources import NO_LABEL, Source, Unreadable

__all__ = ["ImageData", "check_images", "describe_source", "named_images"]


@dataclass
class ImageData:
    """The usable images of a source, at the size that a network takes.

    Attributes
    ----------
    source : Source
        Where they are decoded.
    image_size : int
        Side of `eval_image`.
    indices : ndarray of int64
        Number in the source of each usable image; the rest of a run counts only these.
    labels : ndarray of int64
        The label of each, -1 without.
    corrupt : list of str
        Names of the images that could not be decoded.
    fingerprint : str
        Digest of names, labels and pixels.
    side : int
        Median of the images' shorter sides in pixels.
    cache : CachedImages, optional
        Where the images are read that crops are cut from, in the place of the source.
    """

    source: Source
    image_size: int
    indices: np.ndarray
    labels: np.ndarray
    corrupt: list[str] = field(default_factory=list)
    fingerprint: str = ""
    side: int = 0
    cache: CachedImages | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def names(self) -> list[str]:
        """Name of every usable image: its path below the folder, with slashes."""
        return [self.source.names[index] for index in self.indices]

    @property
    def class_names(self) -> list[str]:
        """What the labels mean; empty without labels."""
        return self.source.class_names

    @property
    def channels(self) -> int:
        """1 with a grey cache, else 3."""
        return 1 if self.cache is not None and self.cache.layout.grey else 3

    def image(self, index: int) -> Image.Image:
        """Return usable image ``index``: decoded in its own size, or as the cache has it.

        Raises
        ------
        OSError
            If it cannot be read any more.
        """
        number = int(self.indices[index])
        if self.cache is not None:
            return self.cache.image(number)
        try:
            return self.source.item(number)[0]
        except Unreadable as error:
            raise OSError(
                f"image {_shown(self.source.names[number])} of {self.source.location}, which could be read before, "
                f"cannot be any more ({error}): bring it back as it was and go on, or start a new run without it"
            ) from error

    def eval_image(self, index: int) -> torch.Tensor:
        """Return the centre crop of image ``index``: uint8 (channels, image_size, image_size)."""
        image = self.image(index)
        pixels = resized(image, centre_box(image.size, self.image_size), self.image_size)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def thumbnail(self, index: int, size: int = 64) -> Image.Image:
        """Return the central square of image ``index``, ``size`` pixels a side."""
        image = self.source.item(int(self.indices[index]))[0]
        return Image.fromarray(resized(image, centre_box(image.size, size, whole=True), size))


class _Check(torch.utils.data.Dataset[list[Checked]]):
    """Decodes images in chunks and says what came out; runs in the data workers."""

    def __init__(self, source: Source, indices: np.ndarray, chunk: int, layout: CacheLayout | None) -> None:
        self._source, self._indices, self._chunk, self._layout = source, indices, chunk, layout

    def __len__(self) -> int:
        return -(-len(self._indices) // self._chunk)

    def __getitem__(self, number: int) -> list[Checked]:
        chunk = self._indices[number * self._chunk : (number + 1) * self._chunk]
        return [self._look(int(index)) for index in chunk]

    def _look(self, index: int) -> Checked:
        try:
            image, label = self._source.item(index)
        except Unreadable as error:
            return Checked(b"", NO_LABEL, 0, str(error))
        digest = hashlib.blake2b(f"{image.size} {label} ".encode(), digest_size=16)
        digest.update(image.tobytes())
        pixels = None if self._layout is None else self._layout.pixels(image)
        return Checked(digest.digest(), label, min(image.size), "", pixels)


def check_images(
    source: Source,
    limit: int | None,
    seed: int,
    workers: int,
    advance: Callable[[int], None] = lambda count: None,
    layout: CacheLayout | None = None,
) -> ImageData:
    """Decode every image once: set aside those that fail, and take a fingerprint of the rest.

    With a cache that holds the images as they are, nothing is decoded: it remembers what decoding told. Images of a
    Dataset and the digits have no file whose size and time could be compared, and are decoded into it anew.

    Parameters
    ----------
    source : Source
        The images.
    limit : int or None
        Look only at this many, chosen uniformly with ``seed``.
    seed : int
        Seed of the run.
    workers : int
        Processes that decode; the result does not depend on it.
    advance : callable
        Told how many images have been looked at since the last call.
    layout : CacheLayout, optional
        Of the cache to open, or to make along the way.

    Returns
    -------
    ImageData
        With ``image_size`` 0, for the caller to set.

    Raises
    ------
    ValueError
        If no image can be decoded, or the file named as the cache is none, or one of another layout; or a Dataset's
        item is out of range.
    TypeError
        If a Dataset's item is no image, or its label no integer.
    OSError
        If the cache does not fit on its disk.

    Warns
    -----
    UserWarning
        For every image that cannot be decoded, with its name and the reason, and for a cache that must be made again.
    """
    candidates = _subset(len(source.names), limit, seed)
    cache = None
    if layout is None:
        found = list(_look(source, candidates, workers, advance, None))
    else:
        stamps = [source.stamp(int(index)) for index in candidates]
        cache = open_cache(layout, source, candidates, stamps)
        if cache is None:
            looked = _look(source, candidates, workers, advance, layout)
            cache = write_cache(layout, source, candidates, stamps, looked)
        found = [cache.checked(int(index)) for index in candidates]
    total = hashlib.blake2b(digest_size=16)
    good, corrupt = [], []
    for index, checked in zip(candidates, found, strict=True):
        name = source.names[index]
        if checked.error:
            corrupt.append(name)
            warnings.warn(f"skipped {_shown(name)}: {checked.error}", stacklevel=2)
            continue
        good.append(index)
        total.update(os.fsencode(name) + b"\0" + checked.digest)
    if not good:
        raise ValueError(f"none of the {len(candidates)} images of {source.location} can be decoded")
    labels = [checked.label for checked in found if not checked.error]
    sides = [checked.side for checked in found if not checked.error]
    return ImageData(
        source,
        image_size=0,
        indices=np.array(good, dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        corrupt=corrupt,
        fingerprint=total.hexdigest(),
        side=int(np.median(sides)),
        cache=cache,
    )


def _look(
    source: Source, candidates: np.ndarray, workers: int, advance: Callable[[int], None], layout: CacheLayout | None
) -> Iterator[Checked]:
    for chunk in Loader(_Check(source, candidates, chunk=64, layout=layout), workers):
        yield from chunk
        advance(len(chunk))


def _subset(n_images: int, limit: int | None, seed: int) -> np.ndarray:
    if limit is None or limit >= n_images:
        return np.arange(n_images)
    return np.sort(generator(seed, Stream.SUBSET).permutation(n_images)[:limit])


def _shown(name: str) -> str:
    """Return a name on one line, whatever it holds."""
    return repr(name)[1:-1]


def describe_source(data: ImageData) -> dict[str, Any]:
    """Return what a run remembers of its images, ready for JSON."""
    return {
        "kind": data.source.kind,
        "location": data.source.location,
        "n_images": len(data),
        "n_corrupt": len(data.corrupt),
        "corrupt": data.corrupt,
        "class_names": data.class_names,
        "has_labels": bool((data.labels >= 0).any()),
        "fingerprint": data.fingerprint,
    }


def named_images(
    source: Source, files: Sequence[str] | np.ndarray, labels: np.ndarray, image_size: int, described: dict[str, Any]
) -> ImageData:
    """Return images of a source that were looked at before.

    Parameters
    ----------
    source : Source
    files : sequence of str
        Names of the images that could be decoded, in their order.
    labels : ndarray of int64
        Of these images.
    image_size : int
        Side of `ImageData.eval_image`.
    described : dict
        What `describe_source` returned.

    Raises
    ------
    FileNotFoundError
        If an image is gone.
    """
    where = {name: index for index, name in enumerate(source.names)}
    missing = [name for name in files if name not in where]
    if missing:
        raise FileNotFoundError(f"{len(missing)} images are gone from {source.location}, such as {missing[0]}")
    return ImageData(
        source,
        image_size=image_size,
        indices=np.array([where[name] for name in files], dtype=np.int64),
        labels=labels,
        corrupt=described["corrupt"],
        fingerprint=described["fingerprint"],
    )
