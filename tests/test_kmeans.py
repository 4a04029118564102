"""KMeans: scikit-learn's estimator, equal bits twice, the definition step by step."""

import subprocess
import sys

import numpy as np
import pytest
import sklearn.cluster
import torch
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dcfast import KMeans, ops
from dcfast.cluster.arrays import sample_weights
from dcfast.cluster.init import draw_numbers


def blobs(n=600, d=8, dtype=np.float32, centers=12):
    return make_blobs(n, d, centers=centers, cluster_std=3.0, random_state=0)[0].astype(dtype)


@pytest.mark.parametrize("init", ["random", "k-means++", "array"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_scikit_learn(init, dtype, weighted):
    X = blobs(dtype=dtype)
    weight = np.random.RandomState(1).rand(len(X)) if weighted else None
    start = X[:12].copy() if init == "array" else init
    arguments = {"n_clusters": 12, "init": start, "n_init": 1, "random_state": 3}
    ours = KMeans(**arguments).fit(X, sample_weight=weight)
    theirs = sklearn.cluster.KMeans(**arguments).fit(X, sample_weight=weight)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-4, atol=1e-4)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-5)
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.labels_.dtype == np.int32
    assert ours.cluster_centers_.dtype == dtype
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X), rtol=1e-3, atol=1e-3)
    assert ours.score(X, sample_weight=weight) == pytest.approx(theirs.score(X, sample_weight=weight), rel=1e-5)


def fitted_bits(**arguments):
    model = KMeans(9, init="random", n_init=2, random_state=5, tol=0, **arguments).fit(blobs(d=5))
    return model.cluster_centers_.tobytes(), model.labels_.tobytes(), model.inertia_, model.n_iter_


@pytest.mark.parametrize("empty", ["farthest", "split", "keep"])
def test_two_runs_give_the_same_bits(empty):
    assert fitted_bits(empty=empty) == fitted_bits(empty=empty)


def test_torch_in_torch_out():
    X = torch.tensor(blobs())
    ours, numpy = (KMeans(5, n_init=1, random_state=0).fit(x) for x in (X, X.numpy()))
    for result in (ours.labels_, ours.cluster_centers_, ours.predict(X), ours.transform(X)):
        assert isinstance(result, torch.Tensor)
    assert ours.labels_.dtype == torch.int32
    assert np.array_equal(ours.labels_.numpy(), numpy.labels_)
    assert np.array_equal(ours.cluster_centers_.numpy(), numpy.cluster_centers_)
    assert np.array_equal(numpy.predict(X).numpy(), numpy.labels_)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_exactly(dtype):
    X = torch.tensor(blobs()).to(dtype)
    model = KMeans(4, init=X[:4], n_init=1, max_iter=1, tol=0).fit(X)
    assert model.cluster_centers_.dtype == dtype
    labels = ops.assign(X.float(), X[:4].float())
    expected = ops.means(ops.accumulate(X.float(), labels, 4), X[:4].float()).to(dtype)
    assert torch.equal(model.cluster_centers_, expected)


def test_one_iteration_is_the_definition():
    X = torch.tensor(blobs(d=3))
    start = X[:6].clone()
    model = KMeans(6, init=start, n_init=1, max_iter=1, tol=0).fit(X)
    labels = ops.assign(X, start)
    expected = torch.stack([X[labels == j].double().mean(0) for j in range(6)])
    assert torch.allclose(model.cluster_centers_.double(), expected, rtol=1e-7)
    assert torch.equal(model.labels_.long(), ops.assign(X, model.cluster_centers_))


def test_fitted_labels_equal_predict_even_after_a_split():
    X = torch.tensor(blobs(n=300))
    start = torch.cat([X[:6], torch.full((6, 8), 1e4)])  # six clusters that begin empty
    for empty in ("farthest", "split", "keep"):
        model = KMeans(12, init=start, n_init=1, max_iter=2, empty=empty, random_state=0)
        if empty == "keep":
            with pytest.warns(ConvergenceWarning, match="distinct clusters"):
                model.fit(X)
            assert torch.equal(model.cluster_centers_[6:], start[6:])
        else:
            model.fit(X)
            assert model.labels_.unique().numel() == 12
        assert torch.equal(model.labels_, model.predict(X))


def test_relocation_takes_the_farthest_rows():
    X = torch.tensor([[0.0], [1.0], [2.0], [100.0], [50.0]])
    start = torch.tensor([[1.0], [1e6], [1e7]])
    model = KMeans(3, init=start, n_init=1, max_iter=1, tol=0).fit(X)
    assert model.cluster_centers_[:, 0].tolist() == [1.0, 100.0, 50.0]


def test_all_equal_points_converge():
    with pytest.warns(ConvergenceWarning, match="distinct clusters"):
        model = KMeans(3, n_init=1, random_state=0).fit(np.ones((20, 2)))
    assert model.inertia_ == 0
    assert model.labels_.max() == 0


def test_n_init_keeps_the_best():
    X = blobs(centers=30)
    single = [KMeans(30, init="random", n_init=1, random_state=s).fit(X).inertia_ for s in range(4)]
    assert KMeans(30, init="random", n_init=10, random_state=0).fit(X).inertia_ <= single[0]
    assert len(set(single)) > 1


