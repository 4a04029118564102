"""dcfast.faiss against the installed faiss: the same starts, objectives, splits and surface; and exact by itself."""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs

import dcfast.faiss as ours
from dcfast import ops
from dcfast.faiss.starts import permutation

MANY = 10**6  # points per centroid: no sample is taken


@pytest.fixture(autouse=True)
def _one_pool_of_threads():
    """faiss brings an OpenMP pool of its own, which fights with torch's over the cores."""
    faiss.omp_set_num_threads(1)


def normal(n, d, seed=0, offset=0.0):
    return (np.random.default_rng(seed).standard_normal((n, d)) + offset).astype("float32")


def both(x, k, train=None, **options):
    """The trained Kmeans of faiss and ours."""
    given = {"min_points_per_centroid": 1, "max_points_per_centroid": MANY, **options}
    trained = []
    for module in (faiss, ours):
        trained.append(module.Kmeans(x.shape[1], k, **given))
        trained[-1].train(x, **(train or {}))
    return trained


def assert_follows(mine, theirs, rtol=1e-3):
    assert abs(len(mine.obj) - len(theirs.obj)) <= 2  # float32 sums stand still a little earlier or later
    common = min(len(mine.obj), len(theirs.obj))
    assert common > 0
    np.testing.assert_allclose(mine.obj[:common], theirs.obj[:common], rtol=rtol)


# Starts


@pytest.mark.parametrize(
    ("n", "count"), [(1, 1), (2, 1), (2, 2), (7, 7), (100, 1), (100, 37), (1000, 999), (1000, 1000)]
)
@pytest.mark.parametrize("seed", [0, 1234, 2**31])
def test_permutation_is_that_of_the_swaps(n, count, seed):
    order = np.arange(n)
    drawn = np.random.RandomState(seed).randint(0, 2**32, size=count, dtype=np.uint32)
    for i in range(count):
        j = i + int(drawn[i]) % (n - i)
        order[i], order[j] = order[j], order[i]
    np.testing.assert_array_equal(permutation(n, count, seed), order[:count])


@pytest.mark.parametrize("seed", [0, 1234, 2**31 - 1])
@pytest.mark.parametrize(("n", "k", "points", "faster"), [
    (3000, 20, MANY, False),
    (3000, 2999, MANY, False),
    (200_000, 100, MANY, False),
    (3000, 20, 50, False),
    (100_000, 1000, 64, False),
    (3000, 20, 50, True),
    (3000, 20, 20, True),
])  # fmt: skip
def test_starts_from_the_points_of_faiss(seed, n, k, points, faster):
    x = normal(n, 3)
    theirs, mine = both(x, k, niter=0, seed=seed, max_points_per_centroid=points, use_faster_subsampling=faster)
    np.testing.assert_array_equal(mine.centroids, theirs.centroids)
    assert mine.obj.size == 0


def test_given_centroids_come_first():
    x = normal(3000, 4)
    theirs, mine = both(x, 20, train={"init_centroids": x[:7] + 1}, niter=0)
    np.testing.assert_array_equal(mine.centroids, theirs.centroids)
    np.testing.assert_array_equal(mine.centroids[:7], x[:7] + 1)
    whole = ours.Kmeans(4, 20, niter=0)
    whole.train(x, init_centroids=(x[:20] + 1).tolist())
    np.testing.assert_array_equal(whole.centroids, x[:20] + 1)


@pytest.mark.parametrize("method", [ours.ClusteringInitMethod_KMEANS_PLUS_PLUS, ours.ClusteringInitMethod_AFK_MC2])
def test_careful_starts(method):
    """They are rows, differ with the seed, cover separated blobs that random rows miss, and leave given rows alone."""
    x, _ = make_blobs(2000, 5, centers=40, cluster_std=0.01, random_state=0)
    x = x.astype("float32")

    def start(seed, given=None, data=x, k=40):
        model = ours.Kmeans(5, k, niter=0, init_method=method, seed=seed, min_points_per_centroid=1)
        model.train(data, init_centroids=given)
        return model.centroids

    centroids = start(1)
    assert {tuple(c) for c in centroids.tolist()} <= {tuple(row) for row in x.tolist()}
    np.testing.assert_array_equal(centroids, start(1))
    assert not np.array_equal(centroids, start(2))
    random = ours.Kmeans(5, 40, niter=0)
    random.train(x)
    cost = [float(ops.inertia(*map(torch.tensor, (x, c, nearest(x, c))))) for c in (centroids, random.centroids)]
    assert cost[0] < cost[1] / 10
    partial = start(1, given=centroids[:25])
    np.testing.assert_array_equal(partial[:25], centroids[:25])
    assert len(np.unique(partial, axis=0)) > 38
    # Fewer distinct points than centroids: every row sits on one.
    assert start(1, data=np.repeat(x[:3], 50, 0), k=8).shape == (8, 5)


def nearest(x, centroids):
    return ops.assign(torch.tensor(x), torch.tensor(centroids)).numpy()


def test_careful_starts_draw_by_squared_distance():
    """Of three far groups of 1, 10 and 100 points, k-means++ starts in each."""
    x = np.repeat(np.array([[0.0], [1000.0], [-3000.0]], "float32"), [1, 10, 100], axis=0)
    for seed in range(5):
        for method in (1, 2):
            model = ours.Kmeans(1, 3, niter=0, init_method=method, seed=seed, afkmc2_chain_length=200)
            model.train(np.tile(x, (2, 1)))
            assert sorted(model.centroids[:, 0]) == [-3000, 0, 1000]


@pytest.mark.parametrize(("method", "chain", "share"), [(1, 50, 0.5), (2, 20, 0.5), (2, 1, 0.3)])
def test_careful_starts_have_their_probabilities(method, chain, share):
    """Beside a centroid at 0, 900 points at 1 and 100 at 3 weigh the same; one draw of AFK-MC2 is half uniform."""
    x = np.repeat(np.array([[1.0], [3.0]], "float32"), [900, 100], axis=0)
    model = ours.Kmeans(1, 2, niter=0, init_method=method, afkmc2_chain_length=chain)
    far = 0
    for model.cp.seed in range(300):
        model.train(x, init_centroids=[[0.0]])
        far += model.centroids[1, 0] == 3
    assert far / 300 == pytest.approx(share, abs=0.1)  # more than three standard deviations


