"""``report.html``: a run on one page that needs nothing but itself."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import torch

from dcfast.deepcluster.charts import bar_chart, line_chart, stacked_chart
from dcfast.deepcluster.config import CUSTOM
from dcfast.deepcluster.filters import first_filters, gradient_tiles, image_filters, mosaic
from dcfast.deepcluster.metrics import cluster_sizes
from dcfast.deepcluster.page import command, figure, number, page, table
from dcfast.deepcluster.progress import bound, shares
from dcfast.deepcluster.run import Run, load_run
from dcfast.deepcluster.samples import cluster_samples, picture, size_figure

__all__ = ["option_words", "train_command", "write_report"]

CORRUPT_NAMED = 20

STAGES = {"features": "features", "pca": "PCA", "kmeans": "k-means", "training": "training"}

# Metric -> name and caption of its curve.
CURVES = {
    "loss": (
        "Loss",
        "Mean cross-entropy of an epoch's crops against their clusters. Every clustering starts a new top layer, so it "
        "need not fall.",
    ),
    "objective": ("k-means objective", "Mean squared distance of the whitened features to their centroid."),
    "nmi_previous": ("NMI with the previous clustering", "1 means that the clustering no longer changes."),
    "nmi_labels": ("NMI with the labels", "What the clusters tell about the classes, which training never sees."),
    "ami_labels": ("AMI with the labels", "The same less what chance gives: 0 for random clusters, however many."),
    "n_moved": ("Images that moved", "Their cluster took most of its images from another cluster than theirs."),
    "largest_cluster": ("Largest cluster", "Images in it. One that grows and grows is a solution that collapses."),
    "n_clusters": ("Clusters in use", "That hold images: each is an output of the top layer."),
    "images_per_second": ("Images per second", "During training, not counting the clustering."),
}


def write_report(
    run_dir: str | os.PathLike[str],
    dataset: torch.utils.data.Dataset[Any] | None = None,
    backbone: torch.nn.Module | None = None,
) -> Path:
    """Write the ``report.html`` of a run.

    One file with its pictures and its style inside; it contains no script and refers to nothing outside.

    Parameters
    ----------
    run_dir : str or path
        A run with at least one finished epoch.
    dataset : torch Dataset, optional
        The images, for a run that was trained on a Dataset object.
    backbone : torch.nn.Module, optional
        The network, for a run on one of the user's own.

    Returns
    -------
    Path
        The file, replaced in one step.

    Raises
    ------
    FileNotFoundError
        If the directory holds no run, or no epoch has ended.

    Notes
    -----
    Where the images cannot be opened any more, the page says so in place of the samples.
    """
    run = load_run(run_dir, dataset, backbone)
    n_images = len(run.assignments["cluster"])  # raises before the first epoch has ended
    sections = [
        ("curves", "Training", _curves(run.metrics)),
        ("sizes", "Cluster sizes", _sizes(run)),
        ("filters", "First filters", _filters(run)),
        ("samples", "Images by cluster", _samples(run)),
    ]
    probed = run.dir.read_probe()
    if probed is not None:
        sections.append(("probe", "Linear probe", _probe(probed)))
    sections += [
        ("configuration", "Configuration", _configuration(run)),
        ("reproduce", "Go on, or repeat", _commands(run)),
    ]
    data = run.config["data"]
    name = run.dir.path.resolve().name
    lead = (
        f"{run.options.arch} on {number(n_images)} images of {data['location']}, "
        f"epoch {len(run.metrics)} of {run.options.epochs}"
    )
    run.dir.write_report(page(f"DeepCluster: {name}", lead, _key_numbers(run, probed), sections))
    return run.dir.report


def _key_numbers(run: Run, probed: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return (value, what it is) of the numbers at the head of the page."""
    last = run.metrics[-1]
    sizes = cluster_sizes(run.assignments["cluster"])
    found = [
        (number(len(run.assignments["cluster"])), "images"),
        (f"{number(len(sizes))} / {number(len(sizes) + last['n_empty'])}", "clusters in use"),
        (number(last["loss"]), "loss"),
    ]
    for name, what in (
        ("nmi_previous", "NMI with the previous clustering"),
        ("nmi_labels", "NMI with the labels"),
        ("ami_labels", "AMI with the labels"),
    ):
        latest = [record[name] for record in run.metrics if record[name] is not None]
        if latest:
            found.append((f"{latest[-1]:.3f}", what))
    if probed is not None:
        best = max(probed["layers"], key=lambda layer: layer["trained"])
        found.append((f"{best['trained']:.1%}", f"best linear probe ({best['name']})"))
    seconds = math.fsum(math.fsum(record["seconds"].values()) for record in run.metrics)
    return [
        *found,
        (number(last["images_per_second"]), "images per second in training"),
        (_duration(seconds), "in all"),
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _curves(metrics: list[dict[str, Any]]) -> str:
    figures = []
    for name, (title, caption) in CURVES.items():
        values = [record[name] for record in metrics]
        if any(value is not None for value in values):
            figures.append(figure(title, line_chart(f"{title} by epoch", values), caption))
    stages = {name: [record["seconds"][stage] for record in metrics] for stage, name in STAGES.items()}
    chart = stacked_chart("Seconds per stage by epoch", stages)
    figures.append(figure("Seconds per stage", chart, "What each epoch took, the clustering included."))
    parts = [shares(record) for record in metrics]
    percent = {name: [100 * part[name] for part in parts] for name in parts[0]}
    chart = stacked_chart("Per cent of the time by what bounds it, by epoch", percent)
    figures.append(figure("What bounds an epoch, in per cent", chart, escape(_bounds(metrics[-1]))))
    charts = f'<div class="charts">{"".join(figures)}</div>'
    stopped = metrics[-1]["stopped_clustering"]
    if stopped is None:
        return charts
    text = f"Clustering stopped with epoch {stopped}: the epochs from there on share its labels and its top layer."
    return f'<p class="note">{text}</p>{charts}'


def _bounds(record: dict[str, Any]) -> str:
    """Say what an epoch's time went into, and what would shorten it."""
    seconds, waiting = record["seconds"], record["waiting"]
    stages = [f"{stage} {bound(seconds[stage], waiting[stage])}" for stage in waiting if seconds[stage]]
    remedy = "More --workers and --cache shorten the wait for images, --precision and --compile the network's work."
    return f"In the last epoch: {', '.join(stages)}. {remedy}"


def _sizes(run: Run) -> str:
    last = run.metrics[-1]
    n_noise = last["n_noise"]
    remark = f" {number(n_noise)} images are in none of them and were left out of training." if n_noise else ""
    return size_figure(cluster_sizes(run.assignments["cluster"]), int(last["n_empty"]), remark)


def _filters(run: Run) -> str:
    before, after = first_filters(run.untrained_model()), first_filters(run.model)
    if before is None or after is None:
        return '<p class="note">No convolution of the network sees colours.</p>'
    change = float((after - before).norm() / before.norm())
    on_gradients = before.shape[1] == 2
    views = [
        (
            image_filters,
            16 if len(before) > 32 else 8,
            "As they act on the grey image." if on_gradients else "",
        )
    ]
    if on_gradients:
        views.append(
            (
                gradient_tiles,
                12 if len(before) > 32 else 8,
                "Their weights: on the x gradient to the left, on the y gradient to the right.",
            )
        )
    rows = []
    for view, columns, what in views:
        pair = "".join(
            figure(
                state,
                picture(
                    mosaic(view(weight), columns),
                    f"The {len(before)} filters of conv1, {state.lower()}. {what}".rstrip(),
                    "pixels",
                ),
                escape(what),
            )
            for state, weight in (("Untrained", before), ("Trained", after))
        )
        rows.append(f'<div class="pair">{pair}</div>')
    seen = "Sobel's gradients of the grey image" if on_gradients else "the normalised colours"
    text = (
        f"The {len(before)} filters of the first convolution, which sees {seen}. Each is scaled by its largest weight; "
        f"middle grey is zero. Training moved the weights by {change:.0%} of their initial norm."
    )
    return f'<p class="note">{text}</p>{"".join(rows)}'


def _samples(run: Run) -> str:
    try:
        data = run.dataset
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        return f'<p class="note">The images cannot be shown: {escape(str(error))}.</p>'
    return cluster_samples(data, run.assignments["cluster"], run.assignments["label"])


def _probe(probed: dict[str, Any]) -> str:
    layers = probed["layers"]
    names = ("untrained", "trained")
    chart = bar_chart(
        "Test accuracy of a linear classifier on each convolution block, untrained and trained",
        [layer["name"] for layer in layers],
        {name: [layer[name] for layer in layers] for name in names},
        probed["chance"],
        "convolution block",
    )
    rows = "".join(
        f"<tr><th>{escape(layer['name'])}</th><td>{number(layer['n_features'])}</td><td>{layer['untrained']:.1%}</td>"
        f"<td>{layer['trained']:.1%}</td><td>{100 * (layer['trained'] - layer['untrained']):+.1f}</td></tr>"
        for layer in layers
    )
    options = probed["options"]
    text = (
        "Test accuracy in per cent of a linear classifier on the average-pooled output of each convolution block, "
        f"frozen {probed['moment']}, against the same network untrained. {number(probed['n_train'])} images "
        f"to train on, {number(probed['n_test'])} to test on ({escape(probed['test'])}), {number(probed['n_classes'])} "
        f"classes; {options['epochs']} epochs of SGD at learning rate {options['lr']:g}, weight decay "
        f"{options['weight_decay']:g}, batches of {options['batch_size']}. The dashed line is the share of the largest "
        f"class, {probed['chance']:.1%}: what always naming it would reach."
    )
    head = "".join(f"<th>{name}</th>" for name in ("block", "features", "untrained", "trained", "gain"))
    return (
        f"<figure>{chart}<figcaption>{text}</figcaption></figure>"
        f'<div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _configuration(run: Run) -> str:
    data = run.config["data"]
    about = {name: data[name] for name in ("kind", "location", "n_images", "n_corrupt", "has_labels", "fingerprint")}
    tables = "".join(
        table(title, values)
        for title, values in (
            ("Options", run.config["options"]),
            ("Images", about),
            ("Made with", run.config["versions"]),
        )
    )
    corrupt = ""
    if data["corrupt"]:
        names = "".join(f"<li>{escape(name)}</li>" for name in data["corrupt"][:CORRUPT_NAMED])
        more = len(data["corrupt"]) - CORRUPT_NAMED
        rest = f"<li>and {number(more)} more, named in config.json</li>" if more > 0 else ""
        corrupt = f"<h3>Images that could not be read</h3><ul>{names}{rest}</ul>"
    return f'<div class="tables">{tables}</div>{corrupt}'


def _commands(run: Run) -> str:
    where = os.path.abspath(run.dir.path)
    repeat = train_command(run, f"{where}-again")
    from_python = {"dataset": run.config["data"]["kind"] == "dataset", "backbone": run.options.arch == CUSTOM}
    given = "".join(f", {name}={name}" for name, needed in from_python.items() if needed)
    module = "dcfast.deepcluster"
    more = 2 * (run.options.epochs or 0)
    if repeat is None:
        resume = f"from {module} import resume\nresume({where!r}{given}).fit()"
        longer = f"from {module} import resume\nresume({where!r}{given}, epochs={more}).fit()"
        probe = f"from {module}.probe import probe\nprobe({where!r}{given})"
    else:
        resume = shlex.join([*_program(run), "train", "--resume", where])
        longer = f"{resume} --epochs {more}"
        probe = shlex.join(["dcfast", "probe", where])
    parts = [command("Go on after an interruption; nothing is lost but the unfinished epoch.", resume)]
    if run.options.lr_schedule == "constant":  # another one ends with the run
        parts.append(command("Train longer.", longer))
    parts.append(command("Probe the layers, which renews this page.", probe))
    if repeat is None:
        parts.append(
            '<p class="note">The images or the network came from Python, so it takes Python to go on or to repeat the '
            "run.</p>"
        )
    else:
        if len({record["n_ranks"] for record in run.metrics}) == 1:
            again = "Repeat the run: the same bits with the versions and the processor named under Configuration."
        else:
            again = "Repeat the run, but not its bits: its epochs had different numbers of processes."
        parts.append(command(again, shlex.join(repeat)))
    return "".join(parts)


def _program(run: Run) -> list[str]:
    """Return the words that start as many processes as the last epoch had."""
    n_ranks = run.metrics[-1]["n_ranks"]
    return ["dcfast"] if n_ranks == 1 else ["torchrun", "--nproc-per-node", str(n_ranks), "-m", "dcfast"]


def train_command(run: Run, output: str) -> list[str] | None:
    """Return the words of the command that repeats a run from any folder, or None if it takes Python to repeat it.

    That is where the images or the network came from Python.
    """
    if run.config["data"]["kind"] == "dataset" or run.options.arch == CUSTOM:
        return None
    return [
        *_program(run),
        "train",
        run.config["data"]["location"],
        "--output",
        output,
        *option_words(run.options.to_dict()),
    ]


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Return options of `TrainConfig` as ``dcfast train`` takes them; those that are None are left out."""
    words = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            words += [f"--{option}", str(value)]
    return words
