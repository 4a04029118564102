"""The loss of clusterings by which neighbours share a cluster, and its gradient."""

from __future__ import annotations

import math

import torch

from dcfast.cluster.neighbours import BLOCK_BYTES


def pair_loss(log_p: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
    """Return minus the mean pointwise mutual information of rows and their neighbours.

    With p_i the probabilities of row i and m their mean over all rows, the mean over all pairs of neighbours (i, j) of

        -log(sum_c p_ic p_jc / m_c)

    Parameters
    ----------
    log_p : Tensor of shape (n, k)
        Logarithms of the probabilities.
    neighbours : Tensor of shape (n, n_neighbors), int64
        Rows of `log_p`.

    Returns
    -------
    Tensor of shape (), float64
        At least -log(k); 0 where all rows have the same probabilities.
    """
    n, k = log_p.shape
    log_m = log_p.logsumexp(0) - math.log(n)
    total = torch.zeros((), dtype=torch.float64, device=log_p.device)
    step = max(1, BLOCK_BYTES // (log_p.element_size() * k * neighbours.shape[1]))
    for own, others in zip(log_p.split(step), neighbours.split(step), strict=True):
        total -= (own[:, None] + log_p[others]).sub_(log_m).logsumexp(2).double().sum()
    return total / neighbours.numel()


def pair_gradient(logits: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a mean loss of pairs, the probabilities' mean m being that of both rows of all pairs.

    The loss is that of `pair_loss` but for an exponent, -log(sum_c (p_ic p_jc)^beta / m_c): the smaller it is, the less
    do certain probabilities gain. At 0.5 all equal ones are as good.

    Parameters
    ----------
    logits : Tensor of shape (n_heads, k, 2, n_pairs)
        Of the two rows of every pair, for each of several heads. In this order a softmax takes whole vectors of pairs:
        with ten clusters it is six times as fast as along the last axis.
    beta : Tensor of shape (n_heads, 1, 1, 1)
        From 0.5 to 1.

    Returns
    -------
    Tensor of the shape of `logits`
        Each head's is that of its own loss.

    Notes
    -----
    With r the share of each cluster in the sum, R its mean over the pairs and q = p / m it is

        (beta (p - r) + (q R - p <q, R>) / 2) / n_pairs

    the second part being that of m. All is computed from logarithms: a cluster that no row has any probability of
    keeps a finite q, and a share r from which it can grow again.
    """
    n_pairs = logits.shape[3]
    log_p = logits.log_softmax(1)
    log_m = log_p.logsumexp((2, 3), keepdim=True) - math.log(2 * n_pairs)
    p, q = log_p.exp(), (log_p - log_m).exp()
    r = ((log_p[:, :, :1] + log_p[:, :, 1:]).mul_(beta) - log_m).softmax(1)
    qr = q.mul_(r.mean(3, keepdim=True))
    return (p - r).mul_(beta).add_(qr - p * qr.sum(1, keepdim=True), alpha=0.5).div_(n_pairs)
