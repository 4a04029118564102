"""Clusters of an embedding: assignments, what they are judged by, and a page about them."""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from sklearn.preprocessing import normalize as unit_rows

from dcfast import ClusterHead, PCAWhiten
from dcfast.deepcluster.clusterers import KMEANS, cluster_by, find_clusterer, inertia, takes_number
from dcfast.deepcluster.embedding import Embedding, new_files, open_embedding
from dcfast.deepcluster.metrics import ami, ari, cluster_sizes, matched_accuracy, nmi
from dcfast.deepcluster.page import command, number, page, table
from dcfast.deepcluster.progress import Display
from dcfast.deepcluster.rundir import saved
from dcfast.deepcluster.samples import cluster_samples, size_figure
from dcfast.deepcluster.trainer import versions

__all__ = ["ASSIGNMENTS", "HEAD", "REPORT", "RESULT", "Partition", "partition"]

ASSIGNMENTS, RESULT, REPORT, HEAD = "assignments.npz", "clusters.json", "report.html", "head.pt"

_LARGEST_SEED = 2**32 - 1  # that scikit-learn's classes take as random_state

_SCORES = {
    "accuracy": "accuracy under the best matching",
    "nmi": "NMI with the labels",
    "ari": "ARI with the labels",
    "ami": "AMI with the labels",
}


@dataclass(frozen=True)
class Partition:
    """What `partition` found.

    Attributes
    ----------
    n_images, n_clusters : int
        Images, and clusters that hold any.
    n_empty, n_noise : int
        Clusters asked for that hold none, and images that are in none.
    smallest, largest : int
        Images of the smallest and of the largest cluster.
    inertia : float
        Sum of the squared distances to the means of the clusters, as the method saw the points.
    iterations : int or None
        Of the method, where it counts them.
    accuracy, nmi, ari, ami : float or None
        Agreement with the labels, as in `dcfast.deepcluster.metrics`; None without labels.
    seconds : float
        Wall time of the method.
    """

    n_images: int
    n_clusters: int
    n_empty: int
    n_noise: int
    smallest: int
    largest: int
    inertia: float
    iterations: int | None
    accuracy: float | None
    nmi: float | None
    ari: float | None
    ami: float | None
    seconds: float

    def facts(self) -> list[tuple[str, str]]:
        """Return (value, what it is) of all that is known, as text."""
        found = [
            (number(self.n_images), "images"),
            (number(self.n_clusters), "clusters"),
            (f"{number(self.smallest)} to {number(self.largest)}", "images per cluster"),
            (number(self.inertia), "inertia"),
        ]
        found += [(number(value), what) for value, what in ((self.n_empty, "empty"), (self.n_noise, "noise")) if value]
        scores = {name: getattr(self, name) for name in _SCORES}
        found += [(f"{value:.3f}", _SCORES[name]) for name, value in scores.items() if value is not None]
        if self.iterations is not None:
            found.append((number(self.iterations), "iterations"))
        return [*found, (number(self.seconds), "seconds")]

    def table(self) -> Table:
        """Return all that is known as a table for a rich console."""
        table = Table(show_header=False, show_edge=False)
        table.add_column(justify="right")
        table.add_column()
        for value, what in self.facts():
            table.add_row(value, what)
        return table


