"""What `dcfast.deepcluster.scout` found: a table for the terminal, and a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.table import Table

from dcfast.deepcluster.charts import scatter_chart
from dcfast.deepcluster.page import command, figure, number, page, table

__all__ = ["ScoutResult", "scout_page"]

# Criterion -> the measures that the table shows: it fits into 80 columns.
_IN_TERMINAL = {
    "ami": ("ami", "purity", "stability"),
    "stability": ("stability", "objective", "largest_cluster", "n_empty"),
}
# Measure -> its name in the table and on the page, and what the page says of it.
MEASURES = {
    "ami": ("AMI", "What the clusters tell about the classes, less what chance gives, over the most it could be."),
    "nmi": ("NMI", "The same with what chance gives, which grows with the number of clusters."),
    "purity": ("Purity", "Share of the images that are of the most frequent class of their cluster."),
    "entropy": ("Entropy", "Of the classes within a cluster, over the most it could be; the mean over the images."),
    "stability": ("Stability", "ARI of two k-means from different starts: 0 by chance, 1 for the same clusters."),
    "objective": ("Objective", "Mean squared distance to the centroid. It falls with the number of clusters."),
    "largest_cluster": ("Largest", "Images in the largest cluster."),
    "n_empty": ("Empty", "Clusters that k-means left without images."),
}


@dataclass(frozen=True)
class ScoutResult:
    """What `scout` found.

    Attributes
    ----------
    runs : list of dict
        One per seed and number of clusters: 'seed', 'n_clusters', 'n_images', 'fingerprint' of the images, 'n_empty',
        'largest_cluster', 'objective' (mean squared distance to the centroid), 'stability' (ARI of two k-means from
        different starts); with labels 'n_labelled', 'purity', 'entropy' (`class_entropy`), both also of '_chance' (the
        same clusters, classes permuted), 'nmi' and 'ami'.
    criterion : {'ami', 'stability'}
        What ranks, the higher the better: stability without labels.
    n_clusters, seed : int
        The recommended ones: the number of clusters of the highest mean over the seeds, and the best seed with it.
    command : str
        That trains with them.
    options : dict
        What all runs have in common.
    report : Path
        The page of all this.
    """

    runs: list[dict[str, Any]]
    criterion: str
    n_clusters: int
    seed: int
    command: str
    options: dict[str, Any]
    report: Path

    def table(self) -> Table:
        """Return means and deviations over the seeds, a row per number of clusters, for a rich console."""
        headings, rows = _summary(self, _IN_TERMINAL[self.criterion])
        table = Table(title=_lead(self), show_edge=False)
        for heading in headings:
            table.add_column(heading, justify="right")
        for row in rows:
            table.add_row(*row, style="bold" if row[0] == number(self.n_clusters) else "")
        return table


def scout_page(result: ScoutResult) -> str:
    """Return ``report.html``."""
    headings, rows = _summary(result, MEASURES)
    head = "".join(f"<th>{escape(name)}</th>" for name in headings)
    body = "".join(
        f"<tr><th>{row[0]}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    numbers = (
        '<p class="note">Means and deviations over the seeds. "By chance" is what the same clusters come to with the '
        "classes permuted; the seed is the one of the best clusters.</p>"
        f'<div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
    charts = "".join(_chart(result, name) for name in MEASURES if name in result.runs[0])
    options = {name: value for name, value in result.options.items() if name not in ("seed", "n_clusters")}
    what = f"Train with the number of clusters of the highest mean {MEASURES[result.criterion][0]}, and its best seed."
    best = max(run[result.criterion] for run in result.runs if run["n_clusters"] == result.n_clusters)
    facts = [
        (number(result.n_clusters), "clusters recommended"),
        (str(result.seed), "seed recommended"),
        (f"{best:.3f}", f"{MEASURES[result.criterion][0]} of both"),
    ]
    sections = [
        ("table", "By number of clusters", numbers),
        ("charts", "A point per seed", f'<div class="charts">{charts}</div>'),
        ("command", "Go on", command(what, result.command)),
        ("configuration", "Configuration", f'<div class="tables">{table("Options", options)}</div>'),
    ]
    return page(f"Scout: {result.report.absolute().parent.name}", _lead(result), facts, sections)


def _lead(result: ScoutResult) -> str:
    n_seeds = len({run["seed"] for run in result.runs})
    first = result.runs[0]
    labels = f"{number(first['n_labelled'])} labels" if "n_labelled" in first else "no labels"
    return f"Untrained networks of {n_seeds} seeds on {number(first['n_images'])} images, {labels}"


def _summary(result: ScoutResult, names: Iterable[str]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of these measures, as far as they are known: a row per number of clusters."""
    shown = [one for name in names for one in (name, f"{name}_chance") if one in result.runs[0]]
    rows = []
    for k in sorted({run["n_clusters"] for run in result.runs}):
        runs = [run for run in result.runs if run["n_clusters"] == k]
        best = max(runs, key=lambda run: run[result.criterion])
        rows.append([number(k), *(_cell(runs, name) for name in shown), str(best["seed"])])
    return ["k", *(MEASURES[name][0] if name in MEASURES else "by chance" for name in shown), "seed"], rows


def _chart(result: ScoutResult, name: str) -> str:
    title, caption = MEASURES[name]
    values: dict[int, list[float]] = {}
    chance: dict[int, list[float]] = {}
    for run in result.runs:
        values.setdefault(run["n_clusters"], []).append(run[name])
        if f"{name}_chance" in run:
            chance.setdefault(run["n_clusters"], []).append(run[f"{name}_chance"])
    means = {k: fmean(some) for k, some in chance.items()}
    chart = scatter_chart(f"{title} by number of clusters, a point per seed", values, means, "clusters")
    return figure(title, chart, caption)


def _cell(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return mean and deviation over the seeds; chance hardly deviates."""
    values = [run[name] for run in runs]
    digits = 1 if isinstance(values[0], int) else 3
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 and name in MEASURES else ""
    return f"{fmean(values):.{digits}f}{deviation}"
