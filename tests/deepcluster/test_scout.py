"""Seeds and numbers of clusters, compared before any training."""

import dataclasses
import json
import math
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from support.locks import locked_by_another
from support.training import SMALL, Silent, train
from typer.testing import CliRunner

from dcfast.cli import app
from dcfast.deepcluster import scout as scouting
from dcfast.deepcluster import scout_page, space
from dcfast.deepcluster.metrics import class_entropy, purity
from dcfast.deepcluster.space import against_chance, choose_labelled

CONFIG = dataclasses.replace(SMALL, n_clusters=None, epochs=None)


def scout(output, data="digits", **changes):
    options = {"seeds": 2, "n_clusters": [4, 12], **changes}
    config = dataclasses.replace(CONFIG, **options.pop("config", {}))
    return scouting.scout(data, output, config, display=Silent(), **options)


@pytest.fixture
def flat(tmp_path):
    """A folder of images without classes."""
    draws = np.random.default_rng(0)
    folder = tmp_path / "flat"
    folder.mkdir()
    for number in range(60):
        Image.fromarray(draws.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def naive(classes, clusters):
    """Purity and mean entropy, by counting."""
    most = entropy = 0.0
    for one in set(clusters):
        counts = Counter(label for label, cluster in zip(classes, clusters, strict=True) if cluster == one)
        size = sum(counts.values())
        most += max(counts.values())
        entropy -= size * sum(n / size * math.log(n / size) for n in counts.values())
    return most / len(classes), entropy / len(classes) / math.log(len(set(classes)))


def test_measures_are_what_counting_gives():
    draws = np.random.default_rng(0)
    for n_classes, n_clusters in ((2, 3), (5, 4), (3, 40)):
        classes, clusters = draws.integers(0, n_classes, 60), draws.integers(0, n_clusters, 60)
        expected = naive(classes.tolist(), clusters.tolist())
        assert (purity(classes, clusters), class_entropy(classes, clusters)) == pytest.approx(expected)
    classes, clusters = np.array([0, 0, 1, 1, -1, 1]), np.array([0, 0, 1, 1, 0, -1])
    assert (purity(classes, clusters), class_entropy(classes, clusters)) == (1.0, 0.0)
    nothing = np.array([-1])
    assert (purity(nothing, nothing), class_entropy(nothing, nothing)) == (None, None)


def test_chance_is_that_of_clusters_of_the_same_sizes():
    draws = np.random.default_rng(0)
    # Two classes, clusters of two points: both of one class with a probability of 9/19 where there are 20.
    classes, clusters = np.arange(20) % 2, np.arange(20) // 2
    means = [against_chance(classes, clusters, seed) for seed in range(60)]
    assert (means[0]["purity"], means[0]["entropy"]) == pytest.approx((0.5, 1.0))
    assert np.mean([one["purity_chance"] for one in means]) == pytest.approx(1 - (10 / 19) / 2, abs=0.01)
    assert np.mean([one["entropy_chance"] for one in means]) == pytest.approx(10 / 19, abs=0.02)
    # Clusters that know nothing are level with chance, however many: purity itself is not.
    classes = draws.integers(0, 10, 2000)
    for n_clusters in (5, 400):
        found = against_chance(classes, draws.integers(0, n_clusters, 2000), 0)
        assert found["purity"] == pytest.approx(found["purity_chance"], abs=0.02)
        assert found["entropy"] == pytest.approx(found["entropy_chance"], abs=0.02)
        assert abs(found["ami"]) < 0.02
    assert found["purity_chance"] > 0.3
    assert found["nmi"] > 0.2


def test_images_without_a_label_are_in_no_measure():
    draws = np.random.default_rng(0)
    classes, clusters = draws.integers(0, 3, 50), draws.integers(0, 6, 50)
    some = np.arange(50) < 30
    found = against_chance(np.where(some, classes, -1), clusters, 1)
    assert found == against_chance(classes[some], clusters[some], 1)
    assert found["n_labelled"] == 30


def test_each_class_has_its_share_of_the_labels():
    labels = np.repeat([0, 1, 2, -1], [60, 30, 10, 20])
    order = np.random.default_rng(0).permutation(len(labels))
    for labelled in (20, 0.2):
        kept = choose_labelled(labels, labelled, order)
        assert [int((kept == one).sum()) for one in range(3)] == [12, 6, 2]
        assert (kept[kept >= 0] == labels[kept >= 0]).all()
    first = np.flatnonzero(kept == 0)
    assert sorted(order[first]) == sorted(order[:60])[:12]
    np.testing.assert_array_equal(choose_labelled(labels, 1.0, order), labels)
    with pytest.raises(ValueError, match="labelled=101, but only 100 images have a label"):
        choose_labelled(labels, 101, order)


def test_training_begins_with_the_clusters_that_were_scouted(tmp_path, monkeypatch):
    clusterings = {}

    def kept(points, config, epoch, *rest):
        found = cluster_points(points, config, epoch, *rest)
        if epoch == 0:
            clusterings[config.seed, config.n_clusters] = found
        return found

    cluster_points = scouting.cluster_points
    monkeypatch.setattr(scouting, "cluster_points", kept)
    result = scout(tmp_path / "scout")
    scouted = clusterings[result.seed, result.n_clusters]
    trained = train(tmp_path / "run", seed=result.seed, n_clusters=result.n_clusters, epochs=1)
    np.testing.assert_array_equal(trained.assignments, scouted.assignments)
    record = trained.history[0]
    run = next(one for one in result.runs if (one["seed"], one["n_clusters"]) == (result.seed, result.n_clusters))
    for name in ("objective", "n_empty", "largest_cluster"):
        assert record[name] == run[name]
    assert (record["nmi_labels"], record["ami_labels"]) == (run["nmi"], run["ami"])
    assert result.command.endswith(f" --seed {result.seed} --n-clusters {result.n_clusters}")


def test_the_best_number_of_clusters_comes_first_then_its_best_seed(tmp_path):
    result = scout(tmp_path / "scout", seeds=3)
    ami = {(run["n_clusters"], run["seed"]): run["ami"] for run in result.runs}
    means = {k: np.mean([ami[k, seed] for seed in range(3)]) for k in (4, 12)}
    assert result.n_clusters == max(means, key=means.get)
    assert result.seed == max(range(3), key=lambda seed: ami[result.n_clusters, seed])
    stored = json.loads((tmp_path / "scout" / "scout.json").read_text())
    assert stored["recommended"] == {
        "criterion": "ami",
        "n_clusters": result.n_clusters,
        "seed": result.seed,
        "command": result.command,
    }
    assert sorted(stored["runs"], key=str) == sorted(result.runs, key=str)


def test_features_are_extracted_once_per_seed_and_only_where_something_is_left(tmp_path, monkeypatch):
    extracted = []

    def extract(model, data, config, *rest):
        extracted.append(config.seed)
        return extract_features(model, data, config, *rest)

    extract_features = scouting.extract_features
    monkeypatch.setattr(scouting, "extract_features", extract)
    whole = scout(tmp_path / "whole")
    assert extracted == [0, 1]
    extracted.clear()

    def stop(result):
        if result["seed"] == 1:
            raise KeyboardInterrupt
        return ""

    with monkeypatch.context() as patched:
        patched.setattr(scouting, "_line", stop)
        with pytest.raises(KeyboardInterrupt):
            scout(tmp_path / "parts")
    kept = json.loads((tmp_path / "parts" / "scout.json").read_text())
    assert [(run["seed"], run["n_clusters"]) for run in kept["runs"]] == [(0, 4), (0, 12), (1, 4)]
    assert kept["recommended"] is None
    assert not (tmp_path / "parts" / "report.html").exists()
    parts = scout(tmp_path / "parts", config={"max_memory": "1GiB"})
    assert extracted == [0, 1, 1]
    assert parts.runs == whole.runs
    extracted.clear()
    assert [run["seed"] for run in scout(tmp_path / "parts", n_clusters=[12]).runs] == [0, 1]
    scout(tmp_path / "parts", seeds=3)
    assert extracted == [2]


def test_few_labels_are_the_same_ones_for_every_seed(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(scouting, "against_chance", lambda labels, *rest: seen.append(labels) or against(labels, *rest))
    against = against_chance
    result = scout(tmp_path / "scout", labelled=40, config={"limit": None}, n_clusters=[12])
    assert {run["n_labelled"] for run in result.runs} == {40}
    np.testing.assert_array_equal(*seen)
    assert np.bincount(seen[0][seen[0] >= 0]).tolist() == [4] * 10


def test_without_labels_stability_ranks(tmp_path, flat):
    result = scout(tmp_path / "scout", flat, n_clusters=None)
    assert result.criterion == "stability"
    assert {run["n_clusters"] for run in result.runs} == {10}
    assert not {"ami", "purity", "n_labelled"} & set(result.runs[0])
    assert result.seed == max(result.runs, key=lambda run: run["stability"])["seed"]
    assert "no labels" in (tmp_path / "scout" / "report.html").read_text()
    with pytest.raises(ValueError, match=r"labelled=0\.5, but the images of .* are not of two or more classes"):
        scout(tmp_path / "other", flat, labelled=0.5)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"n_clusters": [1]}, "n_clusters must be at least 2, got 1"),
        ({"n_clusters": [4, 151]}, "n_clusters=151 needs at least as many images, got 150"),
        ({"labelled": 1}, "labelled must be a share above 0 and up to 1.0, or a number from 2 on, got 1"),
        ({"labelled": 1.5}, "labelled must be a share .* got 1.5"),
        ({"labelled": 151}, "labelled=151, but only 150 images have a label: lower --labelled"),
        ({"config": {"init": "weights.pt"}}, "init='weights.pt' are weights that no seed draws"),
        ({"config": {"image_size": 99, "arch": "small"}}, "at most 64"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        scout(tmp_path / "scout", **changes)
    assert not (tmp_path / "scout").exists()


def test_labels_of_a_single_class_and_too_many_of_them_are_refused(tmp_path, monkeypatch):
    for name, size in (("common", 40), ("rare", 1)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(size):
            Image.new("RGB", (9, 9), (number, 5 * number, 90)).save(tmp_path / "images" / name / f"{number}.png")
    with pytest.raises(ValueError, match="labelled=2 keeps labels of 1 classes: raise --labelled"):
        scout(tmp_path / "scout", tmp_path / "images", labelled=2)
    monkeypatch.setattr(space, "MOST_TERMS", 99)
    with pytest.raises(ValueError, match=r"150 labels of 10 classes .* give --labelled 9 or fewer"):
        scout(tmp_path / "scout")


def test_too_little_memory_names_the_options(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(scouting, "reduce_features", fail)
    with pytest.raises(MemoryError, match=r"out of memory: give a lower --max-memory, .* or --n-clusters"):
        scout(tmp_path / "scout")


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    scout(tmp_path / "scout", seeds=1, n_clusters=[4])
    with pytest.raises(ValueError, match=r"scout\.json is of pca=16, here it is 8: give the same, or choose another"):
        scout(tmp_path / "scout", config={"pca": 8})
    with pytest.raises(ValueError, match="is of labelled=None, here it is 20"):
        scout(tmp_path / "scout", labelled=20)
    file = tmp_path / "scout" / "scout.json"
    stored = json.loads(file.read_text())
    stored["runs"][0]["fingerprint"] = "other"
    file.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="the images of digits have changed since"):
        scout(tmp_path / "scout")
    partial = {**stored, "runs": [{"seed": 0, "n_clusters": stored["runs"][0]["n_clusters"]}]}
    for content in ("half of it", "{}", json.dumps({**stored, "options": None}), json.dumps(partial)):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"scout\.json is damaged, .* delete it, and report\.html beside it"):
            scout(tmp_path / "scout")
    file.unlink()
    with pytest.raises(FileExistsError, match="holds the report of something else: choose another --output"):
        scout(tmp_path / "scout")
    (tmp_path / "scout" / "report.html").unlink()
    assert len(scout(tmp_path / "scout", seeds=1, n_clusters=[4]).runs) == 1
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file: choose another --output"):
        scout(tmp_path / "file")


def test_one_process_at_a_time(tmp_path):
    output = tmp_path / "scout"
    scout(output, seeds=1)
    with locked_by_another(output / "scout.lock"):
        assert len(scout(output, seeds=1).runs) == 2  # nothing is left to compute
        with pytest.raises(FileExistsError, match="another process is scouting into"):
            scout(output)
    assert len(scout(output).runs) == 4
    assert sorted(file.name for file in output.iterdir()) == ["report.html", "scout.json"]


def test_runs_of_another_process_are_kept(tmp_path, monkeypatch):
    output, look = tmp_path / "scout", scouting.look

    def after_another(*arguments):
        monkeypatch.setattr(scouting, "look", look)
        scout(output, seeds=1, n_clusters=[7])
        return look(*arguments)

    monkeypatch.setattr(scouting, "look", after_another)
    scout(output, seeds=1)
    assert [run["n_clusters"] for run in json.loads((output / "scout.json").read_text())["runs"]] == [4, 7, 12]


@pytest.mark.parametrize(
    ("n_images", "grid"), [(50_000, [50, 200, 1000, 5000]), (1797, [10, 35, 179]), (2_000_000, [2000, 8000, 10_000])]
)
def test_the_numbers_of_clusters_go_with_the_images(n_images, grid):
    assert scouting.default_grid(n_images) == grid


def test_the_page_shows_every_measure(tmp_path):
    result = scout(tmp_path / "scout")
    html = (tmp_path / "scout" / "report.html").read_text()
    assert html.count('<svg class="chart"') == len(scout_page.MEASURES)
    assert result.command in html
    assert "://" not in re.sub(r"xmlns\S*", "", html)
    assert len(re.findall(r"<tr><th>(?:4|12)</th>", html)) == 2


def test_command(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = ["scout", "digits", "--output", tmp_path / "scout", "--seeds", 2, "--n-clusters", 4, "--n-clusters", 12]
    words += ["--limit", 150, "--image-size", 16, "--pca", 16, "--threads", 1, "--labelled", "0.5"]
    runner = CliRunner()
    done = runner.invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "scout" / "scout.json").read_text())["recommended"]
    assert f"train   {result['command']}\n" in done.output
    assert "2 seeds on 150 images, 75 labels" in done.output
    assert "…" not in done.output
    again = result["command"].split()
    assert again[:5] == ["dcfast", "train", "digits", "--output", str(tmp_path / "scout" / "run")]
    trained = runner.invoke(app, [*again[1:], "--epochs", "1"])
    assert trained.exit_code == 0, trained.output

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scouting, "look", interrupt)
    done = runner.invoke(app, [*map(str, words), "--seeds", "3"])
    assert done.exit_code == 130
    assert f"the seeds and k that are done are in {tmp_path / 'scout' / 'scout.json'}" in done.stderr
    words[3] = tmp_path / "new"
    done = runner.invoke(app, [str(word) for word in words])
    assert done.exit_code == 130
    assert "interrupted before the first seed and k; the same command goes on" in done.stderr
