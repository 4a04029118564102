"""Random draws as pure functions of a key.

Every draw of a run is read from a Philox stream addressed by (seed, stream, epoch, position). No generator is carried
from one draw to the next, so nothing has to be stored to resume a run, and neither the number of data workers nor the
order in which they answer can change a result.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch

__all__ = ["MAX_SEED", "Stream", "generator", "seed_for", "torch_draws", "uniform_rows"]

MAX_SEED = 2**63 - 1

# One step of a Philox4x64 counter yields four 64-bit words, hence four doubles.
_WORDS_PER_STEP = 4


class Stream(IntEnum):
    """What a draw is for. The numbers are part of a run's definition: add to them, never renumber."""

    MODEL = 1
    TOP_LAYER = 2
    KMEANS = 3
    ORDER = 4
    CROP = 5
    DROPOUT = 6
    SUBSET = 7
    PROBE = 8
    LABELLED = 9
    CHANCE = 10


def generator(seed: int, stream: Stream, epoch: int = 0, position: int = 0) -> np.random.Generator:
    """Return a fresh generator at the start of the stream that belongs to the key.

    Parameters
    ----------
    seed : int
        The seed of the run, 0 <= seed < 2**63.
    stream : Stream
        What the draws are for; streams never overlap.
    epoch, position : int
        Where in the run the draws belong.

    Returns
    -------
    numpy.random.Generator
        A Philox generator; equal keys give equal draws.
    """
    # Word 0 of the counter advances first; words 2 and 3 are out of reach of any realistic number of draws.
    philox = np.random.Philox(
        key=np.array([seed, int(stream)], dtype=np.uint64),
        counter=np.array([0, 0, position, epoch], dtype=np.uint64),
    )
    return np.random.Generator(philox)


def seed_for(seed: int, stream: Stream, epoch: int = 0, position: int = 0, *, bits: int = 63) -> int:
    """Derive an integer in [0, 2**bits) from the key, to seed something that keeps a generator of its own."""
    return int(generator(seed, stream, epoch, position).integers(0, 2**bits, dtype=np.uint64))


def uniform_rows(seed: int, stream: Stream, epoch: int, start: int, count: int, width: int) -> np.ndarray:
    """Draw rows ``start`` to ``start + count`` of the endless matrix of uniforms that belongs to the key.

    Row p depends on (seed, stream, epoch, p, width) alone, whichever slice it is read with.

    Parameters
    ----------
    seed, stream, epoch
        The key, as for `generator`.
    start, count : int
        Which rows.
    width : int
        Draws per row; a multiple of 4, so that rows start on a step of the counter.

    Returns
    -------
    ndarray of shape (count, width), float64
        Uniform on [0, 1).
    """
    if width % _WORDS_PER_STEP:
        raise ValueError(f"width must be a multiple of {_WORDS_PER_STEP}, got {width}")
    first = start * (width // _WORDS_PER_STEP)
    philox = np.random.Philox(
        key=np.array([seed, int(stream)], dtype=np.uint64),
        counter=np.array([first, 0, 0, epoch], dtype=np.uint64),
    )
    return np.random.Generator(philox).random((count, width))


@contextmanager
def torch_draws(device: torch.device, seed: int, stream: Stream, epoch: int = 0, position: int = 0) -> Iterator[None]:
    """Seed torch's generators from the key inside the block; restore the caller's generators after it."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed_for(seed, stream, epoch, position))
        yield
