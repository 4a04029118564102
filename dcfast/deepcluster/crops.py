"""Crops of images, and the batches of them that the network sees."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dcfast.deepcluster.keyed import Stream, uniform_rows
from dcfast.deepcluster.loader import Loader
from dcfast.deepcluster.regions import Box, Regions, regions

if TYPE_CHECKING:
    from dcfast.cluster.ranks import Ranks
    from dcfast.deepcluster.data import ImageData

__all__ = ["Batches", "CentreCrops", "RandomCrops", "centre_box", "own_part", "random_box", "resized"]

_ATTEMPTS = 10  # before a random crop falls back to the centre
_DRAWS = 2 * _ATTEMPTS + 4  # per image: area and shape per attempt, two offsets, the flip, one spare
_RATIO = math.log(4 / 3)  # the logarithm of a crop's most extreme width over height
_PUBLISHED_SHARE = 224 / 256  # images were resized to 256 pixels and cropped to 224
_WHOLE_BELOW = 64  # crops of small images keep all of the shorter side: there is nothing to spare


def centre_box(size: tuple[int, int], crop: int, *, whole: bool = False) -> Box:
    """Return the (left, top, right, bottom) of the central square of an image.

    Its side is 7/8 of the shorter side, as published for 224 of 256 pixels, or all of it with ``whole`` and for crops
    of up to 64 pixels.
    """
    width, height = size
    side = min(width, height) * (1.0 if whole or crop <= _WHOLE_BELOW else _PUBLISHED_SHARE)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(size: tuple[int, int], draws: np.ndarray, min_area: float) -> Box:
    """Choose the crop of a training image.

    The area is uniform in [min_area, 1] of the image's and the logarithm of width / height uniform in
    [log 3/4, log 4/3]; what does not fit is drawn again, ten times at most, and then the largest centred box of an
    allowed shape is taken (Szegedy et al. 2015, the usual "random resized crop").

    Parameters
    ----------
    size : (int, int)
        Width and height of the image.
    draws : ndarray of 22 or more uniforms
        What to decide with.
    min_area : float
        Smallest share of the image's area.

    Returns
    -------
    (left, top, right, bottom)
        In pixels, with fractions.
    """
    width, height = size
    for attempt in range(_ATTEMPTS):
        area = width * height * (min_area + (1 - min_area) * draws[2 * attempt])
        ratio = math.exp(_RATIO * (2 * draws[2 * attempt + 1] - 1))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = (width - w) * draws[-4], (height - h) * draws[-3]
            return left, top, left + w, top + h
    w, h = min(width, height * 4 / 3), min(height, width * 4 / 3)
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def resized(image: Image.Image, box: Box, size: int) -> np.ndarray:
    """Cut ``box`` out of an RGB or grey image and scale it with antialiasing to (size, size, 3 or 1) uint8."""
    # Sums of rounded offsets may leave the image by an ulp, which Pillow refuses.
    left, top, right, bottom = box
    box = (max(left, 0.0), max(top, 0.0), min(right, float(image.width)), min(bottom, float(image.height)))
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR, box=box)).reshape(size, size, -1)


def own_part(n_images: int, rank: int, n_ranks: int) -> range:
    """Return which images of a batch a process works on.

    The parts follow one another and differ by at most one image. Batch normalisation may refuse a single one: of a
    batch of fewer than two images for each process the last processes have none.
    """
    n_parts = max(1, min(n_ranks, n_images // 2))
    return range(n_images * min(rank, n_parts) // n_parts, n_images * min(rank + 1, n_parts) // n_parts)


def _crops(
    images: Sequence[Image.Image], boxes: Sequence[Box], flips: Sequence[bool], size: int, on_device: bool
) -> Tensor | Regions:
    if on_device:
        return regions(images, boxes, flips, size)
    crops = [resized(image, box, size) for image, box in zip(images, boxes, strict=True)]
    pixels = np.stack([crop[:, ::-1] if flip else crop for crop, flip in zip(crops, flips, strict=True)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


class CentreCrops(torch.utils.data.Dataset[Tensor | Regions]):
    """Item b is the b-th batch of centre crops, uint8 (batch, data.channels, S, S) in channels-last memory.

    ``members`` are the images, by number; all of them by default. With ``on_device`` an item is what the crops are to
    be scaled from.
    """

    def __init__(self, data: ImageData, batch_size: int, members: range | None = None, on_device: bool = False) -> None:
        self._data, self._batch_size, self._on_device = data, batch_size, on_device
        self._members = range(len(data)) if members is None else members

    def __len__(self) -> int:
        return -(-len(self._members) // self._batch_size)

    def __getitem__(self, number: int) -> Tensor | Regions:
        first = number * self._batch_size
        images = [self._data.image(index) for index in self._members[first : first + self._batch_size]]
        size = self._data.image_size
        boxes = [centre_box(image.size, size) for image in images]
        return _crops(images, boxes, [False] * len(images), size, self._on_device)


class RandomCrops(torch.utils.data.Dataset[Tensor | Regions]):
    """Item b is the b-th batch of an epoch's training crops, uint8 (batch, data.channels, S, S), channels last.

    The crop and the flip of an image are drawn for its position in the epoch, so that it does not matter which process
    makes the batch, nor when.

    Parameters
    ----------
    data : ImageData
        The images.
    order : ndarray of int64
        The epoch's images, in the order of training.
    batch_size : int
        Images per batch.
    seed, epoch : int
        The key of the draws.
    min_crop : float
        Smallest share of an image's area.
    flip : bool
        Mirror every other crop.
    ranks : Ranks, optional
        The processes that share every batch; `own_part` of it is made here, or its first two images where that is none.
    on_device : bool
        Make what the crops are to be scaled from.
    """

    def __init__(
        self,
        data: ImageData,
        order: np.ndarray,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        min_crop: float,
        flip: bool,
        ranks: Ranks | None = None,
        on_device: bool = False,
    ) -> None:
        self._rank, self._n_ranks = (0, 1) if ranks is None else (ranks.rank, ranks.size)
        self._data, self._order, self._batch_size, self._on_device = data, order, batch_size, on_device
        self._seed, self._epoch, self._min_crop, self._flip = seed, epoch, min_crop, flip

    def __len__(self) -> int:
        return -(-len(self._order) // self._batch_size)

    def __getitem__(self, number: int) -> Tensor | Regions:
        start = number * self._batch_size
        batch = self._order[start : start + self._batch_size]
        own = own_part(len(batch), self._rank, self._n_ranks) or range(len(batch[:2]))
        first = start + own.start
        members = batch[own.start : own.stop]
        draws = uniform_rows(self._seed, Stream.CROP, self._epoch, first, len(members), _DRAWS)
        images = [self._data.image(index) for index in members]
        boxes = [random_box(image.size, row, self._min_crop) for image, row in zip(images, draws, strict=True)]
        flips = [bool(self._flip and row[-2] < 0.5) for row in draws]
        return _crops(images, boxes, flips, self._data.image_size, self._on_device)


class Batches:
    """The batches in order, uint8 (batch, 3, S, S) on a device, made by worker processes (0: by this one).

    Grey crops come as three channels that are one in memory. On a GPU the next batch is copied from pinned memory
    while the network works on this one. `Regions` are scaled on the device.

    Parameters
    ----------
    crops : CentreCrops or RandomCrops
        Or a part of them.
    workers : int
    device : torch.device

    Attributes
    ----------
    waited : float
        Seconds spent waiting for crops so far, or making them where there are no workers.
    """

    def __init__(self, crops: torch.utils.data.Dataset[Tensor | Regions], workers: int, device: torch.device) -> None:
        self._device = device
        self._loader = Loader(crops, workers, pin_memory=device.type == "cuda")
        self.waited = 0.0

    def __iter__(self) -> Iterator[Tensor]:
        arriving = self._copied_ahead() if self._device.type == "cuda" else self._fetched()
        for images in arriving:
            crops = images.scaled() if isinstance(images, Regions) else images
            yield crops.expand(-1, 3, -1, -1)

    def _fetched(self) -> Iterator[Tensor | Regions]:
        loaded = iter(self._loader)
        while True:
            began = time.perf_counter()
            images = next(loaded, None)
            self.waited += time.perf_counter() - began
            if images is None:
                return
            yield images

    def _copied_ahead(self) -> Iterator[Tensor | Regions]:
        copies, computes = torch.cuda.Stream(self._device), torch.cuda.current_stream(self._device)
        previous: torch.cuda.Event | None = None
        following: tuple[Tensor | Regions, torch.cuda.Event] | None = None
        for images in chain(self._fetched(), (None,)):
            current, following = following, None
            if images is not None:
                with torch.cuda.stream(copies):
                    following = images.to(self._device, non_blocking=True), copies.record_event()
            if current is None:
                continue
            on_device, copied = current
            computes.wait_event(copied)
            on_device.record_stream(computes)
            yield on_device
            # At most two steps ahead of the device: further ahead the host would wait for crops that nobody needs yet,
            # and `waited` would say that crops are late where they are not.
            if previous is not None:
                previous.synchronize()
            previous = computes.record_event()
