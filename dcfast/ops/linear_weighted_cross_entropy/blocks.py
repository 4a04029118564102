"""A linear layer and its loss, a block of rows at a time: products by torch, what follows by weighted_cross_entropy.

A block's logits are in memory, and then, in their place, their gradient; nothing else is as large. The gradient needs
three products: the block's logits are made, and multiplied with the weight and with the block's input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from dcfast.ops import _validate
from dcfast.ops._dtypes import wide_dtype

_ops = torch.ops.dcfast

# Logits of a block: on the CPU what the last-level cache holds (16 MiB of float32), on a GPU so many that launches cost
# nothing.
_LOGITS = {"cpu": 2**22, "cuda": 2**26}
# Rows of a block at least, as a share of the columns of the input: each block reads the weight twice and adds to its
# gradient, which is hidden behind the products from some hundreds of rows on. Logits of d / 4 rows take a quarter of
# what the weight does.
_COLUMNS_PER_ROW = 4


def _blocks(input: torch.Tensor, linear_weight: torch.Tensor) -> tuple[list[slice], torch.Tensor]:
    """Ranges of rows, and room for the logits of one of them."""
    (n, d), k = input.shape, len(linear_weight)
    rows = min(n, max(1, _LOGITS[input.device.type] // k, d // _COLUMNS_PER_ROW))
    blocks = [slice(start, min(n, start + rows)) for start in range(0, n, max(1, rows))]
    return blocks, torch.empty(rows, k, dtype=input.dtype, device=input.device)


def _logits(
    input: torch.Tensor, linear_weight: torch.Tensor, linear_bias: torch.Tensor | None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Ranges of rows and their logits, which last until the next ones are asked for."""
    blocks, room = _blocks(input, linear_weight)
    for rows in blocks:
        logits = room[: rows.stop - rows.start]
        if linear_bias is None:
            torch.mm(input[rows], linear_weight.T, out=logits)
        else:
            torch.addmm(linear_bias, input[rows], linear_weight.T, out=logits)
        yield rows, logits


def _wide_sizes(
    input: torch.Tensor, target: torch.Tensor, cluster_sizes: torch.Tensor, ignore_index: int
) -> torch.Tensor:
    if target.device.type == "cpu":
        _validate.class_indices(target, "target", len(cluster_sizes), ignore_index)
    return cluster_sizes.to(wide_dtype(input.dtype))


def linear_weighted_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    linear_bias: torch.Tensor | None,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> torch.Tensor:
    sizes = _wide_sizes(input, target, cluster_sizes, ignore_index)
    losses = sizes.new_empty(len(input))
    options = (ignore_index, label_smoothing, "none")
    # Operands come in the dtype that they are to be multiplied in.
    with torch.autocast(input.device.type, enabled=False):
        for rows, logits in _logits(input, linear_weight, linear_bias):
            losses[rows] = _ops.weighted_cross_entropy(logits, target[rows], sizes, *options)[0]
    return losses


def _add_product(total: torch.Tensor, gradient: torch.Tensor, input: torch.Tensor) -> None:
    """total += gradient.T @ input, where a float32 total takes products that are rounded to half precision.

    Those of several blocks and the rounding of their total come to about one rounding more than a single product has.
    """
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.T, input)
        return
    classes = max(1, gradient.numel() // input.shape[1])  # so that a product takes no more than the gradient
    for part, product in zip(total.split(classes), gradient.T.split(classes), strict=True):
        part += product @ input


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
    sizes = _wide_sizes(input, target, cluster_sizes, ignore_index)
    losses = sizes.new_empty(len(input))
    several = len(_blocks(input, linear_weight)[0]) > 1
    of_sums = sizes.dtype if several else input.dtype
    grad_input = torch.empty(input.shape if wanted[0] else 0, dtype=input.dtype, device=input.device)
    grad_weight = linear_weight.new_zeros(linear_weight.shape if wanted[1] else 0, dtype=of_sums)
    grad_bias = linear_weight.new_zeros(len(linear_weight) if wanted[2] else 0, dtype=sizes.dtype)
    with torch.autocast(input.device.type, enabled=False):
        for rows, logits in _logits(input, linear_weight, linear_bias):
            losses[rows] = _ops.weighted_cross_entropy_gradient_(
                logits, target[rows], sizes, row_gradients[rows], ignore_index, label_smoothing
            )
            if wanted[0]:
                torch.mm(logits, linear_weight, out=grad_input[rows])
            if wanted[1]:
                _add_product(grad_weight, logits, input[rows])
            if wanted[2]:
                grad_bias += logits.sum(0, dtype=sizes.dtype)
    return losses, grad_input, grad_weight.to(input.dtype), grad_bias.to(input.dtype)
