"""In the place of scikit-learn's estimators: its checks, its tools, its draws, any kind of array, a script."""

import contextlib
import io
import os
import pickle
import subprocess
import sys
from decimal import Decimal

import array_api_strict
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
import sklearn.cluster
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils._test_common.instance_generator import PER_ESTIMATOR_XFAIL_CHECKS
from sklearn.utils.estimator_checks import check_estimator

import dcfast
from dcfast import BisectingKMeans, KMeans, MiniBatchKMeans, k_means, kmeans_plusplus

ESTIMATORS = (KMeans, MiniBatchKMeans, BisectingKMeans)


def blobs(n=300, d=4, centers=6, seed=0):
    return make_blobs(n, d, centers=centers, cluster_std=2.0, random_state=seed)[0]


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learns_checks(kind):
    # Granted to us what scikit-learn grants its own class of that name: two checks, for a k-means that draws other
    # rows once rows are repeated.
    granted = PER_ESTIMATOR_XFAIL_CHECKS[getattr(sklearn.cluster, kind.__name__)]
    assert len(granted) == 2
    results = check_estimator(kind(), expected_failed_checks=granted, on_skip=None)
    assert len(results) > 40
    assert {result["check_name"] for result in results if result["status"] == "xfail"} <= set(granted)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_signatures_and_defaults_are_scikit_learns(kind):
    theirs = getattr(sklearn.cluster, kind.__name__)().get_params()
    assert theirs.items() <= kind().get_params().items()


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_pickles_know_their_version(kind, monkeypatch):
    X = blobs()
    model = kind(5, random_state=0).fit(X)
    data = pickle.dumps(model)
    same = pickle.loads(data)
    np.testing.assert_array_equal(same.predict(X), model.labels_)
    assert same.__dict__.keys() == model.__dict__.keys()
    monkeypatch.setattr(dcfast, "__version__", "99.0")
    with pytest.warns(UserWarning, match=r"pickled by dcfast .* and is read by 99\.0"):
        pickle.loads(data)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_data_frames(kind):
    frame = pd.DataFrame(blobs(), columns=["a", "b", "c", "d"])
    model = kind(3, random_state=0).set_output(transform="pandas")
    distances = model.fit_transform(frame)
    assert list(model.feature_names_in_) == ["a", "b", "c", "d"]
    assert list(distances.columns) == [f"{kind.__name__.lower()}{i}" for i in range(3)]
    assert list(distances.index) == list(frame.index)
    np.testing.assert_array_equal(distances.to_numpy(), kind(3, random_state=0).fit_transform(frame.to_numpy()))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["b", "a", "c", "d"]])


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_metadata_routing(kind):
    X, weight = blobs(), np.random.RandomState(0).rand(300)
    expected = kind(4, random_state=0).fit(X, sample_weight=weight)
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(
            StandardScaler(with_mean=False, with_std=False).set_fit_request(sample_weight=False),
            kind(4, random_state=0).set_fit_request(sample_weight=True).set_score_request(sample_weight=True),
        ).fit(X, sample_weight=weight)
        assert pipeline.score(X, sample_weight=weight) == expected.score(X, sample_weight=weight)
    np.testing.assert_array_equal(pipeline[-1].cluster_centers_, expected.cluster_centers_)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_clone_and_grid_search(kind):
    X = blobs()
    theirs = getattr(sklearn.cluster, kind.__name__)
    found = []
    for make in (kind, theirs):
        pipeline = make_pipeline(StandardScaler(), make(random_state=0))
        step = pipeline.steps[-1][0]
        search = GridSearchCV(clone(pipeline), {f"{step}__n_clusters": [2, 4, 7], f"{step}__init": ["random"]}, cv=3)
        found.append(search.fit(X))
    assert found[0].best_params_ == found[1].best_params_
    np.testing.assert_allclose(*(search.cv_results_["mean_test_score"] for search in found), rtol=1e-9)