# Objectives


OPTIONS = {
    "plain": {},
    "to convergence": {"niter": 200},
    "sampled": {"max_points_per_centroid": 60},
    "sampled faster": {"max_points_per_centroid": 60, "use_faster_subsampling": True},
    "three runs": {"nredo": 3, "niter": 5},
    "spherical": {"spherical": True},
    "spherical, three runs": {"spherical": True, "nredo": 3, "niter": 5},
    "integers": {"int_centroids": True},
    "stops early": {"early_stop_threshold": 0.01},
    "in growing dimensions": {"progressive_dim_steps": 3},
    "in growing dimensions, unrotated": {"progressive_dim_steps": 4, "apply_pca": False},
    "another seed": {"seed": 99},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_follow_faiss(name):
    theirs, mine = both(3 * normal(4000, 8), 30, **OPTIONS[name])
    assert_follows(mine, theirs)
    for one, other in zip(mine.iteration_stats, theirs.iteration_stats, strict=False):
        assert one.keys() == other.keys()
        assert one["nsplit"] == other["nsplit"]
        assert one["imbalance_factor"] == pytest.approx(other["imbalance_factor"], rel=0.02)
        assert 0 <= one["time_search"] <= one["time"]
    assert mine.obj.dtype == theirs.obj.dtype
    assert mine.centroids.dtype == theirs.centroids.dtype
    assert mine.centroids.shape == theirs.centroids.shape


@pytest.mark.parametrize("train", [{"weights": "random"}, {"init_centroids": 12}, {"init_centroids": 30}])
@pytest.mark.parametrize(
    "options", [{}, {"nredo": 2, "niter": 4}, {"frozen_centroids": True}, {"max_points_per_centroid": 50}]
)
def test_arguments_of_train_follow_faiss(train, options):
    x = normal(4000, 8)
    if "weights" in train:
        train = {"weights": np.random.default_rng(1).exponential(size=len(x)).astype("float32").clip(0.2) - 0.2}
    else:
        train = {"init_centroids": x[: train["init_centroids"]] * 1.5}
    theirs, mine = both(x, 30, train=train, **options)
    assert_follows(mine, theirs)
    factors = [[each["imbalance_factor"] for each in model.iteration_stats[:2]] for model in (theirs, mine)]
    np.testing.assert_allclose(*factors, rtol=1e-3)
    if options.get("frozen_centroids") and "init_centroids" in train:
        np.testing.assert_array_equal(mine.centroids[: len(train["init_centroids"])], train["init_centroids"])


@pytest.mark.parametrize(("n", "d", "k", "offset"), [
    (300, 1, 10, 0), (2000, 3, 500, 9), (20_000, 64, 50, 5), (5000, 300, 20, 9), (200_000, 4, 16, 9),
    (100_000, 16, 64, -7),
])  # fmt: skip
def test_shapes_follow_faiss(n, d, k, offset):
    theirs, mine = both(normal(n, d, offset=offset), k, niter=8)
    assert_follows(mine, theirs)


def test_stops_when_the_objective_stands_still():
    x = normal(1000, 4)
    theirs, mine = both(x, 10, niter=500)
    assert len(mine.obj) < 100
    assert mine.obj[-1] == mine.obj[-2]
    # By the change against the last but one, in either direction: weights let the objective rise.
    weights = np.exp(3 * np.random.default_rng(1).standard_normal(400)).astype("float32")
    for threshold in (0.3, 0.1, 0.05, 0.03, 0.01, 0.003):
        theirs, mine = both(
            2 * normal(400, 3, seed=1), 20, train={"weights": weights}, niter=30, early_stop_threshold=threshold
        )
        assert len(mine.obj) == len(theirs.obj)
        np.testing.assert_allclose(mine.centroids, theirs.centroids, rtol=1e-4, atol=1e-5)


def test_as_many_points_as_centroids_are_copied():
    x = normal(50, 3)
    theirs, mine = both(x, 50)
    np.testing.assert_array_equal(mine.centroids, x)
    assert mine.obj.tolist() == theirs.obj.tolist() == [0.0]
    assert mine.iteration_stats == theirs.iteration_stats
    _, mine = both(x, 10, max_points_per_centroid=1)
    np.testing.assert_array_equal(mine.centroids, x[permutation(50, 10, 1234)])


# Empty clusters


def far_centroids(x, near, far, seed):
    rng = np.random.default_rng(seed)
    centroids = np.concatenate([x[:near], 100 + rng.standard_normal((far, x.shape[1]))])
    return rng.permutation(centroids).astype("float32")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [None, 0.01, 0.04, 1.0])
@pytest.mark.parametrize("dimensions", [3, 4])
def test_splits_as_faiss_does(seed, scale, dimensions):
    """Donors, order, shares and the moves of all 20 empty clusters, where few are taken and where all walks give up."""
    x = normal(500, dimensions, seed=seed)
    train = {"init_centroids": far_centroids(x, 8, 20, seed)}
    if scale:
        train["weights"] = (2 * scale * np.random.default_rng(seed).random(500)).astype("float32")
    theirs, mine = both(x, 28, train=train, niter=1)
    assert mine.iteration_stats[0]["nsplit"] == theirs.iteration_stats[0]["nsplit"] == 20
    np.testing.assert_allclose(mine.centroids, theirs.centroids, rtol=1e-5, atol=1e-6)


def test_splits_beside_frozen_centroids():
    x = normal(500, 3)
    frozen = far_centroids(x, 6, 4, 0)
    theirs, mine = both(
        np.concatenate([x, x[:200]]), 60, train={"init_centroids": frozen}, frozen_centroids=True, niter=2
    )
    assert mine.iteration_stats[0]["nsplit"] == theirs.iteration_stats[0]["nsplit"] > 0
    np.testing.assert_array_equal(mine.centroids[:10], frozen)
    np.testing.assert_allclose(mine.centroids, theirs.centroids, rtol=1e-4, atol=1e-5)


# Exactness


