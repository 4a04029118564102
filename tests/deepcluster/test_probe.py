"""The linear probe: its classifier, its split, its pooling, and the whole of it on a run."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from support.training import Silent
from typer.testing import CliRunner

from dcfast import cli
from dcfast.deepcluster import load_run
from dcfast.deepcluster import probe as probing
from dcfast.deepcluster.keyed import Stream, generator
from dcfast.deepcluster.linear import accuracy, fit_linear
from dcfast.deepcluster.models import CustomBackbone, build_model
from dcfast.deepcluster.probe import pooling, probe, split_by_class


@pytest.fixture(autouse=True)
def one_thread():
    """On problems this small threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def quick(path, **options):
    return probe(path, **{"epochs": 15, "batch_size": 16, "display": Silent(), **options})


def blobs(n_rows, width, n_classes=5, seed=0):
    """Return rows around well separated class means, and their classes."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).standard_normal((n_classes, width))
    labels = rng.integers(n_classes, size=n_rows)
    rows = means[labels] + 0.5 * rng.standard_normal((n_rows, width))
    return torch.from_numpy(rows.astype(np.float32)), labels


@pytest.mark.parametrize(("n_rows", "width"), [(1000, 20), (150, 400)], ids=["more rows", "more features"])
def test_separable_features_are_learned_and_shuffled_labels_are_not(n_rows, width):
    rows, labels = blobs(n_rows, width)
    unseen, truth = blobs(2000, width, seed=1)
    assert accuracy(fit_linear(rows, labels, 5, epochs=30), unseen, truth) > 0.97
    shuffled = np.random.default_rng(2).permutation(labels)
    drawn = np.random.default_rng(3).permutation(truth)
    # Shuffled truth is independent of any answer: 0.2 with a standard deviation of 0.009.
    assert abs(accuracy(fit_linear(rows, shuffled, 5, epochs=30), unseen, drawn) - 0.2) < 0.04
    # What is learned from shuffled labels must not tell classes: below one half whatever the seed.
    assert accuracy(fit_linear(rows, shuffled, 5, epochs=30), unseen, truth) < 0.5


@pytest.mark.parametrize(("n_rows", "width"), [(70, 12), (40, 90)], ids=["primal", "dual"])
def test_classifier_follows_torch_sgd(n_rows, width):
    """Both ways of taking the steps give what torch's own optimizer gives on the weights."""
    rows, labels = blobs(n_rows, width, n_classes=3)
    lr, decay, batch_size = 0.05, 0.02, 16
    model = torch.nn.Linear(width, 3).double()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    sgd = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
    step = 0
    for epoch in range(4):
        order = torch.from_numpy(generator(7, Stream.PROBE, epoch + 1).permutation(n_rows))
        for batch in order.split(batch_size):
            sgd.param_groups[0]["lr"] = lr / math.sqrt(1 + lr * decay * step)
            sgd.zero_grad()
            torch.nn.functional.cross_entropy(model(rows[batch].double()), torch.from_numpy(labels)[batch]).backward()
            sgd.step()
            step += 1
    found = fit_linear(rows, labels, 3, epochs=4, lr=lr, weight_decay=decay, batch_size=batch_size, seed=7)
    torch.testing.assert_close(found.weight.double(), model.weight.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.bias.double(), model.bias.detach(), rtol=1e-4, atol=1e-5)


def test_divergence_is_told():
    rows, labels = blobs(50, 10)
    with pytest.raises(FloatingPointError, match="lower --lr"):
        fit_linear(1e30 * rows, labels, 5, epochs=3, lr=1e30)


def test_split_is_stratified_and_keyed():
    labels = np.repeat([0, 1, 2, -1, 4], [50, 5, 2, 9, 1])
    np.random.default_rng(0).shuffle(labels)
    train, test = split_by_class(labels, seed=3)
    assert np.bincount(labels[train]).tolist() == [40, 4, 1, 0, 1]
    assert np.bincount(labels[test]).tolist() == [10, 1, 1]
    assert sorted([*train, *test]) == np.flatnonzero(labels >= 0).tolist()
    again = split_by_class(labels, seed=3)
    assert np.array_equal(again[0], train)
    assert np.array_equal(again[1], test)
    assert not np.array_equal(split_by_class(labels, seed=4)[1], test)


def test_pooling_of_alexnet_is_the_published_one():
    model = build_model("alexnet", 224).eval()
    with torch.inference_mode():
        outputs = model.conv_outputs(torch.zeros(1, 3, 224, 224))
        shapes = [pooling(*output.shape[1:3])[0](output).shape[1:] for output in outputs]
    assert [tuple(shape) for shape in shapes] == [(96, 10, 10), (256, 6, 6), (384, 5, 5), (384, 5, 5), (256, 6, 6)]
    assert pooling(96, 55)[0].padding == 3


@pytest.mark.parametrize(("channels", "side"), [(32, 32), (96, 16), (128, 8), (64, 224), (512, 14), (20_000, 3)])
def test_pooling_fills_the_limit(channels, side):
    pool, grid = pooling(channels, side)
    images = torch.rand(2, channels, side, side)
    pooled = pool(images)
    assert pooled.shape == (2, channels, grid, grid)
    torch.testing.assert_close(pooled.mean((2, 3)), images.mean((2, 3)), rtol=0, atol=0.05)
    assert channels * grid**2 <= 9600 or grid == 1
    assert grid == side or channels * (grid + 1) ** 2 > 9600


