"""numpy, torch and cupy arrays become tensors without a copy; answers return in the kind of the input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_sample_weight, validate_data

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _is_cupy(X: Any) -> bool:
    return type(X).__module__.partition(".")[0] == "cupy"


def from_numpy(array: np.ndarray) -> torch.Tensor:
    """A tensor over the array's memory. Ours is only ever read, so read-only arrays are as good as others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def as_points(estimator: BaseEstimator, X: Any, *, reset: bool, min_rows: int = 1) -> torch.Tensor:
    """Validate `X` of shape (n_samples, n_features) and view it as a floating tensor on its own device.

    Integers and other types become float64, as scikit-learn does. Sets or checks `n_features_in_`, and
    `feature_names_in_` for data frames.

    Raises
    ------
    ValueError
        If `X` is not two-dimensional, too small, of another number of features than in fit, or not finite; the
        message counts the non-finite elements and names the first.
    """
    if _is_cupy(X):
        X = torch.from_dlpack(X)
    if not isinstance(X, torch.Tensor):
        array = validate_data(
            estimator,
            X,
            reset=reset,
            dtype=[np.float64, np.float32],
            order="C",
            ensure_min_samples=min_rows,
            ensure_all_finite=True,
        )
        return from_numpy(array)
    if X.dim() != 2:
        raise ValueError(f"X has shape {tuple(X.shape)}: expected (n_samples, n_features); reshape it")
    if X.shape[0] < min_rows or X.shape[1] < 1:
        raise ValueError(f"X has shape {tuple(X.shape)}: expected at least {min_rows} sample(s) and 1 feature")
    if X.dtype not in FLOATS:
        X = X.double()
    X = X.detach()
    if reset:
        estimator.n_features_in_ = X.shape[1]
    elif X.shape[1] != estimator.n_features_in_:
        raise ValueError(
            f"X has {X.shape[1]} features, but {type(estimator).__name__} is expecting "
            f"{estimator.n_features_in_} features as input."
        )
    check_finite(X, "X")
    return X


def check_finite(x: torch.Tensor, name: str) -> None:
    """Raise ValueError with the number of NaN and infinite elements of `x`, and where the first is."""
    # A sum is not finite if an element is not (it may overflow too, hence the second look).
    if bool(torch.isfinite(x.sum())):
        return
    bad = ~torch.isfinite(x)
    count = int(bad.sum())
    if count:
        first = tuple(torch.nonzero(bad)[0].tolist())
        raise ValueError(
            f"{name} contains {count} non-finite value(s) (NaN or infinity), the first at {first}: drop or impute them"
        )


def sample_weights(sample_weight: Any, X: Any, x: torch.Tensor) -> torch.Tensor | None:
    """The weights as float64 on the device of `x`, or None where there are none.

    Raises
    ------
    ValueError
        If their number is not that of the samples, or one is negative or not finite.
    """
    if sample_weight is None:
        return None
    if isinstance(sample_weight, torch.Tensor) or _is_cupy(sample_weight):
        weight = torch.as_tensor(sample_weight).detach().to(x.device, torch.float64)
        if weight.shape != x.shape[:1]:
            raise ValueError(f"sample_weight has shape {tuple(weight.shape)}: expected ({x.shape[0]},)")
        check_finite(weight, "sample_weight")
        if bool((weight < 0).any()):
            raise ValueError("Negative values in data passed to `sample_weight`: weights are 0 or more")
    else:
        rows = np.empty((x.shape[0], 0))
        array = _check_sample_weight(sample_weight, rows, dtype=np.float64, ensure_non_negative=True)
        weight = from_numpy(np.ascontiguousarray(array)).to(x.device)
    if not bool((weight > 0).any()):
        raise ValueError("Sample weights must contain at least one non-zero number.")
    return weight


def answer_like(X: Any) -> Callable[[torch.Tensor], Any]:
    """A function that turns a tensor into the kind of array that `X` is."""
    if isinstance(X, torch.Tensor):
        return lambda tensor: tensor
    if _is_cupy(X):
        import cupy

        return cupy.from_dlpack
    return lambda tensor: tensor.cpu().numpy()
