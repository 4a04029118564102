"""The loop: what it computes, what it writes, and that an interruption changes no bit of it."""

import dataclasses
import errno
import io
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from support.training import SMALL, Silent, assert_equal, assert_same_bits, no_report, train  # noqa: F401

import dcfast
from dcfast.deepcluster import TrainConfig, load_run, resume, start
from dcfast.deepcluster import trainer as trainer_module
from dcfast.deepcluster.data import check_images
from dcfast.deepcluster.interrupt import Interrupted, put_off
from dcfast.deepcluster.probe import probe
from dcfast.deepcluster.rundir import RunDir
from dcfast.deepcluster.sources import open_source
from dcfast.deepcluster.torchrun import all_ranks
from dcfast.deepcluster.trainer import Trainer


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """An uninterrupted run, made as the interrupted ones are: in a process of its own."""
    path = tmp_path_factory.mktemp("runs") / "reference"
    assert run_in_processes([(path, "", False)]) == [0]
    return path


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """One run per moment, each killed at that moment."""
    paths = {moment: tmp_path_factory.mktemp("killed") / "run" for moment in MOMENTS}
    statuses = run_in_processes([(paths[moment], sabotage, False) for moment, sabotage in MOMENTS.items()])
    assert statuses == [-signal.SIGKILL] * len(MOMENTS)
    return paths


