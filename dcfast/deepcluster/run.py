"""A run opened for reading: what the report and the probe work from."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import numpy as np
import torch

from dcfast.deepcluster.config import CUSTOM, TrainConfig
from dcfast.deepcluster.data import ImageData, named_images
from dcfast.deepcluster.keyed import Stream, torch_draws
from dcfast.deepcluster.models import Backbone, CustomBackbone, build_model, load_state
from dcfast.deepcluster.rundir import RunDir
from dcfast.deepcluster.sources import Source, open_source

__all__ = ["SAME_NETWORK", "Run", "initial_model", "load_run", "starting_model"]

SAME_NETWORK = "give the backbone that the run began with"  # a remedy for weights that do not fit


class Run:
    """A run directory, opened for reading.

    Attributes
    ----------
    dir : RunDir
        The files.
    config : dict
        All of ``config.json``: 'options', 'data', 'versions', 'threads'.
    options : TrainConfig
        The options of the run.
    metrics : list of dict
        One per finished epoch.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        dataset: torch.utils.data.Dataset[Any] | None = None,
        backbone: torch.nn.Module | None = None,
    ) -> None:
        self.dir = RunDir(path)
        self.config = self.dir.read_config()
        self.options = TrainConfig.from_dict(self.config["options"])
        self.metrics = self.dir.read_metrics()
        self._given, self._backbone = dataset, backbone

    @cached_property
    def source(self) -> Source:
        """Where the images come from; ValueError if they came from a torch Dataset that was not given."""
        described = self.config["data"]
        if described["kind"] != "dataset":
            return open_source(described["location"])
        if self._given is None:
            raise ValueError(
                f"{self.dir.path} was trained on a torch Dataset ({described['location']}): pass it as dataset="
            )
        return open_source(self._given)

    @cached_property
    def dataset(self) -> ImageData:
        """The images of the run, in the order of ``assignments.npz``.

        Raises
        ------
        FileNotFoundError
            If no epoch has ended, or an image of the run is gone.
        """
        assigned = self.assignments
        size = self.options.image_size
        assert size is not None  # stored options are resolved
        return named_images(self.source, assigned["files"], assigned["label"], size, self.config["data"])

    @cached_property
    def assignments(self) -> dict[str, np.ndarray]:
        """The arrays of ``assignments.npz``: files, cluster, label, epoch."""
        return self.dir.read_assignments()

    @property
    def model(self) -> Backbone:
        """The trained network on the CPU, in eval mode; FileNotFoundError before the first checkpoint."""
        return self._trained[0]

    @property
    def moment(self) -> str:
        """When the network was as it is: 'after epoch 1', or 'in the middle of epoch 2' after an interruption."""
        return self._trained[1]

    @cached_property
    def _trained(self) -> tuple[Backbone, str]:
        checkpoint = self.dir.read_checkpoint()
        if checkpoint is None:
            raise FileNotFoundError(f"{self.dir.path} has no checkpoint yet: no epoch has ended")
        model = self.untrained_model()
        load_state(model, checkpoint["model"], self.dir.checkpoint, SAME_NETWORK)
        epoch = checkpoint["epoch"]
        inside = checkpoint.get("begun") is not None
        return model, f"in the middle of epoch {epoch + 1}" if inside else f"after epoch {epoch}"

    def untrained_model(self) -> Backbone:
        """Return the network with the weights that the run started from, on the CPU, in eval mode."""
        return starting_model(self.options, self.dir, self._backbone).eval()


def starting_model(options: TrainConfig, directory: RunDir, backbone: torch.nn.Module | None = None) -> Backbone:
    """Build the network of a run with the weights that the run started from; parameters as for `initial_model`."""
    model = initial_model(options, backbone)
    state = directory.read_initial()
    if state is not None:
        load_state(model, state, directory.initial, SAME_NETWORK)
    return model


def initial_model(options: TrainConfig, backbone: torch.nn.Module | None = None) -> Backbone:
    """Build the network of resolved options with its initial weights, a function of the seed alone.

    A network of the user's own, ``backbone``, is copied with the weights it has; ValueError if it is not given.
    """
    if options.arch == CUSTOM:
        if backbone is None:
            raise ValueError("the run is one of a network of your own: pass it as backbone=, from Python")
        assert options.feature_dim is not None  # TrainConfig refuses it
        return CustomBackbone(backbone, options.feature_dim)
    # Stored options are resolved.
    assert options.arch is not None
    assert options.image_size is not None
    with torch_draws(torch.device("cpu"), options.seed, Stream.MODEL):
        return build_model(options.arch, options.image_size, options.sobel, options.dropout, options.filters)


def load_run(
    path: str | os.PathLike[str],
    dataset: torch.utils.data.Dataset[Any] | None = None,
    backbone: torch.nn.Module | None = None,
) -> Run:
    """Open a run directory for reading.

    Parameters
    ----------
    path : str or path
        The directory.
    dataset : torch Dataset, optional
        The images, for a run that was trained on a Dataset object.
    backbone : torch.nn.Module, optional
        The network, for a run on one of the user's own.

    Returns
    -------
    Run
        Whose ``dataset``, ``model`` and ``assignments`` are read when first asked for.

    Raises
    ------
    FileNotFoundError
        If the directory holds no run.
    """
    return Run(path, dataset, backbone)
