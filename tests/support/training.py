"""Small runs of the trainer, and whether two of them are the same."""

import dataclasses

import numpy as np
import pytest
import torch

from dcfast.deepcluster import TrainConfig, start
from dcfast.deepcluster.progress import Display
from dcfast.deepcluster.rundir import RunDir

SMALL = TrainConfig(n_clusters=12, epochs=3, limit=150, image_size=16, batch_size=32, pca=16, threads=1, workers=0)


class Silent(Display):
    def say(self, text):
        pass


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """The report has tests of its own; leave it out of the times of these."""
    from dcfast.deepcluster import report

    monkeypatch.setattr(report, "write_report", lambda *_: None)


def train(output, data="digits", **changes):
    trainer = start(data, output, dataclasses.replace(SMALL, **changes), display=Silent())
    trainer.fit()
    return trainer


def assert_same_bits(first, second):
    one, other = RunDir(first), RunDir(second)
    left, right = one.read_checkpoint(), other.read_checkpoint()
    assert_equal(_without_times(left), _without_times(right))
    assert _without_times(one.read_metrics()) == _without_times(other.read_metrics())
    assert [record["epoch"] for record in one.read_metrics()] == list(range(1, left["epoch"] + 1))
    ours, theirs = one.read_assignments(), other.read_assignments()
    assert ours.keys() == theirs.keys() == {"files", "cluster", "label", "epoch"}
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def assert_equal(left, right):
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_equal(a, b)
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    else:
        assert left == right


def _without_times(value):
    if isinstance(value, dict):
        times = {"seconds", "waiting", "images_per_second"}
        return {key: _without_times(item) for key, item in value.items() if key not in times}
    return [_without_times(item) for item in value] if isinstance(value, list) else value
