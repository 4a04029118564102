"""What an estimator is given, checked, as points in the form that serves it best."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from dcfast.cluster import arrays, sparse
from dcfast.cluster.blocks import Sliced, Streamed
from dcfast.cluster.points import InMemory, Points
from dcfast.cluster.ranks import Ranks
from dcfast.cluster.sphere import OnSphere
from dcfast.cluster.transfer import OnDevice

# Bytes of rows that are converted or read at once unless the caller says otherwise.
DEFAULT_MEMORY = 2**25
# The same where rows pass from the host to a GPU: large copies, and four of them in flight or in buffers.
_STREAM_MEMORY = 2**30
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def open_points(
    estimator: BaseEstimator,
    X: Any,
    *,
    reset: bool,
    sample_weight: Any = None,
    at_least: torch.dtype | None = None,
    max_memory: int | str | None = None,
    spherical: bool = False,
    ranks: Ranks | None = None,
    device: torch.device | str | None = None,
) -> Points:
    """Check `X` and `sample_weight`; sets or checks `n_features_in_`, and `feature_names_in_` for data frames.

    Parameters
    ----------
    X : array, tensor, sparse matrix, memory map, path or callable
        Of shape (n_samples, n_features). A path names a `.npy` file; a callable returns an iterator of 2-D arrays and
        is called once for every pass. Integers and other types become float64, as in scikit-learn.
    sample_weight : array of shape (n_samples,), optional
    at_least : torch.dtype, optional
        Narrower rows are widened to this.
    max_memory : int or str, optional
        Bytes (or such as '512MiB') of rows that are converted or read at once; what fits is converted only once.
        If not given 32 MiB, or half of what is free on a GPU that the rows are not on.
    spherical : bool
        Divide the rows by their norms.
    ranks : Ranks, optional
        Processes that call this with rows of their own: errors are raised on all of them.
    device : torch.device or str, optional
        What works on the rows, if not the device that they are on.

    Raises
    ------
    FileNotFoundError
        If there is no file of that name.
    TypeError
        If `X` is no such thing.
    ValueError
        If `X` is not two-dimensional, too small, of another number of features than in fit, or not finite; the
        message counts the non-finite elements and names the first. If ranks have rows of different kinds.
    """
    ranks = ranks or Ranks()
    with ranks.together():
        memory = parse_memory(max_memory)
        min_rows = 1 if ranks.size == 1 else 0  # the others may have some
        points = _open(estimator, X, reset, min_rows, at_least, min(memory, _STREAM_MEMORY) if device else memory)
        place = points.device if device is None else find_device(device)
        if place != points.device:
            if place.type == "cuda" and max_memory is None:
                memory = torch.cuda.mem_get_info(place)[0] // 2
            points = OnDevice(_in_blocks(points, min(memory, _STREAM_MEMORY)), place)
        points.check_finite()
        if spherical:
            points = points.on_sphere() if isinstance(points, sparse.Sparse) else OnSphere(_in_blocks(points, memory))
        points = _loaded(points, memory)
        points.sample_weight = arrays.sample_weights(sample_weight, points.n_samples, points.device)
    _join(points, ranks)
    if points.total < 1 or points.n_features < 1:
        shape = (points.total, points.n_features)
        raise ValueError(f"X has shape {shape}: expected at least 1 sample(s) and 1 feature")
    if points.sample_weight is not None:
        some = torch.tensor([bool((points.sample_weight > 0).any())], dtype=torch.int64, device="cpu")
        if not int(ranks.sum(some)):
            raise ValueError("Sample weights must contain at least one non-zero number.")
    return points


def find_device(device: torch.device | str) -> torch.device:
    """Return the device with its number; ValueError if it is none, or no GPU is there."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device={device!r} is no device: give 'cpu', 'cuda' or 'cuda:1'") from None
    if found.type == "cpu":
        return found
    if found.type != "cuda":
        raise ValueError(f"device={device!r}: dcfast runs on 'cpu' and 'cuda'")
    if not torch.cuda.is_available():
        raise ValueError(f"device={device!r}, but torch sees no GPU: leave device out")
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


def parse_memory(max_memory: int | str | None) -> int:
    """Bytes: 2**20 and '1MiB' mean the same; None the default."""
    if max_memory is None:
        return DEFAULT_MEMORY
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]i?)?b?\s*", str(max_memory).lower())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise ValueError(f"max_memory={max_memory!r}: expected a number of bytes, or such as '512MiB' or '2GB'")
    return size


