"""Precision, parts of batches, compilation, features beyond memory, and what bounds a stage."""

import copy
import dataclasses
import os
import pickle
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from support.training import Silent
from torch import nn

import dcfast
from dcfast.deepcluster import TrainConfig, load_run, report, resume, rundir, stages, start
from dcfast.deepcluster.crops import Batches
from dcfast.deepcluster.data import check_images
from dcfast.deepcluster.models import build_model
from dcfast.deepcluster.progress import bound, shares
from dcfast.deepcluster.rundir import RunDir
from dcfast.deepcluster.sources import open_source
from dcfast.nn import SobelConv2d

SMALL = TrainConfig(n_clusters=5, epochs=2, limit=40, image_size=8, batch_size=20, pca=8, threads=1, workers=0)


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda *_: None)


def train(output, **changes):
    trainer = start("digits", output, dataclasses.replace(SMALL, **changes), display=Silent())
    trainer.fit()
    return trainer


def weights(run):
    saved = RunDir(run).read_checkpoint()
    return {**saved["model"], **saved["head"], "assignments": saved["assignments"]}


def assert_same_bits(first, second):
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "options",
    [{"precision": "bfloat16"}, {"precision": "float16"}, {"accumulate": 3, "balance": "loss"}, {"max_memory": "1KiB"}],
    ids=str,
)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, options):
    train(tmp_path / "whole", **options)
    train(tmp_path / "parts", epochs=1, **options)
    resumed = resume(tmp_path / "parts", epochs=2, display=Silent())
    resumed.fit()
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    stored = load_run(tmp_path / "whole").options
    assert all(getattr(stored, name) == (1024 if value == "1KiB" else value) for name, value in options.items())


def test_the_scale_of_the_loss_is_saved(tmp_path):
    train(tmp_path / "run", epochs=1, precision="float16")
    directory = RunDir(tmp_path / "run")
    saved = directory.read_checkpoint()
    saved["scaler"]["scale"] /= 8  # as after three overflows
    directory.write_checkpoint(saved)
    scaler = resume(tmp_path / "run", epochs=2, display=Silent()).scaler
    assert scaler.get_scale() == saved["scaler"]["scale"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_networks_compute_in_the_precision_that_is_asked_for(precision, monkeypatch):
    dtype = getattr(torch, precision)
    data = check_images(open_source("digits"), 20, 0, 0)
    data.image_size = 16
    found = {}
    for name in ("float32", precision):
        config = dataclasses.replace(SMALL, precision=name).resolve(20, 8, "digits")
        torch.manual_seed(0)
        model = build_model("small", 16)
        seen = []
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, SobelConv2d)):
                module.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output.dtype))
        found[name] = stages.extract_features(model, data, config, Silent(), {})
        assert set(seen) == {getattr(torch, name)}
        assert len(seen) == 7
    assert found[precision].dtype == torch.float32
    error = (found[precision] - found["float32"]).abs().max() / found["float32"].abs().max()
    assert 0 < error < 32 * torch.finfo(dtype).eps


class Plain(nn.Module):
    """A network without batch normalisation, which alone sees the parts of a batch apart."""

    feature_dim = 12

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 12)

    def forward(self, images):
        return torch.relu(self.layer(images.flatten(1) / 255))