@pytest.mark.parametrize("max_memory", [2**30, 2 * 24 * 4 * 9600, 1], ids=["one pass", "groups", "files"])
def test_features_do_not_depend_on_memory(make_run, max_memory):
    run = load_run(make_run())
    parts = tuple(probing._subset(run.dataset, rows) for rows in split_by_class(run.dataset.labels, 0))
    model, device = run.model, torch.device("cpu")
    blocks = probing._describe_blocks(model, parts[0], None, device)
    folder = run.dir.path
    found = list(probing._extract(model, blocks, parts, run.options, device, max_memory, folder, "", Silent()))
    assert len(found) == 5
    with torch.inference_mode():
        images = torch.stack([parts[1].eval_image(index) for index in range(len(parts[1]))])
        expected = [pooling(*out.shape[1:3])[0](out).flatten(1) for out in model.conv_outputs(images)]
    for features, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(features.test, wanted)
        assert features.train.shape == (len(parts[0]), wanted.shape[1])
        assert features.train.isfinite().all()
    assert not list(run.dir.path.glob("tmp*"))


def test_groups():
    assert probing._groups([3, 3, 3, 9, 2, 2], 6) == [[0, 1], [2], [3], [4, 5]]


def test_probe_of_a_run(make_run):
    path = make_run(per_class=40)
    result = quick(path)
    assert [layer.name for layer in result.layers] == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    assert (result.epoch, result.n_train, result.n_test, result.n_classes) == (3, 64, 16, 2)
    assert result.chance == 0.5
    # Thin and thick stripes are easily told apart.
    assert max(layer.trained for layer in result.layers) >= 0.9
    assert all(layer.n_features <= 9600 for layer in result.layers)
    stored = load_run(path).dir.read_probe()
    assert stored == json.loads(json.dumps(result.to_dict()))
    html = (path / "report.html").read_text()
    assert '<section id="probe">' in html
    assert f"<td>{result.layers[0].trained:.1%}</td>" in html
    assert quick(path) == result
    assert [layer for layer in result.layers if layer.name in {"conv2", "conv4"}] == list(
        quick(path, layers=[4, 2]).layers
    )


def test_untrained_column_is_the_untrained_network(make_run):
    """A run whose weights are the initial ones gains nothing, to the bit."""
    path = make_run()
    run = load_run(path)
    run.dir.write_checkpoint({"model": run.untrained_model().state_dict(), "epoch": 3})
    for layer in quick(path, epochs=3).layers:
        assert (layer.trained, layer.trained_fit) == (layer.untrained, layer.untrained_fit)


def test_test_folder(make_run, tmp_path):
    path = make_run(per_class=20)
    folder = tmp_path / "test"
    shutil.copytree(tmp_path / "images" / "thin", folder / "thin")
    result = quick(path, test=folder)
    assert (result.n_train, result.n_test, result.chance, result.test) == (40, 20, 1.0, str(folder))
    # Every test image was trained on, so both accuracies speak of the same answers.
    assert all(layer.trained > 0.5 for layer in result.layers if layer.trained_fit == 1)
    # Were the sub-folder taken for class 0 ('thick') the accuracy would be that of the wrong class.
    assert max(layer.trained for layer in result.layers) == 1
    (folder / "thin").rename(folder / "wide")
    with pytest.raises(ValueError, match=r"'wide'.*thick, thin"):
        quick(path, test=folder)


def test_what_cannot_be_probed(make_run, tmp_path):
    path = make_run(epochs=0)
    with pytest.raises(FileNotFoundError, match="no epoch has ended"):
        quick(path)
    path = make_run()
    for options, message in (
        ({"epochs": 0}, "epochs"),
        ({"lr": -1.0}, "lr"),
        ({"batch_size": 0}, "batch_size"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"max_memory": 0}, "max_memory"),
        ({"layers": [6]}, "1 to 5"),
        ({"layers": [0]}, "1 to 5"),
        ({"layers": []}, "1 to 5"),
    ):
        with pytest.raises(ValueError, match=message):
            quick(path, **options)
    assert not (path / "probe.json").exists()


def test_a_network_without_convolutions_cannot_be_probed(make_run):
    data = load_run(make_run()).dataset
    model = CustomBackbone(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4)), 4)
    with pytest.raises(ValueError, match="the network has no convolutions"):
        probing._describe_blocks(model, data, None, torch.device("cpu"))


def test_the_middle_of_an_epoch_is_named(make_run):
    path = make_run()
    directory = load_run(path).dir
    directory.write_checkpoint({**directory.read_checkpoint(), "begun": {"step": 2}})
    result = quick(path, epochs=1, layers=[1])
    assert (result.epoch, result.moment) == (3, "in the middle of epoch 4")
    assert result.table().title.startswith("Linear probe in the middle of epoch 4: ")


def test_labels_are_needed(make_run):
    with pytest.raises(ValueError, match="needs labels"):
        quick(make_run(labelled=False))


def test_two_classes_are_needed(make_run):
    with pytest.raises(ValueError, match="two classes"):
        quick(make_run(names=("only",)))


def test_command(make_run):
    path = make_run()
    done = CliRunner().invoke(cli.app, ["probe", str(path), "--epochs", "2", "--layer", "1", "--layer", "3"])
    assert done.exit_code == 0, done.output
    assert "conv1" in done.output
    assert "conv3" in done.output
    assert "conv2" not in done.output
    stored = load_run(path).dir.read_probe()
    assert [layer["name"] for layer in stored["layers"]] == ["conv1", "conv3"]
    assert stored["options"]["epochs"] == 2


def test_command_without_labels(make_run):
    done = CliRunner().invoke(cli.app, ["probe", str(make_run(labelled=False))])
    assert done.exit_code == 2
    assert "needs labels" in done.output