def test_private_names_that_others_read():
    X = blobs()
    assert KMeans(init="random").fit(X)._n_init == 10
    assert KMeans(init=X[:8]).fit(X)._n_init == 1
    model = MiniBatchKMeans(init="random", batch_size=20).fit(X)
    assert (model._n_init, model._batch_size, model._init_size, model._counts.shape) == (3, 20, 60, (8,))
    for kind in ESTIMATORS:  # saved beside the centroids, for scikit-learn's predict or ours
        saved = {name: getattr(kind(4).fit(X), name) for name in ("n_features_in_", "_n_threads", "cluster_centers_")}
        restored = sklearn.cluster.KMeans(4)
        restored.__dict__.update(saved)
        assert set(restored.predict(X)) == set(range(4))
    weight = np.zeros(300)
    weight[7:10] = 1
    for answer in (np.asarray, torch.tensor):
        start = KMeans()._init_centroids(
            X=answer(X),
            x_squared_norms=None,
            init="random",
            random_state=np.random.RandomState(0),
            sample_weight=weight,
            n_centroids=3,
        )
        assert type(start) is type(answer(X))
        np.testing.assert_array_equal(np.sort(np.asarray(start), 0), np.sort(X[7:10], 0))


@pytest.mark.parametrize("kind", [KMeans, MiniBatchKMeans])
def test_centroids_that_were_saved_make_a_model(kind):
    X = blobs()
    fitted = kind(4, random_state=0).fit(X)
    model = kind(4)
    model.cluster_centers_ = fitted.cluster_centers_
    model._n_threads = 1  # which scikit-learn's needs
    frame = pd.DataFrame(X)
    for rows in (X, X.tolist(), frame, scipy.sparse.csr_matrix(X), torch.tensor(X)):
        np.testing.assert_array_equal(model.predict(rows), fitted.labels_)
        np.testing.assert_array_equal(np.asarray(model.transform(rows)), fitted.transform(X))
        assert model.score(rows) == fitted.score(X)
    for rows in (X[:, :3], torch.tensor(X[:, :3])):
        with pytest.raises(ValueError, match="X has 3 features, but cluster_centers_ has 4"):
            model.predict(rows)
    fitted.cluster_centers_ = fitted.cluster_centers_[:, :3]
    with pytest.raises(ValueError, match="X has 4 features, but cluster_centers_ has 3"):
        fitted.predict(X)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_subclass_may_have_methods_of_its_own(kind):
    class Sorted(kind):
        """Its signatures are scikit-learn's."""

        def __init__(self, n_clusters=8, *, column=0, random_state=None):
            super().__init__(n_clusters=n_clusters, random_state=random_state)
            self.column = column

        def fit(self, X, y=None, sample_weight=None):
            super().fit(X=X, y=y, sample_weight=sample_weight)
            self.order_ = np.argsort(self.cluster_centers_[:, self.column])
            return self

        def transform(self, X):
            return super().transform(X)[:, self.order_]

    X, weight = blobs(), np.random.RandomState(0).rand(300)
    model = clone(Sorted(4, column=1, random_state=0))
    plain = kind(4, random_state=0).fit(X, sample_weight=weight)
    np.testing.assert_array_equal(model.fit_predict(X, sample_weight=weight), plain.labels_)
    distances = model.fit_transform(X, sample_weight=weight)
    np.testing.assert_array_equal(distances, plain.transform(X)[:, model.order_])
    assert make_pipeline(StandardScaler(), model).fit_predict(X).shape == (300,)


def test_warnings_of_scikit_learn():
    X = blobs()
    for kind in (KMeans, MiniBatchKMeans):
        with pytest.warns(RuntimeWarning, match="performing only one init"):
            kind(4, init=X[:4], n_init=3).fit(X)
    with pytest.warns(RuntimeWarning, match="init_size=5 should be larger than n_clusters=8"):
        MiniBatchKMeans(init_size=5).fit(X)
    with pytest.warns(RuntimeWarning, match="algorithm='elkan' doesn't make sense"):
        KMeans(1, algorithm="elkan").fit(X)


