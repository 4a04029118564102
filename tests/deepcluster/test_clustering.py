"""How a run clusters: warm starts, scikit-learn's clusterers, noise, and when clustering stops."""

import json

import numpy as np
import pytest
import sklearn.cluster
import torch
from support.training import Silent, assert_same_bits, no_report, train  # noqa: F401 - a fixture for all tests here

from dcfast import PCAWhiten, ops
from dcfast.cluster.ranks import Ranks
from dcfast.deepcluster import TrainConfig, load_run, resume, stages
from dcfast.deepcluster import trainer as trainer_module
from dcfast.deepcluster.metrics import cluster_sizes, moved_points, settled
from dcfast.deepcluster.report import write_report
from dcfast.deepcluster.rundir import RunDir
from dcfast.deepcluster.sampler import plain_order, uniform_order

TINY = {"limit": 60, "n_clusters": 5, "epochs": 3, "pca": 4, "dropout": 0.0}


def _history(agreement, moved=None):
    moved = moved or [50] * len(agreement)
    return [{"nmi_previous": a, "n_moved": m} for a, m in zip(agreement, moved, strict=True)]


@pytest.mark.parametrize(
    ("agreement", "expected"),
    [
        ([], False),
        ([0.5, 0.54, 0.54, 0.54, 0.54], False),  # five values are too few
        ([0.5, 0.56, 0.56, 0.54, 0.54, 0.54], True),
        ([0.5, 0.54, 0.54, 0.52, 0.58, 0.52], False),  # means .5267 and .54 are too far apart
        ([0.5, 0.54, 0.55, 0.52, 0.58, 0.51], True),  # .53 and .5367
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], False),  # level, but before anything was learnt
        ([0.98, 0.985, 0.98, 0.97, 0.95, 0.91], False),  # falls
        ([0.98, 0.85, 0.9, 0.9, 0.93, 0.93, 0.95, 0.95], False),  # rises
        ([0.98, 0.85, 0.9, 0.95, 0.95, 0.955, 0.95, 0.95, 0.96], True),
    ],
)
def test_settled_where_nmi_has_levelled_off(agreement, expected):
    assert settled(_history(agreement), 100) is expected


def test_settled_where_hardly_a_point_moves_three_times():
    assert settled(_history([0.9] * 4, [50, 1, 0, 1]), 100)
    assert not settled(_history([0.9] * 4, [50, 1, 2, 1]), 100)
    assert not settled(_history([0.9] * 2, [0, 0]), 100)


@pytest.mark.parametrize("reassign", [1, 2])
def test_training_goes_on_with_the_last_labels(tmp_path, monkeypatch, reassign):
    passes, layers = [], []
    extract, build = stages.extract_features, trainer_module.build_top_layer
    monkeypatch.setattr(trainer_module, "build_top_layer", lambda *a: layers.append(1) or build(*a))
    monkeypatch.setattr("dcfast.deepcluster.trainer.extract_features", lambda *a: passes.append(1) or extract(*a))
    options = {**TINY, "reassign": reassign, "stop_clustering": 2, "epochs": 3 * reassign}
    labels = train(tmp_path / "short", **{**options, "epochs": reassign + 1}).assignments
    del passes[:], layers[:]
    trainer = train(tmp_path / "run", **options)
    assert len(passes) == len(layers) == 2
    np.testing.assert_array_equal(trainer.assignments, labels)
    stopped = [record["stopped_clustering"] for record in trainer.history]
    assert stopped == [None] * reassign + [reassign + 1] * 2 * reassign
    assert trainer.history[-1]["objective"] is None


def test_stopping_survives_a_resume(tmp_path, monkeypatch):
    # Settles as soon as there are three, so that the parts are cut before, at and after the decision.
    monkeypatch.setattr("dcfast.deepcluster.metrics._LARGEST_MOVE", 1.0)
    options = {**TINY, "stop_clustering": "auto", "epochs": 5}
    whole = train(tmp_path / "whole", **options)
    assert [record["stopped_clustering"] for record in whole.history] == [None, None, None, 4, 4]
    train(tmp_path / "parts", **{**options, "epochs": 3})
    for epochs in (4, 5):
        resume(tmp_path / "parts", epochs=epochs, display=Silent()).fit()
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


def test_the_report_says_where_clustering_stopped_and_what_is_noise(make_run):
    path = make_run(clusters=np.arange(24) % 6 - 1)
    directory = RunDir(path)
    history = directory.read_metrics()
    for record in history[1:]:
        record.update(stopped_clustering=2, n_noise=4)
    directory.write_metrics(history)
    page = write_report(path).read_text()
    assert "Clustering stopped with epoch 2" in page
    assert "4 images are in none of them" in page
    assert "Cluster -1" not in page


