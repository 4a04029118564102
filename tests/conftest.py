"""Shared fixtures. The suite runs three times: CPU with native, interpreted Triton, offline compilation (Makefile)."""

import pytest
import torch

from dcfast import ops


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
    from dcfast.deepcluster.data import check_images, describe_source, open_source
    from dcfast.deepcluster.run import initial_model
    from dcfast.deepcluster.rundir import RunDir

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
            "n_empty": 1,
            "largest_cluster": 9,
            "n_moved": None if epoch == 1 else 10 - epoch,
            "images_per_second": 640.0,
            "n_corrupt": 0,
            "lr": 0.05,
            "seconds": {"features": 1.0, "pca": 0.5, "kmeans": 0.25, "training": 20.0},
        }
        for epoch in range(1, epochs + 1)
    ]
    cluster = np.arange(len(data)) % 5 if clusters is None else np.asarray(clusters)
    run.write_checkpoint({"model": model.state_dict(), "epoch": epochs})
    run.write_metrics(history)
    run.write_assignments(data.names, cluster, data.labels, epochs)
    return run.path
