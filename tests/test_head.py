"""ClusterHead: its loss and gradient against their definitions, and what it finds and answers."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import normalize
from sklearn.utils.estimator_checks import check_estimator
from torch.nn import functional as F

from dcfast import ClusterHead, KMeans
from dcfast.cluster.neighbours import other_neighbours
from dcfast.cluster.pair_loss import pair_gradient, pair_loss
from dcfast.nn import UnitLinear


def blobs(n=300, d=8, centers=4, seed=0):
    """Separate groups in directions of their own, at any distance from the origin, and the group of each row."""
    x, y = make_blobs(n, d, centers=5 * np.eye(centers, d), cluster_std=0.6, random_state=seed)
    return x * np.random.default_rng(seed).uniform(0.5, 2, (n, 1)), y


def quick(**arguments):
    return ClusterHead(**{"n_clusters": 4, "n_heads": 3, "epochs": 20, "random_state": 0, **arguments})


@pytest.fixture(scope="module")
def fitted():
    return quick().fit(blobs()[0])


def loss_by_definition(p, q, mean, beta=1.0):
    """Of the pairs (p_i, q_i): (n, k) each."""
    return -((p * q) ** beta / mean).sum(-1).log().mean(-1)


def test_scikit_learns_checks():
    results = check_estimator(ClusterHead(3, n_heads=1, epochs=25), on_skip=None)
    assert len(results) > 40


def test_loss_is_its_definition(monkeypatch):
    monkeypatch.setattr("dcfast.cluster.pair_loss.BLOCK_BYTES", 1000)  # several blocks
    draw = torch.Generator().manual_seed(0)
    log_p = (3 * torch.randn(50, 7, generator=draw, dtype=torch.float64)).log_softmax(1)
    near = torch.randint(50, (50, 4), generator=draw)
    p = log_p.exp()
    expected = torch.stack([loss_by_definition(p, p[column], p.mean(0)) for column in near.T]).mean()
    torch.testing.assert_close(pair_loss(log_p, near), expected, rtol=1e-12, atol=0)


def test_the_least_loss_is_that_of_equal_certain_clusters():
    log_p = (100 * torch.eye(5, dtype=torch.float64).repeat(4, 1)).log_softmax(1)
    assert float(pair_loss(log_p, torch.arange(20)[:, None])) == pytest.approx(-np.log(5))
    equal = torch.full_like(log_p, -np.log(5))
    assert float(pair_loss(equal, torch.arange(20)[:, None])) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 9])
def test_gradient_is_that_of_the_loss(k):
    draw = torch.Generator().manual_seed(1)
    logits = (2 * torch.randn(3, k, 2, 12, generator=draw, dtype=torch.float64)).requires_grad_()
    p = logits.softmax(1)
    beta = torch.tensor([0.52, 0.6, 1.0], dtype=torch.float64)
    losses = [
        loss_by_definition(own[:, 0].T, own[:, 1].T, own.mean((1, 2)), power)
        for own, power in zip(p, beta, strict=True)
    ]
    (expected,) = torch.autograd.grad(torch.stack(losses).sum(), logits)
    slope = pair_gradient(logits.detach(), beta.view(3, 1, 1, 1))
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-14)


def test_an_empty_cluster_keeps_a_finite_gradient():
    logits = torch.zeros(1, 3, 2, 6)
    logits[:, 2] = -300  # whose probability is 0 in float32
    slope = pair_gradient(logits, torch.full((1, 1, 1, 1), 0.6))
    assert slope.isfinite().all()
    assert pair_loss(logits[0, :, 0].T.log_softmax(1), torch.arange(6)[:, None]).isfinite()


@pytest.mark.parametrize("unit", [True, False])
def test_finds_separate_groups(unit):
    x, y = blobs()
    model = quick(normalize=unit).fit(x)
    assert adjusted_rand_score(y, model.labels_) > 0.95
    assert model.loss_ == model.losses_.min()
    assert len(model.losses_) == 3
    assert model.score(x) == pytest.approx(-model.loss_, abs=1e-4)
    assert isinstance(model.head_, UnitLinear) == unit


def test_digits_by_more_than_k_means():
    digits = load_digits()
    means = KMeans(10, n_init=10, random_state=0).fit_predict(normalize(digits.data))
    labels = ClusterHead(10, n_heads=4, epochs=30, random_state=0).fit_predict(digits.data)
    assert adjusted_rand_score(digits.target, labels) > 0.05 + adjusted_rand_score(digits.target, means)


def test_neighbours_that_tell_little_leave_no_equal_probabilities():
    """A small beta alone does: such heads have the greater loss at beta = 1."""
    x = np.random.default_rng(0).normal(size=(400, 24))
    small, both = (ClusterHead(8, n_heads=2, epochs=20, random_state=0, beta=beta) for beta in (0.6, (0.6, 1.0)))
    assert small.fit(x).predict_proba(x).max(1).mean() < 0.25
    assert both.fit(x).predict_proba(x).max(1).mean() > 0.5
    assert both.losses_[0] == pytest.approx(small.losses_[0], abs=1e-4)
    assert both.loss_ == both.losses_[1] < both.losses_[0] - 0.2


def test_loss_of_the_kept_head_is_that_of_its_probabilities(fitted):
    x, _ = blobs()
    rows = F.normalize(torch.tensor(x), dim=1)
    near = other_neighbours((rows - rows.mean(0)).float(), 20)
    expected = pair_loss(torch.tensor(fitted.predict_proba(x)).log(), near)
    assert fitted.loss_ == pytest.approx(float(expected), abs=1e-5)


def test_the_head_takes_features_as_they_come(fitted):
    x, _ = blobs()
    logits = fitted.head_(torch.tensor(x).float())
    np.testing.assert_array_equal(logits.argmax(1), fitted.labels_)
    np.testing.assert_allclose(logits.softmax(1).detach(), fitted.predict_proba(x), atol=1e-4)
    np.testing.assert_array_equal(fitted.predict(7 * x), fitted.labels_)
    assert all(parameter.requires_grad for parameter in fitted.head_.parameters())
    fitted.predict(x)
    assert fitted.head_.weight.dtype == torch.float32  # not that of the rows it predicted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_answers_in_kind(dtype):
    x = torch.tensor(10 * blobs()[0]).to(dtype)
    model = quick().fit(x)
    assert isinstance(model.labels_, torch.Tensor)
    assert model.labels_.dtype == torch.int32
    assert torch.equal(model.predict(x), model.labels_)
    wide = dtype in (torch.float64, torch.int64)
    assert model.predict_proba(x).dtype == (torch.float64 if wide else torch.float32)
    if dtype != torch.bfloat16:
        array = quick().fit(x.numpy())
        assert array.labels_.dtype == np.int32
        np.testing.assert_array_equal(array.labels_, model.labels_)


def test_same_labels_from_arrays_of_any_layout(fitted):
    x, _ = blobs()
    frozen = x.copy()
    frozen.flags.writeable = False
    for kind in (frozen, np.asfortranarray(x), x.tolist(), np.repeat(x, 2, 1)[:, ::2]):
        again = quick().fit(kind)
        np.testing.assert_array_equal(again.labels_, fitted.labels_)
        np.testing.assert_array_equal(again.predict(kind), fitted.labels_)
    np.testing.assert_array_equal(frozen, x)


def test_names_of_features():
    frame = pd.DataFrame(blobs()[0], columns=list("abcdefgh"))
    model = quick(epochs=1).fit(frame)
    assert model.feature_names_in_.tolist() == list("abcdefgh")
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[list("hgfedcba")])


def test_same_bits_from_the_same_state(fitted):
    """Whatever was drawn before, and whatever torch's default dtype is."""
    x, _ = blobs()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = clone(fitted).fit(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.head_.weight, fitted.head_.weight)
    torch.set_default_dtype(torch.float64)
    try:
        again = clone(fitted).fit(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again.head_.weight, fitted.head_.weight)
    other = quick(random_state=1).fit(x)
    assert not torch.equal(other.head_.weight, fitted.head_.weight)


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_modes_around_a_fit_change_no_bit(fitted, mode):
    x, _ = blobs()
    with mode():
        again = clone(fitted).fit(x)
        proba = again.predict_proba(x.astype("float32"))
    assert torch.equal(again.head_.weight, fitted.head_.weight)
    np.testing.assert_array_equal(proba, fitted.predict_proba(x.astype("float32")))
    again.head_(torch.tensor(x).float()).square().sum().backward()
    assert again.head_.weight.grad.abs().max() > 0