def test_one_iteration_is_the_definition(cpu_backend):
    x = normal(700, 5)
    start = x[:30].copy()
    weights = np.random.default_rng(0).random(700).astype("float32")
    model = ours.Kmeans(5, 30, niter=1, min_points_per_centroid=1)
    model.train(x, weights=weights, init_centroids=start)
    exact = ((x[:, None].astype("float64") - start) ** 2).sum(2)
    labels = exact.argmin(1)
    assert model.obj[0] == pytest.approx(exact.min(1).sum(), rel=1e-15)
    for j in range(30):
        own, w = x[labels == j].astype("float64"), weights[labels == j].astype("float64")
        np.testing.assert_array_equal(model.centroids[j], ((own * w[:, None]).sum(0) / w.sum()).astype("float32"))
    distances, found = model.assign(x)
    np.testing.assert_array_equal(found, nearest(x, model.centroids))
    np.testing.assert_allclose(distances, ((x - model.centroids[found]) ** 2).sum(1), rtol=1e-5)


@pytest.mark.parametrize("options", [
    {}, {"spherical": True}, {"nredo": 2}, {"progressive_dim_steps": 3}, {"init_method": 1}, {"init_method": 2},
    {"max_points_per_centroid": 50},
], ids=str)  # fmt: skip
def test_the_same_bits_on_any_threads_and_backend(options):
    x = normal(3000, 9)
    weights = None if "progressive_dim_steps" in options else np.random.default_rng(0).random(3000)

    def bits():
        model = ours.Kmeans(9, 40, niter=6, min_points_per_centroid=1, **options)
        model.train(x, weights=weights)
        distances, labels = model.assign(x)
        stats = [(s["obj"], s["nsplit"], s["imbalance_factor"]) for s in model.iteration_stats]
        return model.centroids.tobytes(), distances.tobytes(), labels.tobytes(), stats

    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(bits())
    finally:
        torch.set_num_threads(before)
    with ops.backend("reference"):
        results.append(bits())
    assert all(result == results[0] for result in results)


def test_spherical_is_cosine():
    x = normal(2000, 6, offset=0.5)
    model = ours.Kmeans(6, 25, spherical=True, min_points_per_centroid=1)
    model.train(x)
    np.testing.assert_allclose(np.linalg.norm(model.centroids, axis=1), 1, rtol=1e-6)
    products = x.astype("float64") @ model.centroids.T.astype("float64")
    similarity, labels = model.assign(x)
    np.testing.assert_array_equal(labels, products.argmax(1))
    np.testing.assert_allclose(similarity, products.max(1), rtol=1e-6)
    assert model.obj[-1] > model.obj[0]
    assert isinstance(model.index, ours.IndexFlatIP)


@pytest.mark.parametrize("d", range(1, 21))
def test_spherical_in_every_dimension(d):
    """Vectors are lengthened for inner products, past the number of columns from which on bounds are kept."""
    x = normal(300, d, offset=0.5)
    model = ours.Kmeans(d, 4, spherical=True, niter=4)
    model.train(x)
    products = x.astype("float64") @ model.centroids.T.astype("float64")
    similarity, labels = model.assign(x)
    np.testing.assert_allclose(similarity, products.max(1), rtol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(products, labels[:, None], 1)[:, 0], products.max(1), rtol=1e-12)


def test_weights_are_rounded_to_float32():
    x, weights = normal(300, 3), np.random.default_rng(0).random(300)
    models = []
    weights.flags.writeable = False
    for given in (weights, weights.astype("float32"), torch.tensor(weights), weights.tolist()):
        models.append(ours.Kmeans(3, 5, niter=3))
        models[-1].train(x, weights=given)
        np.testing.assert_array_equal(models[-1].centroids, models[0].centroids)


def test_growing_dimensions_leave_an_index():
    x = normal(800, 6)
    model = ours.Kmeans(6, 9, progressive_dim_steps=3)
    model.train(x)
    model.train(x)
    assert model.index.ntotal == 9
    np.testing.assert_array_equal(model.index.search(x, 1)[1][:, 0], nearest(x, model.centroids))


def test_integers_round_halves_away_from_zero():
    x = normal(100, 1)
    halves = np.array([[0.5], [1.5], [2.5], [-0.5], [-1.5], [0.49999997], [7.0]], "float32")
    theirs, mine = both(x, 7, train={"init_centroids": halves}, niter=0, int_centroids=True)
    assert mine.centroids[:, 0].tolist() == theirs.centroids[:, 0].tolist() == [1, 2, 3, -1, -2, 0, 7]


def test_rows_that_are_not_finite_belong_nowhere_unless_refused():
    x = normal(500, 3)
    start = x[:10].copy()
    spoilt = np.insert(x, [5, 100], [[np.nan, 0, 0], [0, np.inf, 0]], axis=0)
    with pytest.raises(ValueError, match=r"x contains 2 non-finite.*first at \(5, 0\)"):
        ours.Kmeans(3, 10).train(spoilt)
    models = []
    for data in (x, spoilt):
        models.append(ours.Kmeans(3, 10, check_input_data_for_NaNs=False, niter=4))
        models[-1].train(data, weights=np.ones(len(data)), init_centroids=start)
    np.testing.assert_array_equal(models[0].centroids, models[1].centroids)
    np.testing.assert_array_equal(models[0].obj, models[1].obj)
    factors = [model.iteration_stats[0]["imbalance_factor"] for model in models]
    assert factors[0] * 500**2 == pytest.approx(factors[1] * 502**2)
    assert models[1].assign(spoilt)[1][[5, 101]].tolist() == [-1, -1]


# Surface


def test_defaults_are_those_of_faiss():
    for name in ("ClusteringParameters", "ProgressiveDimClusteringParameters"):
        theirs, mine = getattr(faiss, name)(), getattr(ours, name)()
        assert vars(mine) == {field: getattr(theirs, field) for field in vars(mine)}
        known = {field for field in dir(theirs) if not field.startswith("_")} - {"this", "thisown"}
        assert set(vars(mine)) == known
    for name in ours.__all__:
        if name.isupper() or "Method_" in name:
            assert getattr(ours, name) == getattr(faiss, name)
        elif name != "ClusteringIterationStats" and "gpu" not in name.lower():  # faiss-cpu has no more of these
            assert hasattr(faiss, name)


