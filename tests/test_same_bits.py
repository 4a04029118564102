"""Every estimator: equal bits on any number of threads, on every instruction set and by the reference."""

import numpy as np
import pytest
from sklearn.datasets import make_blobs

from dcfast import BisectingKMeans, KMeans, MiniBatchKMeans, ops
from dcfast.ops import _native

X = make_blobs(700, 6, centers=10, cluster_std=2.5, random_state=0)[0].astype(np.float32)
WEIGHT = np.random.RandomState(0).rand(len(X))

FITS = {
    "kmeans": lambda: KMeans(9, init="random", n_init=2, random_state=5, tol=0).fit(X),
    "kmeans-weighted": lambda: KMeans(9, n_init=2, random_state=5).fit(X, sample_weight=WEIGHT),
    "bisecting": lambda: BisectingKMeans(9, n_init=2, random_state=5).fit(X, sample_weight=WEIGHT),
    "minibatch": lambda: (
        MiniBatchKMeans(12, batch_size=64, random_state=5, init="random")
        .fit(X, sample_weight=WEIGHT)
        .partial_fit(X[:100], sample_weight=WEIGHT[:100])
    ),
}


def bits(model):
    steps = [getattr(model, name, None) for name in ("n_iter_", "n_steps_")]
    return model.cluster_centers_.tobytes(), model.labels_.tobytes(), model.inertia_, steps


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_threads_and_instruction_sets_give_the_same_bits(monkeypatch, fit, isa, threads):
    with ops.backend("reference"):
        expected = bits(fit())
    monkeypatch.setattr(_native, "threads", lambda *_: threads)
    monkeypatch.setenv("DCFAST_ISA", isa)
    assert bits(fit()) == expected
