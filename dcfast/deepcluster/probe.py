"""Linear classifiers on what each convolution block of a trained network sees, against the same network untrained.

The protocol is DeepCluster's (Zhang et al. 2016, Caron et al. 2018): the network is frozen in eval mode, the output of
each block after its ReLU is average-pooled to about 9,600 values, and a linear classifier is trained on them, as they
are, with SGD of momentum 0.9 and learning rate ``lr / sqrt(1 + lr * weight_decay * step)``. Two things differ, both to
keep it quick: classifiers are trained and tested on one centre crop per image (published: random crops, and ten crops
averaged), and they start from zero (the problem is convex) instead of a random draw.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from dcfast.deepcluster.config import TrainConfig, find_device
from dcfast.deepcluster.crops import Batches, CentreCrops
from dcfast.deepcluster.data import ImageData, check_images
from dcfast.deepcluster.keyed import Stream, generator
from dcfast.deepcluster.linear import MOMENTUM, accuracy, fit_linear
from dcfast.deepcluster.models import Backbone
from dcfast.deepcluster.progress import Display
from dcfast.deepcluster.report import write_report
from dcfast.deepcluster.run import Run, load_run
from dcfast.deepcluster.rundir import mapped_array
from dcfast.deepcluster.sources import FolderSource
from dcfast.deepcluster.trainer import reproducible

__all__ = ["LayerAccuracy", "LayerProbe", "ProbeResult", "pooling", "probe", "probe_network", "split_by_class"]

MAX_FEATURES = 9_600
TEST_SHARE = 0.2

# AlexNet at 224 pixels: (channels, side) of a block's output -> kernel, stride and padding of the published pooling.
_PUBLISHED_POOLS = {(96, 55): (6, 6, 3), (256, 27): (4, 4, 0), (384, 13): (3, 3, 1), (256, 13): (2, 2, 0)}

_ACTIVATION_BYTES = 2**28  # of all blocks' outputs together, per batch of images


@dataclass(frozen=True)
class ProbedLayer:
    """A convolution block that a classifier was trained on.

    Attributes
    ----------
    name : str
        'conv1' is the first block.
    n_features : int
        Values per image after pooling.
    """

    name: str
    n_features: int


@dataclass(frozen=True)
class LayerProbe(ProbedLayer):
    """What `probe` found at one convolution block.

    Attributes
    ----------
    trained, untrained : float
        Share of the test images that are classified rightly, with the trained and with the untrained network.
    trained_fit, untrained_fit : float
        The same on the images that the classifier was trained on.
    """

    trained: float
    untrained: float
    trained_fit: float
    untrained_fit: float


@dataclass(frozen=True)
class LayerAccuracy(ProbedLayer):
    """What `probe_network` found at one convolution block.

    Attributes
    ----------
    accuracy, fit : float
        Share of the test images, and of the images that it was trained on, that are classified rightly.
    """

    accuracy: float
    fit: float


@dataclass(frozen=True)
class ProbeResult:
    """What `probe` found.

    Attributes
    ----------
    layers : tuple of LayerProbe
        First block first.
    epoch : int
        The run's last epoch that has ended.
    moment : str
        What was probed: the network 'after epoch 1', or, of a run that was interrupted, 'in the middle of epoch 2'.
    n_train, n_test, n_classes : int
        Size of the problem.
    chance : float
        Share of the largest class among the test images: what a constant answer reaches.
    test : str
        Where the test images come from.
    options : dict
        epochs, lr, batch_size, weight_decay, momentum, seed.
    """

    layers: tuple[LayerProbe, ...]
    epoch: int
    moment: str
    n_train: int
    n_test: int
    n_classes: int
    chance: float
    test: str
    options: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain lists and dictionaries, ready for JSON."""
        return dataclasses.asdict(self)

    def table(self) -> Table:
        """Return the accuracies as a table for a rich console."""
        table = Table(
            title=f"Linear probe {self.moment}: test accuracy on {self.n_test} images, "
            f"{self.n_classes} classes (largest class {self.chance:.1%})"
        )
        for heading in ("layer", "features", "untrained", "trained", "gain"):
            table.add_column(heading, justify="left" if heading == "layer" else "right")
        for layer in self.layers:
            table.add_row(
                layer.name,
                str(layer.n_features),
                f"{layer.untrained:.1%}",
                f"{layer.trained:.1%}",
                f"{100 * (layer.trained - layer.untrained):+.1f}",
            )
        return table


