"""One assign pass (labels of the nearest centroids) against faiss's exact search and torch.cdist."""

import faiss
import pytest
import torch

from dcfast import ops

SHAPES = [(100_000, 256, 1_000), (100_000, 64, 1_000), (500_000, 16, 64), (20_000, 3_072, 100)]


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_assign(compare, n, d, k):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator)
    centroids = x[:k] + 0.1 * torch.randn(k, d, generator=generator)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(d)
    index.add(centroids.numpy())
    expected = ops.assign(x, centroids)
    quality = {"dcfast": "exact"}

    def search():
        labels = torch.from_numpy(index.search(x.numpy(), 1)[1][:, 0])
        quality["faiss"] = f"{int((labels != expected).sum())} labels differ"

    def cdist():
        labels = torch.cat([torch.cdist(rows, centroids).argmin(1) for rows in x.split(4096)])
        quality["torch.cdist"] = f"{int((labels != expected).sum())} labels differ"

    compare(
        lambda: ops.assign(x, centroids),
        {"faiss": search, "torch.cdist": cdist},
        operations=2.0 * n * d * k,
        quality=quality,
    )
