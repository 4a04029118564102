"""dcfast.faiss on Triton's interpreter: the bits of the reference."""

import numpy as np
import pytest

import dcfast.faiss as faiss
from dcfast import ops


@pytest.mark.parametrize("options", [{}, {"spherical": True}, {"init_method": faiss.ClusteringInitMethod_AFK_MC2}])
def test_the_bits_of_the_reference(options):
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((120, 5)).astype("float32"), rng.random(120)
    x[100:] = x[0]
    start = np.concatenate([x[:6], np.full((2, 5), 50, "float32")])  # two clusters are empty and split

    def bits():
        model = faiss.Kmeans(5, 12, niter=3, min_points_per_centroid=1, **options)
        model.train(x, weights=weights, init_centroids=start)
        distances, labels = model.index.search(x, 3)
        splits = [stats["nsplit"] for stats in model.iteration_stats]
        return splits, model.obj.tobytes(), model.centroids.tobytes(), distances.tobytes(), labels.tobytes()

    served = bits()
    assert served[0][0] >= 2
    with ops.backend("reference"):
        assert bits() == served
