"""`make gpu` where there is no GPU: every table on sizes that take no time, the result file, time limits, floors."""

import functools
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from dcfast import ops

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from gpu import __main__ as main
from gpu import case, every_op, measure, parts, result, table

CPU = torch.device("cpu")
LIMITS = measure.Limits(bandwidth=4e12, matrix_rate=800e12)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Nothing is compiled, and nothing is timed more than five times."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(measure, "_MOST", 5)


@pytest.mark.parametrize("name", table.TABLES)
def test_every_table_runs(tmp_path, name):
    table.write_rows(name, tmp_path / "rows", CPU, small=True)
    rows = result.with_floors(result.read_rows([tmp_path / "rows"]), LIMITS)
    own = [row for row in rows if row["own"]]
    assert own
    for row in own:
        assert row["agrees"], row
        assert row["low"] <= row["seconds"] <= row["high"]
        assert row["share_of_floor"] == row["floor"] / row["seconds"]
    assert not [row for row in rows if "failed" in row]
    timed = {row["who"] for row in rows if "seconds" in row}
    assert {"dcfast", "torch"} <= timed
    # Every other peer is absent by name: there is no CUDA device even where it is installed.
    assert {row["who"] for row in rows} - timed == set(result.absent(rows, "missing"))


def test_the_run_has_a_limit_for_every_table():
    assert set(main.TABLE_LIMITS) == set(table.TABLES)
    assert list(main.TABLE_LIMITS) == [p.name for p in main.parts(Path(), Path(), CPU, True) if p.name in table.TABLES]


def test_every_op_is_driven():
    # These draw on the CPU whatever the device, or are made of others; sparse rows reach a GPU as dense blocks, and
    # there torch normalises.
    aside = {"draw_rows", "kmeans_plusplus_batch", "weighted_cross_entropy_with_gradient"}
    aside |= {name for name in every_op._registry.ops if name.startswith(("csr_", "batch_norm_", "winograd_"))}
    assert every_op.drive(CPU)["native"] >= set(every_op._registry.ops) - aside


def compare(value, peers, **fields):
    given = {
        "table": "t", "name": "n", "ours": lambda x: lambda: value, "peers": peers, "inputs": [1.0, 2.0],
        "operations": 8e12, "moved": 4e12, "errors": lambda x, output: {"error": abs(output - x)},
        "ours_within": {"error": 0.0}, "peers_within": {"error": 0.5},
    }  # fmt: skip
    return {row["who"]: row for row in case.run(case.Case(**(given | fields)), CPU)}


def test_a_peer_that_is_absent_or_fails_is_told_by_name():
    def absent(_):
        import no_such_package  # noqa: F401

    def other_device(_):
        raise case.Missing("runs on CUDA tensors only")

    def breaks(_):
        return lambda: 1 // 0

    rows = compare(
        1.0, {"absent": absent, "elsewhere": other_device, "breaks": breaks, "close": lambda x: lambda: 1.25}
    )
    assert rows["dcfast"]["agrees"]
    assert rows["close"]["agrees"]
    assert rows["absent"]["missing"] == "ModuleNotFoundError: No module named 'no_such_package'"
    assert rows["elsewhere"]["missing"] == "Missing: runs on CUDA tensors only"
    assert rows["breaks"]["failed"].startswith("ZeroDivisionError: ")
    assert set(result.absent(rows.values(), "missing")) == {"absent", "elsewhere"}
    assert set(result.absent(rows.values(), "failed")) == {"breaks"}
    lines = [result._line(row) for row in rows.values()]
    assert [("missing" in line, "FAILED" in line) for line in lines] == [
        (False, False), (True, False), (True, False), (False, True), (False, False),
    ]  # fmt: skip


@pytest.mark.parametrize("output", [1.25, float("nan")])
def test_a_wrong_result_of_ours_is_seen(output):
    rows = compare(output, {})
    assert not rows["dcfast"]["agrees"]
    assert "WRONG" in result._line(rows["dcfast"])


def test_an_element_that_nobody_wrote_is_seen():
    def forgetful(x):
        return lambda: torch.empty_strided((4,), (1,))  # tests/conftest.py poisons torch.empty itself

    rows = compare(None, {}, ours=forgetful, errors=lambda x, output: {"error": float(output.abs().sum())})
    assert not rows["dcfast"]["agrees"]


def test_floors_are_the_slower_of_operations_and_bytes():
    assert measure.floor(8e12, 4e9, LIMITS)[0] == 0.01
    assert measure.floor(8e9, 4e12, LIMITS)[0] == 1.0
    assert "operations" in measure.floor(8e12, 0.0, LIMITS)[1]
    assert "bytes" in measure.floor(0.0, 1.0, LIMITS)[1]
    (row,) = result.with_floors([{"operations": 8e12, "moved": 0.0, "seconds": 0.02}], LIMITS)
    assert row["share_of_floor"] == 0.5
    assert "floor" not in result.with_floors([{"operations": 1.0, "moved": 0.0}], None)[0]


