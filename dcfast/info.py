"""What `dcfast info` prints: the version, the native build, the machine, and which backend serves each op and why."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import dcfast
import dcfast.ops  # registers the ops
from dcfast.ops import _native, _registry

# Backends that a device has, in the order of preference; on a CPU Triton runs only where it is asked for.
_CANDIDATES = {"cpu": ("native", "triton", "reference"), "cuda": ("native", "triton")}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, str]:
    """Versions, native build, instruction set, threads, GPU and driver, as text by name."""
    core = _native._C
    if core is None:
        build, used = f"could not be loaded: {_native.load_error}", "none: every op runs on its reference"
    else:
        build = f"{', '.join(core.compiled_isas)}; CUDA {_cuda_build()}"
        used = f"{_native.isa()} (this processor runs {', '.join(core.isas)})"
    return {
        "dcfast": f"{dcfast.__version__}, Python {platform.python_version()}, {platform.machine()}",
        "torch": f"{torch.__version__}, Triton {_version('triton')}",
        "native build": build,
        "instruction set": used,
        "threads": str(_native.threads()),
        "GPU": _gpu(),
        "driver": _driver(),
        "DCFAST_BACKEND": _registry.requested() or "none",
    }


def _cuda_build() -> str:
    _, cuda = _native.built_ops()
    if cuda:
        return f"built: {', '.join(sorted(cuda))}"
    remedy = ': pip install "cuda-toolkit[nvcc,nvvm,crt,cccl]", then install dcfast anew'
    return f"not built{remedy if torch.cuda.is_available() else ''}"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that torch sees" if torch.version.cuda else "none: this torch is a CPU build"
    names = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        names.append(f"{torch.cuda.get_device_name(index)} (compute capability {major}.{minor})")
    return ", ".join(names)


def _driver() -> str:
    if not torch.cuda.is_available():
        return "none"
    number = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    return f"CUDA {number // 1000}.{number % 1000 // 10}"


def serving(device: str) -> dict[str, tuple[str | None, dict[str, str]]]:
    """For each op the backend that serves `device` ('cpu' or 'cuda'), and why each other one does not.

    Returns
    -------
    dict of str to (str or None, dict of str to str)
        A backend that could serve, but comes later in the order of preference, has no reason and is left out.
    """
    has_gpu = device == "cuda" and torch.cuda.is_available()
    have = _registry.installed(torch.cuda.current_device() if has_gpu else None)
    found: dict[str, tuple[str | None, dict[str, str]]] = {}
    for name, op in sorted(_registry.ops.items()):
        choice = _registry.select(op, device, have, _registry.requested())
        reasons = {b: choice.why_not[b] for b in _CANDIDATES[device] if b in choice.why_not}
        found[name] = (choice.backend, reasons)
    return found


def _cell(backend: str | None, reasons: dict[str, str]) -> str:
    first = f"[green]{backend}[/]" if backend else "[red]none[/]"
    # 'CUDA: not written' needs no other word before it.
    lines = (reason if reason.startswith("CUDA:") else f"{name}: {reason}" for name, reason in reasons.items())
    return "\n".join([first, *(f"[dim]{escape(line)}[/]" for line in lines)])


def show(console: Console | None = None) -> None:
    """Print everything as two tables."""
    console = console or Console()
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in machine().items():
        facts.add_row(f"[bold]{name}[/]", escape(value))
    console.print(facts)
    cpu, cuda = serving("cpu"), serving("cuda")
    table = Table(title="Which backend serves each op, and why not another", title_justify="left")
    table.add_column("op", style="bold", overflow="fold")
    table.add_column("CPU tensors")
    table.add_column("CUDA tensors")
    for name in cpu:
        table.add_row(name, _cell(*cpu[name]), _cell(*cuda[name]))
    console.print(table)
