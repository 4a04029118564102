"""Where images come from: the embedded digits, a folder, any torch Dataset; and the check that all of them decode."""

from __future__ import annotations

import hashlib
import operator
import os
import reprlib
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dcfast.deepcluster.cache import CachedImages, CacheLayout, Checked, Stamp, open_cache, write_cache
from dcfast.deepcluster.crops import centre_box, resized
from dcfast.deepcluster.keyed import Stream, generator
from dcfast.deepcluster.loader import Loader

__all__ = [
    "DatasetSource",
    "DigitsSource",
    "FolderSource",
    "ImageData",
    "Source",
    "Unreadable",
    "check_images",
    "describe_source",
    "open_source",
]

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
NO_LABEL = -1

# What Pillow raises for files that are truncated, mislabelled, hostile or no images at all.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)

# Values of white in pictures whose pixels are not bytes.
_WHITES = (1, 255, 65535)


class Unreadable(OSError):
    """An image that cannot be decoded; the message says why, not which."""


@contextmanager
def _decoding() -> Iterator[None]:
    try:
        yield
    except DECODE_ERRORS as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error


class Source(Protocol):
    """A numbered collection of images, before anybody has looked whether they decode.

    ``item(i)`` returns the RGB image and its label, -1 where it has none; it raises `Unreadable` for an image that
    cannot be decoded. ``stamp(i)`` changes where the image or its label does; None if only decoding tells.
    """

    kind: str
    location: str
    names: Sequence[str]
    class_names: list[str]

    def item(self, index: int) -> tuple[Image.Image, int]: ...

    def stamp(self, index: int) -> Stamp: ...