@pytest.mark.parametrize("balance", ["sampler", "loss"])
def test_parts_make_the_gradient_of_the_whole_batch(balance):
    data = check_images(open_source("digits"), 50, 0, 0)
    data.image_size = 16
    assignments = np.repeat([0, 1, 2], [5, 15, 30])
    results = []
    for accumulate in (1, 4):
        config = dataclasses.replace(SMALL, accumulate=accumulate, balance=balance, batch_size=25)
        config = config.resolve(50, 8, "digits")
        torch.manual_seed(0)
        model, top = Plain(), nn.Linear(12, 3)
        optimizers = tuple(torch.optim.SGD(module.parameters(), lr=0.1) for module in (model, top))
        sizes = []
        model.register_forward_hook(lambda module, inputs, output, sizes=sizes: sizes.append(len(output)))
        order = np.random.default_rng(0).permutation(50)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        waiting = {}
        loss = stages.train_epoch(
            model, top, optimizers, scaler, data, assignments, order, config, 0, Silent(), waiting
        )
        assert sizes == {1: [25, 25], 4: [7, 7, 7, 4] * 2}[accumulate]
        assert waiting["training"] > 0
        results.append([torch.tensor(loss), *(p.detach() for p in (*model.parameters(), *top.parameters()))])
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(whole.float(), parts.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("n_images", "accumulate", "expected"),
    [
        (17, 1, [8, 8]),  # not 8, 8, 1
        (18, 1, [8, 8, 2]),
        (13, 2, [4, 4, 5]),  # not 4, 4, 4, 1
        (8, 8, [2, 2, 2, 2]),
        (1, 1, [1]),
    ],
)
def test_no_image_is_normalised_by_itself(n_images, accumulate, expected):
    data = check_images(open_source("digits"), n_images, 0, 0)
    data.image_size = 16
    config = dataclasses.replace(SMALL, accumulate=accumulate, batch_size=8, n_clusters=2).resolve(18, 8, "digits")
    model, top, sizes = Plain(), nn.Linear(12, 2), []
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    optimizers = tuple(torch.optim.SGD(module.parameters(), lr=0.1) for module in (model, top))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    loss = stages.train_epoch(
        model, top, optimizers, scaler, data, np.arange(n_images) % 2, np.arange(n_images), config, 0, Silent(), {}
    )
    assert sizes == expected
    assert np.isfinite(loss)


def test_a_residual_network_trains_on_small_images_whatever_is_left_over():
    data = check_images(open_source("digits"), 5, 0, 0)
    data.image_size = 32
    options = {"arch": "resnet18", "n_clusters": 2, "batch_size": 4, "accumulate": 1, "image_size": 32}
    config = dataclasses.replace(SMALL, **options).resolve(5, 8, "digits")
    model = build_model("resnet18", 32)
    top = nn.Linear(model.feature_dim, 2)
    optimizers = tuple(torch.optim.SGD(module.parameters(), lr=0.1) for module in (model, top))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    loss = stages.train_epoch(
        model, top, optimizers, scaler, data, np.arange(5) % 2, np.arange(5), config, 0, Silent(), {}
    )
    assert np.isfinite(loss)


def test_a_run_leaves_the_global_generator_alone(tmp_path):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    train(tmp_path / "run", epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_compilation_changes_no_result(tmp_path, monkeypatch):
    """With the compiler's own interpreter of what it traced; machine code takes it minutes."""
    compiled = []

    def interpreted(function, **options):
        compiled.append(options)
        return torch_compile(function, backend="eager", **options)

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", interpreted)
    train(tmp_path / "plain", epochs=1)
    assert not compiled
    train(tmp_path / "compiled", epochs=1, compile=True)
    assert compiled == 2 * [{"dynamic": False}]  # the first to see whether it can be
    assert_same_bits(tmp_path / "plain", tmp_path / "compiled")

    fitted = dcfast.DeepCluster(compile=True, epochs=1, n_clusters=4, limit=20, threads=1).fit("digits")
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    expected = fitted.model_.forward_features(images)
    pickled, copied = pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)
    assert torch.equal(pickled.model_.forward_features(images), expected)
    copied.model_.apply(lambda module: [parameter.data.zero_() for parameter in module.parameters()])
    assert torch.equal(fitted.model_.forward_features(images), expected)
    assert not copied.model_.forward_features(images).any()


