"""The command line: what users type, and what they read when it goes wrong."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from support.training import train
from typer.testing import CliRunner

from dcfast.cli import app
from dcfast.deepcluster import load_run, report, trainer
from dcfast.deepcluster.interrupt import Interrupted
from dcfast.deepcluster.progress import Display

OPTIONS = ["--limit", "80", "--n-clusters", "6", "--batch-size", "16", "--pca", "8", "--threads", "1"]


@pytest.fixture
def dcfast(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(report, "write_report", lambda *_: None)
    runner = CliRunner()
    return lambda *words: runner.invoke(app, [str(word) for word in words])


def test_train_then_more(dcfast, tmp_path):
    run = tmp_path / "run"
    done = dcfast("train", "digits", "--output", run, "--epochs", 2, "--no-sobel", "--balance", "loss", *OPTIONS)
    assert done.exit_code == 0, done.output
    assert "2/2" in done.output
    assert "NMI with labels" in done.output
    assert str(run / "report.html") in done.output
    options = load_run(run).options
    assert (options.sobel, options.balance, options.limit, options.arch) == (False, "loss", 80, "small")
    assert dcfast("train", "--resume", run, "--epochs", 3).exit_code == 0
    assert [record["epoch"] for record in load_run(run).metrics] == [1, 2, 3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "give 'digits' or a folder of images, or --resume RUN"),
        (["train", "digits"], "give --output RUN"),
        (["train", "digits", "--output", "{}/run", "--arch", "resnet"], "arch must be one of 'alexnet'"),
        (["train", "digits", "--output", "{}/run", "--arch", "custom"], "DeepCluster(backbone, feature_dim=...)"),
        (["train", "digits", "--output", "{}/run", "--init", "{}/none.pt"], "no checkpoint"),
        (["export", "{}/run"], "holds no run"),
        (["train", "digits", "--output", "{}/run", "--limit", "5"], "n_clusters=100 needs at least as many images"),
        (["train", "digits", "--output", "{}/run", "--image-size", "99", "--arch", "small"], "at most 64"),
        (["train", "{}/nowhere", "--output", "{}/run"], "no folder"),
        (["train", "{}", "--output", "{}/run"], "no images in"),
        (["train", "--resume", "{}/run"], "holds no run"),
        (["train", "--resume", "{}/run", "--lr", "0.1"], "--resume takes lr from the run"),
        (["train", "digits", "--resume", "{}/run"], "--resume takes data from the run"),
    ],
)
def test_mistakes_are_told_in_one_line(dcfast, tmp_path, words, message):
    done = dcfast(*(word.format(tmp_path) for word in words))
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "run").exists()


def test_help_tells_how_many_components_are_kept(dcfast):
    assert "at most one per four images" in dcfast("train", "--help").output


def test_export_and_start_from_it(dcfast, tmp_path):
    run, weights = tmp_path / "run", tmp_path / "weights.safetensors"
    assert dcfast("train", "digits", "--output", run, "--epochs", 1, *OPTIONS).exit_code == 0
    done = dcfast("export", run, "--format", "safetensors", "--output", weights)
    assert (done.exit_code, done.output.strip()) == (0, str(weights))
    again = ("train", "digits", "--output", tmp_path / "next", "--init", weights, "--epochs", 1)
    assert dcfast(*again, *OPTIONS).exit_code == 0
    wrong = dcfast("train", "digits", "--output", tmp_path / "wrong", "--init", run, "--no-sobel", *OPTIONS)
    assert wrong.exit_code == 2
    assert "does not fit the network: features.0.weight is (32, 2, 3, 3) there" in wrong.stderr
    assert dcfast("export", run, "--format", "published").exit_code == 2


def test_a_run_is_kept_unless_told_otherwise(dcfast, tmp_path):
    words = ["train", "digits", "--output", tmp_path / "run", "--epochs", 1, *OPTIONS]
    assert dcfast(*words).exit_code == 0
    again = dcfast(*words)
    assert again.exit_code == 2
    assert "already holds a run: continue it with --resume" in again.stderr
    assert dcfast(*words, "--overwrite").exit_code == 0


def test_a_loss_that_is_not_finite_ends_the_run(dcfast, tmp_path):
    done = dcfast("train", "digits", "--output", tmp_path / "run", "--lr", 1e30, *OPTIONS)
    assert done.exit_code == 1
    assert "no epoch had ended, so there is no checkpoint" in done.stderr
    assert "lower --lr than 1e+30" in done.stderr


def test_interrupting_tells_how_to_go_on(dcfast, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    run = tmp_path / "a run"
    with monkeypatch.context() as patched:
        patched.setattr(Display, "epoch", interrupt)
        done = dcfast("train", "digits", "--output", run, "--epochs", 2, *OPTIONS)
    assert done.exit_code == 130
    assert f"interrupted; epoch 1 is saved; go on with: dcfast train --resume '{run}'" in done.stderr
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "train_epoch", lambda *_: (_ for _ in ()).throw(Interrupted(1, 0.0, 2)))
        done = dcfast("train", "--resume", run)
    assert done.exit_code == 130
    assert "interrupted; epoch 1 and one step of epoch 2 are saved; go on" in done.stderr
    with monkeypatch.context() as patched:
        patched.setattr(Display, "stage", interrupt)
        others = [dcfast("train", "digits", "--output", tmp_path / "other", *OPTIONS)]
        others.append(dcfast("train", "digits", "--output", run, "--overwrite", *OPTIONS))
    for done in others:
        assert done.exit_code == 130
        assert "interrupted before it began; give the same command again" in done.stderr
    assert dcfast("train", "--resume", run).exit_code == 0
    assert [record["epoch"] for record in load_run(run).metrics] == [1, 2]


@pytest.mark.parametrize("error", [MemoryError("out of memory in training"), OSError("the disk is full")])
def test_memory_and_disk_that_do_not_suffice_are_told_in_one_line(dcfast, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("dcfast.deepcluster.trainer.Trainer.fit", fail)
    done = dcfast("train", "digits", "--output", tmp_path / "run", *OPTIONS)
    assert (done.exit_code, done.stderr.strip()) == (1, f"error: {error}")


def test_being_asked_to_end_does_not_cut_short_what_an_error_says(dcfast, tmp_path, monkeypatch):
    class Cut(OSError):
        def __str__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            return "another process of the run has ended"

    def fail(*_):
        raise Cut

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        monkeypatch.setattr("dcfast.deepcluster.trainer.Trainer.fit", fail)
        done = dcfast("train", "digits", "--output", tmp_path / "run", *OPTIONS)
        assert (done.exit_code, done.stderr.strip()) == (1, "error: another process of the run has ended")
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_unreadable_images_are_named_on_one_line_each(dcfast, tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (9, 9), (20 * number, 0, 90)).save(folder / f"{number}.png")
    (folder / "bad.jpg").write_bytes(b"\xff\xd8 not much")
    words = ["--n-clusters", 2, "--image-size", 8, "--epochs", 1, "--pca", 2, "--threads", 1, "--workers", 0]
    done = dcfast("train", folder, "--output", tmp_path / "run", *words)
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("warning: skipped bad.jpg: UnidentifiedImageError")


def test_a_process_killed_at_any_time_goes_on(tmp_path):
    words = [sys.executable, "-c", "from dcfast.cli import main; main()", "train"]
    environment = {**os.environ, "COLUMNS": "200"}
    run = tmp_path / "run"
    fresh = [*words, "digits", "--output", str(run), "--epochs", "300", *OPTIONS]
    with subprocess.Popen(fresh, stdout=subprocess.DEVNULL, env=environment) as process:
        deadline = time.monotonic() + 300
        while not (run / "checkpoint.pt").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.5)  # somewhere in an epoch
        process.kill()
    assert process.returncode == -signal.SIGKILL
    finished = load_run(run).metrics[-1]["epoch"]
    resumed = [*words, "--resume", str(run), "--epochs", str(finished + 2)]
    subprocess.run(resumed, check=True, stdout=subprocess.DEVNULL, env=environment)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, finished + 3))
    assert (run / "report.html").stat().st_size > 1000


def test_the_summary_fits_into_80_columns(tmp_path):
    train(tmp_path / "run", epochs=1)
    output = io.StringIO()
    trainer.resume(tmp_path / "run", display=Display(Console(file=output, width=80))).summary()
    table = output.getvalue().partition("report")[0]
    for word in ("1 epoch, 150 images", "loss", "objective", "previous", "labels", " k ", "largest"):
        assert word in table
