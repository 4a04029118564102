"""The DeepCluster loop: cluster the features, train on the clusters, repeat; and going on after any interruption."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from dcfast._files import is_full
from dcfast.cluster.ranks import Ranks
from dcfast.deepcluster import report
from dcfast.deepcluster.cache import CacheLayout, check_place
from dcfast.deepcluster.config import CUSTOM, TrainConfig, check_compiler, find_device
from dcfast.deepcluster.data import ImageData, check_images, describe_source
from dcfast.deepcluster.interrupt import Interrupted, put_off
from dcfast.deepcluster.keyed import Stream, torch_draws
from dcfast.deepcluster.metrics import ami, cluster_sizes, moved_points, nmi, settled
from dcfast.deepcluster.models import build_top_layer, load_state
from dcfast.deepcluster.progress import Display
from dcfast.deepcluster.run import SAME_NETWORK, initial_model, starting_model
from dcfast.deepcluster.rundir import RunDir
from dcfast.deepcluster.sampler import plain_order, uniform_order
from dcfast.deepcluster.sources import DatasetSource, Source, open_source
from dcfast.deepcluster.stages import check_ranks, cluster_features, extract_features, train_epoch
from dcfast.deepcluster.torchrun import all_ranks, left_alone
from dcfast.deepcluster.weights import load_weights

__all__ = ["Trainer", "data_workers", "look", "out_of_memory", "reproducible", "resume", "start", "versions"]

# Metrics of a clustering that stay true until the next one.
_LASTING = ("nmi_labels", "ami_labels", "n_clusters", "n_empty", "largest_cluster", "n_noise", "stopped_clustering")

# What a run goes on from.
_CHECKPOINT = ("epoch", "model", "head", "optimizers", "scaler", "assignments", "history")

# Stage -> options that lower what it holds in memory.
_LOWERS = {
    "features": "--max-memory, --batch-size, --image-size or --limit, or a higher --accumulate",
    "clustering": "--max-memory, --limit, --pca or --n-clusters",
    "training": "--batch-size, --image-size or --n-clusters, or a higher --accumulate",
}

Data = str | os.PathLike[str] | torch.utils.data.Dataset[Any]


class Trainer:
    """One run, from its last checkpoint to its last epoch.

    Made by `start` and `resume`. The state after an epoch is the network, the top layer, their optimizers, the
    assignments and the metrics; the checkpoint holds all of it.

    Parameters
    ----------
    config : TrainConfig
        Resolved options.
    data : ImageData
        The images.
    directory : RunDir
        With a configuration in it; its checkpoint, if there is one, is where the run goes on.
    display : Display
        Shows the progress.
    ranks : Ranks
        The processes that train together. Only the first one reads and writes the directory.
    backbone : nn.Module, optional
        The network of the user's own, a copy of which is trained.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: ImageData,
        directory: RunDir,
        display: Display,
        ranks: Ranks,
        backbone: torch.nn.Module | None = None,
    ) -> None:
        self.config, self.data, self.dir, self.display, self.ranks = config, data, directory, display, ranks
        self._backbone = backbone
        ranks.from_first(lambda: check_ranks(len(data), config, ranks))
        self.device = torch.device(config.device)
        # The weights alone come from the first rank: not every network can be pickled.
        weights = ranks.from_first(lambda: starting_model(config, directory, backbone).state_dict())
        model = initial_model(config, backbone)
        load_state(model, weights, directory.initial, SAME_NETWORK)
        self.model = model.to(self.device)
        if config.arch != CUSTOM:  # another one keeps the layout that it was written for
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        if config.compile:
            # Kernels for each size of batch by itself: those for all sizes would serve, or not, by what came before.
            compiled = torch.compile(self.model.forward_features, dynamic=False)
            self.model.forward_features = compiled  # type: ignore[method-assign]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self.assignments: np.ndarray | None = None
        self.history: list[dict[str, Any]] = []
        self._begun: dict[str, Any] | None = None
        checkpoint = ranks.from_first(lambda: directory.read_checkpoint(needs=_CHECKPOINT))
        if checkpoint is not None:
            self._restore(checkpoint)

    @property
    def finished(self) -> int:
        """Epochs that are done and saved."""
        return len(self.history)

    def fit(self) -> None:
        """Train to the last epoch, and write the report.

        Raises
        ------
        FloatingPointError
            If the loss or the features are no longer finite.
        MemoryError, OSError
            If memory or the disk does not suffice; the message names the options that lower the need.
        FileExistsError
            If another process trains into the directory.
        KeyboardInterrupt
            On Ctrl-C, and on SIGTERM while the network is trained, after the step: that state is saved, and `resume`
            goes on from it. An epoch that is being saved is saved first.

        The messages name the checkpoint that still is good.
        """
        epochs = self.config.epochs or 0
        with reproducible(self.config.threads or 1, self.device), self._alone() as board:
            self.display.header()
            for record in self.history:
                self.display.epoch(record, epochs)
            for epoch in range(self.finished, epochs):
                with self._last_good(epoch):
                    record = self._epoch(epoch)
                    with put_off(patient=self.ranks.size > 1) as asked:
                        with self.ranks.together():
                            if board is not None:
                                self._log(board, record)
                        self._save(record)
                self.display.epoch(record, epochs)
                if asked.signal:
                    signal.raise_signal(asked.signal)
        if self.ranks.rank > 0:
            return
        source = self.data.source
        with self.display.stage("report", 1) as advance:
            report.write_report(
                self.dir.path, source.dataset if isinstance(source, DatasetSource) else None, self._backbone
            )
            advance(1)

    def summary(self) -> None:
        """Print how the first and the last epoch compare, and where everything is; on the first rank alone."""
        epochs = "1 epoch" if self.finished == 1 else f"{self.finished} epochs"
        table = Table(title=f"{epochs}, {len(self.data)} images", show_edge=False)  # fits into 80 columns
        for heading in (
            "",
            "loss",
            "objective",
            "NMI with previous",
            "NMI with labels",
            "AMI with labels",
            "k",
            "largest",
        ):
            table.add_column(heading, justify="right", no_wrap=" " not in heading)
        names = ("loss", "objective", "nmi_previous", "nmi_labels", "ami_labels", "n_clusters", "largest_cluster")
        for record in dict.fromkeys((0, self.finished - 1)):
            values = [self.history[record][name] for name in names]
            cells = ["-" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in values]
            table.add_row(f"epoch {record + 1}", *cells)
        self.display.console.print(table)
        for what, path in (
            ("report", self.dir.report),
            ("metrics", self.dir.metrics),
            ("assignments", self.dir.assignments),
            ("checkpoint", self.dir.checkpoint),
            ("tensorboard", self.dir.tensorboard),
        ):
            self.display.say(f"{what:>12}  {path}")

    @contextmanager
    def _alone(self) -> Iterator[SummaryWriter | None]:
        """Keep other processes than the ranks of this run from training into its directory inside the block.

        Yields
        ------
        SummaryWriter, or None
            What writes the curves, on the first rank.
        """
        board = None
        with ExitStack() as stack:
            with self.ranks.together():
                if self.ranks.rank == 0:
                    stack.enter_context(self.dir.held())
                    board = SummaryWriter(str(self.dir.tensorboard), purge_step=self.finished + 1)
                    stack.enter_context(board)
            yield board

    def _epoch(self, epoch: int) -> dict[str, Any]:
        config = self.config
        phase = epoch % config.reassign
        begun, self._begun = self._begun or self._begin(epoch, phase), None
        clustering, seconds, waiting = begun["clustering"], begun["seconds"], begun["waiting"]
        assert self.assignments is not None  # epoch 0 clusters
        n_images = len(self.data) - clustering["n_noise"]
        self._stage = "training"
        began = time.perf_counter()
        order = self._order(epoch - phase, config.reassign * n_images)[phase * n_images : (phase + 1) * n_images]
        try:
            loss = train_epoch(
                self.model,
                self.top_layer,
                (self.optimizer, self.top_optimizer),
                self.scaler,
                self.data,
                self.assignments,
                order,
                config,
                epoch,
                self.display,
                waiting,
                self.ranks,
                (begun["step"], begun["total"]),
            )
        except Interrupted as stop:
            seconds["training"] += time.perf_counter() - began
            with put_off(patient=self.ranks.size > 1):  # a scheduler's signal comes from torchrun once more
                self._write(self.history, {**begun, "step": stop.step, "total": stop.total})
            raise
        seconds["training"] += time.perf_counter() - began
        return {
            "epoch": epoch + 1,
            "loss": loss,
            **clustering,
            "images_per_second": len(order) / seconds["training"],
            "n_corrupt": len(self.data.corrupt),
            "n_ranks": self.ranks.size,
            "lr": config.learning_rate(epoch),
            "seconds": {stage: round(spent, 4) for stage, spent in seconds.items()},
            "waiting": {stage: round(spent, 4) for stage, spent in waiting.items()},
        }

    def _begin(self, epoch: int, phase: int) -> dict[str, Any]:
        """Do what comes before the training of an epoch; return what is needed to go on from any step of it."""
        seconds = {"features": 0.0, "pca": 0.0, "kmeans": 0.0, "training": 0.0}
        waiting = {"features": 0.0, "training": 0.0}
        clusters_now = phase == 0 and not self._stopped
        clustering = self._cluster(epoch, seconds, waiting) if clusters_now else self._carried()
        return {"clustering": clustering, "seconds": seconds, "waiting": waiting, "step": 0, "total": 0.0}

    def _cluster(self, epoch: int, seconds: dict[str, float], waiting: dict[str, float]) -> dict[str, Any]:
        """Cluster anew and start a new top layer; return the epoch's metrics about it."""
        self._stage = "features"
        began = time.perf_counter()
        folder = self.dir.path if self.dir.path.is_dir() else None  # another machine may not have it
        features = extract_features(self.model, self.data, self.config, self.display, waiting, folder, self.ranks)
        seconds["features"] = time.perf_counter() - began
        self._stage = "clustering"
        previous = self.assignments
        start = previous if self.config.warm_start else None
        clustering = cluster_features(features, self.config, epoch, self.display, start, folder, self.ranks)
        del features
        seconds["pca"], seconds["kmeans"] = clustering.pca_seconds, clustering.kmeans_seconds
        self.assignments = clustering.assignments
        sizes = cluster_sizes(self.assignments)
        with torch_draws(torch.device("cpu"), self.config.seed, Stream.TOP_LAYER, epoch):
            self._new_top_layer(len(sizes))
        record = {
            "objective": clustering.objective,
            "kmeans_iterations": clustering.iterations,
            "nmi_previous": None if previous is None else nmi(previous, self.assignments),
            "nmi_labels": nmi(self.data.labels, self.assignments),
            "ami_labels": ami(self.data.labels, self.assignments),
            "n_clusters": len(sizes),
            "n_empty": clustering.n_empty,
            "largest_cluster": int(sizes.max()),
            "n_moved": None if previous is None else moved_points(previous, self.assignments),
            "n_noise": len(self.assignments) - int(sizes.sum()),
        }
        return {**record, "stopped_clustering": epoch + 1 if self._stops(epoch, record) else None}

    @property
    def _stopped(self) -> bool:
        """Whether the last clustering was the last of the run."""
        return bool(self.history) and self.history[-1]["stopped_clustering"] is not None

    def _stops(self, epoch: int, record: dict[str, Any]) -> bool:
        """Tell whether the clustering of this epoch, with these metrics, is the last of the run."""
        if self.config.stop_clustering != "auto":
            return epoch // self.config.reassign + 1 == self.config.stop_clustering
        clusterings = [one for one in (*self.history, record) if one["nmi_previous"] is not None]
        return settled(clusterings, len(self.data) - record["n_noise"])

    def _carried(self) -> dict[str, Any]:
        """Return the metrics of an epoch that goes on with the last clustering: nothing moved since."""
        last = self.history[-1]
        still_true = {name: last[name] for name in _LASTING}
        return {"objective": None, "kmeans_iterations": None, "nmi_previous": None, "n_moved": None, **still_true}

    def _order(self, clustered_at: int, n_draws: int) -> np.ndarray:
        """Return the order of the ``reassign`` epochs from ``clustered_at`` on."""
        assert self.assignments is not None
        if self.config.balance == "sampler":
            return uniform_order(self.assignments, n_draws, self.config.seed, clustered_at)
        return plain_order(self.assignments, n_draws, self.config.seed, clustered_at)

    def _new_top_layer(self, n_clusters: int) -> None:
        self.top_layer = build_top_layer(self.model.feature_dim, n_clusters).to(self.device)
        self.top_optimizer = torch.optim.SGD(
            self.top_layer.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay
        )

    def _save(self, record: dict[str, Any]) -> None:
        """Make an epoch final. Only the checkpoint counts: the other files are made from it when a run goes on."""
        history = [*self.history, record]
        self._write(history, None)
        self.history = history
        self.ranks.from_first(self._publish)

    def _write(self, history: list[dict[str, Any]], begun: dict[str, Any] | None) -> None:
        """Write the checkpoint after the epochs of ``history``, and after the steps of the next one if it has begun."""
        assert self.assignments is not None
        state = {
            "epoch": len(history),
            "model": self.model.state_dict(),
            "head": self.top_layer.state_dict(),
            "optimizers": {"model": self.optimizer.state_dict(), "head": self.top_optimizer.state_dict()},
            "scaler": self.scaler.state_dict(),
            "assignments": torch.from_numpy(self.assignments),
            "history": history,
            "begun": begun,
        }
        self.ranks.from_first(lambda: self.dir.write_checkpoint(state))

    def _publish(self) -> None:
        assert self.assignments is not None
        self.dir.write_metrics(self.history)
        self.dir.write_assignments(self.data.names, self.assignments, self.data.labels, self.finished)

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        load_state(self.model, checkpoint["model"], self.dir.checkpoint, SAME_NETWORK)
        self.optimizer.load_state_dict(checkpoint["optimizers"]["model"])
        self._new_top_layer(len(checkpoint["head"]["bias"]))
        self.top_layer.load_state_dict(checkpoint["head"])
        self.top_optimizer.load_state_dict(checkpoint["optimizers"]["head"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        self.assignments = checkpoint["assignments"].cpu().numpy()
        self.history = checkpoint["history"]
        self._begun = checkpoint.get("begun")
        if self._begun is None:  # else the assignments are those of an epoch that is not done
            self.ranks.from_first(self._publish)

    def _log(self, board: SummaryWriter, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name in ("seconds", "waiting"):
                for stage, spent in value.items():
                    board.add_scalar(f"{name}/{stage}", spent, record["epoch"])
            elif name != "epoch" and value is not None:
                board.add_scalar(name, value, record["epoch"])
        board.flush()

    @contextmanager
    def _last_good(self, epoch: int) -> Iterator[None]:
        """Add to what ends an epoch early which state is good still, and what to do."""
        try:
            yield
        except FloatingPointError as error:
            remedy = f"Start again with a lower --lr than {self.config.lr:g}"
            if self.config.precision == "float16":
                remedy += ", or with --precision bfloat16, which does not overflow"
            told = FloatingPointError(self._told(epoch, error, remedy))
            for note in getattr(error, "__notes__", ()):
                told.add_note(note)
            raise told from None
        except OSError as error:
            if not is_full(error):
                raise
            remedy = (
                f"Free some space and go on with --resume {self.dir.quoted}, or start again with --output on another "
                "disk; a checkpoint is smaller with a lower --n-clusters or a smaller --arch"
            )
            raise OSError(self._told(epoch, "the disk is full", remedy)) from error
        except (MemoryError, RuntimeError) as error:
            if self.ranks.size > 1 and left_alone(error):
                remedy = f"Go on with --resume {self.dir.quoted}, on as many processes as you like"
                raise ConnectionError(self._told(epoch, "another process of the run has ended", remedy)) from error
            if not out_of_memory(error):
                raise
            remedy = f"Start again with a lower {_LOWERS[self._stage]}"
            raise MemoryError(self._told(epoch, f"out of memory in {self._stage}", remedy)) from error

    def _told(self, epoch: int, what: object, remedy: str) -> str:
        if self.finished:
            last = f"{self.dir.checkpoint} holds the last good state, after epoch {self.finished}"
        else:
            last = "no epoch had ended, so there is no checkpoint"
        return f"epoch {epoch + 1}: {what}; {last}. {remedy}"


def start(
    data: Data,
    output: str | os.PathLike[str],
    config: TrainConfig | None = None,
    *,
    overwrite: bool = False,
    display: Display | None = None,
    backbone: torch.nn.Module | None = None,
) -> Trainer:
    """Begin a run: look at every image, settle the options, make the run directory.

    Parameters
    ----------
    data : 'digits', a folder, or a torch Dataset
        The images.
    output : str or path
        The run directory to make.
    config : TrainConfig, optional
        The options.
    overwrite : bool
        Replace a run that is there already.
    display : Display, optional
        Shows the progress.
    backbone : nn.Module, optional
        A network of the user's own, for ``arch='custom'``; a copy of it is trained.

    Returns
    -------
    Trainer
        To be told to `fit`.

    Raises
    ------
    FileExistsError
        If ``output`` holds a run, or files of the names of a run's, and ``overwrite`` is off; or if another process
        trains into it.
    FileNotFoundError, NotADirectoryError, ValueError, TypeError
        For data that is missing, empty or of an unknown kind, and for options that it cannot satisfy.
    """
    ranks, asked, directory = all_ranks(), config or TrainConfig(), RunDir(output)
    display = _display(display, ranks)
    # What can be told before every image is looked at.
    device = find_device(asked.device)
    ranks.from_first(lambda: directory.require_free(overwrite))
    ranks.from_first(lambda: check_place(asked.cache))
    if asked.compile:
        ranks.from_first(lambda: check_compiler(device))
    images = look(data, asked, display, ranks)

    def create() -> TrainConfig:
        config = asked.resolve(len(images), images.side, images.source.kind)
        initial = _starting_weights(config, backbone)  # refuses what does not fit before anything is written
        check_ranks(len(images), config, ranks)  # likewise
        directory.require_free(overwrite)  # looking at the images takes time, in which another run may have begun
        directory.create(
            {
                "options": config.to_dict(),
                "data": describe_source(images),
                "versions": versions(),
                "threads": config.threads,
            },
            initial,
        )
        return config

    config = ranks.from_first(create)
    images.image_size = config.image_size or 0
    return Trainer(config, images, directory, display, ranks, backbone)


def resume(
    path: str | os.PathLike[str],
    dataset: torch.utils.data.Dataset[Any] | None = None,
    *,
    epochs: int | None = None,
    workers: int | None = None,
    cache: str | None = None,
    max_memory: int | str | None = None,
    display: Display | None = None,
    backbone: torch.nn.Module | None = None,
) -> Trainer:
    """Open a run that was interrupted, or is to be made longer.

    It ends with the same bits as if it had never stopped: same weights, assignments and metrics but for times. On
    another number of processes than before it goes on as a run of that many would.

    Parameters
    ----------
    path : str or path
        The run directory.
    dataset : torch Dataset, optional
        The images, for a run that was started on a Dataset object.
    epochs : int, optional
        New total number of epochs, of a run whose learning rate does not depend on it.
    workers : int, optional
        New number of processes that decode images.
    cache : str, optional
        New place of the cache, for a run that has one.
    max_memory : int or str, optional
        New bound of the features in memory.
    display : Display, optional
        Shows the progress.
    backbone : nn.Module, optional
        The network, for a run on one of the user's own; its weights do not matter.

    Returns
    -------
    Trainer
        To be told to `fit`.

    Raises
    ------
    FileExistsError
        If another process trains into the directory.
    FileNotFoundError
        If there is no such run, or its images are gone.
    ValueError
        If the images or the versions of what computes are not those that the run was started with, a cache is given to
        a run without one (its images may be scaled down, which changes results), another number of epochs to one
        whose learning rate ends with them, or fewer than it has begun; if it is to be compiled and torch cannot; or if
        a file of the run is damaged.
    """
    ranks, directory = all_ranks(), RunDir(path)
    display = _display(display, ranks)
    given = {"epochs": epochs, "workers": workers, "cache": cache, "max_memory": max_memory}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}

    def read() -> dict[str, Any]:
        stored = directory.read_config()
        with directory.held():
            pass  # before any of its files is written
        _require_versions(stored["versions"], directory)
        config = TrainConfig.from_dict(stored["options"])
        if config.compile:
            check_compiler(torch.device(config.device))
        if cache is not None:
            if config.cache is None:
                raise ValueError(f"{path} was started without --cache, which may change results: go on without it")
            check_place(cache)  # before it is written down
            changes["cache"] = os.path.abspath(cache)
        if epochs is not None and epochs != config.epochs and config.lr_schedule != "constant":
            raise ValueError(
                f"the learning rate of {path} ends with its {config.epochs} epochs "
                f"(lr_schedule={config.lr_schedule!r}), got epochs={epochs}: go on without it, or start a new run"
            )
        checkpoint = directory.read_checkpoint() if epochs is not None else None
        if epochs is not None and checkpoint is not None:
            begun = checkpoint["epoch"] + (checkpoint.get("begun") is not None)
            if epochs < begun:
                raise ValueError(f"{path} has begun {begun} epochs already, got epochs={epochs}: give {begun} or more")
        if changes:
            stored["options"] = dataclasses.replace(config, **changes).to_dict()
            directory.write_config(stored)
        return stored

    stored = ranks.from_first(read)
    config = TrainConfig.from_dict(stored["options"])
    source = stored["data"]
    if source["kind"] == "dataset" and dataset is None:
        raise ValueError(f"{path} was trained on a torch Dataset ({source['location']}): resume it from Python")
    images = look(source["location"] if dataset is None else dataset, config, display, ranks)
    if images.fingerprint != source["fingerprint"]:
        raise ValueError(
            f"the images of {source['location']} have changed since {path} was started "
            f"({source['n_images']} usable then, {len(images)} now): bring them back, or start a new run"
        )
    images.image_size = config.image_size or 0
    return Trainer(config, images, directory, display, ranks, backbone)


def _display(display: Display | None, ranks: Ranks) -> Display:
    """Return what shows the progress: one process's is enough."""
    return Display(Console(quiet=True)) if ranks.rank > 0 else display or Display()


def _starting_weights(config: TrainConfig, backbone: torch.nn.Module | None) -> dict[str, Any] | None:
    """Return the state_dict that a run starts from, or None where the seed gives it."""
    if config.arch != CUSTOM and config.init is None:
        with torch.device("meta"):
            initial_model(config)
        return None
    model = initial_model(config, backbone)
    if config.init is not None:
        load_weights(model, config.init)
    side = config.image_size or 0
    with torch.inference_mode():
        model.eval().forward_features(torch.zeros(1, 3, side, side))
    return model.state_dict()


def out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that memory did not suffice, of the machine or of its GPU."""
    # On the CPU torch raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def data_workers(source: Source, asked: int | None) -> int:
    """Return how many processes are to look at the images of a source: two if nobody said, for files that is."""
    if asked is not None:
        return asked
    return min(2, os.cpu_count() or 1) if source.kind == "folder" else 0


def look(data: Data, config: TrainConfig, display: Display, ranks: Ranks) -> ImageData:
    """Return the images that decode; on each rank the same, which the first one looks at."""
    opened: list[Source] = []
    ranks.from_first(lambda: opened.append(open_source(data)))  # what no process finds is said once
    with ranks.together():
        source = opened[0] if opened else open_source(data)
    ranks.agree("images", hashlib.blake2b(os.fsencode("\0".join(source.names))).hexdigest())
    workers = data_workers(source, config.workers)
    total = min(config.limit or len(source.names), len(source.names))
    layout = None if config.cache is None else CacheLayout(config.cache, config.cache_side, config.sobel)

    def check() -> dict[str, Any]:
        with display.stage("images", total) as advance:
            return {**vars(check_images(source, config.limit, config.seed, workers, advance, layout)), "source": None}

    return ImageData(**{**ranks.from_first(check), "source": source})


def versions() -> dict[str, str]:
    """Return what bits depend on, beside options and images."""
    found = {package: version(package) for package in ("dcfast", "numpy", "pillow")}
    # torch's own word for itself names the build ("2.13.0+cpu"), its package's may not.
    found["torch"] = str(torch.__version__)
    return {**found, "python": platform.python_version(), "cpu": torch.backends.cpu.get_cpu_capability()}


def _require_versions(stored: dict[str, str], directory: RunDir) -> None:
    now = versions()
    # Python itself computes nothing that ends up in a result.
    for name in sorted(set(stored) - {"python"}):
        if stored[name] != now.get(name):
            raise ValueError(
                f"{directory.path} was started with {name} {stored[name]}, here is {now.get(name)}: the same bits "
                "cannot be promised. Install that version, or start a new run"
            )


@contextmanager
def reproducible(threads: int, device: torch.device) -> Iterator[None]:
    """Fix the number of threads and choose deterministic kernels inside the block."""
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    # Filling every new tensor only serves to find reads of uninitialised memory, and costs a pass over it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])
        torch.utils.deterministic.fill_uninitialized_memory = before[3]  # type: ignore[attr-defined]
