"""The files of a run: that damage is found, and told with the file and the remedy."""

import io
import json

import numpy as np
import pytest
import torch
from support.locks import locked_by_another
from support.training import SMALL, Silent, no_report, train  # noqa: F401
from typer.testing import CliRunner

from dcfast.cli import app
from dcfast.deepcluster import load_run, resume, start
from dcfast.deepcluster.data import check_images
from dcfast.deepcluster.rundir import RunDir, decoded, saved


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _garbage_line(path):
    path.write_text(path.read_text() + '{"epoch": 4, "lo\n')


def _other_tensors(path):
    torch.save({"a": 1}, path)


DAMAGE = {
    "truncated checkpoint": ("checkpoint.pt", _truncate, "export"),
    "empty checkpoint": ("checkpoint.pt", lambda path: path.write_bytes(b""), "export"),
    "other checkpoint": ("checkpoint.pt", _other_tensors, "export"),
    "empty configuration": ("config.json", lambda path: path.write_text("{}"), "export"),
    "half a configuration": ("config.json", lambda path: path.write_text("{"), "export"),
    "a list of options": ("config.json", lambda path: path.write_text("[1]"), "export"),
    "garbage in the metrics": ("metrics.jsonl", _garbage_line, "export"),
    "bytes in the metrics": ("metrics.jsonl", lambda path: path.write_bytes(b"\xff\xfe"), "export"),
    "truncated assignments": ("assignments.npz", _truncate, "probe"),
    "other assignments": ("assignments.npz", lambda path: np.savez(path.open("wb"), a=1), "probe"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_in_one_line_with_the_file_and_the_remedy(make_run, damage):
    name, harm, command = DAMAGE[damage]
    run = make_run()
    harm(run / name)
    done = CliRunner().invoke(app, [command, str(run)])
    assert done.exit_code == 2, done.output
    remedy = (
        "bring it back from a copy" if name in ("checkpoint.pt", "config.json") else "make it again with dcfast train"
    )
    assert done.stderr.startswith(f"error: {run / name} is damaged, or a file of another kind: {remedy}"), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_damage_of_a_probe_is_told(make_run):
    directory = RunDir(make_run())
    assert directory.read_probe() is None
    for content in ("{", "{}", "7"):
        directory.probe.write_text(content)
        with pytest.raises(
            ValueError, match=r"probe\.json is damaged, .*: make it again with dcfast probe .*, or delete"
        ):
            directory.read_probe()


def test_a_checkpoint_that_changed_is_refused(tmp_path):
    """Every byte matters: with any of them changed the checkpoint is refused, or still says the same."""
    directory = RunDir(tmp_path)
    state = {"epoch": 3, "model": {"weight": torch.arange(600.0)}}
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)  # whatever the rest of the program wants
    try:
        directory.write_checkpoint(state)
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(torch.load(directory.checkpoint, weights_only=True)["model"]["weight"], state["model"]["weight"])
    content = directory.checkpoint.read_bytes()
    refused = 0
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        directory.checkpoint.write_bytes(changed)
        try:
            found = directory.read_checkpoint()
        except ValueError as error:
            assert str(error).startswith(f"{directory.checkpoint} is damaged")  # noqa: PT017 - one of two ways
            refused += 1
        else:
            assert found["epoch"] == 3
            assert torch.equal(found["model"]["weight"], state["model"]["weight"])
    assert refused > 600 * 4 / 7  # all of the weights at least


def test_a_start_that_changed_is_refused(make_run):
    directory = RunDir(make_run())
    directory.initial.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"initial\.pt is damaged"):
        load_run(directory.path).untrained_model()


def test_reading_passes_on_what_is_no_damage(tmp_path):
    def fail(_):
        raise MemoryError

    (tmp_path / "file").write_text(json.dumps({"a": 1}))
    assert decoded(tmp_path / "file", json.loads, "") == {"a": 1}
    with pytest.raises(MemoryError):
        decoded(tmp_path / "file", fail, "")
    with pytest.raises(FileNotFoundError):
        decoded(tmp_path / "none", json.loads, "")
    assert torch.load(io.BytesIO(saved([1])), weights_only=True) == [1]


def test_names_that_are_no_text_are_shown(tmp_path):
    directory = RunDir(tmp_path)
    directory.write_report("a\udcff.png")
    assert directory.report.read_text() == "a\\udcff.png"


def test_commands_quote_the_path(make_run):
    directory = RunDir(make_run())
    assert directory.quoted == str(directory.path)
    moved = directory.path.rename(directory.path.parent / "a run's")
    with pytest.raises(FileExistsError, match=r"--resume '.*/a run'\"'\"'s', replace it"):
        RunDir(moved).require_free()


def test_one_process_trains_into_a_directory(tmp_path):
    train(tmp_path, epochs=1)
    directory = RunDir(tmp_path)
    with directory.held(), directory.held():  # this process may be that of another trainer of the run
        pass
    with locked_by_another(directory.path / "run.lock"):
        before = {path: path.read_bytes() for path in directory.path.glob("*.*")}
        for attempt in (
            lambda: start("digits", directory.path, SMALL, overwrite=True, display=Silent()),
            lambda: resume(directory.path, display=Silent()),
        ):
            with pytest.raises(FileExistsError, match=r"another process is training into .*: end it, wait for it"):
                attempt()
        assert {path: path.read_bytes() for path in directory.path.glob("*.*")} == before
    trainer = resume(directory.path, epochs=2, display=Silent())
    with (
        locked_by_another(directory.path / "run.lock"),
        pytest.raises(FileExistsError, match="another process is training"),
    ):
        trainer.fit()
    trainer.fit()
    assert not (directory.path / "run.lock").exists()


def test_a_run_that_began_meanwhile_is_kept(tmp_path, monkeypatch):
    def look(*arguments, **options):
        RunDir(tmp_path / "run").create({"another": "run"})
        return check_images(*arguments, **options)

    monkeypatch.setattr("dcfast.deepcluster.trainer.check_images", look)
    with pytest.raises(FileExistsError, match="already holds a run: continue it with --resume"):
        start("digits", tmp_path / "run", SMALL, display=Silent())
    assert json.loads(RunDir(tmp_path / "run").config.read_text()) == {"another": "run"}


def test_a_folder_that_cannot_be_written_to_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("dcfast.deepcluster.trainer.check_images", None)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=f"{tmp_path} cannot be written to: choose another --output"):
        start("digits", tmp_path / "runs" / "new", SMALL, display=Silent())
