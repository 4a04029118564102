"""The options of a run."""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dcfast.cluster.inputs import parse_memory
from dcfast.deepcluster.clusterers import KMEANS, find_clusterer, takes_number
from dcfast.deepcluster.keyed import MAX_SEED
from dcfast.deepcluster.torchrun import local_size

__all__ = [
    "ARCHITECTURES",
    "BALANCES",
    "CUSTOM",
    "LR_SCHEDULES",
    "PLACES",
    "PRECISIONS",
    "TrainConfig",
    "check_compiler",
    "find_device",
]

ARCHITECTURES = ("alexnet", "vgg16", "small", "micro", "resnet18", "resnet50")
CUSTOM = "custom"  # the architecture of a run on a network of the user's own
BALANCES = ("sampler", "loss", "none")
LR_SCHEDULES = ("constant", "cosine")
PLACES = ("workers", "device")
PRECISIONS = ("float32", "bfloat16", "float16")

_LEAST_SIDE = 8  # of the crops; the smallest network pools three times
_RESNET_STRIDE = 32  # pixels of an image's side per pixel of a residual network's last maps
_SMALL_IMAGES = 64  # up to this many pixels a side the small network and its gentler crops are the default


# Annotation of an option -> what it must be, in words and as types, and the type that is stored.
_KINDS: dict[str, tuple[str, tuple[type, ...], type]] = {
    "int": ("an integer", (numbers.Integral,), int),
    "float": ("a number", (numbers.Real,), float),
    "bool": ("True or False", (bool, np.bool_), bool),
}


