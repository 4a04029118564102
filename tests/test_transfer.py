"""Rows worked on by another device than the one they are on: the same bits, in the caller's own arrays."""

import itertools

import numpy as np
import pytest
import scipy.sparse
import torch

from dcfast import KMeans
from dcfast.cluster.blocks import Sliced
from dcfast.cluster.inputs import open_points
from dcfast.cluster.transfer import OnDevice, on_device

N, D, K = 700, 6, 9
ARGUMENTS = {"n_clusters": K, "n_init": 1, "max_iter": 5, "random_state": 0}
# By its number it is another device to us, and the same one to torch.
ELSEWHERE = "cpu:0"
# Device and bytes: everything at once, and block by block.
PLACES = [
    (ELSEWHERE, None),
    (ELSEWHERE, 2000),
    pytest.param("cuda", None, marks=pytest.mark.gpu),
    pytest.param("cuda", 2000, marks=pytest.mark.gpu),
]


def rows(dtype=np.float32):
    return np.random.default_rng(0).normal(size=(N, D)).astype(dtype)


def sources(X, folder):
    np.save(folder / "x.npy", X)
    yield X
    yield torch.from_numpy(X)
    yield X.astype(np.float64).astype(np.float32)[:, ::1]
    yield np.load(folder / "x.npy", mmap_mode="r")
    yield folder / "x.npy"
    yield scipy.sparse.csr_array(X)
    yield lambda: iter(np.array_split(X, 7))


def bits(model):
    arrays = (np.asarray(a).tobytes() for a in (model.cluster_centers_, model.labels_))
    return *arrays, model.inertia_, model.n_iter_


@pytest.mark.parametrize(("device", "memory"), PLACES)
@pytest.mark.parametrize("options", [{}, {"empty": "split", "init": "random"}, {"spherical": True}], ids=str)
def test_the_same_bits_by_another_device(device, memory, options, tmp_path):
    X, weight = rows(), np.random.default_rng(1).random(N)
    expected = KMeans(**ARGUMENTS, **options).fit(X, sample_weight=weight)
    for source in sources(X, tmp_path):
        model = KMeans(**ARGUMENTS, **options, device=device, max_memory=memory).fit(source, sample_weight=weight)
        assert bits(model) == bits(expected)
        assert type(model.labels_) is (torch.Tensor if isinstance(source, torch.Tensor) else np.ndarray)
        labels = model.predict(source)
        assert np.array_equal(np.asarray(labels), np.asarray(model.labels_))
        assert model.score(source, sample_weight=weight) == expected.score(X, sample_weight=weight)


@pytest.mark.parametrize("device", [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)])
@pytest.mark.parametrize("sizes", [(5,), (5, 5), (5, 5, 5, 5, 3), ()])
def test_blocks_arrive_in_order_and_stay_until_the_next(device, sizes):
    X = torch.randn(sum(sizes), 3)
    cuts = np.cumsum([0, *sizes])
    buffer = torch.empty(5, 3)

    def blocks():
        for first, end in itertools.pairwise(cuts):
            rows = buffer[: end - first].copy_(X[first:end])  # the one before it is gone
            yield slice(int(first), int(end)), rows

    found, total = [], torch.zeros(3, device=device)
    for at, arrived in on_device(blocks(), device):
        assert arrived.device.type == device.type
        total += arrived.sum(0)
        found.append((at.start, at.stop))
        torch.testing.assert_close(arrived.cpu(), X[at], rtol=0, atol=0)
    assert found == [(int(a), int(b)) for a, b in itertools.pairwise(cuts)]
    torch.testing.assert_close(total.cpu(), X.sum(0))


def test_rows_by_number():
    X = torch.from_numpy(rows())
    points = OnDevice(Sliced(X, torch.float32, 1000), torch.device(ELSEWHERE))
    some = torch.tensor([600, 3, 3])
    assert torch.equal(points.take(some), X[some])


def test_what_is_on_the_device_already_is_used_where_it_is():
    X = torch.from_numpy(rows())
    assert open_points(KMeans(), X, reset=True, device="cpu").x.data_ptr() == X.data_ptr()


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "device='gpu' is no device"), ("cuda", "torch sees no GPU"), (7, "device"), (["cpu"], "device")],
)
def test_devices_that_are_none(device, message):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=message):
        KMeans(2, device=device).fit(rows())


def test_many_problems_stay_where_they_are():
    with pytest.raises(ValueError, match="device is given"):
        KMeans(2, device="cpu").fit(rows().reshape(7, 100, D))
