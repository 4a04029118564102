"""What `make gpu` runs: install, tests, sanitizers, tables; one result file, and a short table at the end."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from . import result
from .measure import Limits
from .parts import Ended, Part, run

ROOT = Path(__file__).parents[2]
# Seconds. The whole stays below nine minutes whatever hangs: what comes last gets what is left.
_WHOLE = 515.0
_LIMITS = {"install": 150.0, "tests": 180.0, "limits": 25.0, "every op": 90.0, "memcheck": 40.0, "racecheck": 40.0}
TABLE_LIMITS = {"k-means": 120.0, "sobel": 60.0, "loss": 60.0, "epoch": 75.0, "linear-loss": 45.0, "k-means++": 30.0}
# What runs after the sanitizers.
_LAST = 3
# Processes that run tests, where pytest-xdist is installed.
_TESTERS = max(1, (os.cpu_count() or 1) - 2)
# The tools of this Python's environment first; where CUDA's are when the PATH does not say.
_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
_SANITIZER = shutil.which("compute-sanitizer", path=_PATH)


def _architecture() -> dict[str, str]:
    """Only this device's machine code: that of others takes longest to compile, and is never run here."""
    capability = result.first_line("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader").replace(".", "")
    if "DCFAST_CUDA_ARCHS" in os.environ or not capability.isdigit():
        return {}
    # wgmma and TMA are in no other code than 90a.
    return {"DCFAST_CUDA_ARCHS": "90a-real" if capability == "90" else f"{capability}-real"}


def parts(scratch: Path, site: Path, device: torch.device, small: bool) -> list[Part]:
    """In the order in which they run: what the rest needs first, then what is worth most."""
    ours = os.pathsep.join([str(site), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PYTHONPATH": ours, "PYTHONSAFEPATH": "1", "PATH": _PATH}
    python = sys.executable
    install = [python, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index", "--upgrade"]
    install += ["--target", str(site), str(ROOT)]
    # Files that need a package which is not here fail to be collected, and are counted as errors.
    tested = sorted(str(f) for f in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in f.read_text())
    pytest = [python, "-m", "pytest", "-m", "gpu", "--require-backends=gpu", "--continue-on-collection-errors"]
    # Most of the time goes to Triton's compiler, which works on the CPU.
    pytest += [f"-n{_TESTERS}"] if importlib.util.find_spec("xdist") else []
    pytest += ["-q", "-p", "no:cacheprovider", f"--junitxml={scratch / 'junit.xml'}", *tested]
    module = [python, "-m"]
    where = ["--device", device.type, *(["--small"] if small else [])]
    every = [
        Part("install", install, _LIMITS["install"], {"PATH": _PATH, "DCFAST_CUDA": "on", **_architecture()}),
        Part("tests", pytest, _LIMITS["tests"], {**environment, "OMP_NUM_THREADS": "2"}),
        Part("limits", [*module, "gpu.device", str(scratch / "device.json"), *where], _LIMITS["limits"], environment),
    ]
    tables = [
        Part(name, [*module, "gpu.table", name, str(scratch / f"{name}.rows"), *where], limit, environment)
        for name, limit in TABLE_LIMITS.items()
    ]
    every += tables[:-_LAST]
    # Compiles what the sanitizers would otherwise wait for.
    drive = [*module, "gpu.every_op", "--device", device.type]
    every.append(Part("every op", drive, _LIMITS["every op"], environment))
    # Without the allocator's cache every tensor has bounds of its own. Errors that libraries ask for and handle are
    # not reported.
    checked = {**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in ("memcheck", "racecheck") if _SANITIZER and device.type == "cuda" else ():
        options = ["--report-api-errors", "no"] if tool == "memcheck" else []
        command = [_SANITIZER, "--tool", tool, "--error-exitcode", "9", *options, *drive]
        every.append(Part(tool, command, _LIMITS[tool], checked))
    return every + tables[-_LAST:]


def sanitizer_verdicts(ended: dict[str, Ended], scratch: Path, device: torch.device) -> dict[str, Any]:
    """The sanitizer's own summary line, or why there is none."""
    verdicts: dict[str, Any] = {}
    for tool in ("memcheck", "racecheck"):
        if device.type != "cuda":
            verdicts[tool] = {"verdict": "skipped: no CUDA device"}
        elif tool not in ended:
            verdicts[tool] = {"verdict": "skipped: compute-sanitizer is neither on the PATH nor in /usr/local/cuda/bin"}
        else:
            log = scratch / f"{tool}.log"
            text = log.read_text(errors="replace") if log.exists() else ""
            lines = re.findall(r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)", text)
            verdict = lines[-1] if lines else f"no verdict ({ended[tool].ended})"
            verdicts[tool] = {"verdict": verdict, "ended": ended[tool].ended, "tail": text[-1500:]}
    return verdicts


def collect(ended: list[Ended], scratch: Path, device: torch.device) -> dict[str, Any]:
    """The result file's contents from what the parts left behind."""
    device_file = scratch / "device.json"
    seen = json.loads(device_file.read_text()) if device_file.exists() else {"limits": None, "serving": {}}
    limits = Limits(**seen["limits"]) if seen["limits"] else None
    rows = result.with_floors(result.read_rows(scratch / f"{name}.rows" for name in TABLE_LIMITS), limits)
    by_name = {part.name: part for part in ended}
    contents = {
        "schema": result.SCHEMA,
        "commit": result.commit(ROOT),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": result.machine(device),
        "limits": seen["limits"],
        "serving": seen["serving"],
        "parts": [dataclasses.asdict(part) for part in ended],
        "tests": result.tally(scratch / "junit.xml"),
        "sanitizers": sanitizer_verdicts(by_name, scratch, device),
        "rows": rows,
        "missing": result.absent(rows, "missing"),
        "failed": result.absent(rows, "failed"),
    }
    return result.finite(contents)


def is_good(contents: dict[str, Any]) -> bool:
    """Whether every part ran to its end, all tests passed, and no result of ours was wrong."""
    own = [row for row in contents["rows"] if row["own"]]
    return all(part["ended"] == "ok" for part in contents["parts"]) and all(row.get("agrees") for row in own)


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__)
    parser.add_argument("--device", type=torch.device, default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes that only show that everything runs")
    parser.add_argument("--skip", nargs="*", default=[], help="parts that are not run")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    device = arguments.device
    if device.type == "cuda" and not torch.cuda.is_available():
        print("make gpu: torch sees no CUDA device", file=sys.stderr)
        return 1
    deadline = time.monotonic() + _WHOLE
    scratch = Path(tempfile.mkdtemp(prefix="dcfast-gpu-"))
    site = ROOT / "build" / "gpu-site"
    ended = []
    todo = [part for part in parts(scratch, site, device, arguments.small) if part.name not in arguments.skip]
    while todo:
        part = todo.pop(0)
        ended.append(run(part, scratch / f"{part.name}.log", deadline))
        print(f"{part.name}: {ended[-1].ended} after {ended[-1].seconds:.0f} s\n{ended[-1].tail}", flush=True)
        if part.name == "install" and ended[-1].ended != "ok":
            # The run counts as failed, but what Triton serves can still be seen.
            without = {**part.environment, "DCFAST_CUDA": "off"}
            todo.insert(0, dataclasses.replace(part, name="install without CUDA", environment=without))
    contents = collect(ended, scratch, device)
    folders = [arguments.results, *map(Path, filter(None, [os.environ.get("OUT")]))]
    written = result.write(contents, *folders)
    print(result.summary(contents))
    print("written:", *written)
    return 0 if is_good(contents) else 1


if __name__ == "__main__":
    sys.exit(main())
