"""Several processes, started by torchrun, that train one network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from dcfast.cluster.ranks import Ranks

__all__ = ["all_ranks", "joined", "left_alone", "local_size"]

# How long processes wait for one another: the first one looks at every image alone, which takes hours where there are
# millions. (NCCL would wait for ten minutes, Gloo for half an hour.) One that has ended is noticed at once.
_PATIENCE = timedelta(days=1)


def all_ranks() -> Ranks:
    """Return the processes of torch.distributed's default group; this one alone where there is none."""
    return Ranks(dist.is_available() and dist.is_initialized())


def local_size() -> int:
    """Return how many processes torchrun has started on this machine, 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the processes that torchrun has started inside the block; nothing where there is one, or they have joined.

    Every process gets the GPU of its local number, and NCCL connects them; without GPUs, or with ``device='cpu'``, Gloo
    does.

    Raises
    ------
    ValueError
        If a process finds no GPU of its own.
    ConnectionError
        If another process has ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"device={device!r}: process {local} of this machine has no GPU of its own among "
                f"{torch.cuda.device_count()}: lower --nproc-per-node, or use --device cpu"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    try:
        yield
    except RuntimeError as error:
        if not left_alone(error):
            raise
        raise ConnectionError("another process of the run has ended") from error
    finally:
        dist.destroy_process_group()


def left_alone(error: Exception) -> bool:
    """Tell whether an error says that another process has ended."""
    # Gloo raises a plain RuntimeError.
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()
