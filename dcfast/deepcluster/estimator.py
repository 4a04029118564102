"""DeepCluster with the manners of a scikit-learn estimator."""

from __future__ import annotations

import io
import os
import tempfile
from typing import Any

import numpy as np
import torch
from rich.console import Console
from sklearn.base import BaseEstimator

from dcfast.deepcluster.config import ARCHITECTURES, CUSTOM, TrainConfig
from dcfast.deepcluster.models import CustomBackbone
from dcfast.deepcluster.progress import Display
from dcfast.deepcluster.trainer import start

__all__ = ["DeepCluster"]


class DeepCluster(BaseEstimator):
    """Cluster images with features that are learned from the clusters.

    Parameters
    ----------
    backbone : str or torch.nn.Module, optional
        One of dcfast's networks by name, as ``--arch``; or any network that takes (N, 3, H, W) float images,
        normalised with the ImageNet mean and standard deviation, and returns their features. It stays as it is: a copy
        is trained. By default the network that suits the size of the images.
    feature_dim : int, optional
        Width of the features, for a network of your own.
    output : str or path, optional
        Directory that the run is written to, as by ``dcfast train``. By default nothing is kept on disk.
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
        Cluster of each usable image in the last clustering, -1 where the clusterer found noise.
    files_ : ndarray of str, shape (N,)
        Names of the usable images.
    model_ : torch.nn.Module
        The trained network in eval mode, on the device it was trained on; of the type of ``backbone`` if that is a
        module.
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
    >>> clusters = DeepCluster(output="runs/digits", epochs=2).fit("digits").labels_  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str | torch.nn.Module | None = None,
        feature_dim: int | None = None,
        *,
        output: str | os.PathLike[str] | None = None,
        n_clusters: int | None = None,
        verbose: bool = False,
        overwrite: bool = False,
        **options: Any,
    ) -> None:
        own = isinstance(backbone, torch.nn.Module)
        if not own and backbone not in (None, *ARCHITECTURES):
            choices = ", ".join(map(repr, ARCHITECTURES))
            raise ValueError(f"backbone must be a network or one of {choices}, got {backbone!r}")
        if backbone is not None and "arch" in options:
            raise ValueError(f"backbone and arch={options['arch']!r} both name the network: give one of them")
        if own != (feature_dim is not None):
            raise ValueError("feature_dim is of a network of your own: give both of them, or neither")
        network = {"arch": CUSTOM, "sobel": False} if own else {"arch": backbone}
        self.config = TrainConfig(n_clusters=n_clusters, feature_dim=feature_dim, **{**network, **options})
        self.backbone = backbone
        self.feature_dim = feature_dim
        self.output = output
        self.n_clusters = n_clusters
        self.verbose = verbose
        self.overwrite = overwrite
        self.options = options

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters, those of ``options`` among them."""
        return {**super().get_params(deep), **self.options}

    def set_params(self, **params: Any) -> DeepCluster:
        """Set parameters, any of ``options`` too; errors as for a new estimator."""
        self.__init__(**{**self.get_params(deep=False), **params})  # type: ignore[misc]
        return self

    def fit(self, X: str | os.PathLike[str] | torch.utils.data.Dataset[Any], y: None = None) -> DeepCluster:
        """Train on 'digits', a folder of images, or a torch Dataset; ``y`` is ignored."""
        with tempfile.TemporaryDirectory() as folder:
            return self._fit(X, folder if self.output is None else self.output)

    def _fit(self, X: Any, output: str | os.PathLike[str]) -> DeepCluster:
        display = Display(None if self.verbose else Console(file=io.StringIO()))
        network = self.backbone if isinstance(self.backbone, torch.nn.Module) else None
        trainer = start(X, output, self.config, overwrite=self.overwrite, display=display, backbone=network)
        trainer.fit()
        assert trainer.assignments is not None  # at least one epoch was run
        self.labels_ = trainer.assignments
        self.files_ = np.array(trainer.data.names, dtype=np.str_)
        model = trainer.model.eval()
        vars(model).pop("forward_features", None)  # compiled, it is neither pickled nor copied with the network
        self.model_ = model.network if isinstance(model, CustomBackbone) else model
        self.history_ = trainer.history
        self.n_iter_ = trainer.finished
        return self

    def fit_predict(self, X: str | os.PathLike[str] | torch.utils.data.Dataset[Any], y: None = None) -> np.ndarray:
        """Train, and return ``labels_``."""
        return self.fit(X).labels_
