"""The stages of an epoch: features, clustering, training."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dcfast import KMeans, PCAWhiten, ops
from dcfast.cluster.inputs import open_points, parse_memory
from dcfast.cluster.ranks import Ranks
from dcfast.cluster.whiten import BLOCK_ROWS
from dcfast.deepcluster.clusterers import KMEANS, cluster_by, inertia
from dcfast.deepcluster.config import CUSTOM, TrainConfig
from dcfast.deepcluster.crops import Batches, CentreCrops, RandomCrops, own_part
from dcfast.deepcluster.data import ImageData
from dcfast.deepcluster.interrupt import Interrupted, Request, put_off
from dcfast.deepcluster.keyed import Stream, seed_for, torch_draws
from dcfast.deepcluster.metrics import cluster_sizes
from dcfast.deepcluster.models import Backbone, FeatureExtractor
from dcfast.deepcluster.progress import Display, bound
from dcfast.deepcluster.rundir import mapped_array
from dcfast.nn import InverseSizeCrossEntropy

__all__ = [
    "Clustering",
    "check_ranks",
    "cluster_features",
    "cluster_points",
    "extract_features",
    "feature_batches",
    "reduce_features",
    "train_epoch",
]

NOISE = -1  # scikit-learn's label of points that belong to no cluster

# Images per principal component, at least. N - 1 whitened directions of N points put all of them equally far apart,
# whatever the features are. With d of them the mean squared cosine of two points is (1 - d / N) / d, against 1 / d for
# directions that nothing ties together: with a quarter of N, three quarters of what tells points apart are left.
_IMAGES_PER_COMPONENT = 4

# Steps between looks at the loss, and at what other ranks were asked: each waits for the device, the CPU for nothing.
_SHOW_EVERY = {"cpu": 1, "cuda": 10}
# Rows of features that PCA is given at once: whole blocks of its own (see `dcfast.cluster.whiten`), so that its bits do
# not depend on where the features are.
_PCA_ROWS = 16 * BLOCK_ROWS


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
    kmeans_seconds, pca_seconds : float
        Wall time; that of PCA only if the clustering began with it.
    """

    assignments: np.ndarray
    n_empty: int
    objective: float
    iterations: int | None
    kmeans_seconds: float
    pca_seconds: float = 0.0