def run_in_processes(jobs):
    """Train in one process per (path, sabotage, whether to resume), each of which may shoot itself.

    Returns their statuses, negative for a signal. The processes are forks of one that has imported everything and
    computed nothing: importing takes longer than training.
    """
    source = textwrap.dedent(
        """
        import json, os, signal, sys, textwrap
        from dcfast.deepcluster import TrainConfig, report, resume, start, trainer, stages, rundir
        report.write_report = lambda *_: None

        def die():
            os.kill(os.getpid(), signal.SIGKILL)

        def die_at(owner, name, call, before=True):
            original, calls = getattr(owner, name), iter(range(1, 10**9))
            def shot(*args, **options):
                here = next(calls) == call
                if here and before:
                    die()
                result = original(*args, **options)
                if here:
                    die()
                return result
            setattr(owner, name, shot)

        def ask_at(call):
            original, calls = stages.torch.optim.SGD.step, iter(range(1, 10**9))
            def asked(*args, **options):
                if next(calls) == call:
                    os.kill(os.getpid(), signal.SIGINT)
                return original(*args, **options)
            stages.torch.optim.SGD.step = asked

        jobs, options = json.load(sys.stdin)
        statuses = []
        for path, sabotage, go_on in jobs:
            pid = os.fork()
            if pid == 0:
                sys.stdout = sys.stderr
                exec(textwrap.dedent(sabotage))
                (resume(path) if go_on else start("digits", path, TrainConfig(**options))).fit()
                os._exit(0)
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        print(json.dumps(statuses))
        """
    )
    told = json.dumps([[(str(path), sabotage, go_on) for path, sabotage, go_on in jobs], dataclasses.asdict(SMALL)])
    done = subprocess.run([sys.executable, "-c", source], input=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    statuses = json.loads(done.stdout.splitlines()[-1])
    assert set(statuses) <= {0, -signal.SIGKILL}, done.stderr
    return statuses


MOMENTS = {
    "before the first epoch": "die_at(trainer, 'extract_features', 1)",
    "in the training of the first epoch": "die_at(stages.torch.optim.SGD, 'step', 5)",
    "in the features of the second": "die_at(trainer, 'extract_features', 2, before=False)",
    "in the training of the third": "die_at(stages.torch.optim.SGD, 'step', 23)",
    "in the middle of writing a checkpoint": """
        write, calls = rundir.replace, []
        def half(path, content):
            calls.append(path.name)
            if calls.count('checkpoint.pt') == 2:
                rundir.partial(path).write_bytes(content[: len(content) // 2])
                die()
            write(path, content)
        rundir.replace = half
    """,
    "before a checkpoint is renamed": """
        replace, calls = os.replace, []
        def guarded(source, target):
            if str(target).endswith('checkpoint.pt'):
                calls.append(1)
                if len(calls) == 2:
                    die()
            replace(source, target)
        rundir.os.replace = guarded
    """,
    "between checkpoint and metrics": "die_at(rundir.RunDir, 'write_metrics', 2)",
    "between metrics and assignments": "die_at(rundir.RunDir, 'write_assignments', 1)",
    "while an interrupted epoch is saved": """
        ask_at(5)
        die_at(rundir.RunDir, 'write_checkpoint', 1, before=False)
    """,
    "after the last epoch": "die_at(rundir.RunDir, 'write_assignments', 3, before=False)",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_with_the_same_bits(killed, reference, moment):
    resume(killed[moment], display=Silent()).fit()
    assert_same_bits(reference, killed[moment])


def test_killed_twice_and_resumed_in_new_processes(tmp_path, reference):
    path = tmp_path / "run"
    shots = ["die_at(stages.torch.optim.SGD, 'step', 12)", "die_at(rundir.RunDir, 'write_checkpoint', 2)", ""]
    statuses = run_in_processes([(path, shot, number > 0) for number, shot in enumerate(shots)])
    assert statuses == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert_same_bits(reference, path)


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 3), (signal.SIGTERM, 7), (signal.SIGINT, 5)])
def test_an_interrupted_epoch_goes_on_at_its_next_step(tmp_path, reference, monkeypatch, number, step):
    learn, steps = torch.optim.SGD.step, []

    def ask(optimizer, *args, **options):
        steps.append(optimizer)
        if len(steps) == 2 * step - 1:  # of the network; the top layer's comes yet
            os.kill(os.getpid(), number)
        return learn(optimizer, *args, **options)

    def write(directory, state, written=RunDir.write_checkpoint):
        if state["begun"]:
            os.kill(os.getpid(), signal.SIGINT)  # one more does not cut the saving short
        written(directory, state)

    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.SGD, "step", ask)
        patched.setattr(RunDir, "write_checkpoint", write)
        with pytest.raises(Interrupted) as stop:
            train(tmp_path / "run")
    assert signal.getsignal(number) is before
    epoch, inside = (step - 1) // 5, (step - 1) % 5 + 1
    assert (stop.value.step, stop.value.signal, len(steps)) == (inside, number, 2 * step)
    assert len(RunDir(tmp_path / "run").read_metrics()) == epoch
    goes_on = resume(tmp_path / "run", display=Silent())
    assert (goes_on.finished, goes_on._begun["step"]) == (epoch, inside)
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.SGD, "step", lambda *args, **options: steps.append(0) or learn(*args, **options))
        goes_on.fit()
    assert len(steps) == 2 * 5 * 3
    assert_same_bits(reference, tmp_path / "run")


def test_an_epoch_that_is_being_saved_is_saved(tmp_path, reference, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_log", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run")
    assert len(RunDir(tmp_path / "run").read_metrics()) == 1
    resume(tmp_path / "run", display=Silent()).fit()
    assert_same_bits(reference, tmp_path / "run")


def test_a_second_interrupt_ends_at_once():
    with put_off(patient=False) as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with put_off(patient=True) as request:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == signal.SIGTERM


def test_what_an_interrupt_breaks_off_is_an_interruption():
    """Ctrl-C reaches a compiler that the step waits for too."""

    def broken(kind):
        with put_off(patient=False):
            os.kill(os.getpid(), signal.SIGINT)
            raise kind("C++ compile error")

    with pytest.raises(KeyboardInterrupt):
        broken(RuntimeError)
    with pytest.raises(OSError, match="compile error"):
        broken(OSError)
    with pytest.raises(RuntimeError, match="of its own"), put_off(patient=False):
        raise RuntimeError("of its own")


