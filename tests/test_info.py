"""`dcfast info` says what is there, what serves each op, and why not another."""

import io

import torch
from rich.console import Console
from typer.testing import CliRunner

import dcfast
from dcfast import info, ops
from dcfast.ops import _native, _registry


def printed():
    out = io.StringIO()
    info.show(Console(file=out, width=200))
    return out.getvalue()


def test_names_the_version_the_build_and_the_instruction_set():
    text = printed()
    for part in (dcfast.__version__, torch.__version__, *_native._C.compiled_isas, _native.isa()):
        assert part in text
    assert str(torch.get_num_threads()) in info.machine()["threads"]


def test_every_op_is_listed_with_what_serves_it():
    text = printed()
    for device in ("cpu", "cuda"):
        assert set(info.serving(device)) == set(_registry.ops)
    assert all(backend == "native" for backend, _ in info.serving("cpu").values())
    assert all(f" {name} " in text for name in _registry.ops)


def test_an_op_without_a_cuda_kernel_says_so():
    unwritten = {name for name, op in _registry.ops.items() if not op.native_cuda}
    assert unwritten
    assert all(info.serving("cuda")[name][1]["native"] == "CUDA: not written" for name in unwritten)


def test_says_how_to_get_the_cuda_kernels_where_there_is_a_gpu_for_them(monkeypatch):
    monkeypatch.setattr(_native, "built_ops", lambda: (frozenset(), frozenset()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert info._cuda_build() == "not built"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    said = info._cuda_build()
    assert 'not built: pip install "cuda-toolkit[nvcc,nvvm,crt,cccl]"' in said
    monkeypatch.undo()
    monkeypatch.setattr(info, "_cuda_build", lambda: said)
    assert said in printed()  # brackets and all


def test_follows_the_override():
    with ops.backend("reference"):
        assert all(backend == "reference" for backend, _ in info.serving("cpu").values())
        assert info.machine()["DCFAST_BACKEND"] == "reference"


def test_says_why_the_extension_is_not_there(monkeypatch):
    monkeypatch.setattr(_native, "_C", None)
    monkeypatch.setattr(_native, "load_error", "ImportError: no such file")
    _registry.installed.cache_clear()
    try:
        text = printed()
    finally:
        _registry.installed.cache_clear()
    assert "could not be loaded: ImportError: no such file" in text


def test_the_command_prints_it():
    from dcfast.cli import app

    done = CliRunner().invoke(app, ["info"])
    assert done.exit_code == 0
    assert "native" in done.output
    assert dcfast.__version__ in done.output