def test_k_means_is_fit():
    X, weight = blobs(), np.random.RandomState(0).rand(300)
    model = KMeans(5, random_state=0, init="random", n_init=2).fit(X, sample_weight=weight)
    found = k_means(X, 5, sample_weight=weight, random_state=0, init="random", n_init=2, return_n_iter=True)
    np.testing.assert_array_equal(found[0], model.cluster_centers_)
    np.testing.assert_array_equal(found[1], model.labels_)
    assert found[2:] == (model.inertia_, model.n_iter_)
    assert len(k_means(X, 5, random_state=0)) == 3
    with pytest.raises(ValueError, match="return_n_iter"):
        k_means(X, 5, return_n_iter="yes")


def margin(X, weight, n_clusters, seed, agreed):
    """How close the draw of the centroid after `agreed` comes to another row, and how far rounding may move it.

    Both relative to the potential: the distance of a draw to the boundary between two rows, or of the potentials of two
    candidates; and the error of distances that scikit-learn takes as |x|^2 - 2 x.c + |c|^2.
    """
    random_state = np.random.RandomState(seed)
    trials = 2 + int(np.log(n_clusters))
    random_state.choice(len(X), p=weight / weight.sum())
    for _ in agreed:
        uniform = random_state.uniform(size=trials)
    wide = X.astype(np.longdouble)

    def distances(rows):
        return ((wide[:, None] - wide[rows]) ** 2).sum(-1)

    closest = distances(agreed).min(1)
    cumulative = np.cumsum(weight * closest)
    total = cumulative[-1]
    draws = np.abs(cumulative[:, None] - uniform * total).min() / total
    candidates = np.unique(np.searchsorted(cumulative, uniform * total))
    potentials = np.sort(weight @ np.minimum(closest[:, None], distances(candidates))) / total
    rounding = 8 * np.finfo(X.dtype).eps * weight.sum() * (wide**2).sum(1).max() / total
    return min([draws, *np.diff(potentials)]), rounding


@pytest.mark.parametrize(
    ("name", "n_clusters", "seeds", "limit"),
    [("blobs", 12, 150, 0), ("weights", 12, 100, 0), ("digits", 10, 40, 0), ("offset", 12, 100, 5)],
)
def test_kmeans_plusplus_picks_scikit_learns_rows(name, n_clusters, seeds, limit):
    # Both look for the row where u times the potential falls, and for the candidate of lowest potential. They differ
    # by the rounding of scikit-learn's distances, which shows where the data lies far from the origin.
    X = load_digits().data if name == "digits" else blobs(500, 6, 20) + 3e6 * (name == "offset")
    weight = np.random.RandomState(0).rand(len(X)) if name == "weights" else np.ones(len(X))
    divergences = 0
    for seed in range(seeds):
        _, ours = kmeans_plusplus(X, n_clusters, sample_weight=weight, random_state=seed)
        _, theirs = sklearn.cluster.kmeans_plusplus(X, n_clusters, sample_weight=weight, random_state=seed)
        if not np.array_equal(ours, theirs):
            divergences += 1
            gap, rounding = margin(X, weight, n_clusters, seed, ours[: np.argmax(ours != theirs)])
            assert gap < rounding < 0.05
    print(f"{name}: {divergences} of {seeds} differ")
    assert divergences <= limit


