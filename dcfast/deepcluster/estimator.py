"""DeepCluster with the manners of a scikit-learn estimator."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import torch
from rich.console import Console

from dcfast.deepcluster.config import TrainConfig
from dcfast.deepcluster.progress import Display
from dcfast.deepcluster.trainer import start

__all__ = ["DeepCluster"]


class DeepCluster:
    """Cluster images with features that are learned from the clusters.

    Parameters
    ----------
    output : str or path
        Directory that the run is written to, as by ``dcfast train``.
    n_clusters : int, optional
        Clusters per epoch; by default one per 50 images. Use 10 to 100 times as many as there are classes.
    verbose : bool
        Show the progress.
    overwrite : bool
        Replace a run that ``output`` holds.
    **options
        Any other option of `dcfast.deepcluster.TrainConfig`.

    Attributes
    ----------
    labels_ : ndarray of int64, shape (N,)
        Cluster of each usable image in the last clustering.
    files_ : ndarray of str, shape (N,)
        Names of the usable images.
    model_ : torch.nn.Module
        The trained network in eval mode, on the device it was trained on.
    history_ : list of dict
        Metrics of every epoch.
    n_iter_ : int
        Epochs.

    Raises
    ------
    TypeError
        For an option that does not exist.
    ValueError
        For an option out of range.

    Examples
    --------
    >>> from dcfast import DeepCluster
    >>> clusters = DeepCluster("runs/digits", epochs=2).fit("digits").labels_  # doctest: +SKIP
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        n_clusters: int | None = None,
        *,
        verbose: bool = False,
        overwrite: bool = False,
        **options: Any,
    ) -> None:
        self.output = output
        self.n_clusters = n_clusters
        self.verbose = verbose
        self.overwrite = overwrite
        self.options = options
        self.config = TrainConfig(n_clusters=n_clusters, **options)

    def fit(self, X: str | os.PathLike[str] | torch.utils.data.Dataset[Any], y: None = None) -> DeepCluster:
        """Train on 'digits', a folder of images, or a torch Dataset; ``y`` is ignored."""
        display = Display(None if self.verbose else Console(file=io.StringIO()))
        trainer = start(X, self.output, self.config, overwrite=self.overwrite, display=display)
        trainer.fit()
        assert trainer.assignments is not None  # at least one epoch was run
        self.labels_ = trainer.assignments
        self.files_ = np.array(trainer.data.names, dtype=np.str_)
        self.model_ = trainer.model.eval()
        self.history_ = trainer.history
        self.n_iter_ = trainer.finished
        return self

    def fit_predict(self, X: str | os.PathLike[str] | torch.utils.data.Dataset[Any], y: None = None) -> np.ndarray:
        """Train, and return ``labels_``."""
        return self.fit(X).labels_