def test_callback_and_verbose(capsys):
    seen = []
    X = blobs()
    model = KMeans(5, n_init=1, random_state=0, tol=0, verbose=1, callback=lambda *a: seen.append(a)).fit(X)
    assert [i for i, _ in seen] == list(range(1, model.n_iter_ + 1))
    assert seen[0][1] == len(X)
    assert seen[-1][1] == 0
    assert f"Converged at iteration {model.n_iter_ - 1}: strict convergence." in capsys.readouterr().out


def test_callable_init_and_pipelines():
    X = blobs()
    model = KMeans(4, init=lambda X, k, random_state: X[:k], n_init=1).fit(X)
    assert np.array_equal(model.labels_, KMeans(4, init=X[:4], n_init=1).fit(X).labels_)
    labels = make_pipeline(StandardScaler(), clone(model)).fit_predict(X)
    assert len(labels) == len(X)
    assert list(model.get_feature_names_out()) == ["kmeans0", "kmeans1", "kmeans2", "kmeans3"]


def test_the_input_and_the_global_generators_stay():
    X = blobs()
    before, state = X.copy(), str(np.random.get_state())  # noqa: NPY002
    torch_state = torch.get_rng_state()
    KMeans(5, random_state=0).fit(X)
    assert np.array_equal(X, before)
    assert str(np.random.get_state()) == state  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_a_forked_child_does_not_hang():
    script = (
        "import os, numpy as np\nfrom dcfast import KMeans\n"
        "X = np.random.RandomState(0).randn(2000, 8)\n"
        "expected = KMeans(5, random_state=0).fit(X).inertia_\n"
        "pid = os.fork()\n"
        "if pid == 0:\n    os._exit(0 if KMeans(5, random_state=0).fit(X).inertia_ == expected else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "X", "error", "match"),
    [
        ({"n_clusters": 5}, np.zeros((3, 2)), ValueError, "n_samples=3 should be >= n_clusters=5"),
        ({"n_clusters": 0}, np.zeros((3, 2)), ValueError, "n_clusters"),
        ({"n_clusters": 1}, np.array([[1.0], [np.nan]]), ValueError, "NaN"),
        ({"n_clusters": 1}, torch.tensor([[1.0], [torch.nan], [torch.inf]]), ValueError, r"2 non-finite.*\(1, 0\)"),
        ({"n_clusters": 2, "init": np.zeros((3, 1))}, np.zeros((3, 1)), ValueError, "initial centers"),
        ({"n_clusters": 2, "empty": "drop"}, np.zeros((3, 1)), ValueError, "empty"),
        ({"n_clusters": 1}, torch.zeros(3), ValueError, r"\(3,\)"),
        ({"n_clusters": 1}, np.full((3, 1), 1e200), ValueError, "rescale"),
    ],
)
def test_errors_name_the_argument(arguments, X, error, match):
    with pytest.raises(error, match=match):
        KMeans(**arguments).fit(X)


def test_one_number_weighs_all_rows():
    assert torch.equal(sample_weights(2.5, 3, torch.device("cpu")), torch.full((3,), 2.5, dtype=torch.float64))
    assert sample_weights(2, 0, torch.device("cpu")).shape == (0,)  # a rank without rows
    with pytest.raises(ValueError, match="Negative values"):
        sample_weights(-1.0, 3, torch.device("cpu"))


def test_weights_are_checked():
    X = blobs(n=20)
    for weight, match in (
        (np.ones(3), "sample_weight"),
        (-np.ones(20), "Negative"),
        (np.zeros(20), "at least one non-zero"),
    ):
        with pytest.raises(ValueError, match=match):
            KMeans(2).fit(X, sample_weight=weight)
        with pytest.raises(ValueError, match=match):
            KMeans(2).fit(torch.tensor(X), sample_weight=torch.tensor(weight))
    with pytest.raises(NotFittedError):
        KMeans(2).predict(X)


def test_rows_are_drawn_as_numpy_draws_them():
    generator = np.random.RandomState(0)
    refused = 0
    for seed in range(300):
        n = generator.randint(1, 60)
        weight = None if seed % 3 == 0 else generator.rand(n) ** (30 if seed % 5 == 0 else 1)
        if weight is not None:
            weight[generator.rand(n) < 0.3] = 0.0
        count = generator.randint(1, n + 1)
        numpy, ours = np.random.RandomState(seed), np.random.RandomState(seed)
        share = np.ones(n) if weight is None else weight
        if np.count_nonzero(share) < count:
            with pytest.raises(ValueError, match="rows of positive weight"):
                draw_numbers(ours, n, torch.from_numpy(share), count)
            refused += 1
            continue
        expected = numpy.choice(n, size=count, replace=False, p=share / share.sum())
        found = draw_numbers(ours, n, None if weight is None else torch.from_numpy(weight), count)
        assert found.tolist() == expected.tolist()
        assert ours.random_sample() == numpy.random_sample()  # the stream goes on from the same place
    assert 0 < refused < 300
