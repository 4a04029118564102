"""`compare`: time ours, its peers and the machine's limits in turn, so that a drift of the machine hits all alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.markup import escape
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
import roofline

_PAUSE = 0.02  # seconds
_SHORT = 0.05  # seconds: calls below are run once more before they are timed
_LONG = 2.0  # seconds: calls above are warm after one

_rows: list[tuple[str, ...]] = []


@pytest.fixture
def compare(benchmark, request):
    """Run `ours` and `peers` in turn, `rounds` times, and keep the minimum of each.

    Parameters
    ----------
    ours : callable
    peers : dict of name to callable
    operations, moved : float, optional
        Floating-point operations, or bytes that must move at least: the floor that ours is measured against.
    quality : dict of name to str, optional
        Filled by the callables: shown next to the times, since a time means nothing at another result.
    """

    def run(
        ours: Callable[[], object],
        peers: dict[str, Callable[[], object]],
        *,
        operations: float | None = None,
        moved: float | None = None,
        quality: dict[str, str] | None = None,
        rounds: int = 5,
    ) -> None:
        times: dict[str, list[float]] = {name: [] for name in peers}
        flops, bandwidth = [], []

        def settle(call: Callable[[], object]) -> None:
            # Each library has a pool of threads that spin for some milliseconds after their work: let them go to
            # sleep, and have the own pool awake, or a short call is timed against somebody else's waiting.
            time.sleep(_PAUSE)
            if durations[call] < _SHORT:
                call()

        def others() -> None:
            for name, peer in peers.items():
                settle(peer)
                began = time.perf_counter()
                peer()
                times[name].append(time.perf_counter() - began)
            time.sleep(_PAUSE)
            flops.append(roofline.flops())
            bandwidth.append(roofline.bandwidth())
            settle(ours)

        durations = {}
        for call in (ours, *peers.values()):
            for _ in range(2):  # loads, compiles and warms up
                began = time.perf_counter()
                call()
                durations[call] = time.perf_counter() - began
                if durations[call] > _LONG:
                    break
        benchmark.pedantic(ours, setup=others, rounds=rounds)
        own = benchmark.stats.stats.min
        share = ""
        if operations is not None:
            share = f"{operations / own / max(flops):.0%} of {max(flops) / 1e9:.0f} GFLOP/s"
        elif moved is not None:
            share = f"{moved / own / max(bandwidth):.0%} of {max(bandwidth) / 1e9:.1f} GB/s"
        benchmark.extra_info.update(share=share, quality=quality or {})
        quality = quality or {}
        _rows.append((escape(request.node.name), "dcfast", f"{own * 1e3:.2f}", "", share, quality.get("dcfast", "")))
        for name, seconds in times.items():
            benchmark.extra_info[name] = min(seconds)
            ratio = f"{min(seconds) / own:.2f} x"
            _rows.append(("", name, f"{min(seconds) * 1e3:.2f}", ratio, "", quality.get(name, "")))

    return run


def pytest_terminal_summary():
    if not _rows:
        return
    table = Table("benchmark", "who", "ms (minimum)", "slower than dcfast by", "share of the limit", "result")
    for row in _rows:
        table.add_row(*row)
    Console(width=150).print(table)
