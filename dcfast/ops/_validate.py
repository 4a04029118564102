"""Checks that several ops share; each error names the argument, its value and the remedy."""

from __future__ import annotations

import torch

# Exponents beyond which float64 data is refused: products and squares would overflow or lose bits.
_MAX_EXPONENT = 480
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def points(x: torch.Tensor, name: str) -> None:
    """`x` is (N, d) or (B, N, d), d >= 1, of a floating dtype."""
    floats(x, name)
    if x.dim() not in (2, 3):
        raise ValueError(f"{name} has shape {tuple(x.shape)}: expected (N, d) or (B, N, d)")
    if x.shape[-1] == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: its rows have no elements")


def floats(x: torch.Tensor, name: str) -> None:
    """`x` has a floating dtype."""
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {x.dtype}: expected float32, float64, float16 or bfloat16; use .float()")


def points_like(other: torch.Tensor, name: str, x: torch.Tensor) -> None:
    """`other` holds rows that can be compared with those of `x`: same d, batch, dtype and device."""
    if other.dtype != x.dtype:
        raise ValueError(f"{name} has dtype {other.dtype} and x {x.dtype}: convert one to the other's dtype")
    same_device(other, name, x)
    if other.dim() != x.dim() or other.shape[-1] != x.shape[-1] or other.shape[:-2] != x.shape[:-2]:
        raise ValueError(
            f"{name} has shape {tuple(other.shape)} and x {tuple(x.shape)}: expected the same number of columns, "
            "and of problems if batched"
        )


def same_device(other: torch.Tensor, name: str, x: torch.Tensor, x_name: str = "x") -> None:
    """`other` lives where `x` does."""
    if other.device != x.device:
        raise ValueError(f"{name} is on {other.device} and {x_name} on {x.device}: move them to one device")


def integers(x: torch.Tensor, name: str, shape: tuple[int, ...] | torch.Size) -> None:
    """`x` is int64 of that shape."""
    if x.dtype != torch.int64:
        raise TypeError(f"{name} has dtype {x.dtype}: expected int64; use .long()")
    if x.shape != shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: expected {tuple(shape)}")


def sums(words: torch.Tensor, counts: torch.Tensor) -> None:
    """`words` (k, n_words, d) and `counts` (k,) can be added to in place."""
    for name, value in (("words", words), ("counts", counts)):
        if not value.is_contiguous():
            raise ValueError(f"{name} has strides {value.stride()}: it is changed in place; pass a contiguous tensor")
    if words.dim() != 3:
        raise ValueError(f"words has shape {tuple(words.shape)}: expected (k, n_words, d)")
    integers(words, "words", words.shape)
    integers(counts, "counts", words.shape[:1])


def exact_range(lowest: int, highest: int) -> None:
    """Elements of magnitudes 2^lowest to 2^highest have exact sums."""
    if highest > _MAX_EXPONENT or lowest < -_MAX_EXPONENT:
        raise ValueError(
            f"x (times sample_weight) has elements of magnitude 2^{highest} or 2^{lowest}: sums are exact between "
            f"2^-{_MAX_EXPONENT} and 2^{_MAX_EXPONENT}; rescale the data"
        )


def class_indices(target: torch.Tensor, name: str, n_classes: int, ignore_index: int) -> None:
    """Every value of `target`, on the CPU, is a class or `ignore_index`."""
    if target.numel() == 0:
        return
    low, high = target.aminmax()
    if low >= 0 and high < n_classes:
        return
    outside = (target != ignore_index) & ((target < 0) | (target >= n_classes))
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"{name}[{row}] is {int(target[row])}: expected 0 to {n_classes - 1}, or ignore_index={ignore_index}"
        )


def cluster_sizes(sizes: torch.Tensor) -> None:
    """`sizes` is (k,), integers or floats."""
    if sizes.dim() != 1:
        raise ValueError(f"cluster_sizes has shape {tuple(sizes.shape)}: expected (k,)")
    if sizes.dtype == torch.bool or sizes.is_complex():
        raise TypeError(f"cluster_sizes has dtype {sizes.dtype}: expected integers or floats")


def weighted_classes(
    target: torch.Tensor,
    sizes: torch.Tensor,
    x: torch.Tensor,
    name: str,
    n_classes: int,
    what: str,
    label_smoothing: float,
) -> None:
    """Targets of the rows of `x` and sizes of the classes, one per `what`, that go with one another."""
    integers(target, "target", x.shape[:1])
    same_device(target, "target", x, name)
    cluster_sizes(sizes)
    if sizes.shape != (n_classes,):
        raise ValueError(f"cluster_sizes has shape {tuple(sizes.shape)}: expected ({n_classes},), one per {what}")
    same_device(sizes, "cluster_sizes", x, name)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}: expected 0.0 to 1.0")


def row_weights(
    weight: torch.Tensor | None,
    shape: tuple[int, ...] | torch.Size,
    x: torch.Tensor,
    x_name: str = "x",
    *,
    name: str = "sample_weight",
) -> None:
    """`weight`, if there is any, is float64, one for every row, and lives where `x` does."""
    if weight is None:
        return
    if weight.dtype != torch.float64:
        raise TypeError(f"{name} has dtype {weight.dtype}: expected float64; use .double()")
    if weight.shape != shape:
        raise ValueError(f"{name} has shape {tuple(weight.shape)}: expected {tuple(shape)}")
    same_device(weight, name, x, x_name)


_REDUCTIONS = ("mean", "sum", "none")


def reduction(name: str) -> None:
    """`name` is one of torch's reductions."""
    if name not in _REDUCTIONS:
        raise ValueError(f"reduction is {name!r}: choose one of {_REDUCTIONS}")
