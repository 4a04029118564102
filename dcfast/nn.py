"""Modules over the ops."""

from __future__ import annotations

import torch

from dcfast import ops

__all__ = ["InverseSizeCrossEntropy"]


class InverseSizeCrossEntropy(torch.nn.Module):
    """Cross-entropy in which each class counts the inverse of its cluster's size.

    Over a whole data set it is the mean over the clusters of each cluster's mean loss: minimising it equals sampling
    uniformly over clusters. See `dcfast.ops.weighted_cross_entropy` for the definition, shapes, dtypes and errors.

    Parameters
    ----------
    cluster_sizes : Tensor of shape (k,)
        How many points each cluster has: integers or floats. A buffer: it moves with the module and is saved.
    ignore_index : int, default -100
    label_smoothing : float, default 0.0
    reduction : {'mean', 'sum', 'none'}

    Examples
    --------
    >>> import torch, dcfast
    >>> labels = torch.tensor([0, 0, 0, 1])
    >>> loss = dcfast.nn.InverseSizeCrossEntropy(labels.bincount())
    >>> loss(torch.zeros(4, 2), labels)
    tensor(0.6931)
    """

    cluster_sizes: torch.Tensor

    def __init__(
        self,
        cluster_sizes: torch.Tensor,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.register_buffer("cluster_sizes", cluster_sizes)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ops.weighted_cross_entropy(
            logits, target, self.cluster_sizes, self.ignore_index, self.label_smoothing, self.reduction
        )

    def extra_repr(self) -> str:
        return (
            f"n_clusters={len(self.cluster_sizes)}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"
        )