def probe(
    run_dir: str | os.PathLike[str],
    *,
    epochs: int = 90,
    lr: float = 0.01,
    batch_size: int = 256,
    weight_decay: float = 1e-4,
    layers: Sequence[int] | None = None,
    test: str | os.PathLike[str] | None = None,
    dataset: torch.utils.data.Dataset[Any] | None = None,
    backbone: nn.Module | None = None,
    device: str = "auto",
    max_memory: int = 2**31,
    display: Display | None = None,
) -> ProbeResult:
    """Probe every convolution block of a run's network, write ``probe.json`` and renew ``report.html``.

    Parameters
    ----------
    run_dir : str or path
        A run with at least one finished epoch, on images with labels.
    epochs, lr, batch_size, weight_decay
        Of the classifiers' training; the defaults are the published ones.
    layers : sequence of int, optional
        Which blocks, counted from 1; all by default.
    test : str or path, optional
        Folder with the test images, one sub-folder per class, with names of the run's classes. By default a fifth of
        each class of the run's own images is kept for testing, chosen with the run's seed.
    dataset : torch Dataset, optional
        The images, for a run that was trained on a Dataset object.
    backbone : nn.Module, optional
        The network, for a run on one of the user's own.
    device : str
        'auto' (a GPU where there is one), 'cpu' or 'cuda'.
    max_memory : int
        Bytes of pooled features to hold at a time. The images pass through the network once per group of blocks that
        fits; the features of a block that does not fit alone are kept in an unnamed file in ``run_dir``.
    display : Display, optional
        Shows the progress.

    Returns
    -------
    ProbeResult
        The same bits every time on one machine.

    Raises
    ------
    ValueError
        If the images have no labels or only one class, the network no convolutions, an option is out of range, or a
        file of the run is damaged.
    FileNotFoundError
        If there is no such run, no epoch has ended, or its images are gone.
    FloatingPointError
        If a classifier diverges.

    Notes
    -----
    A block costs O(epochs * images * features * classes) time.
    """
    find_device(device)  # before any image is looked at
    display = display or Display()
    run = load_run(run_dir, dataset, backbone)
    train, held_out, where = _split_images(run, test, display)
    options: dict[str, Any] = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "weight_decay": weight_decay}
    trained, untrained = (
        probe_network(
            model,
            train,
            held_out,
            run.options,
            layers=layers,
            device=device,
            max_memory=max_memory,
            folder=run.dir.path,
            display=display,
            name=name,
            **options,
        )
        for name, model in (("trained", run.model), ("untrained", run.untrained_model()))
    )
    result = ProbeResult(
        layers=tuple(
            LayerProbe(one.name, one.n_features, one.accuracy, zero.accuracy, one.fit, zero.fit)
            for one, zero in zip(trained, untrained, strict=True)
        ),
        epoch=len(run.metrics),
        moment=run.moment,
        n_train=len(train),
        n_test=len(held_out),
        n_classes=len(np.unique(train.labels)),
        chance=float(np.bincount(held_out.labels).max() / len(held_out)),
        test=where,
        options={**options, "momentum": MOMENTUM, "seed": run.options.seed},
    )
    run.dir.write_probe(result.to_dict())
    write_report(run_dir, dataset, backbone)
    return result