def test_a_machine_that_cannot_compile_is_told_before_any_image_is_looked_at(tmp_path, make_run, monkeypatch):
    remedy = r"\): mend that, or start a run without --compile"
    words = [sys.executable, "-m", "dcfast", "train", "digits", "--compile", "--device", "cpu", "--output", "run"]
    without = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(words, cwd=tmp_path, env=without, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: compile=True, but torch cannot compile here \(.*C\+\+.*{remedy}\n", done.stderr)
    assert not (tmp_path / "run").exists()

    def refuse(*_, **__):
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setattr("dcfast.deepcluster.trainer.check_images", None)
    monkeypatch.setattr("dcfast.deepcluster.trainer._require_versions", lambda *_: None)
    with pytest.raises(ValueError, match=rf"cannot compile here \(no compiler{remedy}"):
        resume(make_run(compile=True))


def test_features_beyond_memory_change_no_bit(tmp_path, monkeypatch):
    mapped = []

    def counted(n_rows, width, folder):
        mapped.append((n_rows, width, folder))
        return rundir.mapped_array(n_rows, width, folder)

    train(tmp_path / "memory", epochs=1)
    monkeypatch.setattr(stages, "mapped_array", counted)
    train(tmp_path / "plain", epochs=1, max_memory=4 * 40 * 512)
    assert not mapped
    train(tmp_path / "file", epochs=1, max_memory=4 * 40 * 8)
    train(tmp_path / "files", epochs=1, max_memory=1)
    assert mapped == [(40, 512, tmp_path / "file"), (40, 512, tmp_path / "files"), (40, 8, tmp_path / "files")]
    for name in ("file", "files"):
        assert_same_bits(tmp_path / "memory", tmp_path / name)
    assert not [path for path in (tmp_path / "files").iterdir() if path.name.startswith("tmp")]
    resumed = resume(tmp_path / "files", epochs=2, max_memory="1GiB", display=Silent())
    assert resumed.config.max_memory == 2**30


def test_a_disk_without_room_for_the_features_is_told(tmp_path):
    with pytest.raises(OSError, match=r"features take 4,000,000,000,000,000 bytes.* raise max_memory or make room"):
        rundir.mapped_array(10**9, 10**6, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float8"}, "precision must be one of 'float32', 'bfloat16', 'float16'"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"max_memory": "much"}, "max_memory='much': expected a number of bytes"),
        ({"cache_side": 0}, "cache_side must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


class Slow(torch.utils.data.Dataset):
    """Three batches of grey crops that take 20 ms each to make."""

    def __len__(self):
        return 3

    def __getitem__(self, number):
        if number >= 3:
            raise IndexError
        time.sleep(0.02)
        return torch.full((2, 1, 4, 4), number, dtype=torch.uint8)


def test_waiting_for_images_is_measured():
    batches = Batches(Slow(), 0, torch.device("cpu"))
    began = time.perf_counter()
    for number, images in enumerate(batches):
        assert images.shape == (2, 3, 4, 4)
        assert (images == number).all()
        time.sleep(0.05)  # what the network does
    spent = time.perf_counter() - began
    assert 0.06 <= batches.waited <= spent - 0.15


def test_what_bounds_a_stage_is_said(tmp_path):
    assert bound(10, 8) == "bound by images (80%)"
    assert bound(10, 1) == "bound by the network (90%)"
    assert bound(0, 0) == "bound by the network (100%)"
    trainer = train(tmp_path / "run", epochs=1)
    record = trainer.history[0]
    assert all(0 < record["waiting"][stage] < record["seconds"][stage] for stage in ("features", "training"))
    parts = shares(record)
    assert list(parts) == ["images", "network", "PCA", "k-means"]
    assert sum(parts.values()) == pytest.approx(1)
    said = []
    display = Silent()
    display.say = said.append
    display.header()
    display.epoch(record, 1)
    assert len(said[0]) == len(said[1])
    limit = max(parts, key=parts.get)
    assert said[1].endswith(f"{limit} {parts[limit]:.0%}")
    assert said[0].endswith("bound by")


@pytest.mark.gpu
def test_batches_arrive_on_the_device_in_order():
    batches = Batches(Slow(), 0, torch.device("cuda"))
    arrived = list(batches)
    assert [int(images[0, 0, 0, 0]) for images in arrived] == [0, 1, 2]
    assert all(images.is_cuda and images.shape == (2, 3, 4, 4) for images in arrived)
