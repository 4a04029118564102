"""The machine's limits, measured in the same run as what they are compared with: FMA peak and memory bandwidth."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
import time
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("roofline.cpp")
# A million steps take about 2 ms: long enough to time, short enough to interleave.
_STEPS = 1_000_000
_TRIAD_ELEMENTS = 2**24  # 64 MiB each: beyond the last cache


@functools.cache
def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "roofline.so"
        command = ["g++", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC"]
        subprocess.run([*command, str(_SOURCE), "-o", str(library)], check=True)
        loaded = ctypes.CDLL(str(library))
    loaded.fma_chains.restype = loaded.triad.restype = ctypes.c_double
    loaded.fma_chains.argtypes = [ctypes.c_int64, ctypes.c_int]
    loaded.triad.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64, ctypes.c_int]
    return loaded


def flops() -> float:
    """float32 operations per second of fused multiply-adds in registers, all threads."""
    began = time.perf_counter()
    operations = _library().fma_chains(_STEPS, torch.get_num_threads())
    return operations / (time.perf_counter() - began)


@functools.cache
def _arrays() -> list[torch.Tensor]:
    return [torch.zeros(_TRIAD_ELEMENTS) for _ in range(3)]


def bandwidth() -> float:
    """Bytes per second of a triad over arrays that no cache holds, all threads."""
    a, b, c = (t.data_ptr() for t in _arrays())
    began = time.perf_counter()
    moved = _library().triad(a, b, c, _TRIAD_ELEMENTS, torch.get_num_threads())
    return moved / (time.perf_counter() - began)


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads")
    print(f"FMA peak   {max(flops() for _ in range(5)) / 1e9:8.1f} GFLOP/s")
    print(f"bandwidth  {max(bandwidth() for _ in range(5)) / 1e9:8.1f} GB/s")