def probe_network(
    model: Backbone,
    train: ImageData,
    test: ImageData,
    config: TrainConfig,
    *,
    epochs: int = 90,
    lr: float = 0.01,
    batch_size: int = 256,
    weight_decay: float = 1e-4,
    layers: Sequence[int] | None = None,
    device: str = "auto",
    max_memory: int = 2**31,
    folder: Path | None = None,
    display: Display | None = None,
    name: str = "",
) -> list[LayerAccuracy]:
    """Probe the convolution blocks of a network, which ends in eval mode; parameters and errors as for `probe`.

    Parameters
    ----------
    model : Backbone
        The network.
    train, test : ImageData
        Images with labels, to train and to test the classifiers on.
    config : TrainConfig
        Resolved options: seed, threads and workers.
    folder : Path, optional
        Where features beyond ``max_memory`` are kept; the system's directory of temporary files by default.
    name : str
        What the display calls the network.
    """
    _check_options(epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, max_memory=max_memory)
    display = display or Display()
    place = find_device(device)
    model = model.to(place).eval()
    n_classes = 1 + int(max(train.labels.max(), test.labels.max()))
    options: dict[str, Any] = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "weight_decay": weight_decay}
    found = []
    with reproducible(config.threads or 1, place):
        blocks = _describe_blocks(model, train, layers, place)
        extracted = _extract(model, blocks, (train, test), config, place, max_memory, folder, name, display)
        with display.stage(f"{name} classifiers", len(blocks)) as advance:
            for block, features in zip(blocks, extracted, strict=True):
                classifier = fit_linear(
                    features.train, train.labels, n_classes, seed=config.seed, device=place, **options
                )
                fit = accuracy(classifier, features.train, train.labels)
                right = accuracy(classifier, features.test, test.labels)
                found.append(LayerAccuracy(block.name, block.n_features, right, fit))
                advance(1)
    return found


