"""assign, update, a whole iteration, a whole fit, and k-means++: ours against its peers and the device's limits."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dcfast import KMeans, ops

from . import kmeans_peers as peers
from .case import Case, Prepare
from .kmeans_peers import Problem
from .measure import Call, rotation

# Problems, rows, columns, clusters, dtype.
Shape = tuple[int, int, int, int, torch.dtype]
FULL: dict[str, Shape] = {
    "1.28M x 256, k=10,000": (1, 1_280_000, 256, 10_000, torch.float32),
    "1.28M x 256, k=10,000, half": (1, 1_280_000, 256, 10_000, torch.float16),
    "32 x 131,072 x 128, k=1024, half": (32, 131_072, 128, 1024, torch.float16),
    "100k x 256, k=1000": (1, 100_000, 256, 1000, torch.float32),
    "10,000 x 64, k=100": (1, 10_000, 64, 100, torch.float32),
}
SMALL: dict[str, Shape] = {
    "one": (1, 300, 16, 7, torch.float32),
    "batched": (2, 200, 8, 5, torch.float16),
}
_ITERATIONS = 10
# Rows whose labels are compared with those of the definition.
_SAMPLE = 512
# Of a peer: half precision loses near ties, so that labels may differ, but the inertia hardly does.
_PEER = {"inertia above the least": 1e-2}


def make(shape: Shape, device: torch.device) -> Problem:
    """Rows around as many centres as clusters, and centroids as two iterations from random rows leave them."""
    batch, n, d, k, dtype = shape
    generator = torch.Generator(device).manual_seed(0)
    centres = torch.randn(batch, k, d, generator=generator, device=device)
    own = torch.randint(k, (batch, n, 1), generator=generator, device=device).expand(batch, n, d)
    x = (centres.gather(1, own) + torch.randn(batch, n, d, generator=generator, device=device)).to(dtype)
    del own
    c = x[:, :k].clone()
    for _ in range(2):
        c = ops.means(ops.accumulate(x, ops.assign(x, c), k), c)
    return Problem(x, c, ops.assign(x, c))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Without the dimension of problems where there is one: what callers of ours pass."""
    return tensor[0] if tensor.shape[0] == 1 else tensor


def _inertia(problem: Problem, c: torch.Tensor, labels: torch.Tensor) -> float:
    return float(ops.inertia(problem.x, c, labels).sum())


def label_errors(problem: Problem, labels: Any) -> dict[str, float]:
    """Against the definition on a sample of rows, and by the inertia of all."""
    labels = labels.long().view(problem.labels.shape)
    # From first to last, so that every block's and slice's rows are among them.
    sample = torch.linspace(0, problem.x.shape[1] - 1, _SAMPLE, dtype=torch.float64, device=labels.device).long()
    with ops.backend("reference"):
        exact = ops.assign(problem.x[:, sample], problem.c)
    least = _inertia(problem, problem.c, problem.labels)
    return {
        "labels wrong in the sample": int((labels[:, sample] != exact).sum()) / exact.numel(),
        "labels unlike ours": int((labels != problem.labels).sum()) / labels.numel(),
        "inertia above the least": abs(_inertia(problem, problem.c, labels) / least - 1),
    }


def mean_errors(problem: Problem, means: Any) -> dict[str, float]:
    """Against means in double, and by the inertia that is left."""
    wide = problem._replace(x=problem.x.double(), c=problem.c.double())
    batch, _, d = wide.x.shape
    k = wide.c.shape[1]
    at = problem.labels[..., None].expand(wide.x.shape)
    sums = torch.zeros(batch, k, d, dtype=torch.float64, device=at.device).scatter_add_(1, at, wide.x)
    counts = torch.zeros(batch, k, device=at.device).scatter_add_(
        1, problem.labels, torch.ones_like(at[..., 0]).float()
    )
    exact = torch.where(counts[..., None] > 0, sums / counts[..., None], wide.c)
    means = means.view(problem.c.shape)
    return {"error of the means": float((means.double() - exact).norm() / exact.norm())}


def centroid_errors(problem: Problem, centroids: Any) -> dict[str, float]:
    """By the inertia of the centroids that were found, over that of ours after an iteration or a fit as long."""
    c = centroids.to(problem.c).view(problem.c.shape)
    return {"inertia": _inertia(problem, c, ops.assign(problem.x, c))}


def assign(problem: Problem) -> Call:
    x, c = _plain(problem.x), _plain(problem.c)
    return lambda: ops.assign(x, c)


def update(problem: Problem) -> Call:
    x, c, labels = _plain(problem.x), _plain(problem.c), _plain(problem.labels)
    grid = ops.sum_grid(x)  # once per fit
    return lambda: ops.means(ops.accumulate(x, labels, c.shape[-2], grid=grid), c)


def iterate(problem: Problem) -> Call:
    x, c = _plain(problem.x), _plain(problem.c)
    grid = ops.sum_grid(x)
    return lambda: ops.means(ops.accumulate(x, ops.assign(x, c), c.shape[-2], grid=grid), c)