def test_takes_what_faiss_takes():
    x = normal(600, 4)
    read_only = x.copy()
    read_only.flags.writeable = False
    expected = ours.Kmeans(4, 5)
    expected.train(x)
    wide = np.zeros((600, 8), "float32")
    wide[:, ::2] = x
    kinds = [x.astype("float64"), np.asfortranarray(x), wide[:, ::2], read_only, x.tolist(), torch.tensor(x)]
    for data in [*kinds, torch.tensor(x).double(), torch.tensor(wide)[:, ::2], torch.tensor(x).requires_grad_()]:
        model = ours.Kmeans(4, 5)
        model.train(data)
        np.testing.assert_array_equal(model.centroids, expected.centroids)
        distances, labels = model.assign(data)
        assert isinstance(labels, torch.Tensor if isinstance(data, torch.Tensor) else np.ndarray)
        assert distances.dtype in (np.float32, torch.float32)
        np.testing.assert_array_equal(labels, expected.assign(x)[1])
    np.testing.assert_array_equal(read_only, x)


def test_takes_arrays_of_other_libraries():
    class Foreign:
        def __init__(self, array):
            self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__

    x = normal(600, 4)
    models = []
    for data, weights in ((x, np.ones(600)), (Foreign(torch.tensor(x)), Foreign(torch.ones(600)))):
        models.append(ours.Kmeans(4, 5))
        models[-1].train(data, weights=weights)
    np.testing.assert_array_equal(models[0].centroids, models[1].centroids)
    np.testing.assert_array_equal(models[1].assign(Foreign(torch.tensor(x)))[1], models[0].assign(x)[1])


