"""Who else assigns, updates and fits on a GPU, each through the functions that its own loop calls.

Inputs are batched, x (B, N, d) and c (B, k, d); a `Prepare` imports its package, so that a missing one is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from .case import Missing
from .measure import Call

# Rows whose scores torch holds at a time.
_ROWS = 2**16


class Problem(NamedTuple):
    """Rows, centroids to start from, and the rows' own labels."""

    x: torch.Tensor
    c: torch.Tensor
    labels: torch.Tensor


def _on_gpu(problem: Problem) -> None:
    if not problem.x.is_cuda:
        raise Missing("runs on CUDA tensors only")


def _nearest(rows: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return ((c * c).sum(1) / 2 - rows @ c.T).argmin(1)


def _torch_labels(problem: Problem, nearest: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    n = problem.x.shape[1]
    step = -(-n // -(-n // _ROWS))  # parts of one size: one compilation
    parts = [nearest(rows, c) for x, c in zip(problem.x, problem.c, strict=True) for rows in x.split(step)]
    return torch.cat(parts).view(problem.x.shape[:2])


def _torch_means(problem: Problem, labels: torch.Tensor) -> torch.Tensor:
    batch, n, d = problem.x.shape
    k = problem.c.shape[1]
    at = (labels + k * torch.arange(batch, device=labels.device)[:, None]).flatten()
    sums = torch.zeros(batch * k, d, device=at.device).index_add_(0, at, problem.x.reshape(-1, d).float())
    counts = torch.zeros(batch * k, device=at.device).index_add_(0, at, torch.ones(batch * n, device=at.device))
    means = (sums / counts[:, None]).to(problem.c.dtype).view_as(problem.c)
    return torch.where((counts > 0).view(batch, k, 1), means, problem.c)


def torch_assign(problem: Problem) -> Call:
    return lambda: _torch_labels(problem, _nearest)


def compiled_assign(problem: Problem) -> Call:
    nearest = torch.compile(_nearest, dynamic=False)
    return lambda: _torch_labels(problem, nearest)


def torch_update(problem: Problem) -> Call:
    return lambda: _torch_means(problem, problem.labels)


def torch_iterate(problem: Problem) -> Call:
    return lambda: _torch_means(problem, _torch_labels(problem, _nearest))


def flash_kmeans_assign(problem: Problem) -> Call:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    _on_gpu(problem)
    squares = torch.linalg.vector_norm(problem.x, dim=2, dtype=torch.float32).square()
    return lambda: euclid_assign_triton(problem.x, problem.c, squares)


def flash_kmeans_update(problem: Problem) -> Call:
    from flash_kmeans.centroid_update_triton import triton_centroid_update_sorted_euclid

    _on_gpu(problem)
    labels = problem.labels.int()
    return lambda: triton_centroid_update_sorted_euclid(problem.x, labels, problem.c)


def flash_kmeans_iterate(problem: Problem) -> Call:
    from flash_kmeans.centroid_update_triton import triton_centroid_update_sorted_euclid

    assign = flash_kmeans_assign(problem)
    return lambda: triton_centroid_update_sorted_euclid(problem.x, assign(), problem.c)


def flashlib_assign(problem: Problem) -> Call:
    from flashlib.primitives.kmeans import euclid_assign_triton

    _on_gpu(problem)
    return lambda: euclid_assign_triton(problem.x, problem.c)


def flashlib_update(problem: Problem) -> Call:
    from flashlib.primitives.kmeans import triton_lloyd_centroid_step_euclid

    _on_gpu(problem)
    labels = problem.labels.int()
    return lambda: triton_lloyd_centroid_step_euclid(problem.x, labels, problem.c)[0]


def flashlib_iterate(problem: Problem) -> Call:
    from flashlib.primitives.kmeans import triton_lloyd_centroid_step_euclid

    assign = flashlib_assign(problem)
    return lambda: triton_lloyd_centroid_step_euclid(problem.x, assign(), problem.c)[0]


def flashlib_cutedsl_assign(problem: Problem) -> Call:
    import cutlass  # noqa: F401  (without it flashlib would take another backend)
    from flashlib.primitives.kmeans import cutedsl_assign_euclid

    if problem.x.shape[0] != 1 or problem.x.dtype == torch.float32:
        raise Missing("takes one problem of float16 or bfloat16")
    return lambda: cutedsl_assign_euclid(problem.x, problem.c)


def fastkmeans_assign(problem: Problem) -> Call:
    from fastkmeans.triton_kernels import triton_kmeans

    _on_gpu(problem)
    if problem.x.shape[0] != 1:
        raise Missing("takes one problem at a time")
    (x,), (c,) = problem.x, problem.c
    squares = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).square().half()

    def assign() -> torch.Tensor:
        labels = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        half = c.half()
        for at in range(0, x.shape[0], 51_200):  # FastKMeans's chunk, converted as its loop does
            rows = slice(at, at + 51_200)
            triton_kmeans(x[rows].half(), squares[rows], half, (half * half).sum(1), labels[rows])
        return labels

    return assign


def flash_kmeans_fit(problem: Problem, iterations: int) -> Call:
    from flash_kmeans.kmeans_triton_impl import batch_kmeans_Euclid  # the package itself may hand out another one

    _on_gpu(problem)
    k = problem.c.shape[1]
    return lambda: batch_kmeans_Euclid(problem.x, k, max_iters=iterations, tol=-1.0, init_centroids=problem.c)[1]


def flashlib_fit(problem: Problem, iterations: int) -> Call:
    from flashlib import flash_kmeans

    _on_gpu(problem)
    k = problem.c.shape[1]
    return lambda: flash_kmeans(problem.x, k, max_iters=iterations, tol=-1.0, init_centroids=problem.c)[1]


def fastkmeans_fit(problem: Problem, iterations: int) -> Call:
    """From a start of its own, and from host memory: it takes NumPy arrays only."""
    from fastkmeans import FastKMeans

    _on_gpu(problem)
    (x,), (c,) = problem.x.float().cpu().numpy(), problem.c

    def fit() -> torch.Tensor:
        model = FastKMeans(x.shape[1], len(c), niter=iterations, tol=-1.0, device="cuda")
        model.train(x)
        return torch.from_numpy(model.centroids)[None].to(c)

    return fit


ASSIGN = {
    "torch": torch_assign,
    "torch.compile": compiled_assign,
    "flash-kmeans": flash_kmeans_assign,
    "flashlib (Triton)": flashlib_assign,
    "flashlib (CuTe)": flashlib_cutedsl_assign,
    "fastkmeans": fastkmeans_assign,
}
UPDATE = {"torch": torch_update, "flash-kmeans": flash_kmeans_update, "flashlib (Triton)": flashlib_update}
ITERATE = {"torch": torch_iterate, "flash-kmeans": flash_kmeans_iterate, "flashlib (Triton)": flashlib_iterate}
FIT = {"flash-kmeans": flash_kmeans_fit, "flashlib": flashlib_fit, "fastkmeans": fastkmeans_fit}
