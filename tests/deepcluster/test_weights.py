"""Weights in and out: published names, torchvision's, safetensors, and files that do not fit."""

import sys

import pytest
import safetensors.torch
import torch
from support.training import no_report, train  # noqa: F401 - a fixture for all tests here

from dcfast.deepcluster import export, load_run, load_weights
from dcfast.deepcluster.models import VGG16, AlexNet, ResNet, SmallConvNet, build_model, build_top_layer, load_state
from dcfast.deepcluster.rundir import RunDir


def _equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def _published(model, **more):
    """The state_dict as DeepCluster's authors published it: in DataParallel, by a torch that counted no batches."""
    names = {
        name.replace("features.", "features.module.", 1): value
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    around = {"sobel.0.weight": torch.zeros(1, 3, 1, 1), "top_layer.weight": torch.zeros(10, 8)}
    return {"epoch": 500, "arch": "alexnet", "optimizer": {"state": {}}, "state_dict": {**names, **around, **more}}


def test_a_published_checkpoint_loads(tmp_path):
    torch.manual_seed(1)
    published = AlexNet(63, width=8)
    torch.save(_published(published), tmp_path / "checkpoint.pth.tar")
    torch.manual_seed(2)
    model = AlexNet(63, width=8)
    assert not _equal(model.state_dict(), published.state_dict())
    load_weights(model, tmp_path / "checkpoint.pth.tar")
    assert _equal(model.state_dict(), published.state_dict())


def test_published_names_are_the_authors_names(make_run, tmp_path):
    path = make_run(arch="alexnet", image_size=63)
    directory = RunDir(path)
    head = build_top_layer(4096, 5)
    directory.write_checkpoint({**directory.read_checkpoint(), "head": head.state_dict()})
    run = load_run(path)
    written = torch.load(export(run, "published", tmp_path / "alexnet.pth.tar"), weights_only=True)
    state = written["state_dict"]
    assert (written["arch"], written["epoch"]) == ("alexnet", 3)
    assert {"features.module.0.weight", "features.module.1.running_var", "classifier.1.weight"} < state.keys()
    assert state["top_layer.weight"].shape == (5, 4096)
    # What stands before the first convolution: grey by the mean of the channels, then the two gradients.
    image = torch.rand(1, 3, 5, 5)
    grey = torch.nn.functional.conv2d(image, state["sobel.0.weight"], state["sobel.0.bias"])
    gradients = torch.nn.functional.conv2d(grey, state["sobel.1.weight"], state["sobel.1.bias"])
    torch.testing.assert_close(grey, image.mean(1, keepdim=True))
    across = grey[0, 0, 1, 0:3:2] * 2 + grey[0, 0, 0, 0:3:2] + grey[0, 0, 2, 0:3:2]
    torch.testing.assert_close(gradients[0, 0, 0, 0], across[0] - across[1])
    model = AlexNet(63)
    load_weights(model, tmp_path / "alexnet.pth.tar")
    assert _equal(model.state_dict(), run.model.state_dict())


def test_exports_are_the_network(make_run):
    run = load_run(make_run())
    plain = torch.load(export(run), weights_only=True)
    safe = safetensors.torch.load_file(export(run, "safetensors"))
    assert _equal(plain, run.model.state_dict())
    assert _equal(safe, plain)
    for name in ("model.pt", "model.safetensors", "checkpoint.pt", ""):
        model = SmallConvNet(16)
        assert not _equal(model.state_dict(), plain)
        load_weights(model, run.dir.path / name)
        assert _equal(model.state_dict(), plain)


def test_exports_that_cannot_be(make_run, monkeypatch):
    run = load_run(make_run())
    with pytest.raises(ValueError, match="format must be one of 'state_dict'"):
        export(run, "onnx")
    with pytest.raises(ValueError, match="for 'alexnet' and 'vgg16' only, got 'small'"):
        export(run, "published")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ModuleNotFoundError, match="pip install safetensors, or use --format state_dict"):
        export(run, "safetensors")
    assert not (run.dir.path / "model.safetensors").exists()


def test_files_that_do_not_fit_name_the_first_keys(tmp_path):
    model = SmallConvNet(16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(ResNet(18).state_dict(), tmp_path / "other.pt")
    lacks = r"it lacks features\.0\.weight, features\.0\.bias, features\.1\.weight and \d+ more; it has conv1\.weight"
    with pytest.raises(ValueError, match=lacks + r".*\. Choose --arch"):
        load_weights(model, tmp_path / "other.pt")
    torch.save(SmallConvNet(16, sobel=False).state_dict(), tmp_path / "colours.pt")
    with pytest.raises(ValueError, match=r": features\.0\.weight is \(32, 3, 3, 3\) there and \(32, 2, 3, 3\) here\."):
        load_weights(model, tmp_path / "colours.pt")
    assert _equal(model.state_dict(), before)
    with pytest.raises(ValueError, match=r"it lacks 1\.bias\. Do this"):
        load_state(
            torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(2, 2)), {"1.weight": torch.ones(2, 2)}, "x", "do this"
        )