def test_limits_are_measured_and_inputs_rotate():
    limits = measure.measured_limits(CPU, small=True)
    assert limits.bandwidth > 0
    assert limits.matrix_rate > 0
    seen = []
    measure.median_time([lambda i=i: seen.append(i) for i in range(3)], CPU)
    assert seen[:3] == [0, 1, 2]
    assert seen[-5:] == [0, 1, 2, 0, 1]


def part(code, limit):
    return parts.Part("part", [sys.executable, "-c", code], limit)


def test_a_part_that_hangs_or_fails_leaves_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_LEAST", 0.1)
    monkeypatch.setattr(parts, "_GRACE", 0.5)
    log, deadline = tmp_path / "log", time.monotonic() + 60
    assert parts.run(part("print('fine')", 30), log, deadline).ended == "ok"
    failed = parts.run(part("raise SystemExit('broken')", 30), log, deadline)
    assert (failed.ended, failed.tail) == ("exit code 1", "broken\n")
    child = "import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', '{}'])"
    hung = parts.run(part(child.format("import time; time.sleep(50)"), 2.0), log, deadline)
    assert hung.ended == "time limit of 2 s"
    assert hung.seconds < 40  # the child sleeps for 50
    assert parts.run(part("", 30), log, time.monotonic()).ended == "no time left"


def contents(tmp_path, rows):
    (tmp_path / "k-means.rows").write_text("\n".join(map(json.dumps, rows)) + '\n{"table": "cut off')
    (tmp_path / "device.json").write_text(json.dumps({"limits": vars(LIMITS), "serving": {"assign": "native"}}))
    (tmp_path / "junit.xml").write_text(
        '<testsuites><testsuite tests="4" failures="1" errors="0" skipped="1">'
        '<testcase classname="t" name="a"/><testcase classname="t" name="b"><failure message="unequal"/></testcase>'
        '<testcase classname="t" name="c"><skipped message="one GPU"/></testcase><testcase classname="t" name="d"/>'
        "</testsuite></testsuites>"
    )
    return main.collect([parts.Ended("tests", "exit code 1", 3.0, "unequal")], tmp_path, CPU)


def test_the_result_file(tmp_path, monkeypatch):
    monkeypatch.setenv("DCFAST_COMMIT", "0123abc")
    rows = list(compare(float("nan"), {"absent": lambda _: ops.no_such_op, "close": lambda x: lambda: x}).values())
    made = contents(tmp_path, rows)
    assert made["commit"] == "0123abc"
    assert (made["tests"]["passed"], made["tests"]["failed"]) == (2, {"t::b": "unequal"})
    assert made["tests"]["skipped_because"] == {"one GPU": 1}
    assert made["rows"][0]["errors"] == {"error": "nan"}
    assert made["serving"] == {"assign": "native"}
    assert not main.is_good(made)
    folders = tmp_path / "results", tmp_path / "out"
    written = result.write(made, *folders)
    assert [p.parent for p in written] == list(folders)
    assert (
        written[0].name
        == f"{made['machine']['device'].lower().replace('_', '-').replace(' ', '-')}-{made['date'][:10]}.json"
    )
    assert json.loads(written[0].read_text()) == json.loads(written[1].read_text()) == made
    assert [p.name for p in folders[0].iterdir()] == [written[0].name]  # nothing half-written stays
    text = result.summary(made)
    assert "tests: 2 passed, 1 failed, 0 errors, 1 skipped" in text
    assert "memcheck: skipped: no CUDA device" in text
    with pytest.raises(ValueError, match="a result has the keys"):
        result.write({"commit": "0"}, tmp_path)


def test_parts_that_left_nothing_behind_are_told(tmp_path):
    made = main.collect([], tmp_path, CPU)
    assert made["rows"] == []
    assert made["limits"] is None
    assert "tests: not run (no report was written)" in result.summary(made)


def test_the_published_run_is_extrapolated_from_what_was_measured():
    row = {"arch": "alexnet", "own": True, "images": 1000}
    rows = [{**row, "stage": "features", "seconds": 0.02}, {**row, "stage": "training", "seconds": 0.08}]
    hours = 500 * 1_281_167 * 1e-4 / 3600
    assert result.extrapolated(rows) == [
        f"500 epochs of 1,281,167 images at these rates, k-means apart: {hours:.1f} h, extrapolated"
    ]
    assert result.extrapolated(rows[:1]) == []
    assert result.extrapolated([rows[0], {**rows[1], "own": False}]) == []
