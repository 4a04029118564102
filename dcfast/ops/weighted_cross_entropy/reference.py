"""Weighted cross-entropy by the definition, in plain torch."""

from __future__ import annotations

import torch

from dcfast.ops import _validate
from dcfast.ops._dtypes import wide_dtype
from dcfast.ops.weighted_cross_entropy.with_gradient import (
    weighted_cross_entropy_gradient_,
    weighted_cross_entropy_with_gradient,
)

__all__ = [
    "inverse_size_weights",
    "weighted_cross_entropy",
    "weighted_cross_entropy_backward",
    "weighted_cross_entropy_gradient_",
    "weighted_cross_entropy_with_gradient",
]


def inverse_size_weights(cluster_sizes: torch.Tensor) -> torch.Tensor:
    sizes = cluster_sizes if cluster_sizes.is_floating_point() else cluster_sizes.float()
    return torch.where(sizes > 0, sizes.reciprocal(), 0.0)


def _prepare(
    logits: torch.Tensor, target: torch.Tensor, cluster_sizes: torch.Tensor, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Wide logits, the weights of all classes and of each row's target, and targets that can be gathered.

    An ignored row weighs 0; a target out of range (on a GPU; a CPU raises) weighs NaN.
    """
    k = logits.shape[1]
    if target.device.type == "cpu":
        _validate.class_indices(target, "target", k, ignore_index)
    wide = wide_dtype(logits.dtype)
    weights = inverse_size_weights(cluster_sizes.to(wide))
    inside = (target >= 0) & (target < k)
    safe = torch.where(inside, target, 0)
    row_weights = torch.where(inside, weights[safe], torch.nan)
    return logits.to(wide), weights, torch.where(target == ignore_index, 0.0, row_weights), safe


def _or_nan(total: torch.Tensor) -> torch.Tensor:
    """Without any weight means are NaN, as in torch, even where label smoothing leaves a loss."""
    return torch.where(total == 0, torch.nan, total)


def weighted_cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, weights, row_weights, safe = _prepare(logits, target, cluster_sizes, ignore_index)
    maxima = x.amax(1)
    log_sums = (x - maxima[:, None]).exp().sum(1).log()
    nll = log_sums[:, None] - (x - maxima[:, None])
    losses = row_weights * nll.gather(1, safe[:, None])[:, 0]
    if label_smoothing > 0:
        smooth = (nll * weights).sum(1) * (label_smoothing / x.shape[1])
        losses = (1 - label_smoothing) * losses + smooth
    ignored = target == ignore_index
    losses = torch.where(ignored, 0.0, losses)
    total = row_weights.sum()
    loss = losses if reduction == "none" else losses.sum()
    loss = loss / _or_nan(total) if reduction == "mean" else loss
    return loss, torch.where(ignored, 0.0, torch.stack((maxima, log_sums))), total


def weighted_cross_entropy_backward(
    grad: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    statistics: torch.Tensor,
    total_weight: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> torch.Tensor:
    x, weights, row_weights, safe = _prepare(logits, target, cluster_sizes, ignore_index)
    softmax = ((x - statistics[0][:, None]) - statistics[1][:, None]).exp()
    gradient = softmax * row_weights[:, None]
    gradient.scatter_add_(1, safe[:, None], -row_weights[:, None])
    if label_smoothing > 0:
        smooth = (softmax * weights.sum() - weights) * (label_smoothing / x.shape[1])
        gradient = (1 - label_smoothing) * gradient + smooth
    rows = (grad / _or_nan(total_weight) if reduction == "mean" else grad).expand(x.shape[0])
    gradient = torch.where((target == ignore_index)[:, None], 0.0, gradient * rows[:, None])
    return gradient.to(logits.dtype)
