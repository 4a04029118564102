"""What DeepCluster learns from CIFAR-10, the studies of docs/results.md: every run with three seeds.

    python benchmarks/cifar10.py FOLDER --work DIR

FOLDER holds ``train/<class>/`` and ``test/<class>/``. DIR keeps what is done: started again, the script goes on. At the
end it writes ``benchmarks/results/cifar10-<date>.json`` and prints the tables. Runs that such a file holds already, of
the same options, are taken from it: give an empty folder as ``--results`` to make all of them again.
"""

from __future__ import annotations

import datetime
import io
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import torch
import typer
from gpu.result import commit
from rich.console import Console

from dcfast._files import replace
from dcfast.deepcluster import TrainConfig, resume, start
from dcfast.deepcluster.crops import Batches, CentreCrops
from dcfast.deepcluster.data import check_images
from dcfast.deepcluster.models import build_top_layer
from dcfast.deepcluster.probe import probe_network
from dcfast.deepcluster.progress import Display
from dcfast.deepcluster.sampler import plain_order
from dcfast.deepcluster.sources import open_source
from dcfast.deepcluster.stages import train_epoch
from dcfast.deepcluster.trainer import Trainer, reproducible

SEEDS = (0, 1, 2)
BASE: dict[str, Any] = {
    "arch": "small",
    "filters": 0.5,
    "n_clusters": 100,
    "epochs": 12,
    "batch_size": 64,
    "limit": 10_000,
    "threads": 1,
    "workers": 0,
}
PROBE = {"epochs": 30, "lr": 0.01}

# Study -> name of a run -> its options; "train" is what it learns from: clusters by default, "labels", "statistics" (of
# batch normalisation alone: a stronger baseline than initial weights with initial statistics), or "nothing".
# A run that several studies share is in the first of them.
STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "Against the same networks untrained and supervised": {
        "DeepCluster": {},
        "untrained": {"train": "nothing"},
        "untrained, normalised": {"train": "statistics"},
        "supervised": {"train": "labels"},
    },
    "Stopping the clustering": {f"stop after {n}": {"stop_clustering": n} for n in (1, 3, 10)},
    "Number of clusters": {f"k={k}": {"n_clusters": k} for k in (10, 1000, 2000)},
    "Forced imbalance": {f"imbalanced, {b}": {"balance": b, "imbalanced": True} for b in ("sampler", "loss", "none")},
    "Forced imbalance, 10 clusters": {
        f"imbalanced, k=10, {b}": {"balance": b, "imbalanced": True, "n_clusters": 10}
        for b in ("sampler", "loss", "none")
    },
    "Colours in place of Sobel": {
        "RGB": {"sobel": False},
        "RGB untrained, normalised": {"sobel": False, "train": "statistics"},
    },
    "More images": {
        "50,000 images": {"limit": 50_000},
        "50,000 images, k=1000": {"limit": 50_000, "n_clusters": 1000},
        "50,000 images, 24 epochs": {"limit": 50_000, "epochs": 24, "lr_schedule": "cosine"},
    },
    "Learning rate": {"cosine": {"lr_schedule": "cosine"}},
    "Another clustering": {
        "PIC": {"clusterer": "dcfast.PIC", "n_clusters": None, "pca": 32},
        "clustering head": {"clusterer": "dcfast.ClusterHead"},
    },
}

# The same network untrained.
UNTRAINED = {
    "DeepCluster": "untrained, normalised",
    "RGB": "RGB untrained, normalised",
    "50,000 images": "untrained, normalised",
    "50,000 images, k=1000": "untrained, normalised",
    "50,000 images, 24 epochs": "untrained, normalised",
    "cosine": "untrained, normalised",
    "PIC": "untrained, normalised",
    "clustering head": "untrained, normalised",
}


