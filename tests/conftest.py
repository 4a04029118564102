"""Fixtures of all test processes, the count of tests per backend, and the list of reasons for which a test may skip.

The suite runs as five processes: tests/, tests/deepcluster, tests/interpreter, tests/offline, tests/emulator (see
CONTRIBUTING.md).
"""

import collections
import os
import re

import pytest
import torch

from dcfast import ops
from dcfast.ops import _registry

# A skip for any other reason fails the run: patterns that the whole reason must match.
SKIP_REASONS = (
    r"no CUDA device",
    r"one CUDA device only",
    r"no CuPy",
    r"no nvcc, and the installed build holds no CUDA kernels",
    r"no build tools",
    r"no objdump or nm",
    r"no qemu-x86_64",
    r"no /proc",
    r"chromium is not installed",
    r"not an x86-64 processor",
    r"an editable install is under test",
    r"torch's own arithmetic follows its flush mode",
)

_tests_per_backend: collections.Counter[str] = collections.Counter()
_skips: collections.Counter[str] = collections.Counter()


def pytest_addoption(parser):
    parser.addoption(
        "--require-backends",
        default="",
        help="comma-separated backends (native, reference, triton-interpreter, triton-offline, cuda-offline, "
        "cuda-emulated, gpu): the run fails if one of them served no test",
    )


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name != "test_build.py")  # the first: see there
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _count_skip(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        _skips[report.longrepr[2].removeprefix("Skipped: ")] += 1


def pytest_runtest_logreport(report):
    _count_skip(report)
    if report.when == "call" and report.passed:
        _tests_per_backend.update(value for name, value in report.user_properties if name == "backend")


def pytest_collectreport(report):
    _count_skip(report)


def _complaints(config):
    required = set(filter(None, config.getoption("--require-backends").split(",")))
    if required and torch.cuda.is_available():
        required.add("gpu")
    missing = sorted(backend for backend in required if not _tests_per_backend[backend])
    unlisted = [reason for reason in _skips if not any(re.fullmatch(known, reason) for known in SKIP_REASONS)]
    return [f"no test passed on backend {backend!r}" for backend in missing] + [
        f"a test was skipped for a reason that tests/conftest.py does not list: {reason!r}" for reason in unlisted
    ]


def pytest_sessionfinish(session, exitstatus):
    if exitstatus == pytest.ExitCode.OK and not session.config.option.collectonly and _complaints(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    if config.option.collectonly:
        return
    terminalreporter.section("tests per backend")
    for name, count in sorted(_tests_per_backend.items()):
        terminalreporter.line(f"{name}: {count}")
    if not torch.cuda.is_available():
        terminalreporter.line(f"gpu: 0 ({_skips['no CUDA device']} skipped: no CUDA device)")
    for complaint in _complaints(config):
        terminalreporter.line(f"ERROR: {complaint}", red=True)


@pytest.fixture
def count_backend(request):
    """Call it with the name of a backend to count this test as one of that backend's."""
    seen = {value for name, value in request.node.user_properties if name == "backend"}

    def count(backend):
        if backend not in seen:
            seen.add(backend)
            request.node.user_properties.append(("backend", backend))

    return count


@pytest.fixture(autouse=True)
def _served_backends(monkeypatch, count_backend, request):
    """Count this test for every backend that serves an op during it."""
    choose = _registry._backend_for

    def recorded(op, device):
        backend = choose(op, device)
        interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
        count_backend("gpu" if device.type == "cuda" else "triton-interpreter" if interpreted else backend)
        return backend

    monkeypatch.setattr(_registry, "_backend_for", recorded)


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch):
    """torch.empty holds NaN (floats) or the smallest integer, so that an element nobody wrote is seen."""
    empty, new_empty = torch.empty, torch.Tensor.new_empty

    def poison(tensor):
        if tensor.device.type == "meta" or type(tensor) is not torch.Tensor:
            return tensor
        if tensor.is_floating_point():
            return tensor.fill_(torch.nan)
        if tensor.dtype in (torch.int32, torch.int64):
            return tensor.fill_(torch.iinfo(tensor.dtype).min)
        return tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: poison(new_empty(self, *a, **k)))


@pytest.fixture(params=["native", "reference"])
def cpu_backend(request):
    """Serve the test by each backend that runs on CPU tensors."""
    with ops.backend(request.param):
        yield request.param


@pytest.fixture
def make_run(tmp_path):
    """A function that writes a run directory by hand, without training: its path is all that tests need."""
    return lambda **changes: _write_run(tmp_path, **changes)


def _write_run(folder, *, names=("thin", "thick"), per_class=12, labelled=True, epochs=3, clusters=None, **options):
    """Write images of stripes, thin or thick ones by class, and a run on them with slightly moved weights."""
    import numpy as np
    from PIL import Image

    from dcfast.deepcluster import TrainConfig
    from dcfast.deepcluster.data import check_images, describe_source
    from dcfast.deepcluster.run import initial_model
    from dcfast.deepcluster.rundir import RunDir
    from dcfast.deepcluster.sources import open_source

    root = folder / "images"
    rng = np.random.default_rng(0)
    for kind, name in enumerate(names):
        (root / name if labelled else root).mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            on = (np.arange(24) + rng.integers(8)) // (1 + 2 * kind) % 2
            pixels = np.zeros((24, 24, 3), np.uint8)
            pixels[:, on == 1] = (255, 0, 255)
            where = root / name / f"{index:02d}.png" if labelled else root / f"{name}-{index:02d}.png"
            Image.fromarray(pixels.swapaxes(0, 1) if rng.integers(2) else pixels).save(where)
    data = check_images(open_source(root), None, 0, 0)
    given = {"n_clusters": 6, "epochs": 4, "image_size": 16, "threads": 1, "workers": 0, "device": "cpu", **options}
    config = TrainConfig(**given).resolve(len(data), data.side, "folder")
    run = RunDir(folder / "run")
    versions = {"dcfast": "0", "torch": str(torch.__version__)}
    run.create({"options": config.to_dict(), "data": describe_source(data), "versions": versions, "threads": 1})
    if not epochs:
        return run.path
    model = initial_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    history = [
        {
            "epoch": epoch,
            "loss": 2.5 - epoch / 8,
            "objective": 0.75,
            "kmeans_iterations": 20,
            "nmi_previous": None if epoch == 1 else 0.5 + epoch / 16,
            "nmi_labels": 0.125 * epoch if labelled else None,
            "ami_labels": 0.0625 * epoch if labelled else None,
            "n_clusters": 5,
            "n_empty": 1,
            "largest_cluster": 9,
            "n_moved": None if epoch == 1 else 10 - epoch,
            "n_noise": 0,
            "stopped_clustering": None,
            "images_per_second": 640.0,
            "n_corrupt": 0,
            "n_ranks": 1,
            "lr": 0.05,
            "seconds": {"features": 1.0, "pca": 0.5, "kmeans": 0.25, "training": 20.0},
            "waiting": {"features": 0.75, "training": 4.0},
        }
        for epoch in range(1, epochs + 1)
    ]
    cluster = np.arange(len(data)) % 5 if clusters is None else np.asarray(clusters)
    run.write_checkpoint({"model": model.state_dict(), "epoch": epochs})
    run.write_metrics(history)
    run.write_assignments(data.names, cluster, data.labels, epochs)
    return run.path
