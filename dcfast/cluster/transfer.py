"""Blocks of rows on their way from the host's memory to a GPU, the next one while this one is worked on."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dcfast.cluster.points import Points

Block = tuple[slice, torch.Tensor]


class OnDevice(Points):
    """The rows of other points, worked on by another device."""

    def __init__(self, points: Points, device: torch.device) -> None:
        self.points, self.device = points, device
        self.n_samples, self.n_features = points.n_samples, points.n_features
        self.dtype, self.source = points.dtype, points.source
        self.answer = lambda tensor: points.answer(tensor.to(points.device))

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        yield from on_device(self.points.blocks(), self.device)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        return self.points.take(rows.to(self.points.device)).to(self.device)


def on_device(blocks: Iterator[Block], device: torch.device) -> Iterator[Block]:
    """Yield the blocks on a device, each valid until the next is asked for.

    To a GPU they pass through two buffers of pinned memory and two of its own: the copy of the next block runs on a
    stream of its own beside the work on this one, so that a pass takes little more than the slower of the two.

    Parameters
    ----------
    blocks : iterator of (slice, Tensor of shape (n, d))
        All but the first may have fewer rows than it.
    device : torch.device
    """
    if device.type != "cuda":
        for at, rows in blocks:
            yield at, rows.to(device)
        return
    computes, copies = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    lanes: list[_Lane] = []
    waiting: tuple[slice, _Lane, int] | None = None
    for number, (at, rows) in enumerate(blocks):
        if len(lanes) < 2:
            lanes.append(_Lane(lanes[0].pinned if lanes else rows, computes))
        lane = lanes[number % 2]
        lane.send(rows, copies)
        # Only now, so that the copy of this block is under way while the caller works on the one before it.
        if waiting is not None:
            yield from _arrived(*waiting, computes)
        waiting = at, lane, len(rows)
    if waiting is not None:
        yield from _arrived(*waiting, computes)


class _Lane:
    """A pinned buffer and one on the device, as large as a block, and what is known of who uses them."""

    def __init__(self, like: torch.Tensor, computes: torch.cuda.Stream) -> None:
        self.pinned = torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=True)
        self.arriving = torch.empty(like.shape, dtype=like.dtype, device=computes.device)
        self.sent, self.used = torch.cuda.Event(), torch.cuda.Event()
        # The allocator may give memory that kernels of an earlier pass are still to read.
        self.used.record(computes)

    def send(self, rows: torch.Tensor, copies: torch.cuda.Stream) -> None:
        """Copy the rows; the host waits until the block before the last has left the pinned buffer."""
        self.sent.synchronize()
        n = len(rows)
        self.pinned[:n].copy_(rows)
        with torch.cuda.stream(copies):
            copies.wait_event(self.used)
            self.arriving[:n].copy_(self.pinned[:n], non_blocking=True)
            self.sent.record(copies)


def _arrived(at: slice, lane: _Lane, n: int, computes: torch.cuda.Stream) -> Iterator[Block]:
    computes.wait_event(lane.sent)
    yield at, lane.arriving[:n]
    lane.used.record(computes)
