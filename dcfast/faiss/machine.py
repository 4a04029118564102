"""What faiss's Python says of the machine, said by torch."""

from __future__ import annotations

from operator import index

import torch


def get_num_gpus() -> int:
    """Number of CUDA devices that torch sees."""
    return torch.cuda.device_count()


def omp_get_max_threads() -> int:
    """Number of threads that the ops use: torch's."""
    return torch.get_num_threads()


def omp_set_num_threads(num_threads: int) -> None:
    """Use so many threads, here and in torch; ValueError for fewer than 1."""
    if index(num_threads) < 1:
        raise ValueError(f"num_threads={num_threads}: expected at least 1")
    torch.set_num_threads(num_threads)