def imbalanced(folder: Path, work: Path) -> Path:
    """Make a folder of links in which every class has half the images of the one before: 5,000, 2,500, ..., 10."""
    for number, source in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        target = work / "imbalanced" / source.name
        target.mkdir(parents=True, exist_ok=True)
        for image in sorted(source.iterdir())[: 5_000 >> number]:
            link = target / image.name
            if not link.exists():
                link.symlink_to(image.resolve())
    return work / "imbalanced"


def learn(folder: Path, work: Path, name: str, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """Train and probe one network; return what came out, ready for JSON."""
    options = {**BASE, **options, "seed": seed}
    source, unbalanced = options.pop("train", "clusters"), options.pop("imbalanced", False)
    images = work / "imbalanced" if unbalanced else folder / "train"
    if unbalanced:
        del options["limit"]
    path = work / f"{name.replace(' ', '-')}-{seed}"
    colour = "grey" if options.get("sobel", True) else "colour"
    options["cache"] = str(work / f"{images.name}-{colour}-{'all' if unbalanced else seed}-{os.getpid()}.cache")
    display = Display(Console(file=io.StringIO()))
    began, used = time.perf_counter(), time.process_time()
    resumed = (path / "checkpoint.pt").exists()
    if resumed:
        trainer = resume(path, display=display)
    else:
        trainer = start(images, path, TrainConfig(**options), overwrite=True, display=display)
    history: list[dict[str, Any]] = []
    if source == "clusters":
        trainer.fit()
        history = trainer.history
    elif source == "labels":
        supervise(trainer)
    elif source == "statistics":
        normalise(trainer)
    trained, trained_used = time.perf_counter() - began, time.process_time() - used
    train = check_images(open_source(folder / "train"), BASE["limit"], seed, 0)
    test = check_images(open_source(folder / "test"), None, seed, 0)
    for data in (train, test):
        data.image_size = trainer.config.image_size or 0
    found = probe_network(trainer.model, train, test, trainer.config, display=display, **PROBE)
    Path(options["cache"]).unlink(missing_ok=True)
    return {
        "name": name,
        "seed": seed,
        "options": {name: value for name, value in options.items() if name != "cache"},
        "learns_from": source,
        "imbalanced": unbalanced,
        "n_images": len(trainer.data),
        "accuracy": {layer.name: layer.accuracy for layer in found},
        "history": history,
        # Of a run that was stopped and went on nobody knows the whole.
        "wall_seconds": None if resumed else round(trained, 1),
        "cpu_seconds": None if resumed else round(trained_used, 1),
        "commit": commit(Path(__file__).parent),
    }


def supervise(trainer: Trainer) -> None:
    """Train the network of a run on the labels, as it would train on clusters."""
    data, config = trainer.data, trainer.config
    top = build_top_layer(trainer.model.feature_dim, 1 + int(data.labels.max()))
    both = trainer.optimizer, torch.optim.SGD(top.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    with reproducible(config.threads or 1, torch.device("cpu")):
        for epoch in range(config.epochs or 0):
            order = plain_order(data.labels, len(data), config.seed, epoch)
            train_epoch(
                trainer.model, top, both, trainer.scaler, data, data.labels, order, config, epoch, trainer.display, {}
            )


def normalise(trainer: Trainer) -> None:
    """Give the batch normalisation of a run's network the statistics of its images."""
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    trainer.model.train()
    with torch.inference_mode():
        for images in Batches(CentreCrops(trainer.data, 256), 0, torch.device("cpu")):
            trainer.model.forward_features(images)


def known(results: Path, work: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return what is done, by name and seed: what the newest file of these options holds, and what ``work`` does."""
    runs: list[dict[str, Any]] = []
    for path in sorted(results.glob("cifar10-*.json")):
        file = json.loads(path.read_text())
        if (file["base"], file["probe"]) == (BASE, PROBE):
            runs = file["runs"]
    runs += [json.loads(path.read_text()) for path in sorted(work.glob("*.json"))]
    wanted = {name: options for study in STUDIES.values() for name, options in study.items()}
    found = {}
    for run in runs:
        options = {**BASE, **wanted.get(run["name"], {}), "seed": run["seed"]}
        kept = {name: value for name, value in options.items() if name in run["options"]}
        if run["name"] in wanted and kept == run["options"]:
            found[run["name"], run["seed"]] = run
    return found


def tables(results: list[dict[str, Any]]) -> str:
    """Return the studies as Markdown."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        by_name.setdefault(result["name"], []).append(result)
    lines = []
    for study, runs in STUDIES.items():
        names = [name for name in ("DeepCluster", *runs) if name in by_name]
        names = list(dict.fromkeys(names))
        layers = list(by_name[names[0]][0]["accuracy"]) if names else []
        heads = [*layers, "NMI previous", "NMI labels", "AMI labels", "largest", "CPU s"]
        if not any(name in by_name for name in runs):
            continue
        lines += [f"### {study}", "", f"| run (seeds) | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
        for name in names:
            seeds = by_name[name]
            cells = [spread([100 * one["accuracy"][layer] for one in seeds], 1) for layer in layers]
            ends = [one["history"][-1] for one in seeds if one["history"]]
            last = [[r for r in one["history"] if r["nmi_previous"] is not None][-1:] for one in seeds]
            cells += [
                spread([r["nmi_previous"] for found in last for r in found], 2),
                spread([r["nmi_labels"] for r in ends], 2),
                spread([r["ami_labels"] for r in ends], 2),
                spread([100 * r["largest_cluster"] / one["n_images"] for one in seeds for r in one["history"][-1:]], 1),
                spread([one["cpu_seconds"] for one in seeds if one["cpu_seconds"] is not None], 0),
            ]
            lines.append(f"| {name} ({len(seeds)}) | {' | '.join(cells)} |")
            before = by_name.get(UNTRAINED.get(name, ""), []) if name in runs else []
            pairs = [(one, other) for one in seeds for other in before if one["seed"] == other["seed"]]
            if pairs:
                gains = (
                    spread([100 * (one["accuracy"][layer] - other["accuracy"][layer]) for one, other in pairs], 1)
                    for layer in layers
                )
                lines.append(f"| {name} less {UNTRAINED[name]}, seed by seed | {' | '.join(gains)} | | | | | |")
        lines.append("")
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    """Return mean and deviation over the seeds."""
    if not values:
        return "-"
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{deviation}"


def main(
    folder: Annotated[Path, typer.Argument(help="With train/<class>/ and test/<class>/.")],
    work: Annotated[Path, typer.Option(help="Where runs and their results are kept.")],
    jobs: Annotated[int, typer.Option(help="Runs at once, of one thread each.")] = 2,
    study: Annotated[
        list[str] | None, typer.Option(help="First words of the studies to run, '-' for none; all of them.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder of result files.")] = Path(__file__).parent / "results",
) -> None:
    """Run the studies that are not done yet, and print the tables of those that are."""
    console = Console()
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    imbalanced(folder / "train", work)
    found = known(results, work)
    chosen = [runs for name, runs in STUDIES.items() if not study or name.startswith(tuple(study))]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {}
        for runs in chosen:
            for seed in SEEDS:
                for name, options in runs.items():
                    where = work / f"{name.replace(' ', '-')}-{seed}.json"
                    if (name, seed) not in found:
                        waiting[pool.submit(learn, folder, work, name, seed, options)] = where
        for number, done in enumerate(as_completed(waiting), 1):
            result = done.result()
            replace(waiting[done], json.dumps(result).encode())
            accuracy = " ".join(f"{100 * value:.1f}" for value in result["accuracy"].values())
            console.print(
                f"{number}/{len(waiting)}  {result['name']}, seed {result['seed']}: {accuracy}",
                highlight=False,
            )
    runs = list(known(results, work).values())
    target = results / f"cifar10-{datetime.date.today():%Y-%m-%d}.json"
    target.parent.mkdir(exist_ok=True)
    text = json.dumps({"base": BASE, "probe": PROBE, "torch": torch.__version__, "runs": runs}, indent=1)
    replace(target, text.encode())
    console.print(tables(runs), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
