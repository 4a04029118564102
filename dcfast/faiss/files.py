"""Flat indices and PCA as bytes and in files, in the format of faiss: either library reads what the other wrote."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from dcfast._files import replace
from dcfast.faiss.index import IndexFlatL2, flat
from dcfast.faiss.inner_product import IndexFlatIP
from dcfast.faiss.pca import PCAMatrix

_KINDS: dict[bytes, type[IndexFlatL2]] = {b"IxF2": IndexFlatL2, b"IxFI": IndexFlatIP}
# Kind, dimension, number of vectors, twice what nobody reads, whether trained, metric, number of elements that follow.
_HEADER = struct.Struct("<4siqqq?iQ")
_UNREAD = 2**20
# A PCAMatrix: eigen_power, epsilon, random_rotation, balanced_bins; mean, eigenvalues and all eigenvectors, each after
# its number of elements; whether there is a b; A and b in the same way; d_in, d_out, whether trained.
_PCA = b"Pcam"
_PCA_OPTIONS, _PCA_SHAPE = "<ff?i", "<ii?"


def write_index(index: IndexFlatL2, fname: str | os.PathLike) -> None:
    """Write an `IndexFlatL2` or `IndexFlatIP`, which faiss reads too, to the file `fname`.

    A file of that name is replaced once the new one, ``fname.partial`` until then, is whole. Indices of a GPU are
    written as those of the CPU.

    Raises
    ------
    TypeError
        If `index` is of another kind.
    OSError
        If the file cannot be written: it is as it was, and nothing else is left.
    """
    _write(fname, *_parts(index))


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


def write_VectorTransform(vt: PCAMatrix, fname: str | os.PathLike) -> None:
    """Write a trained `PCAMatrix`, which faiss reads too, to the file `fname`, as `write_index` writes.

    Notes
    -----
    The transform is rounded to float32, as faiss has it. All eigenvectors, of which faiss makes the transform anew
    where someone changes eigen_power or epsilon, are not written.

    Raises
    ------
    TypeError
        If `vt` is no PCAMatrix.
    ValueError
        If it is not trained.
    OSError
        As `write_index`.
    """
    if not isinstance(vt, PCAMatrix):
        raise TypeError(f"vt is a {type(vt).__name__}: expected a PCAMatrix")
    vt._check_trained()
    mean, eigenvalues, A, b = (vector._items for vector in (vt.mean, vt.eigenvalues, vt.A, vt.b))
    head = _PCA + struct.pack(_PCA_OPTIONS, vt.eigen_power, vt.epsilon, vt.random_rotation, 0)
    eigenvectors = np.empty(0, np.float32)
    vectors = b"".join(map(_packed, (mean, eigenvalues, eigenvectors)))
    transform = struct.pack("<?", True) + _packed(A) + _packed(b)
    _write(fname, head, vectors, transform, struct.pack(_PCA_SHAPE, vt.d_in, vt.d_out, True))


def read_VectorTransform(fname: str | os.PathLike) -> PCAMatrix:
    """The `PCAMatrix` in the file `fname`, which faiss may have written.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds another transform, not all of it, or one with NaN or infinity.
    """
    data, name = Path(fname).read_bytes(), f"fname={os.fspath(fname)!r}"
    if data[:4] != _PCA:
        raise ValueError(f"{name} begins with {data[:4]!r}: it holds no PCAMatrix as faiss writes it")
    at = len(_PCA)

    def take(format: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from(format, data, at)
        at += struct.calcsize(format)
        return values

    def vector() -> np.ndarray:
        nonlocal at
        (size,) = take("<Q")
        values = np.frombuffer(data, "<f4", size, at).astype(np.float32)
        at += values.nbytes
        return values

    try:
        eigen_power, epsilon, random_rotation, balanced_bins = take(_PCA_OPTIONS)
        mean, eigenvalues, _ = vector(), vector(), vector()
        (has_bias,) = take("<?")
        A, b = vector(), vector()
        d_in, d_out, is_trained = take(_PCA_SHAPE)
        pca = PCAMatrix(d_in, d_out, eigen_power, random_rotation)
    except (struct.error, ValueError, OverflowError):
        raise ValueError(f"{name} has {len(data)} bytes, not those of the PCAMatrix that it begins with") from None
    pca.epsilon = epsilon
    if not is_trained and at == len(data):
        return pca
    sizes = (mean.size, eigenvalues.size, A.size, b.size, at)
    if sizes != (d_in, d_in, d_out * d_in, d_out, len(data)) or balanced_bins or not has_bias:
        raise ValueError(f"{name} holds a PCAMatrix of other parts than those of PCAMatrix({d_in}, {d_out})")
    if not all(np.isfinite(vector).all() for vector in (mean, eigenvalues, A, b)):
        raise ValueError(f"{name} holds a PCAMatrix with NaN or infinity: train it without, say with a larger epsilon")
    A = A.reshape(d_out, d_in).astype(np.float64)
    if (np.abs(b + A @ mean) > 1e-3 * (np.abs(A) @ np.abs(mean))).any():  # of b only the rounding is its own
        raise ValueError(f"{name} holds a PCAMatrix whose A x + b is not A (x - mean), the only transform here")
    pca._restore(mean, eigenvalues, A)
    return pca


def _packed(vector: np.ndarray) -> bytes:
    return struct.pack("<Q", vector.size) + vector.astype("<f4").tobytes()


def _write(fname: str | os.PathLike, *parts: Any) -> None:
    path = Path(fname)
    if path.exists() and not path.is_file():  # a pipe or a device, which no file is to replace
        with path.open("wb") as file:
            for part in parts:
                file.write(part)
    else:
        replace(path.resolve(), *parts)


def _parts(index: IndexFlatL2) -> tuple[bytes, np.ndarray]:
    kind = next(kind for kind, known in _KINDS.items() if known.metric_type == flat(index).metric_type)
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