def test_clustering_object():
    x = normal(2000, 4)
    losses = []
    for module in (faiss, ours):
        cp = module.ClusteringParameters()
        cp.niter = 7
        clustering = module.Clustering(4, 12, cp)
        clustering.max_points_per_centroid = MANY
        module.copy_array_to_vector(x[:3].ravel(), clustering.centroids)
        index = module.IndexFlatL2(4)
        clustering.train(x, index)
        assert (clustering.d, clustering.k, clustering.niter, index.ntotal) == (4, 12, 7, 12)
        stats = clustering.iteration_stats
        assert stats.size() == 7
        losses.append([stats.at(i).obj for i in range(stats.size())])
        centroids = module.vector_to_array(clustering.centroids)
        assert clustering.centroids.size() == centroids.size == 48
        assert clustering.centroids.at(0) == centroids[0]
        np.testing.assert_array_equal(centroids, module.vector_float_to_array(clustering.centroids))
        np.testing.assert_array_equal(index.reconstruct(2), centroids[8:12])
        clustering.train(x, index)  # goes on from where it was
        assert clustering.iteration_stats.at(7).obj <= losses[-1][-1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    np.testing.assert_array_equal(ours.vector_to_array(clustering.obj)[:7], losses[1])
    with pytest.raises(TypeError, match="vector of numbers"):
        ours.vector_to_array(clustering.iteration_stats)
    with pytest.raises(ValueError, match="one dimension"):
        ours.copy_array_to_vector(x, clustering.centroids)


def test_kmeans_can_be_used_again():
    x = normal(600, 4)
    model = ours.Kmeans(4, 5, niter=3)
    model.train(x)
    first = model.centroids
    model.train(x)
    np.testing.assert_array_equal(model.centroids, first)
    model.reset(7)
    assert (model.centroids, model.obj, model.iteration_stats) == (None, None, None)
    with pytest.raises(RuntimeError, match="not trained"):
        model.assign(x)
    assert model.train(x) == model.obj[-1]
    assert model.centroids.shape == (7, 4)
    model.cp.spherical = True
    model.set_index()
    assert isinstance(model.index, ours.IndexFlatIP)


VERBOSE = """
import numpy as np
x = np.random.default_rng(0).standard_normal((3000, 8)).astype("float32")
faiss.Kmeans(8, 20, verbose=True, niter=2, nredo=2, max_points_per_centroid=50).train(x, init_centroids=x[:5])
faiss.Kmeans(8, 20, verbose=True, niter=2, progressive_dim_steps=3).train(x)
faiss.Kmeans(8, 20, verbose=True, min_points_per_centroid=1).train(x[:20])
"""


def test_verbose_says_what_faiss_says(capsys):
    """Line by line, times apart. faiss prints from C, where only a process's output shows it."""
    command = [sys.executable, "-c", "import faiss; faiss.omp_set_num_threads(1)\n" + VERBOSE]
    theirs = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exec(VERBOSE, {"faiss": ours})
    mine = capsys.readouterr().out

    def lines(text):
        text = re.sub(r"\d+\.\d\d s", "T", text)
        text = re.sub(r"objective=([\d.]+)", lambda match: f"objective={float(match[1]):.4g}", text)
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    assert len(lines(mine)) > 20
    assert lines(mine) == lines(theirs)
    ours.Kmeans(8, 20).train(normal(3000, 8))
    assert capsys.readouterr().out == ""


def test_warns_of_few_points():
    x = normal(100, 4)
    with pytest.warns(UserWarning, match="100 points to 10 centroids: please provide at least 390"):
        ours.Kmeans(4, 10).train(x)
    with pytest.warns(UserWarning, match="please provide"):
        ours.Clustering(4, 10).train(x, ours.IndexFlatL2(4))


@pytest.mark.filterwarnings("error")
def test_the_warning_can_be_silenced(recwarn):
    model = ours.Kmeans(4, 10, min_points_per_centroid=1)
    model.train(normal(100, 4))
    assert model.centroids.shape == (10, 4)
    assert not recwarn.list


def filled(module, metric="L2"):
    """An index of six vectors of small whole numbers, whose distances and products no rounding changes."""
    index = getattr(module, f"IndexFlat{metric}")(3)
    index.add(np.array([[0, 0, 0], [1, 2, 2], [3, 0, 4], [0, 0, 0], [-1, 0, 2], [5, 5, 5]], "float32"))
    return index


X = normal(50, 4)
REFUSED = [
    (lambda: ours.Kmeans(4, 5, nitre=3), AttributeError, "nitre.*niter"),
    (lambda: ours.Kmeans(4, 5, apply_pca=False), AttributeError, "apply_pca"),
    (lambda: ours.Kmeans(4, 5, niter="many"), TypeError, "niter='many'"),
    (lambda: ours.Kmeans(4, 5, seed=1.5), TypeError, "seed=1.5"),
    (lambda: ours.Kmeans(4, 5, spherical="yes"), TypeError, "spherical"),
    (lambda: ours.Kmeans(4, 5, gpu=2), ValueError, "gpu=2"),
    (lambda: ours.Kmeans(4, 51).train(X), ValueError, r"\(50\).*\(51\)"),
    (lambda: ours.Kmeans(4, 0).train(X), ValueError, "k=0"),
    (lambda: ours.Kmeans(0, 2).train(X[:, :0]), ValueError, "d=0"),
    (lambda: ours.Kmeans(4, 5, progressive_dim_steps=0).train(X), ValueError, "progressive_dim_steps=0"),
    (lambda: ours.Kmeans(4, 5, nredo=0).train(X), ValueError, "nredo=0"),
    (lambda: ours.Kmeans(4, 5, max_points_per_centroid=0).train(X), ValueError, "max_points_per_centroid=0"),
    (lambda: ours.Kmeans(4, 5, init_method=7).train(X), ValueError, "init_method=7"),
    (lambda: ours.Kmeans(4, 5, use_super_kmeans=True).train(X), ValueError, "use_super_kmeans"),
    (lambda: ours.Kmeans(3, 5).train(X), ValueError, r"x has shape \(50, 4\): expected \(n, 3\)"),
    (lambda: ours.Kmeans(4, 5).train(X[0]), ValueError, "x has shape"),
    (lambda: ours.Kmeans(4, 5).train(X, weights=np.ones(49)), ValueError, r"weights.*\(50,\)"),
    (lambda: ours.Kmeans(4, 5).train(X, weights=-np.ones(50)), ValueError, "50 negative"),
    (lambda: ours.Kmeans(4, 5).train(X, weights=np.zeros(50)), ValueError, "all 0"),
    (lambda: ours.Kmeans(4, 5).train(X, weights=np.full(50, np.nan)), ValueError, "weights contains 50 non-finite"),
    (lambda: ours.Kmeans(4, 5).train(X, init_centroids=X[:6]), ValueError, "24 elements"),
    (lambda: ours.Kmeans(4, 5).train(X, init_centroids=X[:5, :3]), ValueError, "init_centroids has shape"),
    (lambda: ours.Kmeans(4, 5).train(X, init_centroids=X[:5] * np.inf), ValueError, "centroids contains"),
    (lambda: ours.Kmeans(4, 5, progressive_dim_steps=2).train(X, weights=np.ones(50)), ValueError, "progressive"),
    (lambda: ours.Kmeans(4, 5, progressive_dim_steps=2, spherical=True).train(X), ValueError, "progressive"),
    (lambda: ours.Clustering(4, 5).train(X, ours.IndexFlatL2(3)), ValueError, "dimension 3"),
    (lambda: ours.Clustering(4, 5).train(X, None), TypeError, "NoneType"),
    (lambda: ours.Clustering(4, 5).train(X, faiss.IndexFlatL2(4)), TypeError, "IndexFlatL2"),
    (lambda: ours.IndexFlatL2(3).add(X), ValueError, "x has shape"),
    (lambda: ours.IndexFlatL2(4).search(X, 0), ValueError, "k=0"),
    (lambda: ours.IndexFlatL2(4).reconstruct(0), ValueError, "key=0"),
    (lambda: filled(ours).reconstruct(-1), ValueError, "key=-1: expected 0 <= key < ntotal = 6"),
    (lambda: filled(ours).reconstruct_batch([1, 6]), ValueError, "key=6"),
    (lambda: filled(ours).reconstruct_n(4, 3), ValueError, "n0=4, ni=3.* ntotal = 6"),
    (lambda: filled(ours).reconstruct_n(-1, 2), ValueError, "n0=-1, ni=2"),
    (lambda: filled(ours).reconstruct_n(1, -2), ValueError, "n0=1, ni=-2"),
    (lambda: filled(ours).reconstruct_n(7), ValueError, "n0=7, ni=-1"),
    (lambda: filled(ours).remove_ids([1.0]), TypeError, "indices are torch.float64: expected integers"),
    (lambda: filled(ours).remove_ids([True]), TypeError, "indices are torch.bool"),
    (lambda: filled(ours).remove_ids(1), ValueError, r"indices have shape \(\): expected \(n,\)"),
    (lambda: filled(ours).remove_ids(faiss.IDSelectorBatch([1])), TypeError, "indices are a IDSelectorBatch"),
    (lambda: filled(ours).range_search(X, 1.0), ValueError, "x has shape"),
    (lambda: ours.index_factory(4, "PCA2,Flat"), ValueError, "description='PCA2,Flat': only 'Flat' is here"),
    (lambda: ours.index_factory(4, "Flat", 2), ValueError, "metric=2"),
    (lambda: ours.normalize_L2(X.astype("float64")), TypeError, "x is float64: expected .* of float32"),
    (lambda: ours.normalize_L2([[1.0]]), TypeError, "x is list"),
    (lambda: ours.normalize_L2(X[0]), ValueError, r"x has shape \(4,\): expected \(n, d\)"),
    (lambda: ours.normalize_L2(np.broadcast_to(X[:1], (3, 4))), ValueError, "x is read-only"),
    (lambda: ours.omp_set_num_threads(0), ValueError, "num_threads=0: expected at least 1"),
    (lambda: ours.omp_set_num_threads(1.5), TypeError, "integer"),
    (lambda: ours.PCAMatrix(4, 5), ValueError, "dout=5"),
    (lambda: ours.PCAMatrix(4, 4).train(X[:4]), ValueError, "4 rows"),
    (lambda: ours.PCAMatrix(4, 2).apply(X), ValueError, "not trained"),
    (lambda: ours.GpuIndexIVFFlat, AttributeError, "CUDA tensors"),
    (lambda: ours.IndexIVFFlat, AttributeError, "it covers"),
]


@pytest.mark.filterwarnings("ignore:clustering")
@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_refuses(case):
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call()


def test_without_a_gpu_the_cpu_is_used_and_a_warning_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    x = normal(300, 4)
    expected = ours.Kmeans(4, 5, gpu=False)
    expected.train(x)
    for gpu in (True, -1):
        with pytest.warns(UserWarning, match=f"gpu={gpu}: torch sees no CUDA device here, so the CPU is used"):
            model = ours.Kmeans(4, 5, gpu=gpu)
        model.train(x)
        np.testing.assert_array_equal(model.centroids, expected.centroids)
        assert model.gpu is expected.gpu is False


# Indices


@pytest.mark.parametrize("metric", ["L2", "IP"])
@pytest.mark.parametrize("k", [1, 2, 5, 60])
@pytest.mark.parametrize("offset", [0, 3])
def test_search_finds_what_faiss_finds(metric, k, offset):
    stored, queries = normal(50, 7, offset=offset), normal(400, 7, seed=1)
    found = []
    for module in (faiss, ours):
        index = getattr(module, f"IndexFlat{metric}")(7)
        assert index.is_trained
        index.train(stored)
        index.add(stored[:20])
        index.add(stored[20:].astype("float64"))
        assert (index.ntotal, index.d, index.metric_type) == (50, 7, getattr(module, f"METRIC_{METRICS[metric]}"))
        found.append(index.search(queries, k))
    (d_theirs, i_theirs), (d_mine, i_mine) = found
    np.testing.assert_array_equal(i_mine, i_theirs)
    np.testing.assert_allclose(d_mine, d_theirs, rtol=1e-4, atol=1e-4)
    assert (d_mine.dtype, i_mine.dtype) == (d_theirs.dtype, i_theirs.dtype)
    index.reset()
    assert index.ntotal == 0
    assert (index.search(queries, k)[1] == -1).all()


METRICS = {"L2": "L2", "IP": "INNER_PRODUCT"}


@pytest.mark.parametrize("kind", ["ties", "duplicates", "far away", "tiny", "mixed"])
def test_several_neighbours_are_exact(kind, cpu_backend):
    rng = np.random.default_rng(0)
    stored = {
        "ties": rng.integers(0, 3, (60, 3)),
        "duplicates": np.repeat(rng.standard_normal((6, 3)), 10, 0),
        "far away": 1e6 + rng.standard_normal((60, 3)),
        "tiny": 1e-20 * rng.standard_normal((60, 3)),
        "mixed": rng.standard_normal((60, 3)) * 10.0 ** rng.integers(-8, 8, (60, 1)),
    }[kind].astype("float32")
    queries = np.concatenate([stored[::3], stored[:20] + stored[20:40]])
    exact = np.zeros((len(queries), len(stored)))
    for column in range(3):
        exact += (queries[:, None, column].astype("float64") - stored[None, :, column]) ** 2
    index = ours.IndexFlatL2(3)
    index.add(stored)
    for k in (1, 2, 7, 60):
        distances, labels = index.search(torch.tensor(queries), k)
        expected = exact.argsort(1, kind="stable")[:, :k]
        np.testing.assert_array_equal(labels.numpy(), expected)
        np.testing.assert_array_equal(distances.numpy(), np.take_along_axis(exact, expected, 1).astype("float32"))


def test_search_passes_over_what_is_not_finite():
    stored, queries = normal(30, 4), normal(20, 4, seed=1)
    stored[3, 1], stored[9, 0], queries[5, 2] = np.nan, np.inf, np.nan
    index = ours.IndexFlatL2(4)
    index.add(stored)
    for k in (1, 4, 30):
        distances, labels = index.search(queries, k)
        assert (labels[5] == -1).all()
        assert (distances[5] == np.finfo("float32").max).all()
        assert not np.isin(labels, [3, 9]).any()
        assert (labels[np.arange(20) != 5][:, : min(k, 28)] >= 0).all()


def test_inner_products_of_any_lengths():
    """The reduction to distances holds for vectors of very different lengths, a zero one among them."""
    rng = np.random.default_rng(0)
    stored = (rng.standard_normal((200, 6)) * 10.0 ** rng.integers(-3, 4, (200, 1))).astype("float32")
    stored[17] = 0
    queries = rng.standard_normal((500, 6)).astype("float32")
    queries[0] = -np.abs(queries[0])
    stored[:] = np.where(rng.random((200, 1)) < 0.5, np.abs(stored), stored)
    products = queries.astype("float64") @ stored.T.astype("float64")
    index = ours.IndexFlatIP(6)
    index.add(stored)
    for k in (1, 6):
        values, labels = index.search(queries, k)
        np.testing.assert_array_equal(labels, (-products).argsort(1, kind="stable")[:, :k])
        np.testing.assert_allclose(values, np.take_along_axis(products, labels, 1), rtol=1e-6)


def test_inner_products_past_vectors_that_are_not_finite_or_huge():
    index = ours.IndexFlatIP(2)
    index.add(np.array([[1, 0], [2, 0], [np.nan, 0], [np.inf, 1], [0.5, 0]], "float32"))
    values, labels = index.search(np.array([[1, 0]], "float32"), 5)
    assert labels.tolist() == [[1, 0, 4, -1, -1]]
    assert values[0, :3].tolist() == [2, 1, 0.5]
    huge = ours.IndexFlatIP(2)
    huge.add(np.array([[3e38, 0], [0, 1], [3e38, 3e38]], "float32"))
    for k in (1, 3):
        values, labels = huge.search(np.array([[1, -0.5], [0, -1]], "float32"), k)
        assert labels.tolist() == [[0, 2, 1][:k], [0, 1, 2][:k]]
        assert values[0, 0] == np.float32(3e38)
    index.reset()
    index.add(np.array([[1e5, 0], [2e-8, 0], [1e-8, 0]], "float32"))
    values, labels = index.search(np.array([[-1, 0]], "float32"), 3)
    assert labels.tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("metric", ["L2", "IP"])
@pytest.mark.parametrize("thresh", [-5, 0, 5, np.float64(9), 25, np.inf, -np.inf, np.nan])
def test_range_search_finds_what_faiss_finds(metric, thresh):
    queries = np.array([[0, 0, 0], [1, 2, 2], [np.nan, 0, 0], [3, 0, 0]], "float32")
    theirs, mine = (filled(module, metric).range_search(queries, thresh) for module in (faiss, ours))
    found = filled(ours, metric).range_search(torch.tensor(queries), thresh)
    for expected, array, tensor in zip(theirs, mine, found, strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(tensor.numpy(), expected)
    for index in (ours.IndexFlatL2(3), filled(ours)):
        assert [part.tolist() for part in index.range_search(queries[:0], 1)] == [[0], [], []]
    assert ours.IndexFlatL2(3).range_search(queries, 1)[0].tolist() == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("metric", ["L2", "IP"])
def test_range_search_of_any_data(metric):
    stored, queries = normal(300, 5), normal(40, 5, seed=1)
    results = []
    for module in (faiss, ours):
        index = getattr(module, f"IndexFlat{metric}")(5)
        index.add(stored)
        results.append(index.range_search(queries, 2.5))
    (lims, distances, labels), (own_lims, own_distances, own_labels) = results
    np.testing.assert_array_equal(own_lims, lims)
    np.testing.assert_array_equal(own_labels, labels)
    np.testing.assert_allclose(own_distances, distances, rtol=1e-4)
    stored[7, 2] = np.inf
    spoilt = getattr(ours, f"IndexFlat{metric}")(5)
    spoilt.add(stored)
    assert 7 in labels
    np.testing.assert_array_equal(spoilt.range_search(queries, 2.5)[2], labels[labels != 7])


@pytest.mark.parametrize("metric", ["L2", "IP"])
def test_indices_give_back_and_remove_as_faiss_does(metric):
    theirs, mine = filled(faiss, metric), filled(ours, metric)
    queries = np.array([[1, 2, 3], [-1, 0, 1]], "float32")
    np.testing.assert_array_equal(mine.assign(queries, 1), theirs.assign(queries, 1))
    np.testing.assert_array_equal(mine.assign(queries, 7), mine.search(queries, 7)[1])  # faiss has no order of ties
    for key in (0, 5):
        np.testing.assert_array_equal(mine.reconstruct(np.int64(key)), theirs.reconstruct(key))
    for arguments in ((), (2,), (2, 3), (3, -1), (0, 0), (6, 0), (6,)):
        np.testing.assert_array_equal(mine.reconstruct_n(*arguments), theirs.reconstruct_n(*arguments))
    for key in ([1, 3, 1], np.array([4], "int32"), np.empty(0, "int64")):
        np.testing.assert_array_equal(mine.reconstruct_batch(key), theirs.reconstruct_batch(key))
    for ids in (np.array([4, 1, 4, 99, -1]), np.empty(0, "int64"), np.array([0], "int32"), np.arange(9)):
        assert mine.remove_ids(ids) == theirs.remove_ids(ids)
        assert mine.ntotal == theirs.ntotal
        np.testing.assert_array_equal(mine.reconstruct_n(), theirs.reconstruct_n())
    index = filled(ours, metric)
    assert index.remove_ids(torch.tensor([2, 3])) + index.remove_ids([0]) == 3
    np.testing.assert_array_equal(index.reconstruct_n(), filled(ours).reconstruct_n()[[1, 4, 5]])


def test_index_factory():
    for metric in (faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT):
        theirs, mine = (module.index_factory(3, "Flat", metric) for module in (faiss, ours))
        assert (mine.d, mine.metric_type, mine.ntotal) == (theirs.d, theirs.metric_type, theirs.ntotal)
    assert type(ours.index_factory(3, "Flat")) is ours.IndexFlatL2


@pytest.mark.parametrize("metric", ["L2", "IP"])
def test_files_of_indices_are_those_of_faiss(metric, tmp_path):
    path = str(tmp_path / "index")
    for writer, reader in ((faiss, ours), (ours, faiss), (ours, ours)):
        index = filled(writer, metric)
        assert writer.write_index(index, path) is None
        bytes_ = writer.serialize_index(index)
        np.testing.assert_array_equal(bytes_, np.fromfile(path, np.uint8))
        for read in (reader.read_index(path), reader.deserialize_index(bytes_)):
            assert type(read) is getattr(reader, f"IndexFlat{metric}")
            assert (read.d, read.ntotal, read.metric_type) == (3, 6, index.metric_type)
            np.testing.assert_array_equal(read.reconstruct_n(0, 6), index.reconstruct_n(0, 6))
        writer.write_index(getattr(writer, f"IndexFlat{metric}")(4), path)
        assert (reader.read_index(path).d, reader.read_index(path).ntotal) == (4, 0)
    model = ours.Kmeans(4, 5, spherical=metric == "IP")
    model.train(normal(300, 4))
    ours.write_index(model.index, tmp_path / "centroids")
    for left, right in zip(ours.read_index(tmp_path / "centroids").search(X, 1), model.assign(X), strict=True):
        np.testing.assert_array_equal(left[:, 0], right)


def test_files_of_other_things_are_refused(tmp_path):
    whole = ours.serialize_index(filled(ours))
    for size in range(len(whole)):
        with pytest.raises(ValueError, match=f"data (begins with|has {size} bytes)"):
            ours.deserialize_index(whole[:size])
    odd = whole.copy()
    odd[4:8] = 255  # a dimension of -1
    for data in (np.append(whole, 0), np.append(whole, [0] * 4), odd):
        with pytest.raises(ValueError, match="not those of the index that it begins with"):
            ours.deserialize_index(data)
    (tmp_path / "hnsw").write_bytes(bytes(faiss.serialize_index(faiss.IndexHNSWFlat(4, 8))))
    with pytest.raises(ValueError, match="hnsw' begins with b'IHNf': it holds none of faiss's flat indices"):
        ours.read_index(tmp_path / "hnsw")
    with pytest.raises(FileNotFoundError, match="absent"):
        ours.read_index(tmp_path / "absent")
    with pytest.raises(TypeError, match="index is a HNSW"):
        ours.write_index(faiss.IndexHNSWFlat(4, 8).hnsw, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_rows_are_normalised_in_place():
    theirs = np.concatenate([normal(100, 7), np.zeros((1, 7), "float32"), np.full((1, 7), np.nan, "float32")])
    mine, tensor, wide = theirs.copy(), torch.tensor(theirs), np.zeros((102, 14), "float32")
    wide[:, ::2] = theirs
    faiss.normalize_L2(theirs)
    for rows in (mine, tensor, wide[:, ::2]):
        assert ours.normalize_L2(rows) is None
        np.testing.assert_array_equal(rows, mine)
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    assert (wide[:, 1::2] == 0).all()
    far = np.array([[3e-30, 4e-30], [3e30, 4e30]], "float32")  # faiss leaves the first and makes the second 0
    ours.normalize_L2(far)
    np.testing.assert_allclose(far, [[0.6, 0.8]] * 2, rtol=1e-6)
    ours.normalize_L2(np.zeros((0, 3), "float32"))


def test_the_machine_is_told_as_by_faiss():
    assert ours.get_num_gpus() == torch.cuda.device_count()
    before = torch.get_num_threads()
    try:
        for module in (faiss, ours):
            module.omp_set_num_threads(1)
            assert module.omp_get_max_threads() == 1
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("max_points", "warned"), [(10, 0), (30, 1)])
def test_a_sample_is_not_too_small(max_points, warned):
    """Of 300 rows 100 are drawn, or all are taken: as in faiss only the latter are told to be too few."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = ours.Kmeans(4, 10, max_points_per_centroid=max_points, niter=2)
        model.train(normal(300, 4))
    assert len([w for w in caught if "please provide at least 390" in str(w.message)]) == warned
    assert len(caught) == warned
    assert model.centroids.shape == (10, 4)


# PCA


@pytest.mark.parametrize("power", [0.0, -0.5, 0.25])
@pytest.mark.parametrize("dout", [3, 10])
def test_pca_agrees_with_faiss(power, dout):
    x = normal(800, 10, offset=2.0) * np.arange(1, 11, dtype="float32")
    theirs, mine = faiss.PCAMatrix(10, dout, power), ours.PCAMatrix(10, dout, power)
    for pca in (theirs, mine):
        assert not pca.is_trained
        pca.train(x.astype("float64"))
        assert pca.is_trained
        assert (pca.d_in, pca.d_out) == (10, dout)
    expected, got = theirs.apply(x), mine.apply_py(x)
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.abs(got), np.abs(expected), rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    for name in ("mean", "eigenvalues"):
        values = faiss.vector_to_array(getattr(theirs, name)), ours.vector_to_array(getattr(mine, name))
        kept = 10 if name == "mean" else dout
        np.testing.assert_allclose(values[1][:kept], values[0][:kept], rtol=1e-4)
    matrix = ours.vector_to_array(mine.A).reshape(dout, 10)
    np.testing.assert_allclose(x @ matrix.T + ours.vector_to_array(mine.b), got, rtol=1e-3, atol=1e-3)
    if power == 0:
        np.testing.assert_allclose(
            mine.reverse_transform(got), theirs.reverse_transform(expected), atol=1e-3 * np.abs(x).max()
        )
    else:
        with pytest.raises(ValueError, match="eigen_power"):
            mine.reverse_transform(got)


def test_pca_options():
    x = normal(20_000, 2) * np.array([1, 3], "float32")
    means = []
    for module in (faiss, ours):
        pca = module.PCAMatrix(2, 2)
        pca.max_points_per_d = 100
        pca.train(x)  # on the same 200 rows
        means.append(module.vector_to_array(pca.mean))
    np.testing.assert_allclose(means[1], means[0], atol=1e-6)
    assert abs(means[1] - x.mean(0)).max() > 0.01
    flat = np.zeros((100, 4), "float32")
    flat[:, 0] = np.arange(100)
    pca = ours.PCAMatrix(4, 3, eigen_power=-0.5)
    assert pca.eigen_power == ours.PCAMatrix(4, 3, eigen_power_in=-0.5).eigen_power == -0.5
    pca.train(torch.tensor(flat))
    whitened = pca.apply(torch.tensor(flat))
    assert isinstance(whitened, torch.Tensor)
    assert (whitened[:, 1:] == 0).all()
    assert float(whitened[:, 0].double().square().sum()) == pytest.approx(1)
    pca.epsilon = float(ours.vector_to_array(pca.eigenvalues)[0]) * 3
    pca.train(flat)
    assert float((pca.apply(flat).astype("float64") ** 2).sum()) == pytest.approx(0.25)
    lengths = []
    for module in (faiss, ours):  # the directions without variance are arbitrary, the lengths not
        pca = module.PCAMatrix(4, 4, -0.5)
        pca.epsilon = 2.0
        pca.train(flat)
        lengths.append(np.linalg.norm(pca.apply(np.eye(4)), axis=1))
    np.testing.assert_allclose(lengths[1], lengths[0], rtol=1e-5)


@pytest.mark.parametrize("power", [0.0, -0.5])
def test_pca_is_rotated_at_random(power):
    x = normal(800, 10, offset=2.0) * np.arange(1, 11, dtype="float32")
    plain = ours.PCAMatrix(10, 6, power)
    plain.train(x)
    expected = plain.apply(x).astype("float64")
    for module in (faiss, ours):
        pca = module.PCAMatrix(10, 6, power, True)
        pca.train(x)
        assert pca.random_rotation
        got = pca.apply(x).astype("float64")
        scale = np.abs(expected @ expected.T).max()
        np.testing.assert_allclose(got @ got.T, expected @ expected.T, atol=1e-4 * scale)  # no length, no angle changes
        assert np.abs(np.abs(got) - np.abs(expected)).max() > 0.1 * np.abs(expected).max()
        matrix, bias = module.vector_to_array(pca.A).reshape(6, 10), module.vector_to_array(pca.b)
        np.testing.assert_allclose(x @ matrix.T + bias, got, rtol=1e-3, atol=1e-3)
    if power == 0:
        np.testing.assert_allclose(pca.reverse_transform(got), plain.reverse_transform(expected), atol=1e-4)
    again = ours.PCAMatrix(10, 6, power, random_rotation=True)
    again.train(torch.tensor(x))
    np.testing.assert_array_equal(again.apply(x), pca.apply(x))


# A project


def test_a_project_changes_only_its_import():
    source = (Path(__file__).parent / "support" / "faiss_script.py").read_text()
    assert source.count("import faiss\n") == 1
    features = np.maximum(normal(3000, 40) @ normal(40, 64, seed=1) + normal(3000, 64, seed=2), 0)
    losses, sizes = [], []
    for line in ("import faiss\n", "import dcfast.faiss as faiss\n"):
        names = {}
        exec(compile(source.replace("import faiss\n", line), "script", "exec"), names)
        members, centroids, loss = names["main"](features, 16, 50, 31)
        assert sum(map(len, members)) == 3000
        assert centroids.shape == (50, 16)
        losses.append(loss)
        sizes.append(sorted(map(len, members)))
    assert names["faiss"] is sys.modules["dcfast.faiss"]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    assert np.abs(np.subtract(*sizes)).max() < 30