def test_the_default_device_is_not_that_of_the_draws(fitted):
    x, _ = blobs()
    with torch.device("meta"):
        again = clone(fitted).fit(x)
    assert torch.equal(again.head_.weight, fitted.head_.weight)


def test_numbers_of_numpy_s_small_types(fitted):
    small = {name: np.uint8(getattr(fitted, name)) for name in ("n_clusters", "n_neighbors", "n_heads", "epochs")}
    x, _ = blobs()
    again = quick(**small, batch_size=np.uint8(200)).fit(x)
    assert torch.equal(again.head_.weight, quick(batch_size=200).fit(x).head_.weight)


def test_pickles(fitted):
    x, _ = blobs()
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(x), fitted.predict_proba(x))


def test_one_cluster():
    model = ClusterHead(1, epochs=2).fit(blobs()[0])
    assert model.loss_ == 0
    assert set(model.labels_) == {0}


def test_copies_share_a_cluster():
    x = np.repeat(blobs(4)[0], 30, axis=0)
    model = quick().fit(x)
    assert sorted(np.bincount(model.labels_)) == [30] * 4
    np.testing.assert_array_equal(model.labels_, np.repeat(model.labels_[::30], 30))


@pytest.mark.parametrize("x", [np.full((60, 3), 0.1), np.zeros((60, 3)), np.eye(4), np.full((5, 1), 1e-300)])
@pytest.mark.parametrize("unit", [True, False])
def test_what_cannot_be_told_apart_is_told(x, unit):
    with pytest.warns(ConvergenceWarning, match=r"distinct clusters \(\d\) found smaller than n_clusters \(4\)"):
        model = quick(normalize=unit, epochs=2).fit(x)
    assert np.isfinite(model.loss_)
    np.testing.assert_array_equal(model.predict(x), model.labels_)


