"""Loss and gradient by the forward and the backward op, on any device: the definition of the ops that make both."""

from __future__ import annotations

import torch

_ops = torch.ops.dcfast


def weighted_cross_entropy_with_gradient(
    logits: torch.Tensor,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    inputs, options = (logits, target, cluster_sizes), (ignore_index, label_smoothing, reduction)
    loss, statistics, total_weight = _ops.weighted_cross_entropy(*inputs, *options)
    saved = (statistics, total_weight)
    gradient = _ops.weighted_cross_entropy_backward(torch.ones_like(loss), *inputs, *saved, *options)
    return loss, statistics, total_weight, gradient


def weighted_cross_entropy_gradient_(
    logits: torch.Tensor,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    row_gradients: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> torch.Tensor:
    inputs, options = (logits, target, cluster_sizes), (ignore_index, label_smoothing, "none")
    losses, *saved = _ops.weighted_cross_entropy(*inputs, *options)
    logits.copy_(_ops.weighted_cross_entropy_backward(row_gradients.expand(len(logits)), *inputs, *saved, *options))
    return losses
