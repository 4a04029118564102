"""The compiled core: loading it (or recording why it could not be), pointers, threads, slices of long calls."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch

_C: ModuleType | None
try:
    from dcfast import _C  # type: ignore[no-redef]

    load_error: str | None = None
except ImportError as error:
    _C = None
    load_error = f"{type(error).__name__}: {error}"

# A native call should last about this long, in seconds: short enough for Ctrl-C and progress, long enough that
# the call itself costs nothing.
_SLICE_SECONDS = 0.1
# Operations of the first slice: 0.1 s at the 5 GFLOP/s of the slowest processor in mind.
_FIRST_SLICE_OPERATIONS = 5e8

# Below this, some 50 microseconds by one thread, waking the others takes as long as they save.
_SHARED_OPERATIONS = 2e5

# What csrc calls them: enum dcfast_dtype in core.h.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3, torch.uint8: 4}

_HUGE_PAGE = 2**21
_MADV_HUGEPAGE = 14  # Linux, every architecture that this builds for
_madvise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None

_forked = False


def _after_fork() -> None:
    # An OpenMP pool does not survive a fork: a parallel region in the child, ours or torch's, would wait for threads
    # that are gone.
    global _forked
    _forked = True
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=_after_fork)


def isa() -> str:
    """Instruction set in use: the best that was compiled and runs here, or DCFAST_ISA."""
    assert _C is not None
    override = os.environ.get("DCFAST_ISA")
    if override is None:
        return str(_C.isas[0])
    if override not in _C.isas:
        raise ValueError(f"DCFAST_ISA={override!r} is not available here: choose one of {_C.isas}")
    return override


def cpu() -> ModuleType:
    """The CPU ops of the instruction set in use."""
    assert _C is not None, load_error
    return getattr(_C, isa())


def cuda() -> ModuleType:
    """The CUDA ops."""
    assert _C is not None, load_error
    return _C.cuda


def built_ops() -> tuple[frozenset[str], frozenset[str]]:
    """Names of the native functions that this build holds, for the CPU and for CUDA."""
    if _C is None:
        return frozenset(), frozenset()

    def names(module: ModuleType) -> frozenset[str]:
        return frozenset(name for name in vars(module) if not name.startswith("_"))

    return names(cpu()), names(_C.cuda) if _C.has_cuda else frozenset()


def threads(operations: float = math.inf) -> int:
    """Threads of a native call: torch.get_num_threads(), but 1 in a forked child or for few operations."""
    return 1 if _forked or operations < _SHARED_OPERATIONS else torch.get_num_threads()


def empty(
    shape: Sequence[int], dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format
) -> torch.Tensor:
    """torch.empty on the CPU; a large one asks for huge pages.

    The first write to fresh memory costs a page fault per 4 KiB, a quarter of the time of a fast kernel with a large
    output; with pages of 2 MiB it costs a fifth of that. Advice only: where it is not taken, nothing changes.
    """
    tensor = torch.empty(shape, dtype=dtype, memory_format=memory_format)
    if _madvise is not None and tensor.nbytes >= 2 * _HUGE_PAGE:
        start = -(-tensor.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
        stop = (tensor.data_ptr() + tensor.nbytes) // _HUGE_PAGE * _HUGE_PAGE
        _madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_HUGEPAGE)
    return tensor


def pointer(tensor: torch.Tensor | None, start: int = 0) -> int:
    """The address of row `start`; 0 for no tensor."""
    return 0 if tensor is None else (tensor[start:] if start else tensor).data_ptr()


def with_adjacent_columns(x: torch.Tensor) -> torch.Tensor:
    """`x`, copied if the elements of its rows do not follow one another."""
    return x if x.stride(-1) == 1 else x.contiguous()


def stream(device: torch.device) -> int:
    """The raw handle of torch's current CUDA stream on `device`."""
    return torch.cuda.current_stream(device).cuda_stream


def device_of(x: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the device of `x` current: kernels are launched on the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def slices(n_rows: int, operations_per_row: float, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges of rows, each a native call of about 0.1 s; the size follows the time that the last one took."""
    rows = max(1, int(_FIRST_SLICE_OPERATIONS / max(1.0, operations_per_row)))
    start = 0
    while start < n_rows:
        stop = min(n_rows, start + -(-rows // multiple) * multiple)
        began = time.perf_counter()
        yield start, stop
        elapsed = max(1e-9, time.perf_counter() - began)
        rows = max(1, int((stop - start) * min(4.0, _SLICE_SECONDS / elapsed)))
        start = stop