def test_signals_that_are_ignored_stay_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with put_off(patient=False) as request:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_caller_s_state_changes_nothing(tmp_path, reference):
    torch.manual_seed(1234)
    torch.rand(7)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        train(tmp_path / "run")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert not torch.are_deterministic_algorithms_enabled()
    assert_same_bits(reference, tmp_path / "run")


def test_two_threads_twice(tmp_path):
    for name in ("one", "other"):
        train(tmp_path / name, threads=2, epochs=2, limit=64)
    assert_same_bits(tmp_path / "one", tmp_path / "other")


def test_workers_change_nothing(tmp_path, reference):
    train(tmp_path / "run", workers=2)
    assert_same_bits(reference, tmp_path / "run")


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path, reference):
    train(tmp_path / "run", epochs=1)
    resume(tmp_path / "run", epochs=3, display=Silent()).fit()
    assert_same_bits(reference, tmp_path / "run")
    assert load_run(tmp_path / "run").options.epochs == 3


def test_the_learning_rate_falls_along_half_a_cosine(tmp_path):
    options = {"lr_schedule": "cosine", "epochs": 2, "limit": 64, "n_clusters": 5, "batch_size": 16}
    trainer = train(tmp_path / "run", **options)
    assert [record["lr"] for record in trainer.history] == pytest.approx([SMALL.lr, SMALL.lr / 2])
    last = SMALL.lr * (1 + math.cos(math.pi * 7 / 8)) / 2  # the rate of the last of 8 steps
    for optimizer in (trainer.optimizer, trainer.top_optimizer):
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([last])
    constant = train(tmp_path / "constant", **{**options, "lr_schedule": "constant"})
    assert constant.optimizer.param_groups[0]["lr"] == SMALL.lr
    assert constant.history[-1]["loss"] != trainer.history[-1]["loss"]


def test_a_falling_learning_rate_goes_on_where_it_stopped(tmp_path, monkeypatch):
    options = {"lr_schedule": "cosine", "epochs": 3, "limit": 64, "n_clusters": 5}
    train(tmp_path / "whole", **options)
    save = Trainer._save

    def fail(self, record):
        save(self, record)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save", fail)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", **options)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"ends with its 3 epochs \(lr_schedule='cosine'\), got epochs=4"):
        resume(tmp_path / "parts", epochs=4)
    resume(tmp_path / "parts", epochs=3, display=Silent()).fit()
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("balance", ["sampler", "loss", "none"])
def test_reassigning_seldom_survives_a_resume(tmp_path, balance):
    options = {"balance": balance, "reassign": 2, "epochs": 5, "limit": 60, "n_clusters": 5}
    whole = train(tmp_path / "whole", **options)
    train(tmp_path / "parts", **{**options, "epochs": 3})
    resume(tmp_path / "parts", epochs=5, display=Silent()).fit()
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    assert [record["objective"] is None for record in whole.history] == [False, True, False, True, False]
    assert [record["nmi_previous"] is None for record in whole.history] == [True, True, False, True, False]
    assert all(record["nmi_labels"] > 0 for record in whole.history)


def test_the_seed_matters(tmp_path, reference):
    other = train(tmp_path / "run", seed=1)
    losses = [record["loss"] for record in RunDir(reference).read_metrics()]
    assert [record["loss"] for record in other.history] != losses


