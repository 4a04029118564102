"""Flat indices as bytes and in files, in the format of faiss: either library reads what the other wrote."""

from __future__ import annotations

import os
import struct
from typing import Any

import numpy as np

from dcfast.faiss.index import IndexFlatL2
from dcfast.faiss.inner_product import IndexFlatIP

_KINDS: dict[bytes, type[IndexFlatL2]] = {b"IxF2": IndexFlatL2, b"IxFI": IndexFlatIP}
# Kind, dimension, number of vectors, twice what nobody reads, whether trained, metric, number of elements that follow.
_HEADER = struct.Struct("<4siqqq?iQ")
_UNREAD = 2**20


def write_index(index: IndexFlatL2, fname: str | os.PathLike) -> None:
    """Write an `IndexFlatL2` or `IndexFlatIP`, which faiss reads too, to the file `fname`.

    Raises
    ------
    TypeError
        If `index` is of another kind.
    """
    header, vectors = _parts(index)
    with open(fname, "wb") as file:
        file.write(header)
        vectors.tofile(file)


def read_index(fname: str | os.PathLike) -> IndexFlatL2:
    """The flat index in the file `fname`, which faiss may have written.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds another index, or not all of it.
    """
    return _index(np.fromfile(fname, np.uint8), f"fname={os.fspath(fname)!r}")


def serialize_index(index: IndexFlatL2) -> np.ndarray:
    """What `write_index` writes, as an array of uint8."""
    header, vectors = _parts(index)
    return np.concatenate([np.frombuffer(header, np.uint8), vectors.ravel().view(np.uint8)])


def deserialize_index(data: Any) -> IndexFlatL2:
    """The index that `serialize_index` made `data` of; ValueError for anything else."""
    return _index(np.asarray(data, np.uint8).ravel(), "data")


def _parts(index: IndexFlatL2) -> tuple[bytes, np.ndarray]:
    if not isinstance(index, IndexFlatL2):
        raise TypeError(f"index is a {type(index).__name__}: expected an IndexFlatL2 or an IndexFlatIP")
    kind = next(kind for kind, known in _KINDS.items() if known.metric_type == index.metric_type)
    vectors = index.reconstruct_n()
    return _HEADER.pack(kind, index.d, len(vectors), _UNREAD, _UNREAD, True, index.metric_type, vectors.size), vectors


def _index(data: np.ndarray, name: str) -> IndexFlatL2:
    begin, rest = data[: _HEADER.size].tobytes(), data[_HEADER.size :].copy()
    if begin[:4] not in _KINDS:
        raise ValueError(f"{name} begins with {begin[:4]!r}: it holds none of faiss's flat indices")
    kind, d, n, *_, size = _HEADER.unpack(begin.ljust(_HEADER.size, b"\xff"))  # which no size agrees with
    if min(d, n) < 0 or not size == n * d == rest.size / 4:
        raise ValueError(f"{name} has {data.size} bytes, not those of the index that it begins with")
    index = _KINDS[kind](d)
    index.add(rest.view(np.float32).reshape(n, d))
    return index
