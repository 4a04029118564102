"""Many k-means problems at once: what `KMeans` does with X of shape (B, N, d), or (total, d) and offsets."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from dcfast import ops
from dcfast.cluster import arrays
from dcfast.cluster.init import local_trials
from dcfast.cluster.inputs import open_points
from dcfast.cluster.lloyd import lloyd
from dcfast.cluster.points import InMemory


class Problems(NamedTuple):
    """The rows of B problems, one after the other.

    Attributes
    ----------
    points : InMemory
        (total, d), and their weights.
    offsets : Tensor of shape (B + 1,), int64
        Problem b has the rows offsets[b] to offsets[b + 1].
    shape : tuple of int
        That of the labels: (B, N) or (total,).
    """

    points: InMemory
    offsets: torch.Tensor
    shape: tuple[int, ...]

    @property
    def n_problems(self) -> int:
        return self.offsets.shape[0] - 1

    @property
    def sizes(self) -> torch.Tensor:
        return self.offsets.diff()

    def alone(self, b: int) -> InMemory:
        """One problem."""
        at = slice(int(self.offsets[b]), int(self.offsets[b + 1]))
        points = InMemory(self.points.x[at])
        points.sample_weight, points.answer = self.points.weight(at), self.points.answer
        return points

    def are_small(self, n_clusters: int) -> bool:
        """Whether they are better off with a thread each than with all threads in turn."""
        return self.points.is_small(n_clusters, n_problems=self.n_problems, n_samples=int(self.sizes.max()))


def is_batch(X: Any, offsets: Any) -> bool:
    """Whether these are many problems and not one."""
    return offsets is not None or len(getattr(X, "shape", ())) == 3


def open_problems(
    estimator: Any, X: Any, offsets: Any, sample_weight: Any, *, reset: bool, at_least: torch.dtype | None = None
) -> Problems:
    """Check them, as `open_points` does."""
    shape = tuple(getattr(X, "shape", ()))
    if offsets is None:
        if 0 in shape[:2]:
            raise ValueError(f"X has shape {shape}: expected at least one problem of one sample")
        cuts = torch.arange(shape[0] + 1, device="cpu") * shape[1]
        X = arrays.as_tensor(X).flatten(0, 1) if arrays.is_foreign(X) else X.reshape(shape[0] * shape[1], shape[2])
        if sample_weight is not None:
            weight = arrays.as_tensor(sample_weight)
            if tuple(weight.shape) != shape[:2]:
                raise ValueError(f"sample_weight has shape {tuple(weight.shape)}: expected {shape[:2]}")
            sample_weight = weight.reshape(-1)
        shape = shape[:2]
    else:
        if len(shape) == 3:
            raise ValueError(f"X has shape {shape} and there are offsets: they cut rows of shape (total, n_features)")
        cuts = arrays.as_tensor(offsets).cpu()
        if cuts.dtype.is_floating_point or cuts.dim() != 1 or cuts.shape[0] < 2:
            raise ValueError(f"offsets is {cuts.dtype} {tuple(cuts.shape)}: expected integers, one more than problems")
        cuts = cuts.long()
    memory = estimator.max_memory
    points = open_points(estimator, X, reset=reset, sample_weight=sample_weight, at_least=at_least, max_memory=memory)
    if not isinstance(points, InMemory):
        raise TypeError(f"X is {type(X).__name__}: batched problems are read from memory; pass an array or a tensor")
    if points.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"X has dtype {points.dtype}: batched problems are float32 or float64; use .float()")
    if offsets is not None:
        shape = (points.n_samples,)
        if int(cuts[0]) != 0 or int(cuts[-1]) != points.n_samples or bool((cuts.diff() < 1).any()):
            raise ValueError(
                f"offsets must rise from 0 to the {points.n_samples} rows of X, by at least 1 each time: it goes from "
                f"{int(cuts[0])} to {int(cuts[-1])}, and {int((cuts.diff() < 1).sum())} of its steps are below 1"
            )
    return Problems(points, cuts, shape)


def fit(estimator: Any, X: Any, offsets: Any, sample_weight: Any) -> None:
    """Set the fitted attributes of `estimator`, a `KMeans`."""
    problems = open_problems(estimator, X, offsets, sample_weight, reset=True)
    points, k = problems.points, estimator.n_clusters
    smallest = int(problems.sizes.argmin())
    if int(problems.sizes[smallest]) < k:
        raise ValueError(
            f"n_samples={int(problems.sizes[smallest])} of problem {smallest} should be >= n_clusters={k}."
        )
    if estimator.device is not None:
        raise ValueError("device is given: batched problems are solved where they are, without it; move X there")
    if estimator.process_group is not None:
        raise ValueError("process_group is given: every process fits batched problems of its own, without it")
    if estimator.callback is not None:
        raise ValueError("callback is given: it is told of the iterations of one problem; fit batched ones without it")
    if estimator.spherical or estimator.early_stop_threshold is not None:
        raise ValueError("spherical and early_stop_threshold are for one problem: fit batched ones without them")
    n_init = estimator._number_of_starts()
    # Problem b is what an estimator of its own with random_state=seeds[b] would find.
    random_state = check_random_state(estimator.random_state)
    seeds = torch.from_numpy(random_state.randint(np.iinfo(np.int32).max, size=problems.n_problems, dtype=np.int64))
    split_seed = (ops.draw_rows(seeds, problems.offsets, 0, n_uniform=1)[1][:, 0, 0] * 2.0**53).long()
    starts = _starts(estimator, problems, seeds, n_init)
    best = None
    for run in range(n_init):
        found = _run(
            problems,
            starts[run],
            estimator.max_iter,
            estimator.tol,
            estimator.empty,
            split_seed.to(points.device) + run,
        )
        best = found if best is None else _better(problems, best, found)
    assert best is not None
    if estimator.verbose:
        total = float(ops.exact_sum(best.inertia))
        print(f"{problems.n_problems} problems: inertia {total}, at most {int(best.n_iter.max())} iterations.")
    _warn_of_few(problems, best.labels, k)
    estimator.cluster_centers_ = points.answer(best.centroids)
    estimator.labels_ = points.answer(best.labels.int().view(problems.shape))
    estimator.inertia_ = points.answer(best.inertia)
    estimator.n_iter_ = points.answer(best.n_iter)
    estimator._n_features_out = k


def compare(estimator: Any, X: Any, offsets: Any, sample_weight: Any = None) -> tuple[Problems, torch.Tensor, ops.Runs]:
    """X as problems, the centroids in its dtype and on its device, and the labels and inertia of X."""
    centroids = arrays.as_tensor(estimator.cluster_centers_)
    if not is_batch(X, offsets):
        raise ValueError(
            f"X is one problem, but {type(estimator).__name__} was fitted to {centroids.shape[0]}: pass X of shape "
            f"({centroids.shape[0]}, n_samples, n_features), or offsets"
        )
    problems = open_problems(estimator, X, offsets, sample_weight, reset=False, at_least=centroids.dtype)
    if problems.n_problems != centroids.shape[0]:
        raise ValueError(
            f"X has {problems.n_problems} problems, but {type(estimator).__name__} was fitted to {centroids.shape[0]}"
        )
    centroids = centroids.to(problems.points.device, problems.points.dtype)
    seed = torch.zeros(problems.n_problems, dtype=torch.int64, device=centroids.device)
    return problems, centroids, _run(problems, centroids, 0, 0.0, "keep", seed)


def predict(estimator: Any, X: Any, offsets: Any) -> Any:
    """The labels of X: (B, N) or (total,) int32."""
    problems, _, found = compare(estimator, X, offsets)
    return problems.points.answer(found.labels.int().view(problems.shape))


def score(estimator: Any, X: Any, offsets: Any, sample_weight: Any) -> Any:
    """The negative inertia of every problem: (B,) float64."""
    problems, _, found = compare(estimator, X, offsets, sample_weight)
    return problems.points.answer(-found.inertia)


def transform(estimator: Any, X: Any, offsets: Any) -> Any:
    """Distances to the centroids of the own problem: (B, N, k) or (total, k)."""
    problems, centroids, _ = compare(estimator, X, offsets)
    x, mode = problems.points.x, "donot_use_mm_for_euclid_dist"
    if len(problems.shape) == 2:
        return problems.points.answer(torch.cdist(x.view(*problems.shape, -1), centroids, compute_mode=mode))
    parts = x.split(problems.sizes.tolist())
    return problems.points.answer(
        torch.cat([torch.cdist(part, own, compute_mode=mode) for part, own in zip(parts, centroids, strict=True)])
    )


def _run(
    problems: Problems, starts: torch.Tensor, max_iter: int, tol: float, empty: str, seed: torch.Tensor
) -> ops.Runs:
    points = problems.points
    if problems.are_small(starts.shape[1]):
        return ops.lloyd(
            points.x,
            problems.offsets,
            starts,
            sample_weight=points.sample_weight,
            max_iter=max_iter,
            tol=tol,
            relative_tol=True,
            empty=empty,
            seed=seed,
        )
    found = [
        lloyd(problems.alone(b), start, max_iter=max_iter, tol=tol, relative_tol=True, empty=empty, seed=int(seed[b]))
        for b, start in enumerate(starts)
    ]
    n_iter = torch.tensor([one.n_iter for one in found], device=points.device)
    ended = torch.tensor([[None, "labels", "tol"].index(one.converged) for one in found], device=points.device)
    labels = torch.cat([one.labels for one in found])
    return ops.Runs(
        torch.stack([one.centroids for one in found]),
        labels,
        torch.stack([one.inertia for one in found]),
        n_iter,
        ended,
    )


def _better(problems: Problems, best: ops.Runs, found: ops.Runs) -> ops.Runs:
    """Of each problem the run of lower inertia, the first on ties."""
    is_lower = found.inertia < best.inertia
    rows = is_lower.repeat_interleave(problems.sizes.to(is_lower.device))
    masks = (is_lower[:, None, None], rows, is_lower, is_lower, is_lower)
    return ops.Runs(*(torch.where(mask, new, old) for mask, new, old in zip(masks, found, best, strict=True)))


def _starts(estimator: Any, problems: Problems, seeds: torch.Tensor, n_init: int) -> torch.Tensor:
    """Starting centroids of every run: (n_init, B, k, d)."""
    points, offsets, k, init = problems.points, problems.offsets, estimator.n_clusters, estimator.init
    if isinstance(init, str):
        plusplus = init == "k-means++"
        trials = local_trials(k)
        drawn = (1, (k - 1) * trials) if plusplus else (k, 0)
        rows, uniform = ops.draw_rows(
            seeds, offsets, drawn[0], shares=_shares(problems), n_uniform=drawn[1], n_runs=n_init
        )
        rows = rows.transpose(0, 1)
        if plusplus:
            uniform = uniform.transpose(0, 1).unflatten(-1, (k - 1, trials))
            rows = torch.stack([_plusplus(problems, *run) for run in zip(rows[..., 0], uniform, strict=True)])
        return points.x[(rows + offsets[:-1, None]).to(points.device)]
    if callable(init):
        streams = [np.random.RandomState(seed) for seed in seeds.tolist()]
        given = [problems.points.answer(problems.alone(b).x) for b in range(problems.n_problems)]
        made = [
            [init(x, k, random_state=stream) for x, stream in zip(given, streams, strict=True)] for _ in range(n_init)
        ]
        starts = torch.stack([torch.stack([arrays.as_tensor(one) for one in run]) for run in made])
    else:
        starts = arrays.as_tensor(init)
        starts = (starts if starts.dim() == 3 else starts.expand(problems.n_problems, *starts.shape))[None]
    expected = (problems.n_problems, k, points.n_features)
    if tuple(starts.shape[1:]) != expected:
        raise ValueError(
            f"init has shape {tuple(starts.shape[1:])}: expected {expected}, or {expected[1:]} for all problems"
        )
    starts = starts.to(points.device, points.dtype)
    arrays.check_finite(starts, "init")
    return starts


def _plusplus(problems: Problems, first: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    points = problems.points
    if problems.are_small(uniform.shape[1] + 1):
        return ops.kmeans_plusplus_batch(points.x, problems.offsets, points.sample_weight, first, uniform).cpu()
    alone = [problems.alone(b) for b in range(problems.n_problems)]
    chosen = [ops.kmeans_plusplus(one.x, one.sample_weight, int(first[b]), uniform[b]) for b, one in enumerate(alone)]
    return torch.stack(chosen).cpu()


def _shares(problems: Problems) -> torch.Tensor | None:
    """What share of its problem's weight every row has."""
    if problems.points.sample_weight is None:
        return None
    weight = problems.points.sample_weight.cpu()
    totals = torch.tensor(
        [part.numpy().sum() for part in weight.split(problems.sizes.tolist())], dtype=torch.float64, device="cpu"
    )
    if bool((totals == 0).any()):
        raise ValueError(
            f"Sample weights must contain at least one non-zero number: those of problem {int(totals.argmin())} do not."
        )
    return weight / totals.repeat_interleave(problems.sizes)


def _warn_of_few(problems: Problems, labels: torch.Tensor, k: int) -> None:
    owner = torch.arange(problems.n_problems, device="cpu").repeat_interleave(problems.sizes).to(labels.device)
    found = torch.bincount(owner * k + labels, minlength=problems.n_problems * k).view(-1, k).count_nonzero(1)
    few = int((found < k).sum())
    if few:
        warnings.warn(
            f"Number of distinct clusters found smaller than n_clusters ({k}) in {few} of {problems.n_problems} "
            "problems. Possibly due to duplicate points in X.",
            ConvergenceWarning,
            stacklevel=6,
        )
