"""The stages of an epoch: features, clustering, training."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dcfast import KMeans, PCAWhiten, ops
from dcfast.deepcluster.clusterers import KMEANS, cluster_by
from dcfast.deepcluster.config import TrainConfig
from dcfast.deepcluster.crops import CentreCrops, RandomCrops, batches
from dcfast.deepcluster.data import ImageData
from dcfast.deepcluster.keyed import Stream, seed_for, torch_draws
from dcfast.deepcluster.metrics import cluster_sizes
from dcfast.deepcluster.models import Backbone
from dcfast.deepcluster.progress import Display
from dcfast.nn import InverseSizeCrossEntropy

__all__ = ["Clustering", "cluster_features", "extract_features", "train_epoch"]

NOISE = -1  # scikit-learn's label of points that belong to no cluster

_SHOW_EVERY = 10  # steps between looks at the loss, each of which waits for the device


@dataclass(frozen=True)
class Clustering:
    """A clustering of all images.

    Attributes
    ----------
    assignments : ndarray of int64, shape (N,)
        Cluster of each image, -1 for noise; empty clusters are left out of the numbering.
    n_empty : int
        How many were left out.
    objective : float
        Mean squared distance to the assigned centroid; with another clusterer than k-means, to the cluster's mean.
    iterations : int or None
        Of the clusterer, where it counts them.
    pca_seconds, kmeans_seconds : float
        Wall time.
    """

    assignments: np.ndarray
    n_empty: int
    objective: float
    iterations: int | None
    pca_seconds: float
    kmeans_seconds: float


def extract_features(model: Backbone, data: ImageData, config: TrainConfig, display: Display) -> Tensor:
    """Compute the features of all centre crops in eval mode.

    Returns
    -------
    Tensor of shape (N, model.feature_dim), float32
        On the device of the model. Memory 4 N feature_dim bytes there.

    Raises
    ------
    FloatingPointError
        If a feature is not finite.
    """
    device = next(model.parameters()).device
    features = torch.empty(len(data), model.feature_dim, device=device)
    crops = CentreCrops(data, _required(config.batch_size))
    model.eval()
    done = 0
    with torch.inference_mode(), display.stage("features", len(data)) as advance:
        for images in batches(crops, _required(config.workers), device):
            features[done : done + len(images)] = model.forward_features(images)
            done += len(images)
            advance(len(images))
    if not torch.isfinite(features).all():
        raise FloatingPointError("the network's features are not finite")
    return features


def cluster_features(
    features: Tensor, config: TrainConfig, epoch: int, display: Display, previous: np.ndarray | None = None
) -> Clustering:
    """Reduce, whiten and normalise the features, and cluster them.

    Parameters
    ----------
    features : Tensor of shape (N, d), float32
    config : TrainConfig
        Resolved options.
    epoch : int
        Keys the start of k-means.
    display : Display
        Shows the progress.
    previous : ndarray of int64, shape (N,), optional
        The assignments that a warm start begins with. Every clustering has a basis of its own: the old centroids mean
        nothing in it, the means of the new points over the old clusters do. Clusters that had become empty split a
        larger one. Without it k-means starts from random points.

    Raises
    ------
    ValueError
        If the configured clusterer finds fewer than two clusters.
    """
    n_images, dim = features.shape
    n_clusters = _required(config.n_clusters)
    start = time.perf_counter()
    with display.stage("pca", 1) as advance:
        # N points span at most N - 1 dimensions once their mean is gone.
        pca = PCAWhiten(n_components=max(1, min(config.pca, n_images - 1, dim)))
        points = pca.fit_transform(features)
        advance(1)
    middle = time.perf_counter()
    seed = seed_for(config.seed, Stream.KMEANS, epoch, bits=31)
    iterations: int | None
    with display.stage(config.clusterer, config.kmeans_iterations) as advance:
        if config.clusterer == KMEANS:
            kmeans = KMeans(
                n_clusters,
                init="random" if previous is None else _means(points, previous, n_clusters, seed),
                n_init=1,
                max_iter=config.kmeans_iterations,
                tol=0.0,
                random_state=seed,
                empty="split",
                callback=lambda iteration, n_moved: advance(1, f"{n_moved} moved"),
            ).fit(points)
            labels = torch.as_tensor(kmeans.labels_).cpu().numpy()
            objective, iterations = float(kmeans.inertia_) / n_images, int(kmeans.n_iter_)
            n_empty = n_clusters - len(np.unique(labels))
        else:
            labels, iterations, n_empty = cluster_by(config.clusterer, points.cpu().numpy(), n_clusters, seed)
            objective = _mean_squared_distance(points, labels)
    end = time.perf_counter()
    assignments = np.full(n_images, NOISE, dtype=np.int64)
    assignments[labels >= 0] = np.unique(labels[labels >= 0], return_inverse=True)[1]
    return Clustering(
        assignments=assignments,
        n_empty=n_empty,
        objective=objective,
        iterations=iterations,
        pca_seconds=middle - start,
        kmeans_seconds=end - middle,
    )


def _means(points: Tensor, assignments: np.ndarray, n_clusters: int, seed: int) -> Tensor:
    """Return (n_clusters, d) means of the clusters; numbers that no cluster has split a larger one."""
    labels = torch.from_numpy(assignments).to(points.device)
    sums = ops.accumulate(points, labels, n_clusters)
    means = ops.means(sums, points.new_zeros(n_clusters, points.shape[1]))
    return ops.split_empty(means, sums.counts, seed, 0)[0]


def _mean_squared_distance(points: Tensor, labels: np.ndarray) -> float:
    clustered = torch.from_numpy(labels).to(points.device, torch.int64)
    points, clustered = points[clustered >= 0], clustered[clustered >= 0]
    n_clusters = int(clustered.max()) + 1
    means = ops.means(ops.accumulate(points, clustered, n_clusters), points.new_zeros(n_clusters, points.shape[1]))
    return float(ops.inertia(points, means, clustered)) / len(points)


def train_epoch(
    model: Backbone,
    top_layer: nn.Linear,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    data: ImageData,
    assignments: np.ndarray,
    order: np.ndarray,
    config: TrainConfig,
    epoch: int,
    display: Display,
) -> float:
    """Train on one epoch's images, their clusters being the targets.

    Parameters
    ----------
    model, top_layer
        What is trained.
    optimizers : (Optimizer, Optimizer)
        Of the model and of the top layer.
    data : ImageData
        The images.
    assignments : ndarray of int64, shape (N,)
        The targets, negative for images that ``order`` leaves out.
    order : ndarray of int64
        The epoch's images in order.
    config : TrainConfig
        Resolved options.
    epoch : int
        Keys the crops and the dropout.
    display : Display
        Shows the progress.

    Returns
    -------
    float
        Mean loss over the epoch's images.

    Raises
    ------
    FloatingPointError
        Soon after the loss is no longer finite.
    """
    device = top_layer.weight.device
    batch_size = _required(config.batch_size)
    crops = RandomCrops(
        data,
        order,
        batch_size,
        seed=config.seed,
        epoch=epoch,
        min_crop=config.min_crop or 1.0,
        flip=bool(config.flip),
    )
    targets = torch.from_numpy(assignments[order]).to(device)
    sizes = torch.from_numpy(cluster_sizes(assignments)).to(device)
    criterion = InverseSizeCrossEntropy(sizes) if config.balance == "loss" else nn.CrossEntropyLoss()
    total = torch.zeros((), dtype=torch.float64, device=device)
    done = 0
    start = time.perf_counter()
    model.train()
    with display.stage("training", len(order)) as advance:
        for step, images in enumerate(batches(crops, _required(config.workers), device)):
            target = targets[done : done + len(images)]
            with torch_draws(device, config.seed, Stream.DROPOUT, epoch, step):
                logits = top_layer(model(images))
            loss = criterion(logits, target)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            total += loss.detach().double() * len(images)
            done += len(images)
            note = ""
            if step % _SHOW_EVERY == 0 or done == len(order):
                mean = total.item() / done
                # NaN and infinity never leave a sum, so a look now and then misses none.
                if not np.isfinite(mean):
                    raise FloatingPointError(f"the loss is {mean} at step {step + 1}")
                note = f"loss {mean:.3f}  {done / (time.perf_counter() - start):.0f} images/s"
            advance(len(images), note)
    return total.item() / done


def _required(value: int | None) -> int:
    if value is None:
        raise ValueError("the options must be resolved first: call TrainConfig.resolve")
    return value