def test_what_a_run_leaves(reference):
    run = load_run(reference)
    assert run.options.arch == "small"
    assert run.config["threads"] == 1
    assert run.config["data"]["n_images"] == 150
    assert run.config["data"]["class_names"] == list("0123456789")
    assert run.config["versions"]["torch"] == torch.__version__
    expected = {
        *("epoch", "loss", "objective", "kmeans_iterations", "nmi_previous", "nmi_labels", "ami_labels", "n_clusters"),
        "n_empty",
        *(
            "largest_cluster",
            "n_moved",
            "n_noise",
            "stopped_clustering",
            "images_per_second",
            "n_corrupt",
            "n_ranks",
            "lr",
            "seconds",
            "waiting",
        ),
    }
    assert all(set(record) == expected for record in run.metrics)
    assert all(set(record["seconds"]) == {"features", "pca", "kmeans", "training"} for record in run.metrics)
    assert run.metrics[0]["nmi_previous"] is None
    assert run.metrics[0]["n_moved"] is None
    assert 0 < run.metrics[1]["nmi_previous"] <= 1
    assert 0 < run.metrics[2]["n_moved"] <= 150
    assigned = run.assignments
    assert assigned["files"].shape == assigned["cluster"].shape == assigned["label"].shape == (150,)
    assert assigned["files"][0].startswith("digit-")
    assert assigned["epoch"] == 3
    assert list(np.unique(assigned["cluster"])) == list(range(12 - run.metrics[-1]["n_empty"]))
    assert np.bincount(assigned["cluster"]).max() == run.metrics[-1]["largest_cluster"]
    assert not list(reference.glob("*.partial"))


def test_a_run_opens_for_reading(reference):
    run = load_run(reference)
    images = torch.stack([run.dataset.eval_image(i) for i in range(4)])
    trained, untrained = run.model, run.untrained_model()
    assert not trained.training
    with torch.inference_mode():
        assert trained.forward_features(images).shape == (4, trained.feature_dim)
        assert not torch.equal(trained.forward_features(images), untrained.forward_features(images))
    again = run.untrained_model()
    assert all(torch.equal(a, b) for a, b in zip(untrained.parameters(), again.parameters(), strict=True))
    assert [run.dataset.labels[i] for i in range(150)] == list(run.assignments["label"])
    assert run.dataset.names == list(run.assignments["files"])


