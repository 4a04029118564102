"""Fits that tests/test_hard_inputs.py runs in other processes too, which can import what lies in this folder."""

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from dcfast import KMeans, ops


def bits(model):
    """All that a fit found, to the bit."""
    return (
        np.asarray(model.cluster_centers_).tobytes(),
        np.asarray(model.labels_).tobytes(),
        model.inertia_,
        model.n_iter_,
    )


def fit(X, k, weight=None, **arguments):
    arguments = {"n_init": 1, "random_state": 0, "max_iter": 6, "tol": 0, **arguments}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(k, **arguments).fit(X, sample_weight=weight)


def fit_large(seed):
    """So many rows that torch's own operations are parallel too."""
    X = np.random.RandomState(seed).standard_normal((60000, 16)).astype(np.float32)
    return bits(fit(X, 8, max_iter=3))


def flush_denormals():
    torch.set_num_threads(2)
    # The threads are made by torch here, and so in its mode; those of a pool that ours made would be in IEEE's.
    torch.set_flush_denormal(True)
    torch.ones(10**6).exp_()


def fit_denormals():
    def rows(n, seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(2**21, (n, 40), generator=generator, dtype=torch.int32).view(torch.float32)

    x, c, new = rows(400, 0), rows(120, 1), rows(120, 2)
    new[::3] = c[::3]
    labels = ops.assign(x, c)
    moved = torch.empty_like(labels)
    ops.reassign(x, new, c, labels, ops.distance_bounds(*x.shape, x.device), moved)
    return labels.tolist(), moved.tolist(), bits(fit(x, 20))