def split_by_class(labels: np.ndarray, seed: int, share: float = TEST_SHARE) -> tuple[np.ndarray, np.ndarray]:
    """Split the labelled images into training and test images, class by class.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
        Negative where unknown; such images are in neither part.
    seed : int
        Key of the draw.
    share : float
        Part of each class to test on, rounded; one image at least where the class has two, none where it has one.

    Returns
    -------
    (train, test) : ndarrays of int64
        Positions, ascending.
    """
    train, test = [], []
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        drawn = generator(seed, Stream.PROBE, 0, int(label)).permutation(members)
        n_test = min(max(1, round(share * len(members))), len(members) - 1)
        test.append(drawn[:n_test])
        train.append(drawn[n_test:])
    if not train:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def pooling(channels: int, side: int) -> tuple[Callable[[Tensor], Tensor], int]:
    """Choose the average pooling of a block's output.

    Parameters
    ----------
    channels, side : int
        Shape of the output: (N, channels, side, side).

    Returns
    -------
    (pool, grid)
        What to apply, and the side of what comes out: the largest with ``channels * grid**2 <= 9600``, at least 1. The
        outputs of AlexNet at 224 pixels get the published windows; they reach the same grids.
    """
    if (channels, side) in _PUBLISHED_POOLS:
        kernel, stride, padding = _PUBLISHED_POOLS[channels, side]
        return nn.AvgPool2d(kernel, stride, padding), (side + 2 * padding - kernel) // stride + 1
    grid = max(1, min(side, math.isqrt(MAX_FEATURES // channels)))
    return nn.AdaptiveAvgPool2d(grid), grid


@dataclass(frozen=True)
class _Block:
    """One convolution block to probe: its position in ``conv_outputs`` and how its output is pooled."""

    position: int
    pool: Callable[[Tensor], Tensor]
    n_features: int
    batch: int  # images whose outputs of all blocks fit into _ACTIVATION_BYTES

    @property
    def name(self) -> str:
        return f"conv{self.position + 1}"


@dataclass(frozen=True)
class _Features:
    """Pooled features of one block: float32 (n_train, d) and (n_test, d)."""

    train: Tensor
    test: Tensor


def _describe_blocks(
    model: Backbone, data: ImageData, layers: Sequence[int] | None, device: torch.device
) -> list[_Block]:
    with torch.inference_mode():
        outputs = model.conv_outputs(data.eval_image(0)[None].to(device))
    if not outputs:
        raise ValueError("the network has no convolutions (torch.nn.Conv2d), whose outputs the probe looks at")
    wanted = range(1, len(outputs) + 1) if layers is None else sorted(set(layers))
    if not wanted or wanted[0] < 1 or wanted[-1] > len(outputs):
        raise ValueError(f"layers must be among 1 to {len(outputs)} for this network, got {list(layers or [])}")
    batch = max(1, min(256, _ACTIVATION_BYTES // (4 * sum(output.numel() for output in outputs))))
    blocks = []
    for number in wanted:
        _, channels, side, _ = outputs[number - 1].shape
        pool, grid = pooling(channels, side)
        blocks.append(_Block(number - 1, pool, channels * grid * grid, batch))
    return blocks


def _extract(
    model: Backbone,
    blocks: list[_Block],
    parts: tuple[ImageData, ImageData],
    config: TrainConfig,
    device: torch.device,
    max_memory: int,
    folder: Path | None,
    name: str,
    display: Display,
) -> Iterator[_Features]:
    """Yield the features of each block, computing as many blocks per pass over the images as fit in memory."""
    n_images = sum(map(len, parts))
    for group in _groups([4 * n_images * block.n_features for block in blocks], max_memory):
        members = [blocks[index] for index in group]
        mapped = 4 * n_images * members[0].n_features > max_memory
        with display.stage(f"{name} features", n_images) as advance:
            tensors = [_pooled(model, members, part, config, device, mapped, folder, advance) for part in parts]
        for train, test in zip(*tensors, strict=True):
            yield _Features(train, test)


def _groups(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Cut 0..len(sizes)-1 into runs whose sizes sum to at most ``limit``; what exceeds it alone stays alone."""
    groups: list[list[int]] = []
    held = 0
    for index, size in enumerate(sizes):
        if not groups or held + size > limit:
            groups.append([])
            held = 0
        groups[-1].append(index)
        held += size
    return groups


def _pooled(
    model: Backbone,
    blocks: list[_Block],
    data: ImageData,
    options: TrainConfig,
    device: torch.device,
    mapped: bool,
    folder: Path | None,
    advance: Callable[[int], None],
) -> list[Tensor]:
    features = [
        torch.from_numpy(mapped_array(len(data), block.n_features, folder))
        if mapped
        else torch.empty(len(data), block.n_features)
        for block in blocks
    ]
    done = 0
    with torch.inference_mode():
        for images in Batches(CentreCrops(data, blocks[0].batch), options.workers or 0, device):
            outputs = model.conv_outputs(images)
            for block, rows in zip(blocks, features, strict=True):
                rows[done : done + len(images)] = block.pool(outputs[block.position]).flatten(1).cpu()
            done += len(images)
            advance(len(images))
    return features


def _split_images(run: Run, test: str | os.PathLike[str] | None, display: Display) -> tuple[ImageData, ImageData, str]:
    """Return the training images, the test images, and where the latter come from."""
    data = run.dataset
    classes = np.unique(data.labels[data.labels >= 0])
    if not len(classes):
        raise ValueError(
            f"the probe needs labels and the images of {run.dir.path} have none: "
            "train on a folder with one sub-folder per class"
        )
    if len(classes) == 1:
        raise ValueError(f"the probe needs two classes or more, the images of {run.dir.path} have one")
    if test is not None:
        return _subset(data, np.flatnonzero(data.labels >= 0)), _test_folder(run, test, display), str(test)
    train, held_out = split_by_class(data.labels, run.options.seed)
    if not len(held_out):
        raise ValueError("no class has two images, so none can be kept for testing: give --test DIR")
    return _subset(data, train), _subset(data, held_out), f"{TEST_SHARE:.0%} of each class"


def _subset(data: ImageData, rows: np.ndarray) -> ImageData:
    return dataclasses.replace(data, indices=data.indices[rows], labels=data.labels[rows])


def _test_folder(run: Run, folder: str | os.PathLike[str], display: Display) -> ImageData:
    source = FolderSource(folder)
    known = run.dataset.class_names
    strange = sorted(set(source.class_names) - set(known))
    if not source.class_names or strange:
        what = f"has the class {strange[0]!r}" if strange else "has no sub-folders"
        raise ValueError(f"{folder} {what}: its sub-folders must be named as the run's classes, {', '.join(known)}")
    with display.stage("test images", len(source.names)) as advance:
        images = check_images(source, None, run.options.seed, run.options.workers or 0, advance)
    images.image_size = run.dataset.image_size
    images.labels = np.array([known.index(name) for name in source.class_names])[images.labels]
    return images


def _check_options(*, epochs: int, batch_size: int, lr: float, weight_decay: float, max_memory: int) -> None:
    for name, count in (("epochs", epochs), ("batch_size", batch_size), ("max_memory", max_memory)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} must be a finite number, 0 or more, got {value}")
