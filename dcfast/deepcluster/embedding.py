"""The folder of an embedding: features of images, which images they are of, and what made them."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dcfast._files import replacing
from dcfast.deepcluster.data import ImageData, named_images
from dcfast.deepcluster.rundir import decoded
from dcfast.deepcluster.sources import NO_LABEL, open_source

__all__ = ["DESCRIPTION", "FEATURES", "IMAGES", "Embedding", "new_files", "open_embedding"]

FEATURES, IMAGES, DESCRIPTION = "features.npy", "images.npz", "embedding.json"

_REMEDY = "make it again with dcfast embed --overwrite"
_DTYPES = (np.float16, np.float32, np.float64)  # in the machine's byte order, which torch needs
_ROWS = 65_536  # looked at at a time


@dataclass(frozen=True)
class Embedding:
    """Features of N images, and what is known of the images.

    Attributes
    ----------
    path : Path
        The folder, or the file of the features alone.
    features : ndarray of shape (N, d), float16, float32 or float64
        Mapped from the file; changing them does not change it.
    files : ndarray of str, shape (N,)
        Names of the images; of a file alone, the numbers of its rows.
    labels : ndarray of int64, shape (N,)
        Negative where unknown.
    description : dict or None
        'weights', 'network', 'image_size', 'precision', 'data' and 'versions'; None for a file alone.
    """

    path: Path
    features: np.ndarray
    files: np.ndarray
    labels: np.ndarray
    description: dict[str, Any] | None

    def images(self) -> ImageData:
        """Return the images, of 'digits' or a folder.

        Raises
        ------
        FileNotFoundError, NotADirectoryError
            If they are gone.
        ValueError
            If they are unknown: the features are a file alone, or of a torch Dataset.
        """
        if self.description is None:
            raise ValueError(f"{self.path} does not say which images it is of")
        data = self.description["data"]
        if data["kind"] == "dataset":
            raise ValueError(f"the images of {self.path} are of a torch Dataset ({data['location']})")
        source = open_source(data["location"])
        return named_images(source, self.files, self.labels, self.description["image_size"], data)


def open_embedding(path: str | os.PathLike[str]) -> Embedding:
    """Open what ``dcfast embed`` wrote, or a file of features.

    Parameters
    ----------
    path : str or path
        The folder; or an ``.npy`` file with an array of shape (N, d), float16, float32 or float64.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or the folder holds no embedding.
    ValueError
        If a file is damaged, the array has another shape or type, or it holds what is not finite.
    """
    path = Path(path)
    if not path.is_dir():
        features = _mapped(path)
        files = np.array([f"{row:08d}" for row in range(len(features))], dtype=np.str_)
        return Embedding(path, features, files, np.full(len(features), NO_LABEL), None)
    if not (path / DESCRIPTION).exists():
        raise FileNotFoundError(f"{path} holds no embedding: there is no {DESCRIPTION} in it")
    features = _mapped(path / FEATURES)
    description = decoded(path / DESCRIPTION, _description, _REMEDY)
    files, labels = decoded(path / IMAGES, _images, _REMEDY)
    if not len(features) == len(files) == len(labels):
        raise ValueError(f"{path} holds {len(features)} features of {len(files)} images: {_REMEDY}")
    return Embedding(path, features, files, labels, description)


def _mapped(path: Path) -> np.ndarray:
    if not path.exists():
        raise FileNotFoundError(f"no features {path}: give the folder of dcfast embed, or an .npy file")
    try:
        features = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no .npy file of numbers, or is damaged ({error})") from error
    if not isinstance(features, np.ndarray) or features.ndim != 2 or not features.size:
        shape = features.shape if isinstance(features, np.ndarray) else "an archive"
        raise ValueError(f"{path} must hold an array of shape (images, features), got {shape}")
    if features.dtype not in _DTYPES:
        raise ValueError(
            f"{path} must hold features of float16, float32 or float64, got {features.dtype}: convert them to float32"
        )
    for start in range(0, len(features), _ROWS):
        finite = np.isfinite(features[start : start + _ROWS]).all(axis=1)
        if not finite.all():
            raise ValueError(f"{path} is of no use: row {start + int(finite.argmin())} is not finite")
    return features


def _description(content: bytes) -> dict[str, Any]:
    found = json.loads(content)
    for key in ("kind", "location", "corrupt", "fingerprint"):
        found["data"][key]
    for key in ("image_size", "weights", "network"):
        found[key]
    return found


def _images(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return arrays["files"], arrays["label"]


@contextlib.contextmanager
def new_files(
    folder: str | os.PathLike[str], names: Sequence[str], overwrite: bool = False
) -> Iterator[list[BinaryIO]]:
    """Open files of a folder for writing, made if it is missing: in the end all of them are there, or none.

    After an error, Ctrl-C included, files of these names are as they were, and a folder made here is gone.

    Raises
    ------
    FileExistsError
        If there is one already, and ``overwrite`` is off.
    NotADirectoryError
        If the folder is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: choose another --output")
    found = [name for name in names if (folder / name).exists()]
    if found and not overwrite:
        raise FileExistsError(
            f"{folder} already holds {found[0]}: choose another --output, or replace it with --overwrite"
        )
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(replacing(folder / name)) for name in names]
    except BaseException:
        if made:
            with contextlib.suppress(OSError):  # something else has been put into it
                folder.rmdir()
        raise
