"""How well the untrained network tells classes apart, by seed and number of clusters: what to choose before training.

That the outcome of DeepCluster depends on the quality of the random filters together with the number of clusters, and
that a k-means on the features of the untrained network shows it, is the finding of "A Deep Dive into Deep Cluster"
(2022). Purity, entropy and NMI with the labels improve with the number of clusters alone; here each is held against
chance, and what is left ranks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from dcfast._files import locked, replace
from dcfast.cluster.ranks import Ranks
from dcfast.deepcluster.cache import check_place
from dcfast.deepcluster.config import TrainConfig, find_device
from dcfast.deepcluster.data import ImageData
from dcfast.deepcluster.metrics import ari, cluster_sizes
from dcfast.deepcluster.models import Backbone
from dcfast.deepcluster.progress import Display
from dcfast.deepcluster.report import option_words
from dcfast.deepcluster.run import initial_model
from dcfast.deepcluster.rundir import decoded
from dcfast.deepcluster.scout_page import ScoutResult, scout_page
from dcfast.deepcluster.sources import open_source
from dcfast.deepcluster.space import against_chance, check_labelled, known_labels
from dcfast.deepcluster.stages import cluster_points, extract_features, reduce_features
from dcfast.deepcluster.trainer import look, out_of_memory, reproducible, versions

__all__ = ["ScoutResult", "default_grid", "scout"]

# Of the numbers of clusters that are tried by default.
_IMAGES_PER_CLUSTER = (1000, 250, 50, 10)
_FEWEST, _MOST = 10, 10_000
# Options that may differ from one call on a folder to the next: they change no result.
_FREE = ("workers", "max_memory")
# What every run tells, with labels or without.
_MEASURED = ("n_images", "fingerprint", "n_empty", "largest_cluster", "objective", "stability")


def scout(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: TrainConfig | None = None,
    *,
    seeds: int = 5,
    n_clusters: Sequence[int] | None = None,
    labelled: float | None = None,
    display: Display | None = None,
) -> ScoutResult:
    """Cluster the features of untrained networks as the first epoch of training would, and measure the clusters.

    Weights, images of a ``limit``, batch normalisation (of initial statistics), PCA and the start of k-means are those
    of `start` with the same seed, number of clusters and options: its first clustering is this one, bit for bit.
    (The network is not compiled, which may round otherwise.)

    Parameters
    ----------
    data : 'digits' or a folder
        The images.
    output : str or path
        Directory for ``scout.json`` and ``report.html``. Pairs of seed and number of clusters that it holds already,
        of the same options, are not computed again.
    config : TrainConfig, optional
        The options of the training in question. Its seed is the first one; ``n_clusters`` stands in place of its own.
    seeds : int
        How many.
    n_clusters : sequence of int, optional
        Numbers of clusters; by default one per 1,000, 250, 50 and 10 images, between 10 and 10,000.
    labelled : float or int, optional
        Share (a float up to 1) or number (an int) of the images whose labels are looked at: drawn by the first seed,
        each class having its share. By default all labels there are.
    display : Display, optional
        Shows the progress.

    Returns
    -------
    ScoutResult

    Raises
    ------
    FileNotFoundError, NotADirectoryError, ValueError, TypeError
        For data, options or a directory that cannot be used.
    FileExistsError
        If ``output`` holds a report of something else, or another process is scouting into it.
    MemoryError
        If memory does not suffice; the message names the options that lower the need.
    KeyboardInterrupt
        On Ctrl-C: the pairs that are done are in ``scout.json``, and the same call goes on.

    Notes
    -----
    Per seed one pass of the network over N images, one PCA, and per k two k-means, of O(N k p) per iteration in p
    components; memory O(N d) for d features, as for training. The measures take O(N) each, AMI O(N c) for c classes.
    """
    config, path, display = config or TrainConfig(), Path(output), display or Display()
    check_labelled(labelled)
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    if config.init is not None:
        raise ValueError(f"init={config.init!r} are weights that no seed draws: leave it out")
    find_device(config.device)
    check_place(config.cache)
    source = open_source(data)
    n_images = min(config.limit or len(source.names), len(source.names))
    limited = n_images < len(source.names)
    grid = sorted(set(n_clusters or default_grid(n_images)))
    wanted = [
        [dataclasses.replace(config, seed=seed, n_clusters=k) for k in grid]
        for seed in range(config.seed, config.seed + seeds)
    ]
    asked = {"data": source.location, "labelled": labelled, **config.to_dict(), **versions()}
    done = _read(path, asked)
    images: ImageData | None = None
    for options in wanted:
        missing = [one for one in options if (one.seed, one.n_clusters) not in done]
        if not missing:
            continue
        if images is None or limited:  # another seed, another subset
            images = look(data, missing[0], display, Ranks())
        for run in done.values():
            if run["fingerprint"] != images.fingerprint and (run["seed"] == missing[0].seed or not limited):
                raise ValueError(f"the images of {source.location} have changed since {path}: choose another --output")
        labels = known_labels(images, labelled, config.seed)
        settled = [one.resolve(len(images), images.side, images.source.kind) for one in missing]
        images.image_size = settled[0].image_size or 0
        model = initial_model(settled[0])  # refuses what does not fit before anything is written
        path.mkdir(parents=True, exist_ok=True)
        busy = f"another process is scouting into {path}: wait for it, or choose another --output"
        with locked(path / "scout.lock", busy):
            done = _read(path, asked)  # what it held before, and what another process may have added since
            try:
                for run in _measured(model, images, labels, settled, display, path):
                    done[run["seed"], run["n_clusters"]] = run
                    _write(path, asked, done)
                    display.say(_line(run))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                remedy = "give a lower --max-memory, --batch-size, --image-size, --limit or --n-clusters"
                raise MemoryError(f"out of memory: {remedy}") from error
    runs = [done[one.seed, one.n_clusters or 0] for options in wanted for one in options]
    criterion = "ami" if "ami" in runs[0] else "stability"
    means = {k: fmean(run[criterion] for run in runs if run["n_clusters"] == k) for k in grid}
    chosen = [run for run in runs if means[run["n_clusters"]] == max(means.values())]
    best = max(chosen, key=lambda run: run[criterion])
    given = {name: value for name, value in config.to_dict().items() if value != getattr(TrainConfig(), name)}
    given.update(seed=best["seed"], n_clusters=best["n_clusters"])
    words = ["dcfast", "train", source.location, "--output", str(path.absolute() / "run"), *option_words(given)]
    result = ScoutResult(
        runs, criterion, best["n_clusters"], best["seed"], shlex.join(words), asked, path / "report.html"
    )
    _write(path, asked, done, {name: getattr(result, name) for name in ("criterion", "n_clusters", "seed", "command")})
    replace(result.report, scout_page(result).encode())
    return result


def default_grid(n_images: int) -> list[int]:
    """Return the numbers of clusters to try: one per 1,000, 250, 50 and 10 images, between 10 and 10,000."""
    return sorted({min(max(n_images // size, _FEWEST), _MOST) for size in _IMAGES_PER_CLUSTER})


def _measured(
    model: Backbone,
    images: ImageData,
    labels: np.ndarray | None,
    options: Sequence[TrainConfig],
    display: Display,
    folder: Path,
) -> Iterable[dict[str, Any]]:
    """Extract the features of one seed, and yield what each number of clusters comes to."""
    config = options[0]
    device = torch.device(config.device)
    with reproducible(config.threads or 1, device):
        model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        points = reduce_features(extract_features(model, images, config, display, {}, folder), config, display, folder)
        for one in options:
            # The second epoch has another start of k-means.
            first, second = (cluster_points(points, one, epoch, display) for epoch in (0, 1))
            yield {
                "seed": one.seed,
                "n_clusters": one.n_clusters,
                "n_images": len(images),
                "fingerprint": images.fingerprint,
                "n_empty": first.n_empty,
                "largest_cluster": int(cluster_sizes(first.assignments).max()),
                "objective": first.objective,
                "stability": ari(first.assignments, second.assignments),
                **({} if labels is None else against_chance(labels, first.assignments, one.seed)),
            }


def _read(path: Path, asked: Mapping[str, Any]) -> dict[tuple[int, int], dict[str, Any]]:
    """Return the runs that a directory holds, by seed and number of clusters.

    Raises
    ------
    NotADirectoryError, FileExistsError, ValueError
        If it is a file, holds a report of something else, or the runs are of other options.
    """
    file = path / "scout.json"
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file: choose another --output")
    if not file.exists():
        if (path / "report.html").exists():
            raise FileExistsError(f"{path} holds the report of something else: choose another --output")
        return {}
    stored, runs = decoded(file, _parsed, "delete it, and report.html beside it, and give the same command again")
    for name in sorted(set(asked) - {*_FREE, "n_clusters", "python"}):
        if stored.get(name) != asked[name]:
            raise ValueError(
                f"{file} is of {name}={stored.get(name)!r}, here it is {asked[name]!r}: give the same, or choose "
                "another --output"
            )
    return runs


def _parsed(content: bytes) -> tuple[dict[str, Any], dict[tuple[int, int], dict[str, Any]]]:
    found = json.loads(content)
    for run in found["runs"]:
        for name in _MEASURED:
            run[name]
    return dict(found["options"]), {(run["seed"], run["n_clusters"]): run for run in found["runs"]}


def _write(
    path: Path,
    asked: Mapping[str, Any],
    done: Mapping[tuple[int, int], dict[str, Any]],
    recommended: Mapping[str, Any] | None = None,
) -> None:
    runs = [done[pair] for pair in sorted(done)]
    text = json.dumps({"options": dict(asked), "runs": runs, "recommended": recommended}, indent=1)
    replace(path / "scout.json", f"{text}\n".encode())


def _line(run: Mapping[str, Any]) -> str:
    parts = [f"seed {run['seed']:>3}", f"k {run['n_clusters']:>6}", f"stability {run['stability']:.3f}"]
    if "ami" in run:
        parts += [f"AMI {run['ami']:.4f}", f"purity {run['purity']:.3f} (by chance {run['purity_chance']:.3f})"]
    return "  ".join(parts)
