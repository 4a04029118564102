"""One comparison: ours and its peers on the same inputs, each timed, checked, and recorded by name whatever happens."""

from __future__ import annotations

import contextlib
import gc
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .measure import Call, captured, median_time, peak_bytes

# Takes one input, imports and precomputes what does not belong into the time, and returns the call to be timed.
Prepare = Callable[[Any], Call]
Row = dict[str, Any]


class Missing(Exception):
    """A peer that is not there, or does not take such input: the message says why."""


@dataclass(frozen=True)
class Case:
    """One line of a table.

    Parameters
    ----------
    table, name : str
    ours : callable
        Of one input.
    peers : mapping of str to callable
    inputs : sequence
        Taken in turn by the timed calls; results are checked on the first.
    operations, moved : float
        What no implementation can do without: half-precision operations, and bytes to and from memory.
    errors : callable
        Of an input and what a contestant returned: names to numbers that are 0 for a perfect result.
    ours_within, peers_within : mapping of str to float
        The largest such numbers with which a result counts as right.
    graph : bool
        Whether ours runs in a CUDA graph as well.
    """

    table: str
    name: str
    ours: Prepare
    peers: Mapping[str, Prepare]
    inputs: Sequence[Any]
    operations: float
    moved: float
    errors: Callable[[Any, Any], dict[str, float]]
    ours_within: Mapping[str, float]
    peers_within: Mapping[str, float]
    graph: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that torch.empty hands out holds NaN and the largest integers: an element nobody wrote is seen."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def _contestants(case: Case, device: torch.device) -> Iterator[tuple[str, Prepare, bool]]:
    yield "dcfast", case.ours, True
    if case.graph and device.type == "cuda":
        yield "dcfast in a CUDA graph", lambda data: captured(case.ours(data)), True
    for name, peer in case.peers.items():
        yield name, peer, False


def _row(case: Case, prepare: Prepare, own: bool, device: torch.device) -> Row:
    first = prepare(case.inputs[0])
    # Not for peers: torch.compile would compile once more, and give up after some times.
    with poisoned() if own else contextlib.nullcontext():
        output = first()
    errors = case.errors(case.inputs[0], output)
    del output
    within = case.ours_within if own else case.peers_within
    agrees = all(errors[name] <= most for name, most in within.items())  # false for NaN
    memory = peak_bytes(first, device)
    calls = [first, *map(prepare, case.inputs[1:])]
    timing = median_time(calls, device)
    return {
        "seconds": timing.median,
        "low": timing.low,
        "high": timing.high,
        "calls": timing.calls,
        "peak_bytes": memory,
        "errors": errors,
        "agrees": agrees,
    }


def run(case: Case, device: torch.device) -> Iterator[Row]:
    """A row for ours and one for each peer: its time and errors, or why there are none."""
    common = {
        "table": case.table,
        "case": case.name,
        **case.parameters,
        "operations": case.operations,
        "moved": case.moved,
    }
    for name, prepare, own in _contestants(case, device):
        row = {**common, "who": name, "own": own}
        try:
            row |= _row(case, prepare, own, device)
        except (ImportError, Missing) as error:
            row["missing"] = f"{type(error).__name__}: {error}"
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            row["failed"] = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"[:2000]
        yield row
        if device.type == "cuda" and "seconds" in row:
            gc.collect()  # a compiled call and its inputs are in a cycle
            torch.cuda.empty_cache()
    torch.compiler.reset()  # what is compiled anew too often is not compiled at all
