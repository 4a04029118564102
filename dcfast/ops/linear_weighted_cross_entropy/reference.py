"""The definition: a linear layer, and the loss of all its logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_ops = torch.ops.dcfast


def linear_weighted_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    linear_bias: torch.Tensor | None,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> torch.Tensor:
    with torch.autocast(input.device.type, enabled=False):
        logits = torch.nn.functional.linear(input, linear_weight, linear_bias)
    return _ops.weighted_cross_entropy(logits, target, cluster_sizes, ignore_index, label_smoothing, "none")[0]


def linear_weighted_cross_entropy_gradient(
    row_gradients: torch.Tensor,
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    linear_bias: torch.Tensor | None,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    wanted: Sequence[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch.autocast(input.device.type, enabled=False):
        gradient = torch.nn.functional.linear(input, linear_weight, linear_bias)
        losses = _ops.weighted_cross_entropy_gradient_(
            gradient, target, cluster_sizes, row_gradients, ignore_index, label_smoothing
        )
        none = input.new_empty(0)
        grad_input = gradient @ linear_weight if wanted[0] else none
        grad_weight = gradient.T @ input if wanted[1] else none.clone()
        grad_bias = gradient.sum(0) if wanted[2] else none.clone()
    return losses, grad_input, grad_weight, grad_bias