@dataclass(frozen=True)
class TrainConfig:
    """Every option of a DeepCluster run.

    ``None`` means "choose for this data"; `resolve` fills such values in once the data is known, and only resolved
    options are stored with a run.

    Attributes
    ----------
    arch : {'alexnet', 'vgg16', 'small', 'micro', 'resnet18', 'resnet50', 'custom'} or None
        The network. By default the small one up to 64 pixels a side, AlexNet above. 'custom' is what
        `dcfast.DeepCluster` sets for a network of the user's own.
    feature_dim : int or None
        Width of that network's features; None for the others.
    filters : float
        Factor on the numbers of filters of the small and the micro network.
    init : str or None
        Weights to start from: a file that `dcfast.deepcluster.weights.load_weights` reads, or a run directory.
    sobel : bool
        Feed the network Sobel gradients, as published, instead of colours.
    image_size : int or None
        Side of the square crops in pixels, 8 or more: 16 for digits, else 32 for small and micro, 224 for the others.
    n_clusters : int or None
        k. By default one cluster per 50 images, at least 10 and at most the published 10,000. None for a clusterer that
        finds the number itself.
    pca : int
        Principal components kept for k-means; at most one per four images, and no more than there are features.
    kmeans_iterations : int
        Lloyd iterations per clustering.
    warm_start : bool
        Start k-means from the means of the last clusters in the new features, not from random images (published).
    clusterer : str
        'kmeans', 'head', 'pic', or a scikit-learn clusterer in its place; see
        `dcfast.deepcluster.clusterers.find_clusterer`.
    reassign : int
        Epochs from one clustering to the next.
    stop_clustering : int, 'auto' or None
        Clusterings after which training goes on with the last labels and the last top layer: so many, or as soon as
        they have settled by `dcfast.deepcluster.metrics.settled`. None: never, as published.
    balance : {'sampler', 'loss', 'none'}
        Draw uniformly over clusters, weigh the loss by the inverse cluster size, or neither.
    epochs, batch_size : int
        Length of training, and images per step.
    lr, momentum, weight_decay : float
        Of SGD. The top layer has an optimizer of its own, without momentum.
    lr_schedule : {'constant', 'cosine'}
        Keep the learning rate (published), or lower it to 0 over the run by half a cosine.
    dropout : float
        Of the fully connected layers.
    min_crop : float or None
        Smallest share of an image's area that a training crop covers.
    flip : bool or None
        Mirror every other training crop. Off by default for digits only.
    limit : int or None
        Use this many images, chosen with the seed, of a larger data set.
    seed : int
        Key of every random draw.
    threads : int or None
        CPU threads; by default what torch is set to.
    workers : int or None
        Processes that decode images, 0 for none; results do not depend on it.
    device : str
        'auto' (a GPU where there is one), 'cpu' or 'cuda'.
    cache : str or None
        File to decode the images into once. Without it they are decoded in both passes of every epoch.
    cache_side : int
        Images whose shorter side is longer than this are scaled down to it in the cache, others kept as they are.
    scale_on : {'workers', 'device'}
        Where crops are scaled to their size: by Pillow in the workers, or batch by batch on the device, which leaves
        them only to cut the crops out. The crops are the same but for rounding.
    precision : {'float32', 'bfloat16', 'float16'}
        What the network computes in; weights, sums and losses stay float32.
    compile : bool
        Compile the network by ``torch.compile``.
    accumulate : int
        Make the gradient of a step from this many parts of its batch, one after the other, of two images at least: less
        memory, the same gradient, except that batch normalisation sees each part by itself.
    max_memory : int, str or None
        Bytes (or such as '8GiB') of features to hold in memory; more are kept in a file in the run directory, with the
        same results. By default half of the memory of the device; of the machine, shared by its processes.
    """

    arch: str | None = None
    feature_dim: int | None = None
    filters: float = 1.0
    init: str | None = None
    sobel: bool = True
    image_size: int | None = None
    n_clusters: int | None = None
    pca: int = 256
    kmeans_iterations: int = 20
    warm_start: bool = False
    clusterer: str = KMEANS
    reassign: int = 1
    stop_clustering: int | str | None = None
    balance: str = "sampler"
    epochs: int | None = None
    batch_size: int | None = None
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-5
    lr_schedule: str = "constant"
    dropout: float = 0.5
    min_crop: float | None = None
    flip: bool | None = None
    limit: int | None = None
    seed: int = 0
    threads: int | None = None
    workers: int | None = None
    device: str = "auto"
    cache: str | None = None
    cache_side: int = 256
    scale_on: str = "workers"
    precision: str = "float32"
    compile: bool = False
    accumulate: int = 1
    max_memory: int | str | None = None

    def __post_init__(self) -> None:
        if self.max_memory is not None:
            object.__setattr__(self, "max_memory", parse_memory(self.max_memory))
        for field in dataclasses.fields(self):
            value, kinds = getattr(self, field.name), str(field.type).split(" | ")
            if kinds[0] not in _KINDS or (value is None and "None" in kinds) or (type(value) is str and "str" in kinds):
                continue
            what, accepted, stored = _KINDS[kinds[0]]
            if not isinstance(value, accepted):
                raise TypeError(f"{field.name} must be {what}, got {value!r}")
            object.__setattr__(self, field.name, stored(value))  # JSON knows no numbers of numpy's
        if self.arch == CUSTOM:
            self._check_custom()
        else:
            _one_of("arch", self.arch, (None, *ARCHITECTURES))
        _one_of("balance", self.balance, BALANCES)
        _one_of("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("scale_on", self.scale_on, PLACES)
        for name in ("pca", "kmeans_iterations", "reassign", "accumulate", "cache_side"):
            _at_least(name, getattr(self, name), 1)
        _at_least("image_size", self.image_size, _LEAST_SIDE)
        for name in ("epochs", "batch_size", "limit", "threads"):
            _at_least(name, getattr(self, name), 1)
        if self.stop_clustering != "auto":
            if isinstance(self.stop_clustering, str):
                raise ValueError(f"stop_clustering must be a number or 'auto', got {self.stop_clustering!r}")
            _at_least("stop_clustering", self.stop_clustering, 1)
        if self.clusterer != KMEANS:
            find_clusterer(self.clusterer)
            if self.warm_start:
                raise ValueError(f"warm_start is of k-means, got clusterer={self.clusterer!r}: leave one of them out")
        _at_least("n_clusters", self.n_clusters, 2)
        _at_least("workers", self.workers, 0)
        for name in ("lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be a finite number, 0 or more, got {value}")
        if not 0 < self.filters < math.inf:
            raise ValueError(f"filters must be a finite number above 0, got {self.filters}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if self.min_crop is not None and not 0 < self.min_crop <= 1:
            raise ValueError(f"min_crop must be above 0 and at most 1, got {self.min_crop}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed must be between 0 and {MAX_SEED}, got {self.seed}")

    def _check_custom(self) -> None:
        if self.feature_dim is None:
            raise ValueError("arch='custom' needs a network: DeepCluster(backbone, feature_dim=...) in Python")
        _at_least("feature_dim", self.feature_dim, 1)
        if self.sobel:
            raise ValueError("sobel must be False for a network of your own: it sees colours")
        if self.init is not None:
            raise ValueError(f"init={self.init!r} is for dcfast's networks: load it into your own before you pass it")

    def resolve(self, n_images: int, image_side: int, kind: str) -> TrainConfig:
        """Fill in every option left open.

        Parameters
        ----------
        n_images : int
            Usable images.
        image_side : int
            Typical shorter side of the images in pixels.
        kind : {'digits', 'folder', 'dataset'}
            Where the images come from.

        Returns
        -------
        TrainConfig
            With no ``None`` but where it means "none".

        Raises
        ------
        ValueError
            If there are fewer images than clusters, n_clusters is given to a clusterer that finds it itself, the cache
            would hold smaller images than the crops, the network has no such option or cannot train on batches of that
            size, or a GPU is asked for and there is none.

        Warns
        -----
        UserWarning
            For float16 on a CPU.
        """
        digits = kind == "digits"
        size = self.image_size
        arch = self.arch or ("small" if (size or image_side) <= _SMALL_IMAGES else "alexnet")
        if self.filters != 1 and arch not in ("small", "micro"):
            raise ValueError(f"filters={self.filters} is for arch 'small' and 'micro', got {arch!r}: leave it out")
        small = arch in ("small", "micro") or (arch == CUSTOM and (size or image_side) <= _SMALL_IMAGES)
        default_size = 224 if not small else 16 if digits else 32
        n_clusters = self.n_clusters
        if takes_number(find_clusterer(self.clusterer)):
            n_clusters = n_clusters or (100 if digits else max(10, min(10_000, n_images // 50)))
        elif n_clusters is not None:
            raise ValueError(
                f"clusterer={self.clusterer!r} finds the number of clusters itself, got n_clusters={n_clusters}: leave "
                "--n-clusters out"
            )
        if n_clusters is not None and n_images < n_clusters:
            raise ValueError(
                f"n_clusters={n_clusters} needs at least as many images, got {n_images}: "
                "lower --n-clusters or add images"
            )
        if self.cache is not None and self.cache_side < (size or default_size):
            raise ValueError(
                f"cache_side={self.cache_side} is less than the crops' {size or default_size} pixels: "
                "raise --cache-side"
            )
        if self.batch_size == 1 and arch.startswith("resnet") and (size or default_size) <= _RESNET_STRIDE:
            raise ValueError(
                f"batch_size=1: the last maps of {arch!r} have one pixel at image_size={size or default_size}, and a "
                "single one cannot be normalised: raise --batch-size"
            )
        device = find_device(self.device)
        if self.precision == "float16" and device.type == "cpu":
            warnings.warn(
                "precision='float16' is far slower than float32 on a CPU, which computes it in software: use bfloat16",
                stacklevel=2,
            )
        return dataclasses.replace(
            self,
            arch=arch,
            image_size=size or default_size,
            n_clusters=n_clusters,
            epochs=self.epochs or (20 if digits else 30 if small else 500),
            batch_size=self.batch_size or (64 if digits else 256),
            min_crop=self.min_crop or (0.7 if digits else 0.3 if small else 0.08),
            flip=(not digits) if self.flip is None else self.flip,
            threads=self.threads or torch.get_num_threads(),
            workers=(0 if small else 2) if self.workers is None else self.workers,
            device=str(device),
            init=None if self.init is None else os.path.abspath(self.init),
            cache=None if self.cache is None else os.path.abspath(self.cache),
            max_memory=self.max_memory or _memory(str(device)) // 2,
        )

    def learning_rate(self, epochs_done: float) -> float:
        """Return the learning rate after so many epochs, of resolved options.

        The cosine is that of Loshchilov and Hutter, "SGDR", equation 5, without restarts.
        """
        if self.lr_schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * epochs_done / (self.epochs or 1)))

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a plain dictionary, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> TrainConfig:
        """Rebuild what `to_dict` returned; an unknown option raises ValueError."""
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(options) - names)
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r}; the options are {', '.join(sorted(names))}")
        return cls(**options)


def find_device(name: str) -> torch.device:
    """Return the device of that name, 'auto' being a GPU where there is one.

    Raises
    ------
    ValueError
        If it is neither a CPU nor a GPU that torch sees.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # refused as others are
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {name!r}")
    if device.type == "cuda" and not available:
        raise ValueError(f"device={name!r}, but torch sees no GPU: use --device cpu")
    return device


def check_compiler(device: torch.device) -> None:
    """Raise ValueError, with the reason, if torch cannot compile for the device: it takes a C++ compiler on a CPU."""
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(2, device=device))
    except Exception as error:  # each part of the compiler has its own kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"compile=True, but torch cannot compile here ({reason}): mend that, or start a run without --compile"
        ) from error


def _memory(device: str) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // local_size()


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed if choice is not None)
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