def test_kmeans_plusplus_gives_rows_and_checks_its_arguments():
    X = blobs()
    centroids, indices = kmeans_plusplus(X, 5, random_state=0, n_local_trials=1)
    np.testing.assert_array_equal(centroids, X[indices])
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(
        kmeans_plusplus(np.asfortranarray(X), 5, random_state=0, n_local_trials=1)[1], indices
    )
    for arguments, match in (
        ({"n_clusters": 301}, "n_samples=300 should be >= n_clusters=301"),
        ({"n_clusters": 2, "x_squared_norms": np.ones(3)}, r"The length of x_squared_norms \(3,\)"),
        ({"n_clusters": 2, "x_squared_norms": 5.0}, r"The length of x_squared_norms \(\)"),
        ({"n_clusters": 2, "x_squared_norms": "a"}, "x_squared_norms holds"),
        ({"n_clusters": 2, "sample_weight": np.zeros(300)}, "at least one non-zero"),
        ({"n_clusters": 2, "n_local_trials": 0}, "n_local_trials"),
    ):
        with pytest.raises(ValueError, match=match):
            kmeans_plusplus(X, **arguments)


def test_where_nothing_is_left_to_draw_row_0_is_chosen_as_by_scikit_learn():
    X = np.repeat([[0.0, 0], [1, 1]], 10, axis=0)
    expected = sklearn.cluster.kmeans_plusplus(X, 4, random_state=0)[1]
    np.testing.assert_array_equal(kmeans_plusplus(X, 4, random_state=0)[1], expected)
    np.testing.assert_array_equal(kmeans_plusplus(X.astype("float32"), 4, random_state=0)[1], expected)
    # Potentials far below the largest power of two that a double holds are drawn by all the same.
    small = blobs()[:40] * 1e-149
    chosen = kmeans_plusplus(small, 8, random_state=0)[1]
    assert len(set(chosen.tolist())) == 8
    chunked = kmeans_plusplus(lambda: iter([small[:30], small[30:]]), 8, random_state=0)[1]
    np.testing.assert_array_equal(chosen, chunked)


@pytest.mark.parametrize("far", [1e3, 1e6, 1e9, 1e12])
def test_an_outlier_changes_no_draw_among_the_others(far):
    """Once it is chosen, what is left of the potential is a small part of the first one."""
    X = np.concatenate([blobs(), np.full((1, blobs().shape[1]), far)])
    for seed in range(5):
        expected = sklearn.cluster.kmeans_plusplus(X, 9, random_state=seed)[1]
        np.testing.assert_array_equal(kmeans_plusplus(X, 9, random_state=seed)[1], expected)
        chunked = kmeans_plusplus(lambda: iter([X[:100], X[100:]]), 9, random_state=seed)[1]
        np.testing.assert_array_equal(chunked, expected)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("weighted", [False, True])
def test_clusters_that_nothing_is_left_for_go_where_scikit_learn_puts_them(weighted):
    X = np.repeat([[-1.0, -1], [1, 1]], 10, axis=0)  # scikit-learn subtracts the mean, here without rounding
    init = np.array([[1.0, 1], [-1, -1], [5, 5], [1, 1]])
    weight = np.r_[np.full(10, 3.0), np.ones(10)] if weighted else None
    theirs, plain, watched = (
        model.fit(X, sample_weight=weight)
        for model in (
            sklearn.cluster.KMeans(4, init=init, n_init=1),
            KMeans(4, init=init, n_init=1),
            KMeans(4, init=init, n_init=1, callback=lambda *_: None),
        )
    )
    for ours in (plain, watched):
        np.testing.assert_array_equal(ours.cluster_centers_, theirs.cluster_centers_)
        np.testing.assert_array_equal(ours.labels_, theirs.labels_)
        assert ours.n_iter_ == theirs.n_iter_
    # A row without weight is the farthest of all.
    rows, init = np.array([[0.0], [1], [5], [100]]), np.array([[0.0], [4], [-50]])
    weight = np.array([1.0, 1, 1, 0])
    theirs, ours = (
        model.fit(rows, sample_weight=weight)
        for model in (sklearn.cluster.KMeans(3, init=init, n_init=1), KMeans(3, init=init, n_init=1))
    )
    np.testing.assert_array_equal(ours.cluster_centers_, theirs.cluster_centers_)


