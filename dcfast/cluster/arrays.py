"""Arrays of any library become tensors without a copy; answers return in the kind of the input."""

from __future__ import annotations

import math
import numbers
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_feature_names, _check_sample_weight, validate_data

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NUMPY: dict[torch.dtype, Any] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
# Elements that are looked at at once for the first that is not finite.
_MASK_ELEMENTS = 2**20


def is_foreign(X: Any) -> bool:
    """Whether X is an array of another library than numpy and torch, such as cupy or one of the array API."""
    return hasattr(X, "__dlpack__") and not isinstance(X, (np.ndarray, torch.Tensor))


def from_numpy(array: np.ndarray) -> torch.Tensor:
    """A tensor over the array's memory. Ours is only ever read, so read-only arrays are as good as others."""
    if array.flags.c_contiguous and any(step < 0 or step % array.itemsize for step in array.strides):
        # Where there is one row NumPy does not mind how far the next would be; torch does.
        array = np.ndarray(array.shape, array.dtype, array)
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def as_tensor(array: Any) -> torch.Tensor:
    """Any array, sequence or tensor as a tensor over the same memory where there is one; nothing is checked."""
    if isinstance(array, torch.Tensor):
        return array.detach()
    if is_foreign(array):
        return torch.from_dlpack(array)
    return from_numpy(np.asarray(array))


def square_root(x: torch.Tensor) -> torch.Tensor:
    """Rounded to nearest. torch's own on a CPU is MKL's, which is off in the last place for one double in a hundred."""
    if x.device.type != "cpu":
        return x.sqrt()
    with np.errstate(invalid="ignore"):
        return from_numpy(np.sqrt(x.numpy()))


def as_numbers(array: Any, name: str) -> torch.Tensor:
    """`as_tensor` of real numbers, which sequences of Python's objects and text are read as.

    Raises
    ------
    ValueError
        If they cannot be, or are complex.
    """
    if not isinstance(array, torch.Tensor) and not is_foreign(array):
        array = np.asarray(array)
        try:
            array = array if array.dtype.kind in "fiubc" else array.astype(np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"{name} holds {array.dtype}: expected numbers") from None
    numbers = as_tensor(array)
    if numbers.is_complex():
        raise ValueError(f"Complex data not supported: {name} has dtype {numbers.dtype}")
    return numbers


def as_points(estimator: BaseEstimator, X: Any, *, reset: bool) -> torch.Tensor:
    """Validate `X` of shape (n_samples, n_features) and view it as a floating tensor on its own device.

    Integers and other types become float64, as scikit-learn does. Sets or checks `n_features_in_`, and
    `feature_names_in_` for data frames.

    Raises
    ------
    TypeError
        If `X` is sparse or has no data.
    ValueError
        If `X` is not two-dimensional, too small, complex, of another number of features than in fit, or not finite;
        the message counts the non-finite elements and names the first.
    """
    if is_foreign(X):
        X = torch.from_dlpack(X)
    if not isinstance(X, torch.Tensor):
        array = validate_data(
            estimator,
            X,
            reset=reset,
            dtype=[np.float64, np.float32],
            order="C",
            ensure_all_finite=False,
        )
        points = from_numpy(array)
        check_finite(points, "X")
        return points
    if X.dim() != 2:
        raise ValueError(f"X has shape {tuple(X.shape)}: expected (n_samples, n_features); reshape it")
    if X.shape[0] < 1 or X.shape[1] < 1:
        raise ValueError(f"X has shape {tuple(X.shape)}: expected at least 1 sample(s) and 1 feature")
    check_dense(X)
    X = X.detach().to(float_dtype(X))
    check_features(estimator, X.shape[1], reset)
    check_finite(X, "X")
    return X


def check_dense(X: torch.Tensor) -> None:
    """Raise TypeError for a tensor that is sparse or has no data."""
    if X.layout != torch.strided or X.is_meta:
        raise TypeError(f"X is a {X.layout} tensor on {X.device}: expected a dense one with data; use .to_dense()")