def test_tensorboard_has_each_epoch_once(killed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = killed["before a checkpoint is renamed"]  # after the second epoch had been logged
    resume(path, display=Silent()).fit()
    board = EventAccumulator(str(path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3]
    losses = [record["loss"] for record in RunDir(path).read_metrics()]
    assert [event.value for event in board.Scalars("loss")] == pytest.approx(losses)
    assert "seconds/kmeans" in board.Tags()["scalars"]


def test_training_learns(tmp_path):
    options = {"limit": 400, "n_clusters": 20, "epochs": 6, "dropout": 0.0}
    history = train(tmp_path / "run", **options).history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert history[-1]["nmi_labels"] > history[0]["nmi_labels"]


def test_corrupt_images_are_counted_not_fatal(tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    (folder / "05.png").write_bytes((folder / "05.png").read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"skipped 05\.png"):
        trainer = train(tmp_path / "run", folder, limit=None, n_clusters=4, epochs=1)
    assert trainer.history[0]["n_corrupt"] == 1
    assert trainer.history[0]["nmi_labels"] is None
    assert trainer.history[0]["ami_labels"] is None
    assert "05.png" not in load_run(tmp_path / "run").assignments["files"]
    assert load_run(tmp_path / "run").config["data"]["corrupt"] == ["05.png"]
    with pytest.warns(UserWarning, match=r"skipped 05\.png"):
        resume(tmp_path / "run", epochs=2, display=Silent()).fit()
    Image.fromarray(pixels[0]).save(folder / "07.png")
    with (
        pytest.warns(UserWarning, match=r"skipped 05\.png"),
        pytest.raises(ValueError, match="have changed since"),
    ):
        resume(tmp_path / "run", epochs=3, display=Silent())


def test_other_versions_are_refused(tmp_path):
    train(tmp_path / "run", epochs=1)
    directory = RunDir(tmp_path / "run")
    stored = directory.read_config()
    stored["versions"]["torch"] = "1.0"
    directory.write_config(stored)
    with pytest.raises(ValueError, match=r"started with torch 1\.0"):
        resume(tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match=r"epoch 1: .* no checkpoint. Start again with a lower --lr"):
        train(tmp_path / "first", lr=1e30)
    train(tmp_path / "later", epochs=1)
    directory = RunDir(tmp_path / "later")
    good = directory.read_checkpoint()
    trainer = resume(tmp_path / "later", epochs=2, display=Silent())
    with torch.no_grad():
        trainer.model.classifier[0].weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"checkpoint\.pt holds the last good state, after epoch 1"):
        trainer.fit()
    assert_equal(good, directory.read_checkpoint())


class Full(io.FileIO):
    """A file on a disk that is full after some bytes."""

    def write(self, content):
        left = 5000 - self.tell()
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(memoryview(content)[:left])


@pytest.fixture
def full_disk(monkeypatch):
    """Let the files of that name be written to a full disk."""

    def fill(name):
        opened = Path.open
        monkeypatch.setattr(
            Path,
            "open",
            lambda path, *words, **more: (
                io.BufferedWriter(Full(path, "wb")) if path.name == f"{name}.partial" else opened(path, *words, **more)
            ),
        )

    return fill


@pytest.mark.parametrize("name", ["checkpoint.pt", "assignments.npz"])
def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(tmp_path, full_disk, name):
    train(tmp_path / "a run", epochs=1)
    directory = RunDir(tmp_path / "a run")
    good = directory.read_checkpoint()
    trainer = resume(tmp_path / "a run", epochs=2, display=Silent())
    full_disk(name)
    n_good = 1 if name == "checkpoint.pt" else 2
    message = (
        rf"epoch 2: the disk is full; .*checkpoint\.pt holds the last good state, after epoch {n_good}\. Free some"
    )
    with pytest.raises(OSError, match=message) as told:
        trainer.fit()
    assert f"--resume '{tmp_path / 'a run'}'" in str(told.value)
    assert directory.read_checkpoint()["epoch"] == n_good
    if n_good == 1:
        assert_equal(good, directory.read_checkpoint())
    assert not list(directory.path.glob("*.partial"))


def test_a_full_disk_names_what_was_not_written(tmp_path, full_disk):
    directory = RunDir(tmp_path)
    directory.write_report("old")
    full_disk("report.html")
    with pytest.raises(OSError, match=r"full: .*report\.html was not written. Make room for 6,000 bytes and try again"):
        directory.write_report("x" * 6000)
    assert directory.report.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def _no_cpu_memory(*_):
    torch.empty(2**55)


def _no_gpu_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("stage", "fails", "options"),
    [
        (
            "extract_features",
            _no_cpu_memory,
            "features; .* lower --max-memory, --batch-size,.* or a higher --accumulate",
        ),
        ("cluster_features", _no_gpu_memory, "clustering; .* lower --max-memory, --limit, --pca or --n-clusters"),
        ("train_epoch", _no_cpu_memory, "training; .* lower --batch-size, --image-size or --n-clusters"),
    ],
)
def test_too_little_memory_names_the_options(tmp_path, monkeypatch, stage, fails, options):
    monkeypatch.setattr(f"dcfast.deepcluster.trainer.{stage}", fails)
    with pytest.raises(MemoryError, match=f"epoch 1: out of memory in {options}"):
        train(tmp_path / "run")


def test_other_errors_stay_what_they_are(tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("dcfast.deepcluster.trainer.extract_features", fail)
    for error in (RuntimeError("a bug"), PermissionError(13, "not yours")):
        with pytest.raises(type(error)) as caught:
            train(tmp_path / type(error).__name__)
        assert caught.value is error


def test_a_run_is_not_overwritten_by_accident(tmp_path):
    train(tmp_path / "run", epochs=1)
    with pytest.raises(FileExistsError, match="already holds a run"):
        start("digits", tmp_path / "run", SMALL)
    (tmp_path / "run" / "model.safetensors").write_text("of the old run")
    start("digits", tmp_path / "run", SMALL, overwrite=True, display=Silent())
    assert RunDir(tmp_path / "run").read_checkpoint() is None
    assert RunDir(tmp_path / "run").read_metrics() == []
    assert [path.name for path in (tmp_path / "run").iterdir() if not path.is_dir()] == ["config.json"]


@pytest.mark.parametrize("name", ["checkpoint.pt", "report.html", "model.pt", "tensorboard/events.out.mine"])
def test_the_files_of_others_are_not_overwritten(tmp_path, name):
    mine = tmp_path / "mine" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (tmp_path / "mine" / "notes.txt").write_text("no file of a run")
    with pytest.raises(
        FileExistsError, match=f"mine is no run, but holds {name}, which a run would replace: choose an"
    ):
        start("digits", tmp_path / "mine", SMALL)
    assert mine.read_text() == "mine"
    mine.unlink()
    start("digits", tmp_path / "mine", SMALL, display=Silent())
    assert (tmp_path / "mine" / "notes.txt").exists()


def test_a_run_cannot_lie_in_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("dcfast.deepcluster.trainer.check_images", None)  # told before any image is looked at
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        for overwrite in (False, True):
            with pytest.raises(NotADirectoryError, match="file is a file: choose another --output"):
                start("digits", output, SMALL, overwrite=overwrite)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "resnet"}, "arch must be one of 'alexnet'"),
        ({"balance": "both"}, "balance must be one of"),
        ({"lr_schedule": "linear"}, "lr_schedule must be one of 'constant', 'cosine'"),
        ({"n_clusters": 1}, "n_clusters must be at least 2"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"min_crop": 0.0}, "min_crop must be"),
        ({"seed": -1}, "seed must be between"),
        ({"image_size": 0}, "image_size must be at least 8, got 0"),
        ({"image_size": -5}, "image_size must be at least 8, got -5"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": "3"}, "epochs must be an integer, got '3'"),
        ({"n_clusters": 5.5}, "n_clusters must be an integer, got 5.5"),
        ({"stop_clustering": 1.5}, "stop_clustering must be an integer, got 1.5"),
        ({"seed": None}, "seed must be an integer, got None"),
        ({"lr": "high"}, "lr must be a number, got 'high'"),
        ({"sobel": "no"}, "sobel must be True or False, got 'no'"),
    ],
)
def test_options_of_another_type_are_refused(options, message):
    with pytest.raises(TypeError, match=message):
        TrainConfig(**options)


