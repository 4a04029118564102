"""Where images come from: the embedded digits, a folder, any torch Dataset."""

from __future__ import annotations

import operator
import os
import reprlib
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

__all__ = ["DatasetSource", "DigitsSource", "FolderSource", "Source", "Stamp", "Unreadable", "open_source"]

# Bytes, time of the last change in nanoseconds, and label of the file that an image comes from; None for an image of
# which only decoding tells whether it changed.
Stamp = tuple[int, int, int] | None

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
