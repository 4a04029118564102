"""Features by a trained network, and their clusters: what is written, and what is not."""

import contextlib
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score, homogeneity_score
from sklearn.preprocessing import normalize
from support.training import Silent
from support.vit import PATCH, WIDTH, make
from typer.testing import CliRunner

from dcfast import ClusterHead, KMeans, PCAWhiten
from dcfast.cli import app
from dcfast.deepcluster import export, load_run
from dcfast.deepcluster.embed import embed
from dcfast.deepcluster.embedding import open_embedding
from dcfast.deepcluster.metrics import matched_accuracy
from dcfast.deepcluster.models import MicroAlexNet, ResNet, SmallConvNet
from dcfast.deepcluster.partition import partition
from dcfast.deepcluster.vit import ViT
from dcfast.deepcluster.weights import load_network
from dcfast.nn import IMAGENET_MEAN, IMAGENET_STD, UnitLinear

EMBEDDED = ["embedding.json", "features.npy", "images.npz"]
CLUSTERED = ["assignments.npz", "clusters.json", "report.html"]


@pytest.fixture
def dcfast(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    runner = CliRunner()
    return lambda *words: runner.invoke(app, [str(word) for word in words])


@pytest.fixture
def vit(tmp_path):
    torch.save(make(2), tmp_path / "vit.pth")
    return tmp_path / "vit.pth"


@pytest.fixture
def embedded(vit, tmp_path):
    """The digits through a small transformer, 200 of them."""
    embed("digits", vit, tmp_path / "embedding", limit=200, display=Silent())
    return tmp_path / "embedding"


def _files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_run_s_features_are_those_of_its_network(make_run, tmp_path, dcfast):
    run = make_run()
    done = dcfast(
        "embed", tmp_path / "images", "--weights", run, "--output", tmp_path / "new" / "out", "--batch-size", 7
    )
    assert done.exit_code == 0, done.output
    assert done.output.strip() == f"512 features of 24 images in {tmp_path / 'new' / 'out'}"
    assert _files(tmp_path / "new" / "out") == EMBEDDED
    data, model = load_run(run).dataset, load_run(run).model
    with torch.inference_mode():
        wanted = model.forward_features(torch.stack([data.eval_image(index) for index in range(24)]))
    features = np.load(tmp_path / "new" / "out" / "features.npy", mmap_mode="r")
    assert (features.dtype, features.shape, features.flags.c_contiguous) == (np.float32, (24, 512), True)
    np.testing.assert_allclose(features, wanted.numpy(), rtol=1e-4, atol=1e-5)
    images, assigned = np.load(tmp_path / "new" / "out" / "images.npz"), load_run(run).assignments
    for name in ("files", "label"):
        np.testing.assert_array_equal(images[name], assigned[name])
        assert images[name].dtype == assigned[name].dtype
    assert images["class_names"].tolist() == ["thick", "thin"]
    about = json.loads((tmp_path / "new" / "out" / "embedding.json").read_text())
    assert (about["weights"], about["network"], about["image_size"]) == (str(run), "SmallConvNet", 16)
    assert (about["data"]["n_images"], about["data"]["kind"]) == (24, "folder")


def test_a_transformer_s_features_and_the_images_that_do_not_decode(make_run, vit, tmp_path):
    make_run(labelled=False, epochs=0)
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"skipped broken\.png"):
        shape = embed(tmp_path / "images", vit, tmp_path / "out", image_size=PATCH * 3, workers=2, display=Silent())
    found = open_embedding(tmp_path / "out")
    assert shape == found.features.shape == (24, WIDTH)
    assert "broken.png" not in found.files
    assert (found.labels == -1).all()
    data = found.images()
    network, _ = load_network(vit)
    with torch.inference_mode():
        wanted = network.forward_features(torch.stack([data.eval_image(index) for index in range(24)]))
    assert data.image_size == PATCH * 3
    np.testing.assert_allclose(found.features, wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_neither_workers_nor_overwriting_change_a_bit(make_run, vit, tmp_path, dcfast):
    make_run(epochs=0)
    words = ["embed", tmp_path / "images", "--weights", vit, "--output", tmp_path / "out", "--limit", 20, "--seed", 3]
    assert dcfast(*words, "--workers", 0).exit_code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    again = dcfast(*words, "--workers", 2)
    assert again.exit_code == 2
    assert "already holds features.npy: choose another --output, or replace it with --overwrite" in again.stderr
    assert dcfast(*words, "--workers", 2, "--overwrite").exit_code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    files = open_embedding(tmp_path / "out").files
    assert dcfast(*words[:-1], 4, "--overwrite").exit_code == 0
    assert len(files) == 20
    assert set(files) != set(open_embedding(tmp_path / "out").files)


def test_half_precision_is_close(vit, embedded, tmp_path):
    embed("digits", vit, tmp_path / "half", limit=200, precision="bfloat16", display=Silent())
    one, other = (open_embedding(tmp_path / name).features for name in ("embedding", "half"))
    assert other.dtype == np.float32
    assert 0 < np.abs(one - other).max() < 0.2


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (SmallConvNet(32), 32),
        (SmallConvNet(16, sobel=False), 16),
        (MicroAlexNet(16), 16),
        (ResNet(18, sobel=False), 224),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else str(value),
)
def test_a_file_tells_which_network_it_is_of(tmp_path, network, size):
    torch.save({"state_dict": {**network.state_dict(), "fc.weight": torch.zeros(3, 2)}}, tmp_path / "weights.pt")
    drawn = torch.get_rng_state()
    found, side = load_network(tmp_path / "weights.pt")
    assert (type(found), side, found.training) == (type(network), size, False)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in found.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_an_export_is_its_run(make_run):
    run = load_run(make_run(image_size=24))
    with pytest.raises(ValueError, match=r"fits no network, for images of the usual sizes: it has features\.0"):
        load_network(export(run))
    found, size = load_network(export(run), 24)
    assert size == 24
    assert all(torch.equal(value, run.model.state_dict()[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{}/nowhere", "--weights", "{}/vit.pth"], "no folder"),
        (["{}/empty", "--weights", "{}/vit.pth"], "no images in"),
        (["digits", "--weights", "{}/none.pth"], "no checkpoint"),
        (["digits", "--weights", "{}/empty"], "holds no run"),
        (
            ["digits", "--weights", "{}/other.pth"],
            "fits no network, for images of the usual sizes: it has weight and 0",
        ),
        (["digits", "--weights", "{}/text.pth"], "is damaged, or a file of another kind"),
        (["digits", "--weights", "{}/vit.pth", "--image-size", "22"], "do not divide into patches of 4"),
        (["digits", "--weights", "{}/run", "--image-size", "32"], "image_size=32 does not fit the network of"),
        (["digits", "--weights", "{}/vit.pth", "--image-size", "4"], "image_size must be at least 8"),
        (["digits", "--weights", "{}/vit.pth", "--batch-size", "0"], "batch_size must be at least 1"),
        (["digits", "--weights", "{}/vit.pth", "--limit", "0"], "limit must be at least 1"),
        (["digits", "--weights", "{}/vit.pth", "--precision", "int8"], "precision must be one of"),
        (["digits", "--weights", "{}/vit.pth", "--device", "tpu"], "device must be 'auto'"),
    ],
)
def test_mistakes_leave_nothing_behind(make_run, vit, tmp_path, dcfast, words, message):
    make_run()
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    done = dcfast("embed", *(word.format(tmp_path) for word in words), "--output", tmp_path / "out")
    assert (done.exit_code, done.output.count("Traceback")) == (2, 0), done.output
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_features_that_are_not_finite_are_not_written(tmp_path, dcfast):
    state = make(1)
    state["norm.weight"] *= 2e38
    torch.save(state, tmp_path / "large.pth")
    done = dcfast("embed", "digits", "--weights", tmp_path / "large.pth", "--output", tmp_path / "out")
    assert (done.exit_code, "are not finite" in done.stderr) == (1, True)
    assert not (tmp_path / "out").exists()


def test_an_interruption_leaves_everything_as_it_was(vit, embedded, tmp_path, dcfast, monkeypatch):
    before = {path.name: path.read_bytes() for path in embedded.iterdir()}
    whole, calls = ViT.forward_features, []

    def interrupt(self, images):
        calls.append(len(images))
        if len(calls) == 3:  # the trial of the weights, a batch, and the next one
            raise KeyboardInterrupt
        return whole(self, images)

    monkeypatch.setattr(ViT, "forward_features", interrupt)
    for output, options in ((embedded, ["--overwrite"]), (tmp_path / "new", [])):
        calls.clear()
        done = dcfast("embed", "digits", "--weights", vit, "--output", output, "--limit", 200, *options)
        assert (done.exit_code, calls) == (130, [1, 64, 64])
        assert "interrupted; nothing was written" in done.stderr
    assert {path.name: path.read_bytes() for path in embedded.iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_memory_that_does_not_suffice_is_told(vit, tmp_path, dcfast, monkeypatch):
    whole = ViT.forward_features

    def fail(self, images):
        if len(images) > 1:  # one is the trial of the weights
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return whole(self, images)

    monkeypatch.setattr(ViT, "forward_features", fail)
    done = dcfast("embed", "digits", "--weights", vit, "--output", tmp_path / "out")
    wanted = "error: out of memory: give a lower --batch-size or --image-size"
    assert (done.exit_code, done.stderr.strip()) == (1, wanted)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_before_anything_is_computed(vit, tmp_path, dcfast, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    done = dcfast("embed", "digits", "--weights", vit, "--output", tmp_path / "out")
    assert (done.exit_code, "only 1,000 are free" in done.stderr) == (1, True)
    assert not (tmp_path / "out").exists()


# Clusters.


def test_kmeans_is_dcfast_s_and_the_report_shows_the_images(embedded, tmp_path, dcfast):
    words = ["cluster", embedded, "--output", tmp_path / "out", "--n-clusters", 12, "--seed", 5]
    done = dcfast(*words)
    assert done.exit_code == 0, done.output
    assert "accuracy under the best matching" in done.output
    assert str(tmp_path / "out" / "report.html") in done.output
    assert _files(tmp_path / "out") == CLUSTERED
    found, written = open_embedding(embedded), np.load(tmp_path / "out" / "assignments.npz")
    fitted = KMeans(12, random_state=5).fit(np.array(found.features))
    assert adjusted_rand_score(written["cluster"], fitted.labels_) == 1
    np.testing.assert_array_equal(written["files"], found.files)
    np.testing.assert_array_equal(written["label"], found.labels)
    result = json.loads((tmp_path / "out" / "clusters.json").read_text())["result"]
    assert result["inertia"] == pytest.approx(fitted.inertia_, rel=1e-4)  # the means are a step further
    assert result["ari"] == pytest.approx(adjusted_rand_score(found.labels, fitted.labels_))
    sizes = np.bincount(written["cluster"])
    assert (result["smallest"], result["largest"], result["n_clusters"]) == (sizes.min(), sizes.max(), 12)
    best = np.zeros((12, 10), dtype=int)
    np.add.at(best, (written["cluster"], found.labels), 1)
    assert best.max() / 200 <= result["accuracy"] <= best.max(axis=1).sum() / 200
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<img ") == np.minimum(sizes, 8).sum()
    assert "dcfast cluster" in page
    assert "--seed 5" in page
    again = dcfast(*words)
    assert (again.exit_code, "already holds assignments.npz" in again.stderr) == (2, True)
    before = (tmp_path / "out" / "assignments.npz").read_bytes()
    assert dcfast(*words, "--overwrite").exit_code == 0
    assert (tmp_path / "out" / "assignments.npz").read_bytes() == before


def test_features_are_whitened_and_normalised_first(embedded, tmp_path):
    features = np.array(open_embedding(embedded).features)
    prepared = {
        "both": ({"pca": 8, "normalize": True}, PCAWhiten(8).fit_transform(features)),
        "pca": ({"pca": 8}, PCAWhiten(8, normalize=False).fit_transform(features)),
        "rows": ({"normalize": True}, normalize(features)),
    }
    for name, (options, points) in prepared.items():
        partition(embedded, tmp_path / name, n_clusters=7, display=Silent(), **options)
        wanted = KMeans(7, random_state=0).fit_predict(points)
        assert adjusted_rand_score(np.load(tmp_path / name / "assignments.npz")["cluster"], wanted) == 1


def test_a_file_of_features_and_a_clusterer_of_scikit_learn(tmp_path, dcfast):
    centres = np.eye(4) * 9
    features = (np.repeat(centres, 10, axis=0) + np.random.default_rng(0).normal(size=(40, 4))).astype(np.float64)
    np.save(tmp_path / "x.npy", features)
    words = ["cluster", tmp_path / "x.npy", "--output", tmp_path / "out", "--method", "AgglomerativeClustering"]
    done = dcfast(*words, "--n-clusters", 4)
    assert done.exit_code == 0, done.output
    assert "accuracy" not in done.output
    written = np.load(tmp_path / "out" / "assignments.npz")
    assert adjusted_rand_score(written["cluster"], AgglomerativeClustering(4).fit_predict(features)) == 1
    assert (written["files"][7], set(written["label"])) == ("00000007", {-1})
    assert "The images cannot be shown" in (tmp_path / "out" / "report.html").read_text()


def test_noise_is_in_no_cluster(tmp_path):
    features = np.repeat(np.eye(3, dtype=np.float32), 8, axis=0)
    np.save(tmp_path / "x.npy", np.vstack([features, np.full((1, 3), 50, np.float32)]))
    found = partition(tmp_path / "x.npy", tmp_path / "out", method="DBSCAN", display=Silent())
    assert (found.n_clusters, found.n_noise, found.inertia, found.smallest, found.largest) == (3, 1, 0.0, 8, 8)
    assert np.load(tmp_path / "out" / "assignments.npz")["cluster"].tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [-1]
    assert "1 images are in none of them" in (tmp_path / "out" / "report.html").read_text()


def test_images_without_labels_or_without_files(make_run, vit, tmp_path):
    make_run(labelled=False, epochs=0)
    embed(tmp_path / "images", vit, tmp_path / "embedding", display=Silent())
    found = partition(tmp_path / "embedding", tmp_path / "out", n_clusters=3, display=Silent())
    assert (found.accuracy, found.nmi, found.ari, found.ami) == (None,) * 4
    assert "<img " in (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "images" / "thin-00.png").unlink()
    partition(tmp_path / "embedding", tmp_path / "later", n_clusters=3, display=Silent())
    page = (tmp_path / "later" / "report.html").read_text()
    assert "The images cannot be shown: 1 images are gone from" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{}/none", "--n-clusters", 3], "no features"),
        (["{}/empty", "--n-clusters", 3], "holds no embedding: there is no embedding.json in it"),
        (["{}/x.npy"], "method='kmeans' needs the number of clusters: give --n-clusters"),
        (["{}/x.npy", "--n-clusters", 1], "n_clusters must be at least 2, got 1"),
        (["{}/x.npy", "--n-clusters", 9], "n_clusters=9 needs at least as many images, got 6: lower --n-clusters"),
        (["{}/x.npy", "--n-clusters", 3, "--method", "DBSCAN"], "method='DBSCAN' finds the number of clusters itself"),
        (["{}/x.npy", "--n-clusters", 3, "--method", "Nothing"], "method='Nothing' is no class with fit_predict"),
        (["{}/x.npy", "--n-clusters", 3, "--pca", 6], "pca must be between 1 and 2 for 6 images of 2 features, got 6"),
        (["{}/x.npy", "--n-clusters", 3, "--seed", -1], "seed must be between 0 and 4294967295, got -1"),
        (["{}/x.npy", "--method", "pic", "--pca", 2], "method='pic' found 1 cluster(s) in 6 images"),
        (["{}/few.npy", "--method", "pic"], "method='pic' cannot cluster 5 images: n_neighbors=5 must be less than"),
        (["{}/x.npy", "--method", "DBSCAN"], "method='DBSCAN' found 0 cluster(s) in 6 images"),
        (["{}/nan.npy", "--n-clusters", 3], "nan.npy is of no use: row 4 is not finite"),
        (["{}/flat.npy", "--n-clusters", 3], "must hold an array of shape (images, features), got (6,)"),
        (["{}/whole.npy", "--n-clusters", 3], "must hold features of float16, float32 or float64, got int64"),
        (["{}/swapped.npy", "--n-clusters", 3], "must hold features of float16, float32 or float64, got >f4"),
        (["{}/text.npy", "--n-clusters", 3], "is no .npy file of numbers, or is damaged"),
    ],
)
def test_mistakes_of_clustering_leave_nothing_behind(tmp_path, dcfast, words, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npy").write_text("1 2 3")
    features = 10.0 * np.arange(12, dtype=np.float32).reshape(6, 2)
    np.save(tmp_path / "x.npy", features)
    np.save(tmp_path / "flat.npy", features[:, 0])
    np.save(tmp_path / "few.npy", features[:5])
    np.save(tmp_path / "whole.npy", features.astype(np.int64))
    np.save(tmp_path / "swapped.npy", features.astype(">f4"))
    features[4, 1] = np.nan
    np.save(tmp_path / "nan.npy", features)
    done = dcfast("cluster", *(str(word).format(tmp_path) for word in words), "--output", tmp_path / "out")
    assert (done.exit_code, done.output.count("Traceback")) == (2, 0), done.output
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_damaged_embedding_is_refused(embedded, tmp_path, dcfast):
    words = ["cluster", embedded, "--output", tmp_path / "out", "--n-clusters", 3]
    images = (embedded / "images.npz").read_bytes()
    (embedded / "images.npz").write_bytes(images[:-100])
    assert "images.npz is damaged, or a file of another kind: make it again with dcfast embed" in dcfast(*words).stderr
    np.savez(embedded / "images.npz", files=np.array(["a"]), label=np.array([0]))
    assert "holds 200 features of 1 images" in dcfast(*words).stderr
    (embedded / "embedding.json").write_text("{}")
    assert "embedding.json is damaged" in dcfast(*words).stderr


class Counting(Silent):
    """Counts the steps of its stages."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    @contextlib.contextmanager
    def stage(self, name, total):
        def advance(count, note=""):
            self.steps += count

        yield advance


@pytest.mark.parametrize(("method", "least"), [("kmeans", 2), ("head", 50), ("AgglomerativeClustering", 0)])
def test_progress_of_clustering(embedded, tmp_path, method, least):
    display = Counting()
    partition(embedded, tmp_path / "out", n_clusters=3, method=method, display=display)
    assert display.steps >= least
    assert (display.steps > 0) == (least > 0)


def test_an_interruption_of_clustering_leaves_nothing(embedded, tmp_path, dcfast, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(KMeans, "fit_predict", interrupt)
    done = dcfast("cluster", embedded, "--output", tmp_path / "out", "--n-clusters", 3)
    assert (done.exit_code, "interrupted; nothing was written" in done.stderr) == (130, True)
    assert not (tmp_path / "out").exists()


class Means(torch.nn.Module):
    """The colours of four by four regions, of an image of any size that these divide."""

    def forward(self, images):
        assert not self.training
        return torch.nn.functional.adaptive_avg_pool2d(images, 4)


def test_any_network_embeds(tmp_path):
    (tmp_path / "images").mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (9, 3))
    for number, colour in enumerate(colours):
        Image.new("RGB", (20, 30), tuple(colour.tolist())).save(tmp_path / "images" / f"{number}.png")
    network = Means().train()
    shape = embed(tmp_path / "images", network, tmp_path / "out", image_size=16, batch_size=5, display=Silent())
    assert (shape, network.training) == ((9, 48), True)
    found = open_embedding(tmp_path / "out")
    assert found.description["weights"] is None
    assert (found.description["network"], found.description["image_size"]) == ("Means", 16)
    normal = (colours / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(found.features, normal.repeat(16, axis=1), rtol=1e-5, atol=1e-6)
    partition(tmp_path / "out", tmp_path / "clusters", n_clusters=3, display=Silent())
    assert "Means" in (tmp_path / "clusters" / "report.html").read_text()


def network_of(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())


@pytest.mark.filterwarnings("error:The .grad attribute")
@pytest.mark.parametrize("kind", ["half", "double", "scripted", "parallel"])
def test_a_network_in_another_form_embeds_alike(tmp_path, kind):
    plain = network_of(0)
    given = {"scripted": torch.jit.script, "parallel": torch.nn.DataParallel}.get(kind, lambda network: network)(plain)
    given = given.half() if kind == "half" else given.double() if kind == "double" else given
    dtype = next(given.parameters()).dtype
    embed("digits", given, tmp_path / "out", image_size=8, limit=20, display=Silent())
    embed("digits", network_of(0), tmp_path / "plain", image_size=8, limit=20, display=Silent())
    found, wanted = (np.load(tmp_path / name / "features.npy") for name in ("out", "plain"))
    np.testing.assert_allclose(found, wanted, atol=2e-3 if kind == "half" else 1e-6)
    assert next(given.parameters()).dtype == dtype


@pytest.mark.parametrize(
    ("outputs", "shape"),
    [
        (lambda images: images[:1], "(1, 3, 8, 8) for 20"),
        (lambda images: torch.cat([images, images[1:]]), "(39, 3, 8, 8) for 20"),
        (lambda images: images.mean(), "() for 1"),
        (lambda images: images[:, :0], "(1, 0, 8, 8) for 1"),
        (lambda images: torch.fft.fft(images), "(1, 3, 8, 8) for 1"),
    ],
)
def test_a_network_returns_a_row_of_numbers_for_every_image(tmp_path, outputs, shape):
    network = torch.nn.Identity()
    network.register_forward_hook(lambda module, given, images: outputs(images))
    with pytest.raises(ValueError, match=re.escape(f"of shape {shape} image(s): a row of real features for each")):
        embed("digits", network, tmp_path / "out", image_size=8, limit=20, display=Silent())
    assert not (tmp_path / "out").exists()


def test_the_default_device_changes_no_feature(tmp_path, vit):
    for name, weights in (("own", network_of(0)), ("vit", vit)):
        embed("digits", weights, tmp_path / name, image_size=8, limit=20, display=Silent())
        with torch.device("meta"):
            embed("digits", weights, tmp_path / "again", image_size=8, limit=20, overwrite=True, display=Silent())
        found, wanted = (np.load(tmp_path / folder / "features.npy") for folder in ("again", name))
        np.testing.assert_array_equal(found, wanted)


def test_networks_of_no_use(tmp_path):
    with pytest.raises(ValueError, match=r"image_size=37 does not fit the Linear .*: give the side that it takes"):
        embed("digits", torch.nn.Linear(5, 2), tmp_path / "out", image_size=37, display=Silent())
    with pytest.raises(TypeError, match="returns a dict, not a tensor of features"):
        embed("digits", Boxed(), tmp_path / "out", display=Silent())
    with pytest.raises(FloatingPointError, match="the features of Diverged are not finite"):
        embed("digits", Diverged(), tmp_path / "out", image_size=8, limit=9, display=Silent())
    assert not (tmp_path / "out").exists()


class Boxed(torch.nn.Module):
    def forward(self, images):
        return {"features": images}


class Diverged(torch.nn.Module):
    def forward(self, images):
        return images * torch.nan


def test_the_output_is_no_file(vit, tmp_path, dcfast):
    (tmp_path / "out").touch()
    done = dcfast("embed", "digits", "--weights", vit, "--output", tmp_path / "out")
    assert (done.exit_code, "out is a file: choose another --output" in done.stderr) == (2, True)


def test_help_names_what_it_takes(dcfast):
    assert "DINOv2" in dcfast("embed", "--help").output
    assert "kmeans, head, pic" in dcfast("cluster", "--help").output


def separate(n=400):
    """Features of four groups, and the group of each."""
    classes = np.repeat(np.arange(4), n // 4)
    noise = np.random.default_rng(0).normal(size=(n, 16))
    return (8 * np.eye(4, 16)[classes] + noise).astype(np.float32), classes


@pytest.mark.parametrize(("method", "number"), [("head", 4), ("pic", None)])
def test_methods_of_our_own_find_separate_groups(tmp_path, method, number):
    features, classes = separate()
    np.save(tmp_path / "x.npy", features)
    options = {"n_clusters": number, "method": method, "pca": 3, "normalize": True, "display": Silent()}
    found = partition(tmp_path / "x.npy", tmp_path / "out", **options)
    cluster = np.load(tmp_path / "out" / "assignments.npz")["cluster"]
    assert homogeneity_score(classes, cluster) > 0.99
    assert found.n_clusters >= 4 if number is None else found.n_clusters == 4
    assert _files(tmp_path / "out") == CLUSTERED  # no head without its principal components
    again = partition(tmp_path / "x.npy", tmp_path / "again", **options)
    assert again.inertia == found.inertia


def test_a_network_and_its_head_give_the_clusters_of_the_images(embedded, vit, tmp_path):
    partition(embedded, tmp_path / "out", n_clusters=5, method="head", display=Silent())
    data = open_embedding(embedded).images()
    network, _ = load_network(vit)
    head = UnitLinear(network.feature_dim, 5)
    head.load_state_dict(torch.load(tmp_path / "out" / "head.pt"))
    with torch.inference_mode():
        logits = head(network.forward_features(torch.stack([data.eval_image(index) for index in range(200)])))
    cluster = np.load(tmp_path / "out" / "assignments.npz")["cluster"]
    assert (logits.argmax(1).numpy() == cluster).mean() > 0.98  # features are rounded otherwise in other batches


@pytest.mark.parametrize("empty", [False, True])
def test_the_head_gives_the_clusters_of_the_features(tmp_path, dcfast, monkeypatch, empty):
    features, classes = separate()
    np.save(tmp_path / "x.npy", features)
    words = ["cluster", tmp_path / "x.npy", "--output", tmp_path / "out", "--n-clusters", 4, "--overwrite"]
    if empty:  # a cluster without images has no number, hence no output
        words[words.index(4)] = 5
        train = ClusterHead._train

        def never_the_second(*given):
            weights, biases = train(*given)
            biases[:, 1] = -1e6
            return weights, biases

        monkeypatch.setattr(ClusterHead, "_train", never_the_second)
    done = dcfast(*words, "--method", "head")
    assert ("1 │ empty" in done.output) == empty
    assert f"head  {tmp_path / 'out' / 'head.pt'}" in done.output
    assert done.exit_code == 0, done.output
    assert _files(tmp_path / "out") == sorted([*CLUSTERED, "head.pt"])
    state = torch.load(tmp_path / "out" / "head.pt")
    assert len(state["bias"]) == 4
    layer = UnitLinear(16, len(state["bias"]))  # as in the README, whether or not a cluster is empty
    layer.load_state_dict(state)
    cluster = np.load(tmp_path / "out" / "assignments.npz")["cluster"]
    np.testing.assert_array_equal(layer(torch.from_numpy(features)).argmax(1), cluster)
    assert matched_accuracy(classes, cluster) > 0.95
    assert dcfast(*words).exit_code == 0
    assert _files(tmp_path / "out") == CLUSTERED  # the head of other clusters is gone