def test_numbers_of_numpy_are_options_like_others():
    options = {"pca": 8, "epochs": 3, "stop_clustering": 2, "lr": 0.5, "flip": True, "max_memory": 2**20}
    given = TrainConfig(**{name: np.asarray(value)[()] for name, value in options.items()})
    assert given == TrainConfig(**options)
    assert json.loads(json.dumps(given.to_dict())) == given.to_dict()


@pytest.mark.parametrize("device", ["foo", "meta"])
def test_other_devices_are_refused_before_any_image_is_looked_at(make_run, tmp_path, monkeypatch, device):
    monkeypatch.setattr("dcfast.deepcluster.trainer.check_images", None)
    with pytest.raises(ValueError, match=f"device must be 'auto', 'cpu' or 'cuda', got '{device}'"):
        train(tmp_path / "other", device=device)
    with pytest.raises(ValueError, match=f"device must be 'auto', 'cpu' or 'cuda', got '{device}'"):
        probe(make_run(epochs=0), device=device)


def test_half_precision_on_a_cpu_is_warned_of():
    with pytest.warns(UserWarning, match="float16' is far slower .* use bfloat16"):
        TrainConfig(precision="float16", device="cpu").resolve(1797, 8, "digits")


def test_a_run_is_not_made_shorter_than_it_is(make_run, monkeypatch):
    directory = RunDir(make_run(epochs=2))
    before = directory.config.read_bytes()
    monkeypatch.setattr("dcfast.deepcluster.trainer._require_versions", lambda *_: None)
    with pytest.raises(ValueError, match="has begun 2 epochs already, got epochs=1: give 2 or more"):
        resume(directory.path, epochs=1)
    directory.write_checkpoint({**directory.read_checkpoint(), "begun": {"step": 1}})
    with pytest.raises(ValueError, match="has begun 3 epochs already, got epochs=2: give 3 or more"):
        resume(directory.path, epochs=2)
    assert directory.config.read_bytes() == before


