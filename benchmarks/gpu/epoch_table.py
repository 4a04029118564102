"""The stages of a DeepCluster epoch that pass images through the network, from a cache of decoded images.

Images are noise: timing does not ask what they show. k-means of the same sizes is in its own table.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from eager_sobel import EagerSobelConv2d
from rich.console import Console

from dcfast.deepcluster import TrainConfig
from dcfast.deepcluster.cache import CacheLayout
from dcfast.deepcluster.data import ImageData, check_images
from dcfast.deepcluster.models import Backbone, build_model, build_top_layer
from dcfast.deepcluster.progress import Display
from dcfast.deepcluster.sources import open_source
from dcfast.deepcluster.stages import extract_features, train_epoch

from .case import Case
from .measure import Call

# Name, architecture, side of the frames' two sides, crops, clusters, frames, images per call.
_SIZES = (
    ("CIFAR-size, micro AlexNet", "micro", (32, 32), 32, 1_000, 5_000, 50_000),
    ("ImageNet-size, AlexNet", "alexnet", (256, 340), 224, 10_000, 2_048, 32_768),
)
_SMALL = (("small", "small", (20, 24), 16, 8, 24, 48),)
_CHECKED = 64  # images whose features are compared with those of the definition


class Noise(torch.utils.data.Dataset[np.ndarray]):
    """Frames of one noise, each shifted by another number of rows."""

    def __init__(self, n_frames: int, shape: tuple[int, int]) -> None:
        self._n_frames = n_frames
        self._frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return self._n_frames

    def __getitem__(self, index: int) -> np.ndarray:
        frame = np.roll(self._frame, index, axis=0)
        frame[0, 0, 0] = index % 256
        return frame


class Problem(NamedTuple):
    data: ImageData
    config: TrainConfig
    labels: np.ndarray
    device: torch.device


def _network(problem: Problem, fused: bool) -> Backbone:
    torch.manual_seed(0)
    config = problem.config
    assert config.arch
    assert config.image_size
    model: Any = build_model(config.arch, config.image_size)
    if not fused:
        model.features[0] = EagerSobelConv2d(model.features[0])
    return model.to(problem.device, memory_format=torch.channels_last)


def features(fused: bool) -> Callable[[Problem], Call]:
    def prepare(problem: Problem) -> Call:
        model = _network(problem, fused)
        return lambda: extract_features(model, problem.data, problem.config, Display(Console(file=io.StringIO())), {})

    return prepare


def training(fused: bool) -> Callable[[Problem], Call]:
    def prepare(problem: Problem) -> Call:
        config, device = problem.config, problem.device
        model = _network(problem, fused)
        assert config.n_clusters
        top = build_top_layer(model.feature_dim, config.n_clusters).to(device)
        both = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9), torch.optim.SGD(top.parameters(), lr=1e-4)
        scaler = torch.amp.GradScaler(device.type, enabled=False)
        display, order = Display(Console(file=io.StringIO())), np.arange(len(problem.data))
        return lambda: train_epoch(
            model, top, both, scaler, problem.data, problem.labels, order, config, 0, display, {"training": 0.0}
        )

    return prepare


def _feature_errors(problem: Problem, found: torch.Tensor) -> dict[str, float]:
    some = dataclasses.replace(problem.data, indices=problem.data.indices[:_CHECKED])
    config = dataclasses.replace(problem.config, precision="float32")
    exact = features(False)(problem._replace(data=some, config=config))()
    assert isinstance(exact, torch.Tensor)
    return {"error": float((found[: len(exact)] - exact).norm() / exact.norm())}


def _loss_errors(problem: Problem, loss: float) -> dict[str, float]:
    """Labels at random are learnt by nobody at such a learning rate."""
    expected = math.log(problem.config.n_clusters or 1)
    return {"error": abs(loss - expected) / expected}


def cases(device: torch.device, small: bool) -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as folder:
        for name, arch, frame, side, n_clusters, n_frames, n_images in _SMALL if small else _SIZES:
            workers = 0 if small else min(12, os.cpu_count() or 1)
            options: dict[str, Any] = {"precision": "float32" if small else "bfloat16", "scale_on": "device"}
            config = TrainConfig(
                arch=arch, image_size=side, n_clusters=n_clusters, device=device.type, workers=workers, **options
            ).resolve(n_images, side, "dataset")
            layout = CacheLayout(str(Path(folder, f"{arch}.cache")), min(frame), grey=True)
            data = check_images(open_source(Noise(n_frames, frame)), None, 0, workers, layout=layout)
            data.image_size = side
            repeated = np.resize(data.indices, n_images)
            data = dataclasses.replace(data, indices=repeated, labels=np.full(n_images, -1))
            labels = np.random.default_rng(0).integers(0, n_clusters, n_images)
            labels[:n_clusters] = np.arange(n_clusters)  # none is empty
            problem = Problem(data, config, labels, device)
            bytes_in = float(n_images * side * side)
            within = {"error": 1e-3 if small else 5e-2}
            for stage, of, errors, most in (
                ("features", features, _feature_errors, within),
                ("training", training, _loss_errors, {"error": 0.2}),
            ):
                yield Case(
                    f"epoch, {stage}", f"{name}, {n_images} images", of(True), {"torch": of(False)}, [problem],
                    operations=0.0, moved=bytes_in, errors=errors, ours_within=most, peers_within=most,
                    parameters={"images": n_images, "arch": arch, "stage": stage, **options},
                )  # fmt: skip