@pytest.mark.parametrize("estimator", [KMeans, MiniBatchKMeans, BisectingKMeans])
def test_names_are_forgotten_by_a_fit_to_rows_without(estimator):
    X = blobs()
    model = estimator(3, random_state=0).fit(pd.DataFrame(X, columns=list("abcd")[: X.shape[1]]))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.predict(torch.from_numpy(X))
    model.fit(torch.from_numpy(X))
    assert not hasattr(model, "feature_names_in_")


def test_numbers_in_other_guises():
    X = blobs()
    expected = KMeans(3, init=X[:3], n_init=1).fit(X)
    text = X.astype("U32")
    for other in (text, [[str(value) for value in row] for row in X], [tuple(map(Decimal, row)) for row in X]):
        np.testing.assert_array_equal(KMeans(3, init=X[:3], n_init=1).fit(other).labels_, expected.labels_)
        np.testing.assert_array_equal(expected.predict(other), expected.labels_)
    assert KMeans(3).fit(list(X.astype("float32"))).cluster_centers_.dtype == np.float32
    init = pd.DataFrame(X[:3]).astype(object)
    np.testing.assert_array_equal(KMeans(3, init=init, n_init=1).fit(X).labels_, expected.labels_)
    with pytest.raises(ValueError, match="init holds object"):
        KMeans(3, init=np.array([["a", object()]] * 3), n_init=1).fit(X)


def test_what_is_no_dense_real_array_is_refused(tmp_path):
    X = blobs()
    for other in (
        torch.from_numpy(X).to_sparse(),
        torch.from_numpy(X).to_sparse_csr(),
        torch.empty(9, 2, device="meta"),
    ):
        with pytest.raises(TypeError, match="expected a dense one"):
            KMeans(3).fit(other)
    np.save(tmp_path / "complex.npy", X.astype(complex))
    np.save(tmp_path / "text.npy", X.astype("U8"))
    for source in (torch.from_numpy(X).to(torch.complex128), tmp_path / "complex.npy", tmp_path / "text.npy"):
        with pytest.raises(ValueError, match=r"[Cc]omplex|expected numbers"):
            KMeans(3).fit(source)
    with pytest.raises(ValueError, match="Complex data not supported: init"):
        KMeans(3, init=X[:3].astype(complex), n_init=1).fit(X)
    with pytest.raises(ValueError, match="runs on 'cpu' and 'cuda'"):
        KMeans(3, device="meta").fit(X)
    damaged = scipy.sparse.random_array((80, 12), density=0.3, format="csr", random_state=0)
    damaged.indices[0] = 50
    with pytest.raises(ValueError, match="indices"):
        KMeans(3).fit(damaged)


class OnlyDLPack:
    """An array of a library that knows nothing but DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (array_api_strict.asarray, type(array_api_strict.asarray(0))),
        (OnlyDLPack, torch.Tensor),
        (torch.tensor, torch.Tensor),
    ],
)
def test_arrays_are_answered_in_kind(kind, dtype, make, answer):
    X, weight = (10 * blobs()).astype(dtype), np.random.RandomState(0).rand(300)
    expected = kind(4, random_state=0).fit(X, sample_weight=weight)
    model = kind(4, random_state=0).fit(make(X), sample_weight=make(weight))
    pairs = [
        (model.labels_, expected.labels_),
        (model.cluster_centers_, expected.cluster_centers_),
        (model.predict(make(X)), expected.predict(X)),
        (model.transform(make(X)), expected.transform(X)),
        (kmeans_plusplus(make(X), 3, random_state=0)[1], kmeans_plusplus(X, 3, random_state=0)[1]),
    ]
    for ours, numpy in pairs:
        assert isinstance(ours, answer)
        ours = np.asarray(ours)
        assert ours.dtype == numpy.dtype
        np.testing.assert_array_equal(ours, numpy)
    assert model.inertia_ == expected.inertia_
    np.testing.assert_array_equal(model.predict(X), expected.labels_)  # of another kind than in fit


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_input_has_the_bits_of_its_dense_form(kind, dtype, tmp_path):
    X, weight = np.maximum(blobs(), 0).astype(dtype), np.random.RandomState(0).rand(300)
    np.save(tmp_path / "X.npy", X)
    for init in ("k-means++", "random"):
        model = kind(6, random_state=0, init=init).fit(X, sample_weight=weight)
        mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
        for other in (scipy.sparse.csr_array(X), scipy.sparse.csr_matrix(X), mapped):
            same = kind(6, random_state=0, init=init).fit(other, sample_weight=weight)
            assert same.inertia_ == model.inertia_
            for ours, expected in (
                (same.cluster_centers_, model.cluster_centers_),
                (same.labels_, model.labels_),
                (same.predict(other), model.predict(X)),
                (same.transform(other), model.transform(X)),
            ):
                np.testing.assert_array_equal(ours, expected)
                assert ours.dtype == expected.dtype
            if kind is MiniBatchKMeans:
                same.partial_fit(other[:40])
                expected = clone(model).fit(X, sample_weight=weight).partial_fit(X[:40])
                np.testing.assert_array_equal(same.cluster_centers_, expected.cluster_centers_)


def test_scikit_learns_check_of_the_array_api():
    # scipy reads its variable when it is imported: a process of its own.
    script = """