def test_names_that_are_no_text_have_a_fingerprint(monkeypatch):
    source = open_source("digits")
    source.names = ["a\udcff.png", *source.names[1:]]
    looked = check_images(open_source("digits"), 5, 0, 0)
    monkeypatch.setattr("dcfast.deepcluster.trainer.open_source", lambda _: source)
    monkeypatch.setattr("dcfast.deepcluster.trainer.check_images", lambda *_: looked)
    assert trainer_module.look("digits", SMALL, Silent(), all_ranks()).source is source


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"n_clusters=12 needs at least as many images, got 10"):
        train(tmp_path / "run", limit=10)
    assert not (tmp_path / "run").exists()


def test_batches_that_a_network_cannot_normalise_are_refused():
    def resolve(size):
        return TrainConfig(arch="resnet18", batch_size=1, image_size=size).resolve(1797, 8, "digits")

    with pytest.raises(ValueError, match=r"batch_size=1: .* one pixel at image_size=32, .* raise --batch-size"):
        resolve(32)
    assert resolve(33).batch_size == 1


def test_defaults_follow_the_images():
    photos = TrainConfig().resolve(1_281_167, 375, "folder")
    assert (photos.arch, photos.image_size, photos.n_clusters, photos.min_crop) == ("alexnet", 224, 10_000, 0.08)
    assert photos.flip
    tiny = TrainConfig().resolve(10_000, 32, "folder")
    assert (tiny.arch, tiny.image_size, tiny.n_clusters) == ("small", 32, 200)
    digits = TrainConfig().resolve(1797, 8, "digits")
    assert not digits.flip
    assert TrainConfig.from_dict(json.loads(json.dumps(digits.to_dict()))) == digits
    with pytest.raises(ValueError, match="unknown option 'speed'"):
        TrainConfig.from_dict({"speed": 1})