def check_ranks(n_images: int, config: TrainConfig, ranks: Ranks) -> None:
    """Raise ValueError if so many processes cannot share a run."""
    n_blocks = -(-n_images // BLOCK_ROWS)
    if n_blocks < ranks.size:
        raise ValueError(
            f"{n_images} images are {n_blocks} blocks of {BLOCK_ROWS}, too few for {ranks.size} processes: run fewer"
        )
    if ranks.size > 1 and config.clusterer != KMEANS:
        raise ValueError(
            f"clusterer={config.clusterer!r} needs all features in one process, here are {ranks.size}: start the run "
            "without torchrun"
        )


def own_rows(n_images: int, ranks: Ranks) -> range:
    """Return the images whose features this process holds: whole blocks of PCA, so that no bit depends on the ranks."""
    n_blocks = -(-n_images // BLOCK_ROWS)
    first, end = (n_blocks * rank // ranks.size * BLOCK_ROWS for rank in (ranks.rank, ranks.rank + 1))
    return range(first, min(end, n_images))


def extract_features(
    model: Backbone,
    data: ImageData,
    config: TrainConfig,
    display: Display,
    waiting: dict[str, float],
    folder: Path | None = None,
    ranks: Ranks | None = None,
) -> Tensor:
    """Compute the features of the centre crops in eval mode.

    Parameters
    ----------
    model : ConvNet
    data : ImageData
    config : TrainConfig
        Resolved options.
    display : Display
        Shows the progress.
    waiting : dict
        Is told how many seconds of 'features' went into waiting for images.
    folder : Path, optional
        Where features beyond ``config.max_memory`` are kept; by default the system's directory of temporary files.
    ranks : Ranks, optional
        The processes that share the images.

    Returns
    -------
    Tensor of shape (N, model.feature_dim), float32
        Of all images, or of `own_rows`. On the device of the model, or in a mapped file if its 4 N feature_dim bytes
        are more than config.max_memory.

    Raises
    ------
    FloatingPointError
        If a feature is not finite.
    """
    device = next(model.parameters()).device
    ranks = ranks or Ranks()
    rows = own_rows(len(data), ranks)
    features = torch.as_tensor(_room(len(rows), model.feature_dim, config, device, folder))
    finite = torch.ones((), dtype=torch.bool, device=device)
    done = 0
    for batch in feature_batches(model, data, config, display, waiting, rows):
        features[done : done + len(batch)] = batch
        finite &= torch.isfinite(batch).all()
        done += len(batch)
    with ranks.together():
        if not finite:
            raise FloatingPointError("the network's features are not finite")
    return features


def feature_batches(
    model: FeatureExtractor,
    data: ImageData,
    config: TrainConfig,
    display: Display,
    waiting: dict[str, float],
    members: range,
) -> Generator[Tensor]:
    """Yield the features of the centre crops batch by batch, computed in eval mode.

    Parameters
    ----------
    model : FeatureExtractor
    data : ImageData
    config : TrainConfig
        With batch_size, accumulate, workers, scale_on and precision resolved.
    display : Display
        Shows the progress.
    waiting : dict
        Is told in the end how many seconds of 'features' went into waiting for images.
    members : range
        The images, by number.

    Yields
    ------
    Tensor of shape (batch, model.feature_dim)
        On the device of the model, in float32 or the precision of ``config``.
    """
    device = next(chain(model.parameters(), model.buffers())).device  # a network need not have parameters
    crops = CentreCrops(data, _part(config), members, config.scale_on == "device")
    batches = Batches(crops, _required(config.workers), device)
    model.eval()
    start = time.perf_counter()
    with display.stage("features", len(members)) as advance:
        for images in batches:
            with torch.inference_mode(), _autocast(config, device):
                batch = model.forward_features(images)
            yield batch
            advance(len(images), bound(time.perf_counter() - start, batches.waited))
    waiting["features"] = batches.waited


def cluster_features(
    features: Tensor,
    config: TrainConfig,
    epoch: int,
    display: Display,
    previous: np.ndarray | None = None,
    folder: Path | None = None,
    ranks: Ranks | None = None,
) -> Clustering:
    """Reduce, whiten and normalise the features, and cluster them: `reduce_features`, then `cluster_points`.

    Parameters
    ----------
    features : Tensor of shape (N, d), float32
        With several ranks those of `own_rows`.
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
    folder : Path, optional
        Where reduced features beyond ``config.max_memory`` are kept, as for `extract_features`.
    ranks : Ranks, optional
        The processes that cluster together, as `check_ranks` allows. All get the clustering of all images: that of one
        process, bit for bit.

    Raises
    ------
    ValueError
        If the configured clusterer finds fewer than two clusters.
    """
    began = time.perf_counter()
    points = reduce_features(features, config, display, folder, ranks)
    reduced = time.perf_counter()
    clustering = cluster_points(points, config, epoch, display, previous, ranks)
    return dataclasses.replace(clustering, pca_seconds=reduced - began)


def reduce_features(
    features: Tensor, config: TrainConfig, display: Display, folder: Path | None = None, ranks: Ranks | None = None
) -> Tensor | np.memmap:
    """Reduce, whiten and normalise the features; parameters as for `cluster_features`.

    At most one principal component per four images is kept: with about as many as images all of these are equally far
    apart.

    Returns
    -------
    Tensor, or memmap of shape (N, n_components), float32
        What k-means sees.
    """
    ranks = ranks or Ranks()
    own, dim = features.shape
    counts = ranks.objects(own)
    n_images, first = sum(counts), sum(counts[: ranks.rank])
    device = torch.device(config.device)
    with display.stage("pca", 2 * own) as advance:
        n_components = min(config.pca, max(1, n_images // _IMAGES_PER_COMPONENT), dim)

        def chunks() -> Iterator[Tensor]:
            for rows in features.split(_PCA_ROWS):
                yield rows.to(device)
                advance(len(rows))

        pca = PCAWhiten(n_components, process_group=ranks.group).fit(chunks(), first_row=first)
        points = _room(own, n_components, config, device, folder)
        reduced = torch.as_tensor(points)  # the same memory
        for rows, part in zip(chunks(), reduced.split(_PCA_ROWS), strict=True):
            part.copy_(pca.transform(rows))
    return points


def cluster_points(
    points: Tensor | np.memmap,
    config: TrainConfig,
    epoch: int,
    display: Display,
    previous: np.ndarray | None = None,
    ranks: Ranks | None = None,
) -> Clustering:
    """Cluster what `reduce_features` returned; parameters and errors as for `cluster_features`."""
    ranks = ranks or Ranks()
    start = time.perf_counter()
    reduced = torch.as_tensor(points)  # the same memory
    own = len(reduced)
    counts = ranks.objects(own)
    n_images, first = sum(counts), sum(counts[: ranks.rank])
    device = torch.device(config.device)
    seed = seed_for(config.seed, Stream.KMEANS, epoch, bits=31)
    iterations: int | None
    is_kmeans = config.clusterer == KMEANS
    with display.stage(config.clusterer, config.kmeans_iterations if is_kmeans else None) as advance:
        if is_kmeans:
            n_clusters = _required(config.n_clusters)
            kmeans = KMeans(
                n_clusters,
                init="random"
                if previous is None
                else _means(reduced, previous[first : first + own], n_clusters, seed, ranks),
                n_init=1,
                max_iter=config.kmeans_iterations,
                tol=0.0,
                random_state=seed,
                empty="split",
                max_memory=config.max_memory,
                device=device,
                callback=lambda iteration, n_moved: advance(1, f"{n_moved} moved"),
                process_group=ranks.group,
            ).fit(points)
            labels = np.concatenate(ranks.objects(torch.as_tensor(kmeans.labels_).cpu().numpy()))
            objective, iterations = float(kmeans.inertia_) / n_images, int(kmeans.n_iter_)
            n_empty = n_clusters - len(np.unique(labels))
        else:
            rows, given = reduced.cpu().numpy(), config.n_clusters
            labels, iterations, n_empty, _ = cluster_by(config.clusterer, rows, given, seed, advance=advance)
            objective = inertia(reduced, labels) / int(np.sum(labels >= 0))
    assignments = np.full(n_images, NOISE, dtype=np.int64)
    assignments[labels >= 0] = np.unique(labels[labels >= 0], return_inverse=True)[1]
    return Clustering(
        assignments=assignments,
        n_empty=n_empty,
        objective=objective,
        iterations=iterations,
        kmeans_seconds=time.perf_counter() - start,
    )


def _means(rows: Tensor, assignments: np.ndarray, n_clusters: int, seed: int, ranks: Ranks) -> Tensor:
    """Return (n_clusters, d) means of the clusters of all ranks; numbers that no cluster has split a larger one."""
    points = open_points(KMeans(), rows, reset=True, ranks=ranks)
    running = ops.RunningSums(n_clusters, points.row_grid, device=rows.device)
    labels = torch.from_numpy(assignments).to(rows.device)
    running.move(rows, labels, torch.full_like(labels, -1))
    sums = points.total_sums(running)
    means = ops.means(sums, rows.new_zeros(n_clusters, rows.shape[1]))
    return ops.split_empty(means, sums.counts, seed, 0)[0]


def train_epoch(
    model: Backbone,
    top_layer: nn.Linear,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    scaler: torch.amp.GradScaler,
    data: ImageData,
    assignments: np.ndarray,
    order: np.ndarray,
    config: TrainConfig,
    epoch: int,
    display: Display,
    waiting: dict[str, float],
    ranks: Ranks | None = None,
    done_before: tuple[int, float] = (0, 0.0),
) -> float:
    """Train on one epoch's images, their clusters being the targets.

    Batch normalisation learns nothing from a single image, and refuses it where its maps have one pixel: an image that
    would be the last batch by itself is left out, one that would be the last part of a batch joins the part before, and
    a batch too small for two images on each rank is shared by fewer of them.

    Parameters
    ----------
    model, top_layer
        What is trained.
    optimizers : (Optimizer, Optimizer)
        Of the model and of the top layer.
    scaler : GradScaler
        Of the loss: enabled for float16.
    data : ImageData
        The images.
    assignments : ndarray of int64, shape (N,)
        The targets, negative for images that ``order`` leaves out.
    order : ndarray of int64
        The epoch's images in order.
    config : TrainConfig
        Resolved options.
    epoch : int
        Keys the crops and the dropout, and has its share of the learning rate's schedule.
    display : Display
        Shows the progress.
    waiting : dict
        Is told how many seconds of 'training' went into waiting for images.
    ranks : Ranks, optional
        The processes that share every batch, and then have the same weights. The gradient is that of the whole batch,
        except that batch normalisation sees each part of it by itself; its statistics are those of the first rank.
    done_before : (int, float)
        The ``step`` and the ``total`` of the `Interrupted` that this call goes on from.

    Returns
    -------
    float
        Mean loss over the epoch's images, of all ranks.

    Raises
    ------
    FloatingPointError
        Soon after the loss is no longer finite.
    Interrupted
        After the step in which Ctrl-C or SIGTERM came, the last one too; with several ranks soon after, on all of them.
    """
    ranks = ranks or Ranks()
    device = top_layer.weight.device
    batch_size = _required(config.batch_size)
    if batch_size > 1 and len(order) > 1 and len(order) % batch_size == 1:
        order = order[:-1]
    network = _shared(nn.Sequential(model, top_layer), config, ranks, device)
    crops = RandomCrops(
        data,
        order,
        batch_size,
        seed=config.seed,
        epoch=epoch,
        min_crop=config.min_crop or 1.0,
        flip=bool(config.flip),
        ranks=ranks,
        on_device=config.scale_on == "device",
    )
    targets = torch.from_numpy(assignments[order]).to(device)
    sizes = torch.from_numpy(cluster_sizes(assignments)).to(device)
    criterion = InverseSizeCrossEntropy(sizes) if config.balance == "loss" else nn.CrossEntropyLoss()
    weight = sizes.reciprocal() if config.balance == "loss" else torch.ones_like(sizes, dtype=torch.float32)
    first, total_before = done_before
    left = torch.utils.data.Subset(crops, range(first, len(crops)))
    batches = Batches(left, _required(config.workers), device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    total += total_before if ranks.rank == 0 else 0.0
    done, note, everywhere = min(first * batch_size, len(order)), "", total_before
    start = time.perf_counter()
    model.train()
    with put_off(patient=ranks.size > 1) as asked, display.stage("training", len(order)) as advance:
        advance(done)
        for step, images in enumerate(batches, first):
            batch = targets[done : done + batch_size]
            own = own_part(len(batch), ranks.rank, ranks.size)
            # Every rank takes part in every step: one for which no image is left works for nothing.
            target, counts = (batch[own.start : own.stop], ranks.size) if own else (batch[:2], 0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate(epoch + step / len(crops))
                optimizer.zero_grad(set_to_none=True)
            sizes_of_parts = _parts(len(images), _part(config, ranks))
            parts = list(zip(images.split(sizes_of_parts), target.split(sizes_of_parts), strict=True))
            for number, (part, aim) in enumerate(parts):
                position = (step * config.accumulate + number) * ranks.size + ranks.rank
                with contextlib.ExitStack() as stack:
                    if isinstance(network, DistributedDataParallel) and number < len(parts) - 1:
                        stack.enter_context(network.no_sync())
                    with torch_draws(device, config.seed, Stream.DROPOUT, epoch, position), _autocast(config, device):
                        logits = network(part)
                    # The loss of a batch is the mean of those of its parts, each with the weight of its images; DDP
                    # takes the mean over the ranks.
                    loss = criterion(logits.float(), aim) * (weight[aim].sum() / weight[batch].sum() * counts)
                    scaler.scale(loss).backward()
                total += loss.detach().double() * (len(batch) / ranks.size)
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            done += len(batch)
            # Several ranks look at the same steps: none may wait for another that has ended.
            looks = step % _SHOW_EVERY[device.type] == 0 or done == len(order)
            if looks or (asked.signal and ranks.size == 1):
                everywhere, number = ranks.sum(total).item(), _asked(asked, ranks)
                # Now the first rank has all of it, as where an interrupted epoch goes on: the sum has the same bits.
                total.fill_(everywhere if ranks.rank == 0 else 0.0)
                mean = everywhere / done
                # NaN and infinity never leave a sum, so a look now and then misses none.
                if not np.isfinite(mean):
                    with ranks.together():  # all have seen it; one says so
                        if ranks.rank == 0:
                            raise FloatingPointError(f"the loss is {mean} at step {step + 1}")
                if number and done < len(order):
                    waiting["training"] = waiting.get("training", 0.0) + batches.waited
                    raise Interrupted(step + 1, everywhere, number)
                seconds = time.perf_counter() - start
                speed = (done - first * batch_size) / seconds
                note = f"loss {mean:.3f}  {speed:.0f} images/s  {bound(seconds, batches.waited)}"
            advance(len(batch), note)
    for buffer in model.buffers():
        buffer.copy_(ranks.first(buffer))
    waiting["training"] = waiting.get("training", 0.0) + batches.waited
    if number := _asked(asked, ranks):  # in the last step, or since
        raise Interrupted(len(crops), everywhere, number)
    return everywhere / len(order)


def _asked(request: Request, ranks: Ranks) -> int:
    """Return the signal that has come to any rank, or 0."""
    return int(ranks.maximum(torch.tensor(request.signal)))


def _shared(network: nn.Sequential, config: TrainConfig, ranks: Ranks, device: torch.device) -> nn.Module:
    """Return the network, or what adds its gradients up over the ranks."""
    if ranks.size == 1:
        return network
    # A network of the user's own may have parameters that its features do not depend on. And where DDP looks for such
    # it keeps its first arrangement of the gradients, in which more than two ranks add them up in another order than in
    # the next one: the first step after an interruption has the bits of any other.
    unused = config.arch == CUSTOM or device.type == "cpu"
    if unused:
        network.register_parameter("unused", nn.Parameter(torch.zeros(1, device=device)))  # DDP warns if all are used
    return DistributedDataParallel(
        network, process_group=ranks.group, gradient_as_bucket_view=True, find_unused_parameters=unused
    )


def _part(config: TrainConfig, ranks: Ranks | None = None) -> int:
    """Images that pass through the network at once, 2 or more: see `train_epoch`."""
    own = -(-_required(config.batch_size) // (1 if ranks is None else ranks.size))
    return max(2, -(-own // config.accumulate))


def _parts(n_images: int, size: int) -> list[int]:
    """Return how many images each part of a batch has, none of them a single one if that can be."""
    sizes = [min(size, n_images - start) for start in range(0, n_images, size)]
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [size + 1]
    return sizes


def _autocast(config: TrainConfig, device: torch.device) -> contextlib.AbstractContextManager[object]:
    if config.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, config.precision))


def _room(
    n_rows: int, width: int, config: TrainConfig, device: torch.device, folder: Path | None
) -> Tensor | np.memmap:
    """Return room for float32 rows: on the device, or in a mapped file if they are more than ``config.max_memory``."""
    if 4 * n_rows * width > parse_memory(config.max_memory):
        return mapped_array(n_rows, width, folder)
    return torch.empty(n_rows, width, device=device)


def _required(value: int | None) -> int:
    if value is None:
        raise ValueError("the options must be resolved first: call TrainConfig.resolve")
    return value