def _cut_short(path):
    path.write_bytes(safetensors.torch.save({"weight": torch.zeros(9)})[:-8])


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("text.pt", lambda path: path.write_text("not weights")),
        ("empty.pt", lambda path: path.touch()),
        ("cut.safetensors", _cut_short),
        ("objects.pt", lambda path: torch.save({"options": SmallConvNet}, path)),
    ],
)
def test_files_that_cannot_be_read_are_told_with_a_remedy(tmp_path, name, write):
    write(tmp_path / name)
    message = rf"{name} is damaged, or a file of another kind: give a state_dict of tensors .* or a run$"
    with pytest.raises(ValueError, match=message):
        load_weights(SmallConvNet(16), tmp_path / name)


def test_files_that_are_no_checkpoint(tmp_path):
    for content in ({"epoch": 3}, {0: torch.zeros(2)}, [1], None, {"state_dict": 7}):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=r"other\.pt holds no state_dict"):
            load_weights(SmallConvNet(16), tmp_path / "other.pt")
    for path in (tmp_path / "nothing.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint .*{path.name}"):
            load_weights(SmallConvNet(16), path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = SmallConvNet(16).state_dict()
    state["features.1.running_var"][3] = float("inf")
    torch.save(state, tmp_path / "diverged.pt")
    with pytest.raises(ValueError, match=r"diverged\.pt .*: features\.1\.running_var is not finite"):
        load_weights(SmallConvNet(16), tmp_path / "diverged.pt")


def test_an_export_from_the_middle_of_an_epoch_says_so(make_run):
    directory = RunDir(make_run())
    assert load_run(directory.path).moment == "after epoch 3"
    directory.write_checkpoint({**directory.read_checkpoint(), "begun": {"step": 2}})
    with pytest.warns(UserWarning, match="was interrupted: these are its weights in the middle of epoch 4"):
        export(load_run(directory.path))


def test_an_export_needs_a_folder(make_run, tmp_path):
    run = load_run(make_run())
    with pytest.raises(
        FileNotFoundError, match=r"no folder .*nowhere for x\.pt: make it first, or choose another --output"
    ):
        export(run, output=tmp_path / "nowhere" / "x.pt")
    with pytest.raises(IsADirectoryError, match="is a folder: give --output a file in it"):
        export(run, output=tmp_path)


def test_a_run_starts_from_given_weights_and_forgets_where_they_lay(tmp_path):
    torch.manual_seed(5)
    given = SmallConvNet(16)
    torch.save(given.state_dict(), tmp_path / "given.pt")
    train(tmp_path / "run", init=str(tmp_path / "given.pt"), epochs=1, limit=40, n_clusters=4)
    (tmp_path / "given.pt").unlink()
    run = load_run(tmp_path / "run")
    assert _equal(run.untrained_model().state_dict(), given.state_dict())
    moved = (run.model.features[0].weight - given.features[0].weight).abs().max()
    assert 0 < moved < 1
    train_again = pytest.raises(FileNotFoundError, match="no checkpoint")
    with train_again:
        train(tmp_path / "other", init=str(tmp_path / "given.pt"))
    assert not (tmp_path / "other").exists()


def test_torchvision_s_names_load_into_a_resnet(tmp_path):
    torch.manual_seed(0)
    published = ResNet(18, sobel=False)
    state = {**published.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "resnet18.pth")
    model = build_model("resnet18", 224, sobel=False)
    assert not _equal(model.state_dict(), published.state_dict())
    load_weights(model, tmp_path / "resnet18.pth")
    assert _equal(model.state_dict(), published.state_dict())


def test_torchvision_s_names_load_into_a_vgg(tmp_path):
    torch.manual_seed(0)
    published = VGG16(32, sobel=False, width=8)
    top = {"classifier.6.weight": torch.zeros(1000, 8), "classifier.6.bias": torch.zeros(1000)}
    torch.save({**published.state_dict(), **top}, tmp_path / "vgg16_bn.pth")
    model = VGG16(32, sobel=False, width=8)
    assert not _equal(model.state_dict(), published.state_dict())
    load_weights(model, tmp_path / "vgg16_bn.pth")
    assert _equal(model.state_dict(), published.state_dict())