def _open(
    estimator: BaseEstimator, X: Any, reset: bool, min_rows: int, at_least: torch.dtype | None, memory: int
) -> Points:
    if isinstance(X, (str, os.PathLike)):
        X = _open_file(X)
    if callable(X):
        streamed = Streamed(X, memory, at_least)
        arrays.check_features(estimator, streamed.n_features, reset)
        return streamed
    if isinstance(X, Iterator):
        raise TypeError("X is an iterator, which can be read only once: pass a function that returns one")
    answer = arrays.answer_like(X)
    if isinstance(X, torch.Tensor):
        arrays.check_dense(X)
    if _needs_no_conversion(estimator, X, reset):
        estimator.n_features_in_ = X.shape[1]
    elif not isinstance(X, (torch.Tensor, np.memmap)) and not arrays.is_foreign(X):
        X = np.asarray(X) if isinstance(X, (list, tuple)) else X  # whose dtype then says what is to be converted
        X = validate_data(
            estimator,
            X,
            reset=reset,
            accept_sparse="csr",
            # Whole numbers are widened block by block; text becomes numbers as in scikit-learn.
            dtype=np.float64 if getattr(getattr(X, "dtype", None), "kind", None) in ("U", "S") else "numeric",
            ensure_min_samples=min_rows,
            ensure_all_finite=False,
        )
    else:
        X = torch.from_dlpack(X) if arrays.is_foreign(X) else X
        if len(X.shape) != 2:
            raise ValueError(f"X has shape {tuple(X.shape)}: expected (n_samples, n_features); reshape it")
        arrays.check_features(estimator, X.shape[1], reset)
    dtype = arrays.float_dtype(X)
    dtype = dtype if at_least is None else torch.promote_types(dtype, at_least)
    is_sparse = scipy.sparse.issparse(X)
    points: Points
    if is_sparse and sparse.pays(X, dtype, memory):
        points = sparse.Sparse(X, dtype, memory)
    elif not is_sparse and not isinstance(X, np.memmap) and _serves(X, dtype):
        points = InMemory(arrays.as_tensor(X))
    else:
        points = Sliced(X, dtype, memory)
    points.answer = answer
    return points


def _open_file(path: str | os.PathLike) -> np.memmap:
    name = os.fspath(path)
    try:
        array = np.load(name, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"X={name!r}: there is no such file; expected the path of a .npy file") from None
    except ValueError as error:
        raise ValueError(f"X={name!r} is no .npy file of numbers ({error}); write it by numpy.save") from None
    if not isinstance(array, np.memmap):
        raise ValueError(f"X={name!r} holds {type(array).__name__}: expected one array, as numpy.save writes")
    return array


def _needs_no_conversion(estimator: Any, X: Any, reset: bool) -> bool:
    """Whether `validate_data` would find nothing to do: in which it takes as long as the labels of 1,000 rows."""
    return (
        type(X) is np.ndarray
        and X.ndim == 2
        and X.dtype in arrays.NUMPY.values()
        and X.size > 0
        and (reset or X.shape[1] == getattr(estimator, "n_features_in_", None))
        and not hasattr(estimator, "feature_names_in_")
    )


def _serves(x: torch.Tensor | np.ndarray, dtype: torch.dtype) -> bool:
    """Whether the kernels can read the rows as they are."""
    if isinstance(x, torch.Tensor):
        # On a GPU they read any strides; on the CPU rows that are not contiguous would be copied in every pass.
        return x.dtype == dtype and (x.device.type != "cpu" or x[:1].is_contiguous())
    step = x.strides[0]
    rows = x[:1].flags
    return (
        x.dtype == arrays.NUMPY.get(dtype)
        and rows.c_contiguous
        and rows.aligned
        and step >= 0
        and step % x.itemsize == 0
    )


def _in_blocks(points: Points, memory: int) -> Points:
    """The same points, of which one block at a time is looked at."""
    if not isinstance(points, InMemory):
        return points
    sliced = Sliced(points.x, points.dtype, memory)
    sliced.answer = points.answer
    return sliced


def _loaded(points: Points, memory: int) -> Points:
    """The same points in memory, where they fit."""
    if points.resident or points.n_samples * points.n_features * points.dtype.itemsize > memory:
        return points
    whole = torch.empty(points.n_samples, points.n_features, dtype=points.dtype, device=points.device)
    for at, rows in points.blocks():
        whole[at] = rows
    loaded = InMemory(whole)
    if not isinstance(points.source, torch.Tensor):
        loaded.source = points.source
    loaded.answer = points.answer
    return loaded


def _join(points: Points, ranks: Ranks) -> None:
    """Let `points` know of the rows of the other ranks."""
    if ranks.size == 1:
        return
    kind = {"n_features": points.n_features, "dtype": str(points.dtype), "weighted": points.sample_weight is not None}
    ranks.agree("rows", kind)
    counts = [int(n) for n in ranks.stack(torch.tensor([points.n_samples], device="cpu"))]
    points.ranks, points.offset, points._total = ranks, sum(counts[: ranks.rank]), sum(counts)