def _features():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6)) * 8
    labels = np.repeat(np.arange(4), 20)
    return torch.from_numpy((centres[labels] + rng.normal(size=(80, 6))).astype(np.float32)), labels


def _resolved(**options):
    return TrainConfig(pca=3, **options).resolve(80, 16, "digits")


def test_a_warm_start_begins_with_the_means_of_the_new_features(monkeypatch):
    features, labels = _features()
    labels = labels * (labels != 3)  # the fourth cluster is empty
    seen = {}

    class Spy(stages.KMeans):
        def fit(self, X):
            seen.update(points=X, init=self.init)
            return super().fit(X)

    monkeypatch.setattr(stages, "KMeans", Spy)
    stages.cluster_features(features, _resolved(n_clusters=4, warm_start=True), 1, Silent(), labels)
    points, init = seen["points"], seen["init"]
    for cluster in (1, 2):
        members = points[torch.from_numpy(labels == cluster)]
        torch.testing.assert_close(init[cluster], members.double().mean(0).float(), rtol=1e-6, atol=1e-6)
    assert init.shape == (4, 3)
    # The empty one lies beside the cluster that it split.
    assert torch.cdist(init[3:], init[:3]).min() < 0.01 < torch.cdist(init[:1], init[1:3]).min()


@pytest.mark.parametrize("n", [2, 3, 8, 40])
def test_few_images_keep_fewer_components_than_tie_them_together(n, monkeypatch):
    """Whitened to as many components as they span, points are equally far apart, and no clustering means anything."""
    features = torch.randn(n, 64, generator=torch.Generator().manual_seed(0))
    fitted = []

    class Spy(stages.PCAWhiten):
        def fit(self, X, **options):
            fitted.append(self)
            return super().fit(X, **options)

    monkeypatch.setattr(stages, "PCAWhiten", Spy)
    config = TrainConfig(n_clusters=2, pca=256).resolve(n, 16, "digits")
    stages.cluster_features(features, config, 0, Silent())
    assert fitted[0].n_components == max(1, n // 4)
    if n == 40:
        others = ~torch.eye(n, dtype=torch.bool)
        few, every = (pca.transform(features) for pca in (fitted[0], PCAWhiten(n - 1).fit(features)))
        assert (every @ every.T)[others].std() < 1e-4 < 0.2 < (few @ few.T)[others].std()


def test_warm_starts_move_fewer_images(tmp_path):
    cold, warm = (
        train(tmp_path / str(flag), warm_start=flag, limit=100, n_clusters=10, epochs=2) for flag in (False, True)
    )
    assert cold.history[0]["objective"] == warm.history[0]["objective"]
    assert warm.history[-1]["n_moved"] < cold.history[-1]["n_moved"]
    assert warm.history[-1]["nmi_previous"] > cold.history[-1]["nmi_previous"]


@pytest.mark.parametrize(
    "name", ["AgglomerativeClustering", "sklearn.cluster.MiniBatchKMeans", "dcfast.KMeans", "head"]
)
def test_clusterers_by_name(name):
    features, labels = _features()
    found = stages.cluster_features(features, _resolved(n_clusters=4, clusterer=name), 0, Silent())
    again = stages.cluster_features(features, _resolved(n_clusters=4, clusterer=name), 0, Silent())
    np.testing.assert_array_equal(found.assignments, again.assignments)
    assert moved_points(labels, found.assignments) == 0
    assert (found.n_empty, (found.iterations is None)) == (0, name in ("AgglomerativeClustering", "head"))


def test_a_clusterer_that_finds_the_number_of_clusters(tmp_path):
    options = {**TINY, "epochs": 2, "clusterer": "pic"}
    with pytest.raises(ValueError, match="clusterer='pic' finds the number of clusters itself, got n_clusters=5"):
        train(tmp_path / "none", **options)
    trainer = train(tmp_path / "run", **{**options, "n_clusters": None})
    sizes = np.bincount(trainer.assignments)
    assert len(sizes) >= 2
    assert sizes.min() > 1
    assert [row["n_empty"] for row in trainer.history] == [0, 0]
    assert trainer.history[-1]["n_clusters"] == len(sizes)


def test_the_objective_is_that_of_k_means(tmp_path):
    features, labels = _features()
    points = stages.PCAWhiten(3).fit_transform(features)
    found = stages.cluster_features(features, _resolved(n_clusters=4, clusterer="AgglomerativeClustering"), 0, Silent())
    means = torch.stack([points[torch.from_numpy(labels == c)].mean(0) for c in range(4)])
    expected = (points - means[torch.from_numpy(labels)]).square().sum(1).mean()
    assert found.objective == pytest.approx(float(expected), rel=1e-5)


class Thirds:
    """Three clusters, numbered with a gap, and every third point noise."""

    def fit(self, points):
        return self

    def fit_predict(self, points):
        return np.arange(len(points)) % 3 - 1 + 5 * (np.arange(len(points)) % 6 == 5)


@pytest.mark.parametrize("balance", ["sampler", "loss", "none"])
def test_noise_is_left_out_of_training(tmp_path, monkeypatch, balance):
    orders = []
    learn = stages.train_epoch
    monkeypatch.setattr(sklearn.cluster, "Thirds", Thirds, raising=False)
    monkeypatch.setattr("dcfast.deepcluster.trainer.train_epoch", lambda *a: orders.append(a[6]) or learn(*a))
    trainer = train(tmp_path / "run", **{**TINY, "n_clusters": None, "epochs": 2}, clusterer="Thirds", balance=balance)
    expected = np.arange(60) % 3 - 1 + (np.arange(60) % 6 == 5)
    np.testing.assert_array_equal(trainer.assignments, expected)
    assert all(len(order) == 40 and (trainer.assignments[order] >= 0).all() for order in orders)
    last = trainer.history[-1]
    assert (last["n_noise"], last["n_empty"], last["n_moved"], last["largest_cluster"]) == (20, 0, 0, 20)


def test_orders_without_noise_only():
    assignments = np.array([-1, 0, 1, -1, 1, 1])
    assert cluster_sizes(assignments).tolist() == [1, 3]
    for order in (uniform_order(assignments, 40, 0, 0), plain_order(assignments, 40, 0, 0)):
        assert len(order) == 40
        assert set(order) == {1, 2, 4, 5}
    assert moved_points(np.array([0, 0, -1, 1]), np.array([0, 1, 1, -1])) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusterer": "Nothing"}, "clusterer='Nothing' is no class with fit_predict"),
        ({"clusterer": "sklearn.cluster.k_means"}, "is no class with fit_predict"),
        ({"clusterer": "nowhere.KMeans"}, "No module named 'nowhere'"),
        ({"clusterer": "..KMeans"}, r"clusterer='\.\.KMeans': no dotted name"),
        ({"clusterer": "FeatureAgglomeration"}, "'FeatureAgglomeration' does not cluster points by fit and fit_pred"),
        ({"clusterer": "sklearn.base.ClusterMixin"}, r"'sklearn\.base\.ClusterMixin' does not cluster points by"),
        ({"clusterer": "sklearn.pipeline.Pipeline"}, "cannot be made from its defaults"),
        ({"clusterer": "DBSCAN", "warm_start": True}, "warm_start is of k-means"),
        ({"stop_clustering": 0}, "stop_clustering must be at least 1"),
        ({"stop_clustering": "soon"}, "stop_clustering must be a number or 'auto'"),
    ],
)
def test_mistakes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_fewer_than_two_clusters_are_refused(monkeypatch):
    features, _ = _features()
    monkeypatch.setattr(sklearn.cluster.DBSCAN, "fit_predict", lambda self, points: np.full(len(points), -1))
    with pytest.raises(ValueError, match=r"found 0 cluster\(s\) in 80 images and called 80 of them noise"):
        stages.cluster_features(features, _resolved(clusterer="DBSCAN"), 0, Silent())


def test_stored_options_come_back(tmp_path):
    options = TrainConfig(stop_clustering=3, clusterer="DBSCAN")
    assert TrainConfig.from_dict(json.loads(json.dumps(options.to_dict()))) == options
    train(tmp_path / "run", **{**TINY, "epochs": 1}, stop_clustering="auto", warm_start=True)
    stored = load_run(tmp_path / "run").options
    assert (stored.stop_clustering, stored.warm_start) == ("auto", True)


def test_splitting_leaves_no_empty_start():
    sums = ops.accumulate(torch.eye(3), torch.tensor([0, 0, 2]), 4)
    assert stages._means(torch.eye(3), np.array([0, 0, 2]), 4, 0, Ranks()).isfinite().all()
    assert sums.counts.tolist() == [2, 0, 1, 0]
