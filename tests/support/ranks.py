"""Fits that several processes make together; run by torchrun, every process writes what it found.

torchrun --standalone --nproc-per-node 2 tests/support/ranks.py FOLDER
"""

import contextlib
import datetime
import io
import itertools
import os
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
import torch.distributed as dist

from dcfast import KMeans, PCAWhiten
from dcfast.cluster import sparse

N, D = 160, 5


def rows(kind="wide", dtype=np.float32, n=N):
    random = np.random.RandomState(0)
    if kind == "lattice":
        return random.randint(0, 3, (n, D)).astype(dtype)
    X = random.randn(n, D) * np.exp2(random.randint(-12, 12, (n, 1)))
    X[random.rand(n, D) < 0.2] = -0.0
    return X.astype(dtype)


WEIGHT = np.random.RandomState(1).rand(N) * (np.random.RandomState(2).rand(N) < 0.8)
FAR = np.concatenate([rows()[:3], np.full((6, D), 1e7, np.float32)])  # six clusters that begin empty

# name: (rows, sample_weight, arguments)
FITS = {
    "k-means++": (rows(), None, {"init": "k-means++", "n_clusters": 9}),
    "k-means++ float64 weighted": (rows(dtype=np.float64), WEIGHT, {"init": "k-means++", "n_clusters": 9}),
    "k-means++ of ties": (rows("lattice"), None, {"init": "k-means++", "n_clusters": 30}),
    "k-means++ of equal rows": (np.ones((N, 2)), None, {"init": "k-means++", "n_clusters": 4}),
    "random weighted": (rows(), WEIGHT, {"init": "random", "n_clusters": 7, "n_init": 3}),
    "weights of the first rank alone": (rows(), WEIGHT * (np.arange(N) < N // 4), {"n_clusters": 5}),
    "random tol": (rows(dtype=np.float64), None, {"init": "random", "n_clusters": 5, "tol": 0.1, "max_iter": 50}),
    "array": (rows(), None, {"init": rows()[:6], "n_clusters": 6, "max_iter": 50, "tol": 0}),
    "farthest": (rows(), WEIGHT, {"init": FAR, "n_clusters": 9, "max_iter": 2}),
    "farthest of ties": (rows("lattice"), None, {"init": FAR, "n_clusters": 9, "max_iter": 1}),
    "split": (rows(), WEIGHT, {"init": FAR, "n_clusters": 9, "empty": "split"}),
    "keep": (rows(), None, {"init": FAR, "n_clusters": 9, "empty": "keep"}),
    "spherical": (rows(), WEIGHT, {"n_clusters": 9, "spherical": True, "early_stop_threshold": 0.3}),
    "bfloat16": (torch.from_numpy(rows()).bfloat16(), None, {"init": "k-means++", "n_clusters": 4}),
    "verbose": (rows(), None, {"init": "random", "n_clusters": 4, "verbose": 1}),
}


def sparse_rows(x):
    """The rows in CSR, and they stay so however few and dense they are."""
    sparse._FEW_ELEMENTS, sparse._LARGEST_DENSITY = 0, 1.0
    return scipy.sparse.csr_array(x)


# How the rows are shared, and where each rank has its own from.
SHARES = {
    "evenly": (lambda size: [N // size] * size, lambda x: x),
    "unevenly": (lambda size: [N - 3 * (size - 1)] + [3] * (size - 1), lambda x: x),
    "some have none": (lambda size: [0] * (size - 1) + [N], lambda x: x),
    "in chunks": (
        lambda size: [5 * r + 7 for r in range(size - 1)] + [None],
        lambda x: lambda: iter(np.array_split(x, 4)),
    ),
    "sparse": (lambda size: [30] * (size - 1) + [None], sparse_rows),
}


def cuts(counts):
    counts = [N - sum(c for c in counts if c is not None) if count is None else count for count in counts]
    return [0, *itertools.accumulate(counts)]


def cases():
    for name in FITS:
        yield "evenly", name
    for share in SHARES:
        if share != "evenly":
            yield from ((share, name) for name in ("k-means++ float64 weighted", "random tol", "farthest of ties"))


def fit(X, weight, arguments, **more):
    """What a fit found, as bits; the labels apart."""
    seen = []
    output = io.StringIO()
    arguments = {"max_iter": 4, "n_init": 1, "random_state": 3, **arguments, **more}
    with warnings.catch_warnings(), contextlib.redirect_stdout(output):
        warnings.simplefilter("ignore")
        model = KMeans(callback=lambda *step: seen.append(step), **arguments).fit(X, sample_weight=weight)
    centers = torch.as_tensor(model.cluster_centers_).double().numpy().tobytes()
    found = {"centers": centers, "inertia": model.inertia_, "n_iter": model.n_iter_, "steps": seen}
    return found, np.asarray(model.labels_), output.getvalue()


# Blocks of rows that every rank but the last has, by the number of ranks; the trees of sums meet in all of these ways.
BLOCKS = {2: (3,), 4: (1, 4, 2)}


def whitened(X, **arguments):
    """The bits of PCA, and of the rows after it."""
    pca = PCAWhiten(4, **arguments).fit(X)
    return pca.n_samples_seen_, pca.mean_.tobytes(), pca.components_.tobytes(), pca.explained_variance_.tobytes()


def tall():
    return np.repeat(rows(n=1024), 9, axis=0)[:-500] + np.arange(9 * 1024 - 500, dtype=np.float32)[:, None] % 7


class BreaksLater:
    """Chunks that can be read twice and no more."""

    def __init__(self, X):
        self.X, self.passes = X, 0

    def __call__(self):
        self.passes += 1
        if self.passes > 2:
            raise OSError(f"disk of {len(self.X)} rows is gone")
        return iter([self.X])


def failing(name, rank):
    """A fit that must fail on every rank, for something that the last of them has."""
    X, last = rows()[rank * 40 : rank * 40 + 40], rank == dist.get_world_size() - 1
    arguments, weight = (
        {"n_clusters": 3, "n_init": 1, "random_state": 0, "process_group": True, "max_memory": 100},
        None,
    )
    if name == "not finite" and last:
        X[7, 2] = np.nan
    elif name == "features" and last:
        X = X[:, :3]
    elif name == "dtype" and last:
        X = X.astype(np.float64)
    elif name == "weights" and last:
        weight = np.ones(len(X))
    elif name == "negative" and last:
        weight = -np.ones(len(X))
    elif name == "no weight":
        weight = np.zeros(len(X))
    elif name == "parameters" and last:
        arguments["n_clusters"] = 4
    elif name == "too few":
        arguments["n_clusters"] = 1000
    elif name == "init" and last:
        arguments["init"] = X[:2]
    elif name == "init":
        arguments["init"] = X[:3]
    elif name == "callable":
        arguments["init"] = lambda X, k, random_state: X[:k]
    elif name == "later" and last:
        X = BreaksLater(X)
    elif name == "callback":

        def callback(iteration, moved):
            if last and iteration == 2:
                raise KeyError("a wish")

        arguments["callback"] = callback
    KMeans(**arguments).fit(X, sample_weight=weight)


FAILURES = {
    "not finite": (ValueError, "X contains 1 non-finite"),
    "features": (ValueError, "the ranks' rows differ"),
    "dtype": (ValueError, "the ranks' rows differ"),
    "weights": (ValueError, "the ranks' rows differ"),
    "negative": (ValueError, "Negative values"),
    "no weight": (ValueError, "at least one non-zero"),
    "parameters": (ValueError, "the ranks' parameters differ"),
    "too few": (ValueError, "should be >= n_clusters=1000"),
    "init": (ValueError, "does not match the number of clusters 3"),
    "callable": (ValueError, "init is callable"),
    "later": (OSError, "disk of 40 rows is gone"),
    "callback": (KeyError, "a wish"),
}


def main(folder):
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank, size = dist.get_rank(), dist.get_world_size()
    found = {}
    for share, name in cases():
        X, weight, arguments = FITS[name]
        counts, source = SHARES[share]
        bounds = cuts(counts(size))
        own = slice(bounds[rank], bounds[rank + 1])
        # Of the seeds and the arrays that start a fit, those of rank 0 count.
        other = {} if rank == 0 else {"random_state": np.random.RandomState(100 + rank)}
        if rank and not isinstance(arguments.get("init", ""), str):
            other["init"] = arguments["init"] + 1
        group = dist.group.WORLD if share == "evenly" else True
        part = None if weight is None else weight[own]
        found[share, name] = fit(source(X[own]), part, arguments, process_group=group, max_memory=2500, **other)
    bounds = [0, *itertools.accumulate(1024 * n for n in BLOCKS[size]), None]
    X = tall()[bounds[rank] : bounds[rank + 1]]
    found["whitened"] = whitened(X, process_group=True)
    chunks = PCAWhiten(4, process_group=True).fit(iter(np.array_split(X, 5)), first_row=bounds[rank])
    found["whitened chunks"] = chunks.components_.tobytes()
    for name in FAILURES:
        try:
            failing(name, rank)
        except Exception as error:
            found[name] = type(error), str(error), getattr(error, "__notes__", [])
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()
    # Threads of torch may outlive the group and, once in a hundred runs, abort a process whose interpreter is ending.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
