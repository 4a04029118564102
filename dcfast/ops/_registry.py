"""Define an op once: its schema, its fake, its backends; and which backend serves a device, and why not another."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from dcfast.ops import _native

BACKENDS = ("native", "triton", "reference")

# The oldest GPUs that the native kernels are compiled for.
_CUDA_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Op:
    """A registered op: its name, the package that holds its backends, and what csrc calls its CPU and CUDA parts."""

    name: str
    package: str
    native_cpu: tuple[str, ...]
    native_cuda: tuple[str, ...]
    backends: tuple[str, ...]


@dataclass(frozen=True)
class Installed:
    """What this process can run; with the op, the device and the override all that `select` looks at."""

    native_cpu: frozenset[str]
    native_cuda: frozenset[str]
    native_error: str | None
    triton_error: str | None
    triton_interpreted: bool
    cuda_capability: tuple[int, int] | None


@dataclass(frozen=True)
class Choice:
    """The backend that serves a call (None: none does), why the others do not, and whether to warn of it."""

    backend: str | None
    why_not: dict[str, str]
    warn: bool = False


ops: dict[str, Op] = {}
# Of the whole process, since autograd runs backward passes on a GPU in threads of its own.
_override: str | None = None


def why_not(op: Op, backend: str, device: str, installed: Installed) -> str | None:
    """The reason that keeps `backend` from serving `op` on `device` ('cpu' or 'cuda'), or None."""
    if backend == "reference":
        return None
    if backend not in op.backends:
        return "not written"
    if backend == "native":
        if installed.native_error is not None:
            return f"the extension could not be loaded ({installed.native_error})"
        if device == "cpu":
            missing = sorted(set(op.native_cpu) - installed.native_cpu)
            return f"csrc has no {', '.join(missing)}" if missing else None
        if not op.native_cuda:
            return "CUDA: not written"
        if set(op.native_cuda) - installed.native_cuda:
            return "built without CUDA: install nvcc, then dcfast anew"
        if installed.cuda_capability is None:
            return "no CUDA device"
        if installed.cuda_capability < _CUDA_CAPABILITY:
            have, need = (".".join(map(str, c)) for c in (installed.cuda_capability, _CUDA_CAPABILITY))
            return f"the GPU's compute capability {have} is below {need}"
        return None
    if installed.triton_error is not None:
        return f"Triton could not be imported ({installed.triton_error})"
    if device == "cpu" and not installed.triton_interpreted:
        return "Triton runs on CPU tensors only in its interpreter (TRITON_INTERPRET=1)"
    if device == "cuda" and installed.cuda_capability is None:
        return "no CUDA device"
    return None


@functools.cache
def select(op: Op, device: str, installed: Installed, override: str | None = None) -> Choice:
    """Which backend serves `op` on `device`: a pure function of its arguments.

    CPU tensors: native, else (with a warning) the reference. CUDA tensors: native, else Triton, else none: the
    reference would serve them slowly and unasked.
    """
    reasons = {b: reason for b in BACKENDS if (reason := why_not(op, b, device, installed)) is not None}
    if override is not None:
        return Choice(override if override not in reasons else None, reasons)
    if "native" not in reasons:
        return Choice("native", reasons)
    if device == "cpu":
        return Choice("reference", reasons, warn=True)
    return Choice("triton" if "triton" not in reasons else None, reasons)


@functools.cache
def _triton_error() -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"{type(error).__name__}: {error}"
    return None


@functools.cache
def installed(cuda_index: int | None = None) -> Installed:
    """What this process can run on the CPU, or on the CUDA device of that index."""
    native_cpu, native_cuda = _native.built_ops()
    return Installed(
        native_cpu=native_cpu,
        native_cuda=native_cuda,
        native_error=_native.load_error,
        triton_error=_triton_error(),
        triton_interpreted=os.environ.get("TRITON_INTERPRET") == "1",
        cuda_capability=None if cuda_index is None else torch.cuda.get_device_capability(cuda_index),
    )


def requested() -> str | None:
    """The backend asked for by `backend(...)` or else by DCFAST_BACKEND."""
    return _override or _checked(os.environ.get("DCFAST_BACKEND") or None, "DCFAST_BACKEND")


def _checked(name: str | None, source: str) -> str | None:
    if name is not None and name not in BACKENDS:
        raise ValueError(f"{source}={name!r} is not a backend: choose one of {BACKENDS}")
    return name


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Serve every op inside the `with` block, of all threads, by `name`: 'native', 'triton' or 'reference'.

    Raises
    ------
    ValueError
        If there is no backend of that name. An op that it cannot serve raises RuntimeError when it is called.
    """
    global _override
    before, _override = _override, _checked(name, "backend")
    try:
        yield
    finally:
        _override = before


@functools.cache
def _warn_once(op: str, reason: str) -> None:
    warnings.warn(
        f"dcfast.{op} runs on its plain-torch reference, which is slow: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )


def _backend_for(op: Op, device: torch.device) -> str:
    have = installed(None if device.type == "cpu" else device.index or 0)
    choice = select(op, device.type, have, requested())
    if choice.backend is None:
        reasons = "; ".join(f"{b}: {reason}" for b, reason in choice.why_not.items())
        raise RuntimeError(f"no backend serves dcfast.{op.name} on {device}: {reasons}")
    if choice.warn:
        _warn_once(op.name, choice.why_not["native"])
    return choice.backend


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that matrix products have under autocast on `device`; None where that is off."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


@functools.cache
def _module(package: str, backend: str) -> ModuleType:
    return importlib.import_module(f"{package}.{backend}")


def _first_tensor(args: tuple[Any, ...]) -> torch.Tensor:
    return next(a for a in args if isinstance(a, torch.Tensor))


def define(
    name: str,
    schema: str,
    *,
    package: str,
    check: Callable[..., None],
    fake: Callable[..., Any],
    native_cpu: tuple[str, ...],
    native_cuda: tuple[str, ...] = (),
) -> Any:
    """Register `torch.ops.dcfast.<name>`, served by the function `name` of `package`.{native,triton,reference}.

    Parameters
    ----------
    name, schema : str
        As for `torch.library.define`; arguments are passed to the backends by position.
    package : str
        Dotted name of the op's folder.
    check : callable
        Takes the op's arguments and raises ValueError or TypeError where they break the contract. It runs before
        every backend and before `fake`, so that raw calls and traced ones are checked too.
    fake : callable
        Takes the op's arguments and returns empty outputs of the right shape, dtype and device.
    native_cpu, native_cuda : tuple of str
        What csrc calls the functions that the native backend needs; an empty `native_cuda` means not written.
    """
    backends = tuple(b for b in BACKENDS if importlib.util.find_spec(f"{package}.{b}") is not None)
    op = ops[name] = Op(name, package, native_cpu, native_cuda, backends)

    def run(*args: Any) -> Any:
        check(*args)
        module = _module(package, _backend_for(op, _first_tensor(args).device))
        return getattr(module, name)(*args)

    def run_fake(*args: Any) -> Any:
        check(*args)
        return fake(*args)

    torch.library.define(f"dcfast::{name}", schema)
    torch.library.impl(f"dcfast::{name}", ("cpu", "cuda"), run)
    torch.library.register_fake(f"dcfast::{name}", run_fake)
    return getattr(torch.ops.dcfast, name)
