"""Which backend serves a call: `select` as a table, the overrides, the warnings, errors that say what is missing."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dcfast import ops
from dcfast.ops import _native, _registry
from dcfast.ops._registry import Installed, Op, select

TESTS = Path(__file__).parent

OP = Op("f", "pkg.f", ("f_prepare", "f"), ("f",), ("native", "triton", "reference"))
CPU_ONLY = replace(OP, native_cuda=())
NO_TRITON = replace(OP, backends=("native", "reference"))
BARE = replace(OP, backends=("reference",))

FULL = Installed(frozenset({"f_prepare", "f"}), frozenset({"f"}), None, None, False, (9, 0))
NO_EXTENSION = replace(FULL, native_cpu=frozenset(), native_cuda=frozenset(), native_error="ImportError: x.so")
STALE = replace(FULL, native_cpu=frozenset({"f"}))
NO_CUDA_BUILD = replace(FULL, native_cuda=frozenset())
NO_GPU = replace(FULL, cuda_capability=None)
OLD_GPU = replace(FULL, cuda_capability=(7, 5))
NO_TRITON_WHEEL = replace(FULL, triton_error="ModuleNotFoundError: No module named 'triton'")
INTERPRETED = replace(FULL, triton_interpreted=True)


@pytest.mark.parametrize(
    ("op", "device", "have", "override", "backend", "warn", "reasons"),
    [
        # CPU tensors: native, else the reference with a warning, and never Triton unless it is asked for.
        (OP, "cpu", FULL, None, "native", False, {"triton": "only in its interpreter"}),
        (OP, "cpu", NO_GPU, None, "native", False, {}),
        (OP, "cpu", INTERPRETED, None, "native", False, {}),
        (OP, "cpu", NO_EXTENSION, None, "reference", True, {"native": "could not be loaded.*x.so"}),
        (OP, "cpu", STALE, None, "reference", True, {"native": "csrc has no f_prepare"}),
        (BARE, "cpu", FULL, None, "reference", True, {"native": "not written", "triton": "not written"}),
        (OP, "cpu", FULL, "reference", "reference", False, {}),
        (OP, "cpu", FULL, "triton", None, False, {"triton": "TRITON_INTERPRET=1"}),
        (OP, "cpu", INTERPRETED, "triton", "triton", False, {}),
        (OP, "cpu", NO_EXTENSION, "native", None, False, {"native": "could not be loaded"}),
        # CUDA tensors: native, else Triton, else nothing; the reference only where it is asked for.
        (OP, "cuda", FULL, None, "native", False, {}),
        (CPU_ONLY, "cuda", FULL, None, "triton", False, {"native": "CUDA: not written"}),
        (OP, "cuda", NO_CUDA_BUILD, None, "triton", False, {"native": "built without CUDA: install nvcc"}),
        (OP, "cuda", NO_EXTENSION, None, "triton", False, {"native": "could not be loaded"}),
        (OP, "cuda", OLD_GPU, None, "triton", False, {"native": r"capability 7\.5 is below 8\.0"}),
        (OP, "cuda", NO_GPU, None, None, False, {"native": "no CUDA device", "triton": "no CUDA device"}),
        (NO_TRITON, "cuda", NO_CUDA_BUILD, None, None, False, {"native": "built without", "triton": "not written"}),
        (CPU_ONLY, "cuda", NO_TRITON_WHEEL, None, None, False, {"triton": "No module named 'triton'"}),
        (OP, "cuda", FULL, "triton", "triton", False, {}),
        (OP, "cuda", FULL, "reference", "reference", False, {}),
        (CPU_ONLY, "cuda", FULL, "native", None, False, {"native": "CUDA: not written"}),
    ],
)
def test_select(op, device, have, override, backend, warn, reasons):
    choice = select(op, device, have, override)
    assert (choice.backend, choice.warn) == (backend, warn)
    assert set(reasons) <= set(choice.why_not)
    for name, pattern in reasons.items():
        assert re.search(pattern, choice.why_not[name])
    assert backend not in choice.why_not


def test_select_is_pure():
    assert select(OP, "cuda", OLD_GPU) == select(OP, "cuda", OLD_GPU)


def test_every_op_is_registered_with_a_reference_and_a_native_backend():
    assert set(_registry.ops) == {name for name in dir(torch.ops.dcfast) if name in _registry.ops}
    for name, op in _registry.ops.items():
        assert {"native", "reference"} <= set(op.backends), name
        assert op.native_cpu, name


def test_the_context_overrides_and_ends():
    before = _registry.requested()
    with ops.backend("reference"):
        assert _registry.requested() == "reference"
        with ops.backend("native"):
            assert _registry.requested() == "native"
        assert _registry.requested() == "reference"
    assert _registry.requested() == before
    with pytest.raises(ZeroDivisionError), ops.backend("reference"):
        raise ZeroDivisionError
    assert _registry.requested() == before


def test_an_unknown_backend_names_the_choices(monkeypatch):
    with pytest.raises(ValueError, match=r"backend='cuda' is not a backend: choose one of \('native'"):
        ops.backend("cuda").__enter__()
    monkeypatch.setenv("DCFAST_BACKEND", "fast")
    with pytest.raises(ValueError, match="DCFAST_BACKEND='fast' is not a backend"):
        ops.assign(torch.zeros(1, 1), torch.zeros(1, 1))


def test_the_environment_chooses_and_the_context_wins(monkeypatch):
    op = _registry.ops["assign"]
    monkeypatch.setenv("DCFAST_BACKEND", "reference")
    assert _registry._backend_for(op, torch.device("cpu")) == "reference"
    with ops.backend("native"):
        assert _registry._backend_for(op, torch.device("cpu")) == "native"
    monkeypatch.setenv("DCFAST_BACKEND", "")
    assert _registry._backend_for(op, torch.device("cpu")) == "native"


def test_an_impossible_override_says_what_is_missing():
    with (
        ops.backend("triton"),
        pytest.raises(RuntimeError, match=r"no backend serves dcfast\.assign on cpu: .*triton: "),
    ):
        ops.assign(torch.zeros(1, 1), torch.zeros(1, 1))


def test_an_unknown_instruction_set_names_the_choices(monkeypatch):
    monkeypatch.setenv("DCFAST_ISA", "mmx")
    with pytest.raises(ValueError, match=r"DCFAST_ISA='mmx' is not available here: choose one of .*baseline"):
        _native.isa()


# The extension is hidden by an entry in sys.modules that makes `from dcfast import _C` raise ImportError.
WITHOUT_EXTENSION = """
import sys, warnings
sys.modules["dcfast._C"] = None
import torch, dcfast
x = torch.tensor([[0.0], [0.9]])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    labels = [dcfast.ops.assign(x, x).tolist() for _ in range(2)]
print(labels)
print(*(f"{w.category.__name__}: {w.message}" for w in caught), sep="\\n")
"""


def without_extension(code, **environment):
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_without_the_extension_the_reference_serves_and_the_first_call_says_so():
    done = without_extension(WITHOUT_EXTENSION)
    assert done.returncode == 0, done.stderr
    labels, *warned = done.stdout.splitlines()
    assert labels == "[[0, 1], [0, 1]]"
    assert len(warned) == 1
    assert re.match(r"RuntimeWarning: dcfast\.assign runs on its plain-torch reference.*could not be loaded", warned[0])


def test_without_the_extension_native_is_an_error_that_gives_the_reason():
    done = without_extension(WITHOUT_EXTENSION, DCFAST_BACKEND="native")
    assert done.returncode == 1
    assert re.search(r"no backend serves dcfast\.assign on cpu: .*native: the extension could not be", done.stderr)


def test_the_reference_asked_for_does_not_warn():
    done = without_extension(WITHOUT_EXTENSION, DCFAST_BACKEND="reference")
    assert done.stdout.splitlines()[1:] == [""]


def test_meta_tensors_and_fakes_compute_nothing():
    x, c = torch.empty(7, 3, device="meta"), torch.empty(2, 3, device="meta")
    labels = torch.ops.dcfast.assign(x, c)
    assert (labels.device.type, labels.shape, labels.dtype) == ("meta", (7,), torch.int64)
    with pytest.raises(ValueError, match="columns"):
        torch.ops.dcfast.assign(x, torch.empty(2, 4, device="meta"))


@pytest.mark.parametrize("package", sorted({op.package for op in _registry.ops.values()}))
def test_every_op_has_tests_and_opcheck(package):
    """The folder of an op has a test file of its name, and each of its ops goes through torch.library.opcheck."""
    source = (TESTS / f"test_{package.rsplit('.', 1)[1]}.py").read_text()
    assert "opcheck(" in source
    for name in (name for name, op in _registry.ops.items() if op.package == package):
        assert re.search(rf"torch\.ops\.dcfast\.{name}\b", source), f"{name} is never called raw in {package}'s tests"


@pytest.mark.parametrize("name", sorted(set(ops.__all__) - {"backend"}))
def test_every_public_name_is_documented(name):
    function = getattr(ops, name)
    assert function.__doc__
    assert len(function.__doc__.strip().splitlines()[0]) <= 120
    if callable(function) and not isinstance(function, type):
        for section in ("Parameters\n", "Returns\n"):
            assert section in function.__doc__, f"{name} has no section {section.strip()!r}"