class DigitsSource:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, embedded in its package."""

    kind = "digits"
    location = "digits"

    def __init__(self) -> None:
        bunch = load_digits()
        self._pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
        self._labels = bunch.target
        self.names: Sequence[str] = [f"digit-{index:04d}" for index in range(len(self._pixels))]
        self.class_names = [str(name) for name in bunch.target_names]

    def item(self, index: int) -> tuple[Image.Image, int]:
        """Return image ``index`` and the digit that it shows."""
        return Image.fromarray(self._pixels[index]).convert("RGB"), int(self._labels[index])

    def stamp(self, index: int) -> Stamp:
        """Return None."""
        return None


class FolderSource:
    """The images under a folder, sorted by name.

    One sub-folder per class gives labels (the layout of torchvision's ImageFolder); images that lie in the folder
    itself make it flat, and have none. Labels are only ever reported. Links are followed, and every folder counts once:
    by the path of the fewest folders, the first of them in alphabetical order. Pixels are taken as the file stores
    them, like torchvision does: an orientation in its EXIF data is ignored.

    Parameters
    ----------
    root : str or path
        The folder.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist or holds no image.
    NotADirectoryError
        If it is a file.
    """

    kind = "folder"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = Path(root).expanduser().resolve()
        self.location = str(self._root)
        if not self._root.exists():
            raise FileNotFoundError(f"no folder {self._root}: give a folder of images, or 'digits'")
        if not self._root.is_dir():
            raise NotADirectoryError(f"{self._root} is a file: give the folder that holds the images")
        self.names: Sequence[str] = sorted(self._find())
        if not self.names:
            raise FileNotFoundError(f"no images in {self._root}: looked for {', '.join(sorted(EXTENSIONS))}")
        flat = any("/" not in name for name in self.names)
        classes = [] if flat else sorted({name.split("/", 1)[0] for name in self.names})
        self.class_names: list[str] = classes
        self._class_index = {name: index for index, name in enumerate(classes)}

    def _find(self) -> list[str]:
        found, seen, waiting = [], set(), deque([self._root])
        while waiting:
            folder = waiting.popleft()
            status = folder.stat()
            # A link may lead to a folder above it, or to one that other paths reach too.
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            _, folders, files = next(os.walk(folder), ("", [], []))  # a folder that may not be read holds nothing
            waiting.extend(folder / name for name in sorted(folders) if not name.startswith("."))
            for name in files:
                if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                    found.append((folder / name).relative_to(self._root).as_posix())
        return found

    def item(self, index: int) -> tuple[Image.Image, int]:
        """Decode image ``index``."""
        name = self.names[index]
        with warnings.catch_warnings(), _decoding():
            # Pillow warns of odd metadata in files that it reads well; what it cannot read, it raises for.
            warnings.simplefilter("ignore")
            with Image.open(self._root / name) as image:
                return _to_rgb(image), self._label(name)

    def stamp(self, index: int) -> Stamp:
        """Return the size and the time of the last change of the file, and the label."""
        name = self.names[index]
        try:
            status = os.stat(self._root / name)
        except OSError:  # such as a link that leads nowhere: decoding it fails, which is recorded
            return 0, 0, self._label(name)
        return status.st_size, status.st_mtime_ns, self._label(name)

    def _label(self, name: str) -> int:
        return self._class_index[name.split("/", 1)[0]] if self._class_index else NO_LABEL


class DatasetSource:
    """A torch Dataset that yields an image, or an image and its label.

    An image is a PIL image, a uint8 array (H, W), (H, W, 1) or (H, W, 3), or a tensor (C, H, W) with one or three
    channels, uint8 or floating in 0..1. Labels are integers; negative ones and None mean "unknown".
    """

    kind = "dataset"

    def __init__(self, dataset: torch.utils.data.Dataset[Any]) -> None:
        try:
            self._length = len(dataset)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(
                f"dataset must have a length and be indexed, got {type(dataset).__name__}: "
                "wrap an iterable data set in a list first"
            ) from None
        if not self._length:
            raise ValueError("the dataset is empty")
        self.dataset = dataset
        self.location = type(dataset).__name__
        self.names: Sequence[str] = [f"{index:08d}" for index in range(self._length)]
        self.class_names = [str(name) for name in getattr(dataset, "classes", [])]

    def item(self, index: int) -> tuple[Image.Image, int]:
        """Fetch item ``index`` and turn its image into an RGB one.

        Raises
        ------
        Unreadable
            If the data set fails to decode it.
        TypeError, ValueError
            If the item is no image, or none whose range of values is known, or its label is no integer.
        """
        with _decoding():
            item = self.dataset[index]
        what = f"item {index} of the dataset {self.location}"
        image, label = (*item[:2], None)[:2] if isinstance(item, tuple | list) and item else (item, None)
        try:
            number = NO_LABEL if label is None else max(NO_LABEL, operator.index(label))
        except TypeError:
            raise TypeError(
                f"the label of {what} is {_described(label)}: give the number of its class, or None where it is unknown"
            ) from None
        return _to_image(image, what), number

    def stamp(self, index: int) -> Stamp:
        """Return None: a data set may yield anything."""
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return the image with a byte per colour.

    Pillow's own conversion cuts wide greys off at 255. Those of 16 bits keep the upper 8; whole numbers of 32 bits and
    floats do not say which value is white: it is the least of 1, 255 and 65,535 that none of the image's exceeds.
    """
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image.convert("RGB")
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= _WHITES[-1]:
        raise ValueError(f"its greys go from {low:g} to {high:g}: scale them to 0..1, 0..255 or 0..65535")
    # Of 32 bits are also the images that Pillow makes of portable greymaps with 16.
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    white = _WHITES[-1] if deep else next(white for white in _WHITES if high <= white)
    grey = values // 256 if white == _WHITES[-1] else np.rint(values * (255 / white))
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _to_image(item: object, what: str) -> Image.Image:
    if isinstance(item, Image.Image):
        with _decoding():  # Pillow reads a file's pixels when they are asked for
            return _to_rgb(item)
    pixels = item
    if isinstance(item, torch.Tensor):
        if item.ndim != 3 or item.shape[0] not in (1, 3) or not item.numel():
            raise TypeError(f"{what} is {_described(item)}: an image tensor must be (1, H, W) or (3, H, W)")
        if item.is_floating_point():
            low, high = (float(value) for value in item.aminmax())
            # Scaling with antialiasing and back may leave the range by a rounding: less than half a byte's step.
            if not -1 / 510 < low <= high < 1 + 1 / 510:
                raise ValueError(
                    f"{what} is a floating tensor with values from {low:g} to {high:g}, not in 0..1: divide by 255, or "
                    "leave normalisation out, which is the network's"
                )
            item = (item.clamp(0, 1) * 255).round().to(torch.uint8)
        pixels = item.permute(1, 2, 0).cpu().numpy()
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8:
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3):
            return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    raise TypeError(
        f"{what} is {_described(item)}: a dataset must yield PIL images, uint8 arrays (H, W[, 3]) or tensors (C, H, W) "
        "of uint8 or floats in 0..1, alone or with a label"
    )


def _described(value: Any) -> str:
    """Say in a few words what a value is that was not expected."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{type(value).__name__} of {value.dtype} {tuple(value.shape)}"
    return f"{type(value).__name__} {' '.join(reprlib.repr(value).split())}"


def open_source(data: str | os.PathLike[str] | torch.utils.data.Dataset[Any]) -> Source:
    """Return the source that ``data`` names: 'digits', a folder, or a torch Dataset."""
    if isinstance(data, str) and data == "digits":
        return DigitsSource()
    if isinstance(data, str | os.PathLike):
        return FolderSource(data)
    return DatasetSource(data)


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