def fit(problem: Problem) -> Call:
    (x,), (c,) = problem.x, problem.c

    def fitted() -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged
            model = KMeans(len(c), init=c, n_init=1, max_iter=_ITERATIONS, tol=0).fit(x)
        return torch.as_tensor(model.cluster_centers_, device=x.device)[None]

    return fitted


def _relative_to(problem: Problem, least: Any, errors: Any) -> Any:
    ours = errors(problem, least)["inertia"]
    return lambda data, output: {"inertia above ours": errors(data, output)["inertia"] / ours - 1}


def _case(
    table: str, name: str, shape: Shape, ours: Prepare, others: Mapping[str, Prepare], data: list[Problem], **rest: Any
) -> Case:
    batch, n, d, k, dtype = shape
    parameters = {"problems": batch, "rows": n, "columns": d, "clusters": k, "dtype": str(dtype).split(".")[1]}
    return Case(table, name, ours, others, data, parameters=parameters, **rest)


def cases(device: torch.device, small: bool) -> Iterator[Case]:
    for name, shape in (SMALL if small else FULL).items():
        batch, n, d, k, dtype = shape
        problem = make(shape, device)
        one_pass = problem.x.nbytes + problem.c.nbytes
        products = 2.0 * batch * n * d * k
        labels = 8.0 * batch * n
        yield _case(
            "assign", name, shape, assign, peers.ASSIGN, [problem],
            operations=products, moved=one_pass + labels, errors=label_errors,
            ours_within={"labels wrong in the sample": 0.0}, peers_within=_PEER, graph=n <= 10_000,
        )  # fmt: skip
        # The rows once: whoever assigns a row could add it up as well.
        after_one = _relative_to(problem, iterate(problem)(), centroid_errors)
        yield _case(
            "iteration", name, shape, iterate, peers.ITERATE, [problem],
            operations=products, moved=one_pass + labels + problem.c.nbytes, errors=after_one,
            ours_within={"inertia above ours": 0.0}, peers_within={"inertia above ours": 1e-2}, graph=n <= 10_000,
        )  # fmt: skip
        copies = [problem._replace(x=problem.x.clone()) for _ in range(rotation(problem.x.nbytes, device) - 1)]
        exact = torch.finfo(dtype).eps
        yield _case(
            "update", name, shape, update, peers.UPDATE, [problem, *copies],
            operations=0.0, moved=one_pass + labels + problem.c.nbytes, errors=mean_errors,
            ours_within={"error of the means": exact}, peers_within={"error of the means": 10 * exact},
        )  # fmt: skip
        del copies
        if batch == 1 and n <= 100_000:
            after_all = _relative_to(problem, fit(problem)(), centroid_errors)
            fits = {who: functools.partial(peer, iterations=_ITERATIONS) for who, peer in peers.FIT.items()}
            yield _case(
                "fit of 10 iterations", name, shape, fit, fits, [problem],
                operations=(_ITERATIONS + 1) * products, moved=(_ITERATIONS + 1) * one_pass, errors=after_all,
                ours_within={"inertia above ours": 0.0}, peers_within={"inertia above ours": 5e-2},
            )  # fmt: skip


def plusplus(problem: Problem) -> Call:
    (x,), k = problem.x, problem.c.shape[1]
    uniform = torch.rand(k - 1, 2 + int(math.log(k)), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return lambda: x[ops.kmeans_plusplus(x, None, 0, uniform)]


def torch_plusplus(problem: Problem) -> Call:
    """Greedy k-means++ with as many trials, in float32 and without a look at the device."""
    (x,), k = problem.x, problem.c.shape[1]
    squares = (x * x).sum(1)
    trials = 2 + int(math.log(k))

    def seeds() -> torch.Tensor:
        def distances(rows: torch.Tensor) -> torch.Tensor:
            return (squares[rows, None] + squares - 2 * (x[rows] @ x.T)).clamp_(min=0)

        chosen = [torch.zeros(1, dtype=torch.int64, device=x.device)]
        potential = distances(chosen[0])[0]
        for _ in range(k - 1):
            cumulative = potential.cumsum(0)
            drawn = torch.rand(trials, device=x.device) * cumulative[-1]
            rows = torch.searchsorted(cumulative, drawn).clamp_(max=len(x) - 1)
            closer = torch.minimum(potential, distances(rows))
            best = closer.sum(1).argmin(0, keepdim=True)
            potential = closer.index_select(0, best)[0]
            chosen.append(rows[best])
        return x[torch.cat(chosen)]

    return seeds


def plusplus_cases(device: torch.device, small: bool) -> Iterator[Case]:
    names = ["one"] if small else ["10,000 x 64, k=100", "100k x 256, k=1000"]
    for name in names:
        shape = (SMALL if small else FULL)[name]
        _, n, d, k, _ = shape
        problem = make(shape, device)
        trials = 2 + int(math.log(k))
        best = _relative_to(problem, plusplus(problem)(), centroid_errors)
        yield _case(
            "k-means++", name, shape, plusplus, {"torch": torch_plusplus}, [problem],
            operations=2.0 * n * d * (k - 1) * trials, moved=float(k * problem.x.nbytes), errors=best,
            ours_within={"inertia above ours": 0.0}, peers_within={"inertia above ours": 0.2},
        )  # fmt: skip
