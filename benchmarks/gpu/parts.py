"""Runs the parts of `make gpu`, each a process group of its own under a time limit, their output kept in files."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Below this a part would only start.
_LEAST = 10.0
# From an interrupt, on which pytest reports what it has, to the end: pytest-xdist waits 10 s for its workers first.
_GRACE = 20.0
_TAIL = 2000


@dataclass(frozen=True)
class Part:
    """A command, its own limit in seconds, and what it adds to the environment."""

    name: str
    command: Sequence[str]
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a part ended: 'ok', 'exit code N', 'time limit of N s' or 'no time left'."""

    name: str
    ended: str
    seconds: float
    tail: str


def run(part: Part, log: Path, deadline: float) -> Ended:
    """Run a part until it ends, its limit is over, or the whole run's deadline (of time.monotonic) has come.

    Everything it started dies with it: a hang leaves the time and the device to the parts that follow.
    """
    began = time.monotonic()
    limit = min(part.limit, deadline - began)
    if limit < _LEAST:
        return Ended(part.name, "no time left", 0.0, "")
    with log.open("wb") as out:
        process = subprocess.Popen(
            part.command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **part.environment},
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            ended = "ok" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            ended = f"time limit of {limit:.0f} s"
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    tail = log.read_bytes()[-_TAIL:].decode(errors="replace")
    return Ended(part.name, ended, time.monotonic() - began, tail if ended != "ok" else "")
