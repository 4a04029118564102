"""The change of exact sums when rows change clusters, by `accumulate`, on any device: the definition of the op."""

from __future__ import annotations

import torch

from dcfast.ops.accumulate.grid import carry_


def accumulate_moves(
    words: torch.Tensor,
    counts: torch.Tensor,
    x: torch.Tensor,
    labels: torch.Tensor,
    previous: torch.Tensor,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
) -> None:
    k, n_words = words.shape[:2]
    stays = labels == previous
    for sign, cluster in ((1, labels), (-1, previous)):
        moved = cluster.masked_fill(stays, -1)
        more, members = torch.ops.dcfast.accumulate(x, moved, k, sample_weight, low, n_words)
        words += sign * more
        counts += sign * members
    carry_(words)