from sklearn.utils.estimator_checks import check_array_api_input
from dcfast import BisectingKMeans, KMeans, MiniBatchKMeans
for kind in (BisectingKMeans, KMeans, MiniBatchKMeans):
    for namespace in ("torch", "array_api_strict"):
        for dtype in ("float32", "float64"):
            options = {"array_namespace": namespace, "device_name": "cpu" if namespace == "torch" else None}
            check_array_api_input(
                kind.__name__, kind(4), dtype_name=dtype, check_values=True, check_sample_weight=True, **options
            )
"""
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)


def test_a_dlpack_array_is_not_copied():
    X = array_api_strict.asarray(blobs())
    seen = []

    def init(points, n_clusters, random_state):
        seen.append(points)
        return points[:n_clusters, :]

    KMeans(3, init=init, n_init=1).fit(X)
    assert np.shares_memory(np.asarray(seen[0]), np.asarray(X))


# As found in many a project: only the first import differs between the two runs.
SCRIPT = """
from sklearn.cluster import BisectingKMeans, KMeans, MiniBatchKMeans, kmeans_plusplus
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

pipeline = Pipeline([("scale", MinMaxScaler()), ("cluster", KMeans(random_state=0)), ("classify", RidgeClassifier())])
search = GridSearchCV(pipeline, {"cluster__n_clusters": [10, 40], "cluster__init": ["k-means++", "random"]}, cv=2)
search.fit(X_train, y_train)
print(search.best_params_, round(search.score(X_test, y_test), 4))

reduced = PCA(8, random_state=0).fit_transform(X)
for make in (KMeans, MiniBatchKMeans, BisectingKMeans):
    model = make(n_clusters=10, n_init=3, random_state=7)
    labels = model.fit_predict(reduced)
    print(make.__name__, round(model.inertia_, 3), round(silhouette_score(reduced, labels), 6))
    print(round(adjusted_rand_score(y, labels), 6), model.cluster_centers_.shape, np.bincount(labels))

online = MiniBatchKMeans(10, random_state=1)
for batch in np.array_split(reduced, 12):
    online.partial_fit(batch)
print(online.n_steps_, round(online.score(reduced), 3))
print(kmeans_plusplus(reduced, 10, random_state=3)[1])
"""


def test_a_script_runs_with_only_its_import_changed():
    printed = []
    for module in ("sklearn.cluster", "dcfast"):
        script = SCRIPT.replace("from sklearn.cluster import", f"from {module} import", 1)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(script, module, "exec"), {"__name__": "__main__"})
        printed.append(out.getvalue())
    assert printed[0].count("\n") == 9
    assert printed[0] == printed[1]
