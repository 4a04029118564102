"""A whole DeepCluster epoch (features, clustering, training) against the same loop from eager parts.

The peer uses the same batches, network, PCA size, k and iterations: torch convolutions for grey, Sobel and conv1,
scikit-learn's PCA, faiss's k-means and torch's weighted cross-entropy. Both read the same cache of decoded images, and
both say what share of the epoch the images, and PCA with k-means, take.

By default on noise, for a look. `DCFAST_IMAGES=FOLDER make bench` takes 10,000 images of a folder (CIFAR-10 as images,
say) and 200 clusters.
"""

import io
import os
import time

import faiss
import numpy as np
import pytest
import torch
from eager_sobel import EagerSobelConv2d
from rich.console import Console
from sklearn.decomposition import PCA
from torch import nn

from dcfast.deepcluster.cache import CacheLayout
from dcfast.deepcluster.config import TrainConfig
from dcfast.deepcluster.crops import Batches, CentreCrops, RandomCrops
from dcfast.deepcluster.data import check_images
from dcfast.deepcluster.models import SmallConvNet, build_top_layer
from dcfast.deepcluster.progress import Display, shares
from dcfast.deepcluster.sources import open_source
from dcfast.deepcluster.stages import cluster_features, extract_features, train_epoch
from dcfast.nn import SobelConv2d, WinogradConv2d

FOLDER = os.environ.get("DCFAST_IMAGES")
# Noise is enough for 20 clusters of 40, the least that faiss asks for.
N_IMAGES, N_CLUSTERS = (10_000, 200) if FOLDER else (800, 20)


class Noise(torch.utils.data.Dataset):
    """Smooth random images of 32 pixels: timing does not ask what they show."""

    def __len__(self):
        return N_IMAGES

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        coarse = torch.rand(1, 3, 8, 8, generator=generator)
        return nn.functional.interpolate(coarse, size=32, mode="bilinear")[0].mul(255).byte()


def eager_conv(layer):
    """The layer by torch's own convolution."""
    if isinstance(layer, SobelConv2d):
        return EagerSobelConv2d(layer)
    conv = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding)
    conv.load_state_dict(layer.state_dict())
    return conv.to(memory_format=torch.channels_last)


class Clock:
    """Seconds per stage of an epoch, as the trainer records them."""

    def __init__(self):
        self.record = {"seconds": dict.fromkeys(("features", "pca", "kmeans", "training"), 0.0), "waiting": {}}
        self._began = time.perf_counter()

    def lap(self, stage, waited=None):
        now = time.perf_counter()
        self.record["seconds"][stage], self._began = now - self._began, now
        if waited is not None:
            self.record["waiting"][stage] = waited

    def __str__(self):
        part = shares(self.record)
        return f"images {part['images']:.0%}, PCA + k-means {part['PCA'] + part['k-means']:.1%} of the epoch"


@pytest.mark.parametrize("balance", ["sampler", "loss"])
def test_epoch(compare, balance, tmp_path):
    options = {"n_clusters": N_CLUSTERS, "epochs": 1, "arch": "small", "balance": balance, "workers": 0}
    layout = CacheLayout(str(tmp_path / "images.cache"), 64, grey=False)
    data = check_images(open_source(FOLDER or Noise()), N_IMAGES, 0, 0, layout=layout)
    config = TrainConfig(**options).resolve(len(data), data.side, "dataset")
    data.image_size = config.image_size
    cpu, quality = torch.device("cpu"), {}
    n_components = min(config.pca, len(data) - 1)

    def network():
        torch.manual_seed(0)
        model = SmallConvNet(config.image_size).to(memory_format=torch.channels_last)
        return model, build_top_layer(model.feature_dim, config.n_clusters)

    def optimizers(model, top):
        sgd = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
        return sgd, torch.optim.SGD(top.parameters(), lr=config.lr, weight_decay=config.weight_decay)

    display = Display(Console(file=io.StringIO()))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    order = np.random.default_rng(0).permutation(len(data))

    def ours():
        model, top = network()
        clock = Clock()
        waiting = clock.record["waiting"]
        features = extract_features(model, data, config, display, waiting)
        clock.lap("features")
        clustering = cluster_features(features, config, 0, display)
        clock.lap("kmeans")  # and PCA
        both = optimizers(model, top)
        loss = train_epoch(model, top, both, scaler, data, clustering.assignments, order, config, 0, display, waiting)
        clock.lap("training")
        quality["dcfast"] = f"objective {clustering.objective:.4f}, loss {loss:.3f}, {clock}"

    def eager():
        model, top = network()
        for at, layer in enumerate(model.features):
            if isinstance(layer, SobelConv2d | WinogradConv2d):
                model.features[at] = eager_conv(layer)
        model.eval()
        # Its modules one by one; `forward` would fuse some of them.
        network_of = nn.Sequential(model.features, nn.Flatten(), model.classifier)
        clock = Clock()
        batches = Batches(CentreCrops(data, config.batch_size), 0, cpu)
        with torch.inference_mode():
            features = torch.cat([network_of(images) for images in batches]).numpy()
        clock.lap("features", batches.waited)
        points = PCA(n_components, whiten=True).fit_transform(features).astype(np.float32)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        clock.lap("pca")
        kmeans = faiss.Kmeans(
            n_components, config.n_clusters, niter=config.kmeans_iterations, max_points_per_centroid=len(points)
        )
        kmeans.train(points)
        distances, labels = kmeans.index.search(points, 1)
        clock.lap("kmeans")
        labels = torch.from_numpy(labels[:, 0])
        weight = torch.bincount(labels, minlength=config.n_clusters).clamp(min=1).float().reciprocal()
        loss_of = nn.CrossEntropyLoss(weight if balance == "loss" else None)
        both = optimizers(model, top)
        model.train()
        crops = RandomCrops(data, order, config.batch_size, seed=0, epoch=0, min_crop=config.min_crop, flip=config.flip)
        batches = Batches(crops, 0, cpu)
        targets, total, done = labels[torch.from_numpy(order)], 0.0, 0
        for images in batches:
            loss = loss_of(top(torch.relu(network_of(images))), targets[done : done + len(images)])
            for optimizer in both:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in both:
                optimizer.step()
            total, done = total + loss.item() * len(images), done + len(images)
        clock.lap("training", batches.waited)
        quality["eager"] = f"objective {distances.mean():.4f}, loss {total / done:.3f}, {clock}"

    compare(ours, {"eager": eager}, quality=quality, rounds=3)
