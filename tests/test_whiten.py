"""PCAWhiten: unit covariance, unit rows, degenerate directions, streaming."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.utils.estimator_checks import check_estimator

from dcfast import PIC, ClusterHead, PCAWhiten


def data(n=500, d=12, dtype=np.float64):
    rng = np.random.RandomState(0)
    return (rng.randn(n, d) @ rng.randn(d, d) + 5 * rng.randn(d)).astype(dtype)


def test_scikit_learn_checks():
    check_estimator(PCAWhiten(n_components=1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_with_scikit_learn_up_to_signs(dtype):
    X = data(dtype=dtype)
    ours = PCAWhiten(5, normalize=False).fit(X)
    theirs = PCA(5, whiten=True, svd_solver="full").fit(X.astype(np.float64))
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_, rtol=1e-5)
    out = ours.transform(X)
    assert out.dtype == dtype
    np.testing.assert_allclose(np.abs(out), np.abs(theirs.transform(X)), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.cov(out.T), np.eye(5), atol=1e-5)


def test_rows_have_unit_length_and_zero_rows_stay():
    X = torch.tensor(data())
    whiten = PCAWhiten(6).fit(X)
    norms = whiten.transform(X).norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms))
    assert torch.equal(whiten.transform(whiten.mean_[None]), torch.zeros(1, 6, dtype=torch.float64))


@pytest.mark.parametrize("scale", [2.0**600, 2.0**1010, 2.0**-600, 2.0**-1060])
def test_variances_beyond_doubles_are_refused(scale):
    with pytest.raises(ValueError, match=r"X deviates from its mean by up to .*: .* between 2\^-480 and 2\^480"):
        PCAWhiten(2).fit(data(1500, 4) * scale)


@pytest.mark.parametrize("scale", [2.0**470, 2.0**-470])
def test_variances_of_any_double_are_found(scale):
    X = data(1500, 4)
    np.testing.assert_allclose(PCAWhiten(2).fit_transform(X * scale), PCAWhiten(2).fit_transform(X), atol=1e-12)
    for constant in (0.0, 0.1e-140):  # the mean of the latter is rounded
        assert not PCAWhiten(2).fit_transform(np.full((50, 4), constant)).any()


@pytest.mark.parametrize("scale", [0.0, 6.0])
def test_more_features_than_rows(scale):
    """The components of the rows' own Gram matrix, over twelve orders of magnitude of the variance too."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 300)) * 10.0 ** -(scale * rng.random(300))
    ours = PCAWhiten(39, whiten=False, normalize=False).fit(X)
    centred = X - X.mean(0)
    gram = np.linalg.eigvalsh(centred @ centred.T)[::-1][:39] / 39
    np.testing.assert_allclose(ours.explained_variance_, gram, rtol=1e-9, atol=1e-13 * gram[0])
    np.testing.assert_allclose(ours.components_ @ ours.components_.T, np.eye(39), atol=1e-12)
    covariance = centred.T @ centred / 39
    np.testing.assert_allclose(ours.components_ @ covariance, gram[:, None] * ours.components_, atol=1e-11 * gram[0])


def test_few_rows_of_many_features_cost_no_cube_of_the_features(monkeypatch):
    sizes, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: sizes.append(len(matrix)) or eigh(matrix))
    PCAWhiten(4).fit(np.random.default_rng(0).normal(size=(20, 400)))
    assert sizes[0] < 60


def test_directions_of_few_rows_without_variance_become_zero():
    X = np.repeat(np.random.default_rng(0).normal(size=(5, 300)), 4, axis=0)
    out = PCAWhiten(12, normalize=False).fit_transform(X)
    np.testing.assert_array_equal(out[:, 4:], 0)
    np.testing.assert_allclose(np.cov(out[:, :4].T), np.eye(4), atol=1e-9)


def test_directions_without_variance_become_zero():
    X = data(d=4)
    X = np.concatenate([X, X[:, :2], np.full((len(X), 1), 3.0)], axis=1)
    out = PCAWhiten(7, normalize=False).fit_transform(X)
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out[:, 4:], 0)
    np.testing.assert_allclose(np.cov(out[:, :4].T), np.eye(4), atol=1e-6)


def test_a_far_origin_costs_no_precision():
    X = data()
    near = PCAWhiten(3, normalize=False).fit(X - X.mean(0))
    far = PCAWhiten(3, normalize=False).fit(X - X.mean(0) + 1e8)
    np.testing.assert_allclose(near.explained_variance_, far.explained_variance_, rtol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(9000, 20), (1200, 2600)])
def test_chunks_and_threads_change_no_bit(n, d):
    X = torch.tensor(np.random.default_rng(0).normal(size=(n, d)).astype(np.float32))
    whole = PCAWhiten(8).fit(X)
    streamed = PCAWhiten(8).fit(chunk.numpy() for chunk in X.split(777))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threaded = PCAWhiten(8).fit(X)
    finally:
        torch.set_num_threads(threads)
    for other in (streamed, threaded):
        assert np.array_equal(np.asarray(whole.components_), np.asarray(other.components_))
        assert np.array_equal(np.asarray(whole.transform(X)), np.asarray(other.transform(X)))
    assert isinstance(streamed.components_, np.ndarray)
    assert isinstance(whole.components_, torch.Tensor)


def in_columns(X):
    return X.T.contiguous().T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_layout_of_the_rows_changes_no_component(dtype):
    X = torch.tensor(np.random.default_rng(0).normal(size=(2500, 30))).to(dtype)
    whole = PCAWhiten(8).fit(X)
    for other in (PCAWhiten(8).fit(in_columns(X)), PCAWhiten(8).fit(iter(in_columns(X).split(1500)))):
        for name in ("mean_", "components_", "explained_variance_"):
            assert np.array_equal(np.asarray(getattr(other, name)), np.asarray(getattr(whole, name))), name


@pytest.mark.parametrize("n_components", [1, 3])
def test_the_layout_of_the_rows_changes_no_projection(n_components):
    X = torch.tensor(np.random.default_rng(0).normal(size=(1025, 500)))
    whiten = PCAWhiten(n_components, normalize=False).fit(X[:40])
    assert torch.equal(whiten.transform(in_columns(X)), whiten.transform(X))


@pytest.mark.parametrize(
    ("X", "n_components", "match"),
    [
        (np.zeros((1, 3)), 1, "at least 2"),
        (np.zeros((4, 3)), 4, "lower it"),
        (torch.zeros(2, 2, 2), 1, r"\(2, 2, 2\)"),
        (torch.tensor([[1.0], [torch.nan]]), 1, "1 non-finite"),
        (np.zeros((4, 3)), 0, "n_components"),
    ],
)
def test_errors_name_the_argument(X, n_components, match):
    with pytest.raises(ValueError, match=match):
        PCAWhiten(n_components).fit(X)


@pytest.mark.parametrize("estimator", [PCAWhiten(2), PIC(), ClusterHead(2)], ids=lambda value: type(value).__name__)
def test_tensors_of_no_use(estimator):
    X = torch.tensor(data(20))
    for bad in (X.to_sparse(), X.to("meta")):
        with pytest.raises(TypeError, match=r"X is a torch\..* tensor on .*: expected a dense one with data"):
            estimator.fit(bad)
    with pytest.raises(ValueError, match=r"Complex data not supported: X has dtype torch\.complex128"):
        estimator.fit(X + 0j)