def partition(
    embedding: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    n_clusters: int | None = None,
    method: str = KMEANS,
    pca: int | None = None,
    normalize: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    display: Display | None = None,
) -> Partition:
    """Cluster the features of an embedding.

    Parameters
    ----------
    embedding : str or path
        A folder of ``dcfast embed``, or an ``.npy`` file of shape (N, d).
    output : str or path
        Folder for ``assignments.npz`` (files, cluster, label), ``clusters.json`` and ``report.html``; of 'head' without
        ``pca`` also ``head.pt``, the state_dict of a `dcfast.nn.UnitLinear` from features to clusters.
    n_clusters : int, optional
        2 or more; left out for a method that finds the number itself.
    method : str
        As for `dcfast.deepcluster.clusterers.find_clusterer`, with the class's own defaults.
    pca : int, optional
        Project on so many principal components and whiten them first, by `dcfast.PCAWhiten`.
    normalize : bool
        Scale each row to length 1, after that if there is any.
    seed : int
        The method's ``random_state``, where it takes one.
    overwrite : bool
        Replace the clusters that ``output`` holds.
    display : Display, optional
        Shows the progress.

    Raises
    ------
    FileNotFoundError
        If there is no such embedding.
    FileExistsError
        If ``output`` holds clusters, and ``overwrite`` is off.
    ValueError
        For features that are damaged, not finite or fewer than clusters, a method that is none or finds fewer than two
        clusters, a number of clusters that is missing, too small, or given to a method that finds it itself, and other
        options out of range.

    Notes
    -----
    Features are mapped from their file. What ``pca`` and ``normalize`` make of them is held in memory, and most methods
    but k-means hold the rest, too.
    """
    _check_number(n_clusters, method)
    if not 0 <= seed <= _LARGEST_SEED:
        raise ValueError(f"seed must be between 0 and {_LARGEST_SEED}, got {seed}")
    display = display or Display()
    # A head on principal components would be of no use without their projection.
    keeps_head = pca is None and issubclass(find_clusterer(method, "method"), ClusterHead)
    names = (ASSIGNMENTS, RESULT, REPORT) + (HEAD,) * keeps_head
    with new_files(output, names, overwrite) as (assignments, result, report, *head_file):
        found = open_embedding(embedding)
        if n_clusters is not None and n_clusters > len(found.features):
            raise ValueError(
                f"n_clusters={n_clusters} needs at least as many images, got {len(found.features)}: lower --n-clusters"
            )
        with display.stage(method, None) as advance:
            points = _prepared(found.features, pca, normalize)
            began = time.perf_counter()
            labels, iterations, n_empty, head = cluster_by(method, points, n_clusters, seed, "method", advance)
            seconds = time.perf_counter() - began
        cluster = np.full(len(labels), -1, dtype=np.int64)
        cluster[labels >= 0] = np.unique(labels[labels >= 0], return_inverse=True)[1]  # numbered without gaps
        sizes = cluster_sizes(cluster)
        judged = Partition(
            n_images=len(cluster),
            n_clusters=len(sizes),
            n_empty=n_empty,
            n_noise=len(cluster) - int(sizes.sum()),
            smallest=int(sizes.min()),
            largest=int(sizes.max()),
            inertia=inertia(torch.from_numpy(points), cluster),
            iterations=iterations,
            accuracy=matched_accuracy(found.labels, cluster),
            nmi=nmi(found.labels, cluster),
            ari=ari(found.labels, cluster),
            ami=ami(found.labels, cluster),
            seconds=seconds,
        )
        options = {"n_clusters": n_clusters, "method": method, "pca": pca, "normalize": normalize, "seed": seed}
        np.savez(assignments, allow_pickle=False, files=found.files, cluster=cluster, label=found.labels)
        about = {"embedding": os.path.abspath(embedding), "options": options, "result": asdict(judged)}
        result.write((json.dumps({**about, "versions": versions()}, indent=2) + "\n").encode())
        html = _report(found, cluster, judged, options, Path(output))
        report.write(html.encode(errors="backslashreplace"))  # names of files may be no valid text
        if head is not None and keeps_head:
            used = torch.from_numpy(np.unique(labels))  # the outputs by which clusters are numbered
            head_file[0].write(saved({name: value[used] for name, value in head.state_dict().items()}))
    if overwrite and not keeps_head:
        (Path(output) / HEAD).unlink(missing_ok=True)  # of the clusters that were replaced
    return judged


def _check_number(n_clusters: int | None, method: str) -> None:
    takes = takes_number(find_clusterer(method, "method"))
    if takes and n_clusters is None:
        raise ValueError(f"method={method!r} needs the number of clusters: give --n-clusters")
    if not takes and n_clusters is not None:
        raise ValueError(f"method={method!r} finds the number of clusters itself: leave --n-clusters out")
    if n_clusters is not None and n_clusters < 2:
        raise ValueError(f"n_clusters must be at least 2, got {n_clusters}")


def _prepared(features: np.ndarray, pca: int | None, normalize: bool) -> np.ndarray:
    if pca is None:
        return unit_rows(features) if normalize else features
    n_images, dim = features.shape
    if not 1 <= pca <= min(dim, n_images - 1):
        raise ValueError(
            f"pca must be between 1 and {min(dim, n_images - 1)} for {n_images} images of {dim} features, got {pca}"
        )
    return np.asarray(PCAWhiten(pca, normalize=normalize).fit_transform(features))


def _report(found: Embedding, cluster: np.ndarray, judged: Partition, options: dict[str, Any], output: Path) -> str:
    """Return the page: sizes, images where there are any, and how it was made."""
    n_noise = judged.n_noise
    remark = f" {number(n_noise)} images are in none of them." if n_noise else ""
    try:
        samples = cluster_samples(found.images(), cluster, found.labels)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        samples = f'<p class="note">The images cannot be shown: {escape(str(error))}.</p>'
    about = found.description or {}
    made_of = {"features": f"{found.features.shape[1]} of {found.features.dtype}", "embedding": str(found.path)}
    made_of |= {name: about[name] for name in ("weights", "network", "image_size", "precision") if name in about}
    words = ["dcfast", "cluster", os.path.abspath(found.path), "--output", os.path.abspath(output), "--overwrite"]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            words += [option, str(value)]
    sections = [
        ("sizes", "Cluster sizes", size_figure(cluster_sizes(cluster), judged.n_empty, remark)),
        ("samples", "Images by cluster", samples),
        (
            "made",
            "How it was made",
            f'<div class="tables">{table("Options", options)}{table("Features", made_of)}</div>'
            + command("Repeat it.", shlex.join(words)),
        ),
    ]
    lead = f"{options['method']} on the features of {number(judged.n_images)} images"
    return page(f"Clusters: {output.resolve().name}", lead, judged.facts(), sections)
