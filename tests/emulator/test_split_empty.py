"""split_empty as CUDA computes it: the draws and the bits of the reference."""

import pytest
import torch

from dcfast.ops.split_empty import native, reference


def agrees(centroids, counts, seed, iteration):
    expected = reference.split_empty(centroids, counts, seed, iteration)
    wide = centroids.clone(memory_format=torch.contiguous_format)
    counts = counts.clone()
    problems = counts.numel() // counts.shape[-1]
    native._on_cuda(wide, counts, problems, seed.expand(problems), iteration.expand(problems))
    return torch.equal(wide, expected[0]) and torch.equal(counts, expected[1])


def key(value):
    return torch.tensor(value, dtype=torch.int64)


@pytest.mark.parametrize("seed", ["0", "1", "2"])
@pytest.mark.parametrize(
    "counts",
    [
        [1],
        [0],
        [0, 0, 2],
        [0, 9, 0, 0, 1, 0],
        [5, 0, 3, 0, 0, 0, 0, 0, 0, 2],  # fewer to share than empties
        [0] * 7 + [2**40] + [0] * 5,
    ],
)
def test_equals_the_reference(monkeypatch, seed, counts):
    monkeypatch.setenv("DCFAST_EMULATOR_SEED", seed)
    centroids = torch.randn(len(counts), 5, generator=torch.Generator().manual_seed(0))
    assert agrees(centroids, key(counts), key(-(2**63) + 3), key(2**40 + 1))
    assert agrees(centroids.double(), key(counts), key(7), key(0))


def test_more_clusters_and_columns_than_threads():
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(0, 60, (2100,), generator=generator).clamp(max=55)
    assert (counts == 0).sum() > 10
    assert agrees(torch.randn(2100, 3, generator=generator), counts, key(3), key(4))
    assert agrees(torch.randn(3, 1500, generator=generator), key([0, 4, 0]), key(3), key(4))


def test_batched_keys():
    centroids = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    counts = key([[9, 0, 0, 4, 0, 1], [0, 0, 12, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    assert agrees(centroids, counts, key([5, 6, 7]), key(2))
