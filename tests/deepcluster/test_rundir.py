"""The files of a run: that damage is found, and told with the file and the remedy."""

import io
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dcfast.cli import app
from dcfast.deepcluster import load_run
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