def check_features(estimator: Any, n_features: int, reset: bool) -> None:
    """Set or check `n_features_in_` for rows whose columns have no names: those of an earlier fit are forgotten.

    An estimator without one was not fitted but given its centroids.
    """
    _check_feature_names(estimator, None, reset=reset)
    if reset:
        estimator.n_features_in_ = n_features
    elif n_features != getattr(estimator, "n_features_in_", n_features):
        raise ValueError(
            f"X has {n_features} features, but {type(estimator).__name__} is expecting "
            f"{estimator.n_features_in_} features as input."
        )


def check_finite(x: torch.Tensor, name: str) -> None:
    """Raise ValueError with the number of NaN and infinite elements of `x`, and where the first is."""
    count, first = non_finite(x)
    if count:
        raise ValueError(not_finite(name, count, first))


def non_finite(x: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    """How many elements are NaN or infinite, and the index of the first."""
    # A sum is not finite if an element is not (it may overflow too, hence the second look).
    if math.isfinite(float(x.sum())):
        return 0, ()
    count, first = 0, ()
    rows = max(1, _MASK_ELEMENTS * x.shape[0] // max(1, x.numel()))
    for start in range(0, x.shape[0], rows):
        bad = torch.nonzero(~torch.isfinite(x[start : start + rows]))
        if len(bad) and not count:
            first = (start + int(bad[0, 0]), *bad[0, 1:].tolist())
        count += len(bad)
    return count, first


def not_finite(name: str, count: int, first: tuple[int, ...]) -> str:
    """The message of the ValueError."""
    return f"{name} contains {count} non-finite value(s) (NaN or infinity), the first at {first}: drop or impute them"


def float_dtype(array: torch.Tensor | np.ndarray) -> torch.dtype:
    """The dtype that rows of this array are compared in: float64 unless it is a float that the ops know."""
    if isinstance(array, torch.Tensor):
        if array.is_complex():
            raise ValueError(f"Complex data not supported: X has dtype {array.dtype}")
        return array.dtype if array.dtype in FLOATS else torch.float64
    if array.dtype.kind not in "fiub":
        raise ValueError(f"X has dtype {array.dtype}: expected numbers{' that are real' * (array.dtype.kind == 'c')}")
    # NumPy's float16 is float64 to scikit-learn, hence to us.
    return torch.float32 if array.dtype == np.float32 else torch.float64


def sample_weights(sample_weight: Any, n_samples: int, device: torch.device) -> torch.Tensor | None:
    """The weights as float64 on the device, or None where there are none.

    Raises
    ------
    ValueError
        If their number is not that of the samples, or one is negative or not finite.
    """
    if sample_weight is None:
        return None
    if isinstance(sample_weight, numbers.Real):
        sample_weight = np.full(n_samples, sample_weight, dtype=np.float64)
    # scikit-learn's check wants at least one row.
    if isinstance(sample_weight, torch.Tensor) or is_foreign(sample_weight) or n_samples == 0:
        weight = as_tensor(sample_weight).to(device, torch.float64)
        if weight.shape != (n_samples,):
            raise ValueError(f"sample_weight has shape {tuple(weight.shape)}: expected ({n_samples},)")
        check_finite(weight, "sample_weight")
        if bool((weight < 0).any()):
            raise ValueError("Negative values in data passed to `sample_weight`: weights are 0 or more")
    else:
        rows = np.empty((n_samples, 0))
        # That all are 0 is an error of all ranks' weights, not of one's.
        array = _check_sample_weight(
            sample_weight, rows, dtype=np.float64, ensure_non_negative=True, allow_all_zero_weights=True
        )
        weight = from_numpy(np.ascontiguousarray(array)).to(device)
    return weight


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A numpy array over the tensor's memory, if that is the host's."""
    return tensor.cpu().numpy()


def answer_like(X: Any) -> Callable[[torch.Tensor], Any]:
    """A function that turns a tensor into the kind of array that `X` is.

    An object that has `__dlpack__` but belongs to no namespace with `from_dlpack` is answered by tensors.
    """
    if isinstance(X, torch.Tensor):
        return lambda tensor: tensor
    if not is_foreign(X):
        return to_numpy
    if hasattr(X, "__array_namespace__"):
        return X.__array_namespace__().from_dlpack
    return getattr(sys.modules.get(type(X).__module__.partition(".")[0]), "from_dlpack", lambda tensor: tensor)
