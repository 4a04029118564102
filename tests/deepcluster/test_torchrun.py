"""Several processes train one network: the labels of one process, its gradients, and errors said once."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from support import team, trio
from support.training import assert_same_bits

from dcfast.deepcluster import load_run
from dcfast.deepcluster.crops import own_part

STANDALONE = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TORCHRUN = [*STANDALONE, "--nproc-per-node=2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("torchrun")


@pytest.fixture(scope="module")
def found(folder):
    """What two processes found; ``folder / '1'`` is the run that one process began, ``folder / 'first'`` a copy."""
    said, status = team.train("digits", "--output", folder / "1", "--epochs", 1, "--threads", 1, *team.SMALL)
    assert status == 0, said
    shutil.copytree(folder / "1", folder / "first")
    ended = subprocess.run(
        [*TORCHRUN, team.__file__, folder], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in (0, 1)]


def test_the_first_labels_are_those_of_one_process(found, folder):
    (said, status), other = found[0]["started"], found[1]["started"]
    assert status == 0
    assert "tensorboard" in said
    assert other == ("", 0)
    # The network has its first weights here, so that the features are the same.
    first, second = (load_run(folder / name) for name in ("first", "2"))
    assert np.array_equal(first.assignments["cluster"], second.assignments["cluster"])
    assert first.metrics[0]["objective"] == second.metrics[0]["objective"]
    assert not torch.equal(*(run.model.state_dict()["features.4.weight"] for run in (first, second)))


def test_either_goes_on_with_what_the_other_began(found, folder):
    assert found[0]["resumed"][1] == found[1]["resumed"][1] == 0
    said, status = team.train("--resume", folder / "2", "--epochs", 2)
    assert status == 0, said
    assert [[one["n_ranks"] for one in load_run(folder / name).metrics] for name in ("1", "2")] == [[1, 2], [2, 1]]


def test_three_processes_that_are_interrupted_end_with_the_same_bits(tmp_path):
    """The sum of three gradients depends on their order, of two it does not."""
    command = [*STANDALONE, "--nproc-per-node=3", trio.__file__, tmp_path]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "find_unused_parameters" not in ended.stderr
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("name", team.RUNS)
def test_two_processes_have_the_gradients_of_one(found, folder, name):
    labels, weights = team.fit(team.RUNS[name], folder / "alone")
    for rank in found:
        other_labels, other_weights = rank[name]
        assert torch.equal(other_labels, labels)
        for key, value in weights.items():
            assert torch.equal(other_weights[key], found[0][name][1][key])
            torch.testing.assert_close(other_weights[key], value, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(weights["layers.0.weight"], team.Network().state_dict()["layers.0.weight"], rtol=1e-2)


def test_a_network_need_not_be_pickled(found):
    for labels, weights in (rank["unpickled"] for rank in found):
        assert torch.equal(labels, found[0]["loss"][0])
        assert all(torch.equal(value, found[0]["loss"][1][key]) for key, value in weights.items())


def test_no_process_normalises_an_image_by_itself(found):
    labels, weights = zip(*(rank["normalised"] for rank in found), strict=True)
    assert torch.equal(*labels)
    for key, value in weights[0].items():
        assert torch.equal(weights[1][key], value)
    assert int(weights[0]["norm.num_batches_tracked"]) == 18  # the last one, of two images, by the first process alone


@pytest.mark.parametrize("arguments", team.ERRORS)
def test_errors_are_said_once(found, arguments):
    (said, status), (other, other_status) = (rank[arguments] for rank in found)
    assert said.count("error: ") == 1
    assert team.ERRORS[arguments] in said
    assert other == ""
    assert status > 0 < other_status


def test_what_cannot_be_written_is_said_once(found):
    (said, status), (other, other_status) = (rank["unwritten"] for rank in found)
    assert said.count("error: ") == 1
    assert "metrics.jsonl.partial" in said
    assert other == ""
    assert status > 0 < other_status


def test_processes_wait_while_the_first_looks_at_millions_of_images(found):
    assert found[0]["patience"] >= timedelta(hours=12)


@pytest.mark.parametrize("n_images", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 8])
def test_the_parts_of_a_batch_follow_one_another(n_images, n_ranks):
    parts = [own_part(n_images, rank, n_ranks) for rank in range(n_ranks)]
    assert [number for part in parts for number in part] == list(range(n_images))
    sizes = [len(part) for part in parts if part] or [0]
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == max(1, min(n_ranks, n_images // 2))
    assert parts[0] or not n_images  # the statistics of batch normalisation are those of the first
    assert n_images == 1 or 1 not in sizes


def test_a_process_that_is_killed_ends_the_run_with_a_word(folder):
    output = folder / "killed"
    command = [*TORCHRUN, "-m", "dcfast", "train", "digits", "--output", output, "--epochs", "99", *team.SMALL]
    with subprocess.Popen(
        list(map(str, command)), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        while not (output / "metrics.jsonl").exists():
            time.sleep(0.05)
            assert running.poll() is None
        os.kill(_worker(running.pid, 0), signal.SIGKILL)
        said, _ = running.communicate(timeout=120)
    assert running.returncode != 0
    assert f"--resume {output}" in said
    assert load_run(output).metrics


def _worker(parent, rank):
    """The process of that rank among the children of torchrun."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise LookupError(f"no process of rank {rank}")
