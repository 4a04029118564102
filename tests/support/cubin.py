"""Reads registers, stack and opcodes of compiled CUDA code with the tools that come in Triton's wheel."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Function:
    """One kernel in one binary: its architecture, what it holds of the machine, and its opcodes in order."""

    name: str
    arch: int
    registers: int
    stack_bytes: int
    local_bytes: int
    opcodes: tuple[str, ...]

    def has(self, opcode: str) -> bool:
        """Whether `opcode` or a variant of it ('HMMA' for 'HMMA.16816.F32') appears."""
        return any(o == opcode or o.startswith(opcode + ".") for o in self.opcodes)

    @property
    def own_name(self) -> str:
        """The mangled name without the namespace of its file, in which a hash may spell anything."""
        found = re.search(r"(\d+)(?=_GLOBAL__N__)", self.name)
        return self.name if found is None else self.name[found.end() + int(found[1]) :]

    @property
    def spills(self) -> int:
        """Loads and stores of local memory: what the compiler could not keep in registers."""
        return sum(o.split(".")[0] in {"LDL", "STL"} for o in self.opcodes)


@functools.cache
def tool(name: str) -> Path:
    """'cuobjdump' or 'nvdisasm' of the Triton wheel."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: this Triton wheel came without {name}")
    return path


def _run(*args: str) -> str:
    # cuobjdump looks for nvdisasm on the PATH.
    path = f"{tool('nvdisasm').parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return subprocess.run(
        [str(tool("cuobjdump")), *args], check=True, capture_output=True, text=True, env={**os.environ, "PATH": path}
    ).stdout


def functions(binary: Path) -> list[Function]:
    """Every kernel in a cubin, an object file or a shared library, once per architecture."""
    usage: dict[tuple[int, str], tuple[int, int, int]] = {}
    arch = name = None
    for line in _run("-res-usage", str(binary)).splitlines():
        if match := re.match(r"arch = sm_(\d+)", line):
            arch = int(match[1])
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            usage[arch or 0, str(name)] = (int(match[1]), int(match[2]), int(match[3]))
    opcodes: dict[tuple[int, str], list[str]] = {}
    listing: list[str] = []
    for line in _run("-sass", str(binary)).splitlines():
        if match := re.match(r"\s*code for sm_(\d+)", line):
            arch = int(match[1])
        elif match := re.match(r"\s*Function : (\S+)", line):
            listing = opcodes.setdefault((arch or 0, match[1]), [])
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line):
            listing.append(match[1])
    # A bare cubin's usage names no architecture; its disassembly does.
    return [
        Function(name, arch, *usage.get((arch, name), usage.get((0, name), (0, 0, 0))), tuple(codes))
        for (arch, name), codes in opcodes.items()
    ]
