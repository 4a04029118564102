"""The result file: what it holds, how it comes together from the parts, how it is written and printed."""

from __future__ import annotations

import collections
import json
import os
import platform
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .measure import Limits, floor

SCHEMA = 1
_IMAGENET = 1_281_167  # images to train on
KEYS = (
    "schema",
    "commit",
    "date",
    "machine",
    "limits",
    "serving",
    "parts",
    "tests",
    "sanitizers",
    "rows",
    "missing",
    "failed",
)


def first_line(*command: str) -> str:
    """What a program says first, or that it is not there."""
    if shutil.which(command[0]) is None:
        return f"no {command[0]}"
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return next(iter((done.stdout or done.stderr).splitlines()), f"{command[0]} said nothing")


def commit(root: Path) -> str:
    """DCFAST_COMMIT, else that of the repository."""
    given = os.environ.get("DCFAST_COMMIT")
    return given or first_line("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def machine(device: torch.device) -> dict[str, Any]:
    """The device, and the versions of what runs on it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        driver = first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    else:
        name, capability, driver = f"{platform.machine()} CPU", "none", "none"
    packages = ("triton", "numpy", "scikit-learn", "cupy-cuda13x", "flash-kmeans", "flashlib", "fastkmeans")
    packages += ("liger-kernel", "cut-cross-entropy", "quack-kernels", "nvidia-cutlass-dsl")
    return {
        "device": name,
        "capability": capability,
        "driver": driver,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{package: _version(package) for package in packages},
    }


def tally(junit: Path) -> dict[str, Any]:
    """Counts of a pytest run and the names of what failed, from its XML report."""
    if not junit.exists():
        return {"ran": False, "why": "no report was written"}
    suite = ElementTree.parse(junit).getroot().find("testsuite")
    assert suite is not None, f"{junit} has no testsuite"
    counts = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    failed: dict[str, str] = {}
    skipped: collections.Counter[str] = collections.Counter()
    for test in suite.iter("testcase"):
        name = f"{test.get('classname')}::{test.get('name')}"
        for child in test:
            message = (child.get("message") or "")[:500]
            if child.tag in ("failure", "error"):
                failed[name] = message
            elif child.tag == "skipped":
                skipped[message] += 1
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    return {"ran": True, "passed": passed, **counts, "failed": failed, "skipped_because": dict(skipped)}


def read_rows(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The rows of the tables; a line that a killed process left unfinished is dropped."""
    rows = []
    for file in files:
        for line in file.read_text().splitlines() if file.exists() else ():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


def with_floors(rows: Iterable[Mapping[str, Any]], limits: Limits | None) -> list[dict[str, Any]]:
    """Rows with the least time that the device's limits allow, how it was computed, and each one's share of it."""
    finished = []
    for row in map(dict, rows):
        if limits is not None:
            seconds, how = floor(row["operations"], row["moved"], limits)
            row |= {"floor": seconds, "floor_is": how}
            if "seconds" in row:
                row["share_of_floor"] = seconds / row["seconds"]
        finished.append(row)
    return finished


def absent(rows: Iterable[Mapping[str, Any]], key: str) -> dict[str, list[str]]:
    """Who was 'missing' or 'failed', with each different reason once."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if key in row and row[key] not in found.setdefault(row["who"], []):
            found[row["who"]].append(row[key])
    return found


def write(result: Mapping[str, Any], *folders: Path) -> list[Path]:
    """Write `<device>-<date>.json` into every folder: whole or not at all."""
    if tuple(result) != KEYS:
        raise ValueError(f"a result has the keys {KEYS}: this has {tuple(result)}")
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    device = "-".join("".join(c if c.isalnum() else " " for c in result["machine"]["device"].lower()).split())
    written = []
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{device}-{result['date'][:10]}.json"
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".part", delete=False) as part:
            part.write(text)
        os.chmod(part.name, 0o644)
        os.replace(part.name, path)
        written.append(path)
    return written


def finite(value: Any) -> Any:
    """The same with NaN and infinities as text: JSON has none."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return str(value)
    return value


def _line(row: Mapping[str, Any]) -> str:
    who = f"  {row['who']:28.28}"
    if "seconds" not in row:
        return f"{who} {'missing' if 'missing' in row else 'FAILED'}: {row.get('missing') or row.get('failed')}"[:140]
    share = f"{row['share_of_floor']:6.1%} of the floor" if "share_of_floor" in row and row["own"] else ""
    wrong = "" if row["agrees"] else f"  WRONG {row['errors']}"
    return f"{who} {row['seconds'] * 1e3:12.4f} ms {share}{wrong}"


def extrapolated(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The published run of 500 epochs, from the seconds per image of the two stages that see images."""
    rates = {
        row["stage"]: row["seconds"] / row["images"]
        for row in rows
        if row.get("arch") == "alexnet" and row["own"] and "seconds" in row
    }
    if rates.keys() != {"features", "training"}:
        return []
    hours = 500 * _IMAGENET * sum(rates.values()) / 3600
    return [f"500 epochs of {_IMAGENET:,} images at these rates, k-means apart: {hours:.1f} h, extrapolated"]


def summary(result: Mapping[str, Any]) -> str:
    """A short table of everything."""
    lines, last = [], None
    for row in result["rows"]:
        title = f"{row['table']}: {row['case']}"
        if title != last:
            floor_ms = f" (floor {row['floor'] * 1e3:.4f} ms)" if "floor" in row else ""
            lines.append(title + floor_ms)
            last = title
        lines.append(_line(row))
    lines += extrapolated(result["rows"])
    limits = result["limits"]
    if limits:
        lines.append(f"copy {limits['bandwidth'] / 1e12:.3f} TB/s, half {limits['matrix_rate'] / 1e12:.0f} TFLOP/s")
    tests = result["tests"]
    if tests.get("ran"):
        lines.append(f"tests: {tests['passed']} passed, {tests['failures']} failed, {tests['errors']} errors, "
                     f"{tests['skipped']} skipped")  # fmt: skip
        lines += [f"  FAILED {name}" for name in tests["failed"]][:20]
    else:
        lines.append(f"tests: not run ({tests['why']})")
    lines += [f"{name}: {verdict['verdict']}" for name, verdict in result["sanitizers"].items()]
    lines += [f"{part['name']}: {part['ended']} after {part['seconds']:.0f} s" for part in result["parts"]]
    lines += [f"missing {who}: {reasons[0]}"[:140] for who, reasons in result["missing"].items()]
    return "\n".join(lines)
