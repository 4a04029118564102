"""What a clustering can be told, and what it tells of an iteration."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import numpy as np

from dcfast.faiss.starts import ClusteringInitMethod_RANDOM

_KINDS: dict[str, tuple[type, ...]] = {"bool": (bool, np.bool_, Integral), "int": (Integral,), "float": (Real,)}


@dataclass(eq=False)
class ClusteringParameters:
    """What a clustering can be told; every field is a keyword of `Kmeans` too.

    Attributes
    ----------
    niter : int, default=25
        Iterations at most: a run stops earlier when the objective stands still (see early_stop_threshold).
    nredo : int, default=1
        Runs from different starts, of which the one with the best last objective is kept.
    verbose : bool, default=False
        Print the progress.
    spherical : bool, default=False
        Scale the centroids to unit length after every iteration.
    int_centroids : bool, default=False
        Round the coordinates of the centroids to integers after every iteration, halves away from zero.
    update_index : bool, default=False
        Whether faiss trains the index anew in every iteration: a flat index, the only kind here, learns nothing.
    frozen_centroids : bool, default=False
        Leave the centroids that were given at first where they are.
    min_points_per_centroid : int, default=39
        Warn if there are fewer.
    max_points_per_centroid : int, default=256
        Work on a random sample of k times as many rows if there are more.
    seed : int, default=1234
        Of the sample and the start. A negative one takes the clock's.
    decode_block_size : int, default=32768
        Rows that faiss decodes at a time when trained on encoded vectors, which these classes do not take.
    check_input_data_for_NaNs : bool, default=True
        Raise ValueError for rows that are not finite. If False, such rows belong to no cluster.
    use_faster_subsampling : bool, default=False
        Sample with repetitions, with faiss's faster generator.
    init_method : int, default=ClusteringInitMethod_RANDOM
        How to start: from random rows, which are the ones that faiss takes for the same seed; by k-means++ or by
        AFK-MC2, whose draws are not faiss's.
    afkmc2_chain_length : int, default=50
        Draws per centroid of AFK-MC2.
    early_stop_threshold : float, default=0
        Stop when the objective changed by at most this share of itself.
    use_super_kmeans : bool, default=False
        faiss's approximate variant: True raises ValueError, labels are exact here.
    """

    niter: int = 25
    nredo: int = 1
    verbose: bool = False
    spherical: bool = False
    int_centroids: bool = False
    update_index: bool = False
    frozen_centroids: bool = False
    min_points_per_centroid: int = 39
    max_points_per_centroid: int = 256
    seed: int = 1234
    decode_block_size: int = 32768
    check_input_data_for_NaNs: bool = True
    use_faster_subsampling: bool = False
    init_method: int = ClusteringInitMethod_RANDOM
    afkmc2_chain_length: int = 50
    early_stop_threshold: float = 0.0
    use_super_kmeans: bool = False

    def __setattr__(self, name: str, value: Any) -> None:
        kind = type(self)._kind(name)
        if kind is not None and not isinstance(value, _KINDS[kind]):
            raise TypeError(f"{name}={value!r}: expected {kind}")
        super().__setattr__(name, value)

    @classmethod
    def _kind(cls, name: str) -> str | None:
        return next((str(field.type) for field in fields(cls) if field.name == name), None)


@dataclass(eq=False)
class ProgressiveDimClusteringParameters(ClusteringParameters):
    """Parameters of a clustering in growing dimensions: `ClusteringParameters` and two more.

    Attributes
    ----------
    niter : int, default=10
        Iterations per step.
    progressive_dim_steps : int, default=10
        Steps: step i = 1, 2, ... of s works on the first d^(i/s) dimensions.
    apply_pca : bool, default=True
        Rotate the data to its principal components before, and the centroids back after.
    """

    niter: int = 10
    progressive_dim_steps: int = 10
    apply_pca: bool = True


@dataclass(eq=False)
class ClusteringIterationStats:
    """One iteration.

    Attributes
    ----------
    obj : float
        The objective before the update of the centroids, exact: the sum over the rows, without weights as in faiss,
        of D64 to the nearest centroid, or of the inner product where the index has that metric.
    time, time_search : float
        Seconds since the start of the runs, and seconds of them spent on labels.
    imbalance_factor : float
        k times the sum of the squared shares of the clusters: 1 if they are equally large.
    nsplit : int
        Clusters that were empty and took half of another.
    """

    obj: float
    time: float
    time_search: float
    imbalance_factor: float
    nsplit: int
