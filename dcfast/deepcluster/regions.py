"""Crops that are scaled on the device: workers only cut out what a crop sees, and the device scales whole batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["Regions", "regions"]

Box = tuple[float, float, float, float]

_CHUNK_BYTES = 2**26  # of pixels in float64 at once: a photograph in colour, or a batch of small images

_UNIT = 2.0**22  # of weights; Pillow's is the same


class Regions(NamedTuple):
    """The parts of images that the crops of a batch see.

    Attributes
    ----------
    pixels : Tensor of shape (N, C, H, W), uint8
        Each part in the upper left corner, zeros elsewhere.
    corners : Tensor of shape (N, 4), float64
        Left, top, right and bottom of each part within its image: whole pixels.
    boxes : Tensor of shape (N, 4), float64
        The same of each crop.
    flips : Tensor of shape (N,), bool
        Which crops are mirrored.
    size : int
        Side of the crops.
    """

    pixels: Tensor
    corners: Tensor
    boxes: Tensor
    flips: Tensor
    size: int

    def to(self, device: torch.device, non_blocking: bool = False) -> Regions:
        """Return the same on a device."""
        pixels, corners, boxes, flips = (one.to(device, non_blocking=non_blocking) for one in self[:4])
        return Regions(pixels, corners, boxes, flips, self.size)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the allocator that a stream uses the tensors."""
        for one in self[:4]:
            one.record_stream(stream)

    def scaled(self) -> Tensor:
        """Return the crops, uint8 (N, C, size, size), channels last: scaled bilinearly with antialiasing, as by Pillow.

        Two products per image with matrices of weights, first along the rows, rounded to whole values as in Pillow,
        then along the columns. The weights are whole multiples of 2^-22, so that all sums are of whole numbers below
        2^31, exact in float64 in any order: the same crops on every device, in every batch. Pillow's own differ by 1
        here and there, and some versions scale tall images along the columns first, which rounds a quarter of the
        values otherwise. O(N C size W (H + size)) operations, for a few images at a time: beside what comes and goes,
        memory for the larger of 64 MiB and one image in float64.
        """
        at_once = max(1, _CHUNK_BYTES // (8 * self.pixels[0].numel()))
        parts = zip(*(one.split(at_once) for one in self[:4]), strict=True)
        crops = torch.cat(
            [
                Regions(pixels, corners, boxes, flips, self.size)._scaled_at_once()
                for pixels, corners, boxes, flips in parts
            ]
        )
        return crops.contiguous(memory_format=torch.channels_last)

    def _scaled_at_once(self) -> Tensor:
        left, top, right, bottom = self.boxes.T
        columns = _weights(left, right, self.corners[:, 0], self.corners[:, 2], self.pixels.shape[3], self.size)
        rows = _weights(top, bottom, self.corners[:, 1], self.corners[:, 3], self.pixels.shape[2], self.size)
        narrow = _rounded(self.pixels.double() @ columns.mT[:, None])
        crops = _rounded(rows[:, None] @ narrow).to(torch.uint8)
        return torch.where(self.flips[:, None, None, None], crops.flip(3), crops)


def _weights(first: Tensor, end: Tensor, start: Tensor, stop: Tensor, length: int, size: int) -> Tensor:
    """Return (N, size, length) whole numbers: the weights of a line's pixels in those of its crop, of sum 2^22.

    Triangles as wide as two pixels of the crop, and at least of the image; pixels beyond the image have none.
    """
    scale = ((end - first) / size)[:, None, None]
    steps = torch.arange(size, dtype=torch.float64, device=first.device)[:, None] + 0.5
    centres = first[:, None, None] + steps * scale
    pixels = start[:, None, None] + torch.arange(length, dtype=torch.float64, device=first.device)
    weights = (1 - ((pixels - centres + 0.5) * (1 / scale.clamp(min=1))).abs()).clamp_(min=0)
    weights *= pixels < stop[:, None, None]
    return (weights / weights.sum(2, keepdim=True) * _UNIT + 0.5).floor_()


def _rounded(sums: Tensor) -> Tensor:
    return sums.add_(_UNIT / 2).div_(_UNIT).floor_().clamp_(0, 255)


def regions(images: Sequence[Image.Image], boxes: Sequence[Box], flips: Sequence[bool], size: int) -> Regions:
    """Cut out of RGB or grey images what their crops see: the boxes, and as far around them as a triangle reaches."""
    parts, corners = [], []
    for image, (left, top, right, bottom) in zip(images, boxes, strict=True):
        x, y = max(1.0, (right - left) / size), max(1.0, (bottom - top) / size)
        first, above = max(0, math.floor(left - x)), max(0, math.floor(top - y))
        end, below = min(image.width, math.ceil(right + x)), min(image.height, math.ceil(bottom + y))
        corners.append((first, above, end, below))
        part = np.asarray(image.crop(corners[-1]))
        parts.append(part.reshape(*part.shape[:2], -1).transpose(2, 0, 1))
    height, width = (max(part.shape[axis] for part in parts) for axis in (1, 2))
    pixels = np.zeros((len(parts), parts[0].shape[0], height, width), dtype=np.uint8)
    for slot, part in enumerate(parts):
        pixels[slot, :, : part.shape[1], : part.shape[2]] = part
    return Regions(
        torch.from_numpy(pixels),
        torch.tensor(corners, dtype=torch.float64),
        torch.tensor(boxes, dtype=torch.float64),
        torch.tensor(flips),
        size,
    )