def test_the_estimator(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    data = [(image, index % 3) for index, image in enumerate(pixels)]
    estimator = dcfast.DeepCluster(output=tmp_path / "run", n_clusters=4, epochs=2, workers=0, threads=1)
    labels = estimator.fit_predict(data)
    assert labels.shape == (30,)
    assert labels.max() < 4
    assert estimator.n_iter_ == len(estimator.history_) == 2
    assert estimator.files_[0] == "00000000"
    assert not estimator.model_.training
    with pytest.raises(ValueError, match="pass it as dataset="):
        load_run(tmp_path / "run").dataset  # noqa: B018 - reading it is the point
    assert len(load_run(tmp_path / "run", data).dataset) == 30
    with pytest.raises(ValueError, match="was trained on a torch Dataset"):
        resume(tmp_path / "run")
    resume(tmp_path / "run", data, epochs=3, display=Silent()).fit()
    assert len(RunDir(tmp_path / "run").read_metrics()) == 3
    with pytest.raises(ValueError, match=r"backbone must be a network or one of 'alexnet', .*, got 'runs/mine'"):
        dcfast.DeepCluster("runs/mine")
    with pytest.raises(ValueError, match=r"backbone must be a network or one of .*, got <class 'torch.*Linear'>"):
        dcfast.DeepCluster(torch.nn.Linear, feature_dim=3)
    with pytest.raises(ValueError, match="backbone and arch='micro' both name the network"):
        dcfast.DeepCluster("small", arch="micro")
    with pytest.raises(ValueError, match="feature_dim is of a network of your own"):
        dcfast.DeepCluster("small", feature_dim=3)
    with pytest.raises(TypeError, match="speed"):
        dcfast.DeepCluster(output=tmp_path / "other", speed=1)


def test_the_estimator_has_scikit_learns_manners():
    network = torch.nn.Flatten()
    estimator = dcfast.DeepCluster(network, feature_dim=768, n_clusters=4, epochs=2)
    assert estimator.get_params() == {
        **{"backbone": network, "feature_dim": 768, "n_clusters": 4, "epochs": 2},
        **{"output": None, "verbose": False, "overwrite": False},
    }
    assert repr(dcfast.DeepCluster("small", epochs=2)) == "DeepCluster(backbone='small', epochs=2)"
    copied = clone(estimator).set_params(epochs=3, lr=0.1)
    assert (copied.config.epochs, copied.config.lr, copied.config.n_clusters) == (3, 0.1, 4)
    assert copied.config.arch == "custom"
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        copied.set_params(epochs=0)
    assert (copied.get_params()["epochs"], estimator.get_params()["epochs"]) == (3, 2)


class Viewing(torch.nn.Module):
    """Relies on maps in rows, and has a parameter of five dimensions."""

    def __init__(self):
        super().__init__()
        self.depth = torch.nn.Conv3d(1, 1, 1)
        self.conv = torch.nn.Conv2d(3, 6, 5, stride=3)

    def forward(self, images):
        return self.conv(self.depth(images[:, None])[:, 0]).view(len(images), -1)


class Telling(Viewing):
    def forward(self, images):
        return {"features": super().forward(images)}


def test_a_network_of_the_users_own_keeps_the_layout_it_was_written_for():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    options = {"feature_dim": 96, "n_clusters": 4, "epochs": 1, "image_size": 16, "workers": 0, "threads": 1}
    for scale_on in ("workers", "device"):
        estimator = dcfast.DeepCluster(Viewing(), scale_on=scale_on, **options).fit(list(pixels))
        assert len(estimator.labels_) == 16
    with pytest.raises(TypeError, match="the backbone returns a dict, not a tensor of features: wrap it in a module"):
        dcfast.DeepCluster(Telling(), **options).fit(list(pixels))


def test_the_estimator_trains_any_network(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 5, stride=3), torch.nn.Flatten(), torch.nn.Linear(96, 8))
    before = [parameter.clone() for parameter in network.parameters()]
    options = {"n_clusters": 4, "epochs": 2, "image_size": 16, "workers": 0, "threads": 1, "batch_size": 8}
    estimator = dcfast.DeepCluster(network, feature_dim=8, output=tmp_path / "run", **options).fit(list(pixels))
    assert type(estimator.model_) is torch.nn.Sequential
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
    assert not torch.equal(estimator.model_[0].weight, network[0].weight)
    unsaved = dcfast.DeepCluster(network, feature_dim=8, **options).fit(list(pixels))  # no output
    assert torch.equal(unsaved.model_[0].weight, estimator.model_[0].weight)
    np.testing.assert_array_equal(unsaved.labels_, estimator.labels_)

    with torch.no_grad():
        network[0].weight.zero_()  # the run remembers what it started from
    resume(tmp_path / "run", list(pixels), epochs=3, display=Silent(), backbone=network).fit()
    run = load_run(tmp_path / "run", list(pixels), network)
    assert torch.equal(run.untrained_model().network[0].weight, before[0])
    with pytest.raises(ValueError, match="pass it as backbone="):
        load_run(tmp_path / "run", list(pixels)).model  # noqa: B018 - reading it is the point
    other = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 5, stride=3), torch.nn.Flatten())
    with pytest.raises(ValueError, match=r"it has network\.2\.weight, network\.2\.bias"):
        resume(tmp_path / "run", list(pixels), backbone=other, display=Silent())
    with pytest.raises(ValueError, match="returns 96 features per image of 16 pixels, got feature_dim=8"):
        dcfast.DeepCluster(other, feature_dim=8, output=tmp_path / "other", **options).fit(list(pixels))
    assert not (tmp_path / "other").exists()
