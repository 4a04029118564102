"""A linear classifier, trained by SGD in whichever of two equivalent forms is the cheaper."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from dcfast.deepcluster.keyed import Stream, generator

__all__ = ["MOMENTUM", "accuracy", "fit_linear"]

MOMENTUM = 0.9

_ACCURACY_ROWS = 4_096


def fit_linear(
    features: Tensor,
    labels: np.ndarray,
    n_classes: int,
    *,
    epochs: int = 90,
    lr: float = 0.01,
    batch_size: int = 256,
    weight_decay: float = 1e-4,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> nn.Linear:
    """Train a linear classifier with cross-entropy by SGD with momentum 0.9, from zero.

    Parameters
    ----------
    features : Tensor of shape (N, d), float32
        On the CPU; batches of it go to ``device``. Used as they are: the protocol does not standardise them.
    labels : ndarray of int64, shape (N,)
        In 0..n_classes-1.
    n_classes : int
        Outputs.
    epochs, lr, batch_size, weight_decay
        Of SGD; step t runs at ``lr / sqrt(1 + lr * weight_decay * t)``.
    seed : int
        Key of the order of the images, which is drawn anew for every epoch.
    device : device or str
        Where to train.

    Returns
    -------
    nn.Linear
        d inputs, ``n_classes`` outputs, on ``device``.

    Raises
    ------
    FloatingPointError
        If the weights are no longer finite.

    Notes
    -----
    From zero, SGD never leaves the span of the rows: weight = a @ features for an (n_classes, N) matrix a, which
    obeys the same recursion with the slopes of the batch's logits as gradient. Where N < d the steps are therefore
    taken on a, with logits from the rows' inner products: the same trajectory for O(N) instead of O(d) per image,
    class and epoch, once O(N^2 d) is paid.
    """
    n_rows, width = features.shape
    dual = n_rows < width
    held = features.to(device) if dual else features
    inputs = held @ held.T if dual else features
    # One row per class: products of this shape are several times faster than with one column per class.
    weight = torch.zeros(n_classes, inputs.shape[1], device=device)
    bias = torch.zeros(n_classes, 1, device=device)
    momenta = torch.zeros_like(weight), torch.zeros_like(bias)
    goal = nn.functional.one_hot(torch.from_numpy(labels), n_classes).T.to(device)
    step = 0
    for epoch in range(epochs):
        order = torch.from_numpy(generator(seed, Stream.PROBE, epoch + 1).permutation(n_rows))
        for rows in order.split(batch_size):
            batch = inputs.index_select(0, rows.to(inputs.device)).to(device)
            rows = rows.to(device)
            # The gradient of the mean cross-entropy with respect to the logits.
            slope = (weight @ batch.T).add_(bias).softmax(0).sub_(goal.index_select(1, rows)).div_(len(rows))
            spread = torch.zeros_like(weight).index_copy_(1, rows, slope) if dual else slope @ batch
            rate = lr / math.sqrt(1 + lr * weight_decay * step)
            gradients = spread, slope.sum(1, keepdim=True)
            for parameter, momentum, gradient in zip((weight, bias), momenta, gradients, strict=True):
                momentum.mul_(MOMENTUM).add_(gradient).add_(parameter, alpha=weight_decay)
                parameter.sub_(momentum, alpha=rate)
            step += 1
    classifier = nn.Linear(width, n_classes, device="meta").to_empty(device=device).requires_grad_(False)
    classifier.weight.copy_(weight @ held if dual else weight)
    classifier.bias.copy_(bias[:, 0])
    if not torch.isfinite(classifier.weight).all():
        raise FloatingPointError(f"a linear classifier diverged at lr={lr:g}: lower --lr")
    return classifier


def accuracy(classifier: nn.Linear, features: Tensor, labels: np.ndarray) -> float:
    """Return the share of the rows, (N, d) on the CPU, whose class the classifier names; O(N d n_classes) time."""
    device = classifier.weight.device
    targets = torch.from_numpy(labels)
    right = 0
    with torch.inference_mode():
        for rows, target in zip(features.split(_ACCURACY_ROWS), targets.split(_ACCURACY_ROWS), strict=True):
            right += int((classifier(rows.to(device)).argmax(1).cpu() == target).sum())
    return right / len(features)