def test_neighbours_stay_within_a_cluster_of_mean_size():
    """Of 15 rows a group, 20 neighbours would reach into others."""
    x, y = blobs(60)
    assert adjusted_rand_score(y, quick(n_neighbors=50).fit_predict(x)) > 0.95


def test_columns_of_any_scale_without_normalizing():
    x, y = blobs()
    for factor in (1e-12, 1e12):
        assert adjusted_rand_score(y, quick(normalize=False).fit_predict(factor * x + factor)) > 0.95


def test_callback_is_told_every_epoch():
    told = []
    quick(epochs=3, callback=told.append).fit(blobs()[0])
    assert told == [1, 2, 3]


def test_verbose_tells_the_losses(capsys):
    model = quick(epochs=1, verbose=1).fit(blobs()[0])
    assert f"loss {model.loss_:.4f}, all [" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("x", "arguments", "match"),
    [
        (np.zeros((3, 2)), {}, "n_samples=3 must be at least n_clusters=4"),
        (np.zeros((1, 2)), {"n_clusters": 1}, "n_samples=1 must be at least n_clusters=1, and 2 for a pair"),
        (np.full((9, 2), np.nan), {}, "18 non-finite"),
        (np.full((9, 2), 1e30), {}, r"X reaches 1e\+30"),
        (np.zeros((9, 2)), {"beta": 0.5}, "beta"),
        (np.ones((9, 2)), {"beta": ()}, "one at least"),
        (np.ones((9, 2)), {"beta": (0.6, 1.5)}, "at most 1"),
        (np.zeros((9, 2)), {"epochs": 0}, "epochs"),
        (np.zeros((9, 2)), {"learning_rate": 0}, "learning_rate"),
        (np.zeros((9, 2)), {"device": "tpu"}, "device='tpu'"),
    ],
)
def test_errors_name_the_argument(x, arguments, match):
    with pytest.raises(ValueError, match=match):
        quick(**arguments).fit(x)


def test_a_failed_fit_leaves_no_model():
    x, _ = blobs()
    model = quick(epochs=1).fit(x)
    with pytest.raises(ValueError, match="n_samples=3"):
        model.fit(x[:3])
    for method in (model.predict, model.predict_proba, model.score):
        with pytest.raises(NotFittedError):
            method(x)


def test_a_score_takes_two_rows(fitted):
    with pytest.raises(ValueError, match=r"X has 1 sample\(s\)"):
        fitted.score(blobs()[0][:1])
