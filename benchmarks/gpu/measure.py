"""Times calls on a device, and the two rates that floors are counted in."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]

# A number is worth this much time; calls that take longer than LONG are timed once, after one to warm up.
_SECONDS, _LONG = 0.25, 1.0
_FEWEST, _MOST = 5, 200
# Inputs are rotated so that between two uses of one, this many times the L2 cache goes by.
_CACHES = 3
_MOST_INPUTS = 32


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, and the range that holds four of five calls."""

    median: float
    low: float
    high: float
    calls: int


@dataclass(frozen=True)
class Limits:
    """What this device was seen to do: bytes per second of a copy (read and written), half-precision operations."""

    bandwidth: float
    matrix_rate: float


def floor(operations: float, moved: float, limits: Limits) -> tuple[float, str]:
    """The least seconds that so many operations and so many bytes take, and which of the two takes them."""
    by_operations, by_bytes = operations / limits.matrix_rate, moved / limits.bandwidth
    if by_operations >= by_bytes:
        return by_operations, f"{operations:.4g} operations / {limits.matrix_rate:.4g} per second"
    return by_bytes, f"{moved:.4g} bytes / {limits.bandwidth:.4g} per second"


def rotation(n_bytes: int, device: torch.device) -> int:
    """How many inputs of that size it takes for none of them to be in the cache when its turn comes."""
    if device.type != "cuda":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(_MOST_INPUTS, 1 + -(-_CACHES * cache // n_bytes))


def _run(calls: Sequence[Call], count: int, device: torch.device) -> list[float]:
    """Seconds of each of `count` calls, which take turns; on a GPU by its own events, with no wait in between."""
    if device.type != "cuda":
        seconds = []
        for i in range(count):
            began = time.perf_counter()
            calls[i % len(calls)]()
            seconds.append(time.perf_counter() - began)
        return seconds
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for i, (start, stop) in enumerate(events):
        start.record()
        calls[i % len(calls)]()
        stop.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(stop) / 1e3 for start, stop in events]


def median_time(calls: Sequence[Call], device: torch.device) -> Timing:
    """Warm up, then time calls that do the same to different inputs."""
    _run(calls, len(calls), device)
    first = min(_run(calls, 1, device))
    count = 1 if first > _LONG else min(_MOST, max(_FEWEST, int(_SECONDS / max(first, 1e-9))))
    if count > 1:
        _run(calls, max(1, count // 4), device)
    seconds = sorted(_run(calls, count, device))
    return Timing(statistics.median(seconds), seconds[count // 10], seconds[-1 - count // 10], count)


def captured(call: Call) -> Call:
    """The same call as the replay of a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay() -> object:
        graph.replay()
        return output

    return replay


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Memory that one call takes beyond what is allocated before it."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def measured_limits(device: torch.device, *, small: bool = False) -> Limits:
    """A large copy and a large product of random matrices (zeros would run faster than data does)."""
    side, elements = (256, 2**20) if small else (8192, 2**30)
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    copy = median_time([lambda: target.copy_(source)], device)
    a, b = (torch.randn(side, side, device=device).half() for _ in range(2))
    product = median_time([lambda: a @ b], device)
    return Limits(2 * source.nbytes / copy.median, 2 * side**3 / product.median)
