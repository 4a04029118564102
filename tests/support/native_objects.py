"""The object files of csrc/cpu, one set per instruction set: those of the last build, or compiled anew."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ISAS = ("baseline", "avx2", "avx512", "amx")
AMX = ["assign.cpp.o"]  # the other ops of its table are those of avx512


def _fresh(build: Path) -> bool:
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.is_file() and p.parent.name != "cuda"]
    newest = max(p.stat().st_mtime for p in [*sources, ROOT / "CMakeLists.txt"])
    objects = [build / "CMakeFiles" / f"dcfast_{isa}.dir" for isa in ISAS]
    ages = [p.stat().st_mtime for folder in objects for p in folder.rglob("*.o")]
    return bool(ages) and min(ages) >= newest and all(any(folder.rglob("*.o")) for folder in objects)


def build_tree(scratch: Path) -> Path | None:
    """A CMake tree with up-to-date objects, made in `scratch` unless a wheel's build left one; None without tools."""
    for build in sorted(ROOT.glob("build/temp*/cmake")):
        if _fresh(build):
            return build
    try:
        import pybind11
    except ImportError:
        return None
    if not (shutil.which("cmake") and shutil.which("ninja") and shutil.which("c++")):
        return None
    configure = ["cmake", str(ROOT), "-GNinja", "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run([*configure, f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"], cwd=scratch, check=True)
    targets = [argument for isa in ISAS for argument in ("--target", f"dcfast_{isa}")]
    subprocess.run(["cmake", "--build", str(scratch), *targets, "--target", "_C"], check=True)
    return scratch


def objects(build: Path, isa: str) -> list[Path]:
    """The objects of one instruction set, one per op."""
    return sorted((build / "CMakeFiles" / f"dcfast_{isa}.dir").rglob("*.o"))


def shared_objects(build: Path) -> list[Path]:
    """The objects that every processor runs: the dispatcher and the bindings."""
    return sorted((build / "CMakeFiles" / "_C.dir").rglob("*.o"))


def symbols(path: Path) -> list[tuple[str, str]]:
    """(kind, demangled name) of what the object defines, as `nm` says it."""
    listing = subprocess.run(["nm", "--defined-only", "-C", str(path)], check=True, capture_output=True, text=True)
    return [(m[1], m[2]) for line in listing.stdout.splitlines() if (m := re.match(r"\S+ (\S) (.+)", line))]


def disassembly(path: Path) -> str:
    """The object's instructions."""
    return subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(path)], check=True, capture_output=True, text=True
    ).stdout
