"""The nearest of stored vectors: by the definition, whatever float32, or even float64, can tell apart."""

import numpy as np
import pytest
import torch

from dcfast.cluster import neighbours as module
from dcfast.cluster.neighbours import neighbours


def by_definition(x, vectors, k):
    """Labels (n, k) of the smallest D64, ties to the lower; -1 where there are none."""
    x, vectors = x.astype(np.float64), vectors.astype(np.float64)
    distances = np.zeros((len(x), len(vectors)))
    with np.errstate(all="ignore"):
        for column in range(x.shape[1]):
            difference = x[:, column, None] - vectors[None, :, column]
            distances += difference * difference
    order = distances.argsort(1, kind="stable")
    sound = np.isfinite(vectors).all(1)
    expected = np.full((len(x), k), -1)
    for row in np.flatnonzero(np.isfinite(x).all(1)):
        labels = order[row][sound[order[row]]][:k]
        expected[row, : len(labels)] = labels
    return expected


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def with_outlier(size):
    x = normal(150, 5)
    x[17] *= size
    return x


def shells():
    """Rings of vectors whose distances from the origin differ by a part of what float32 rounds away, or double does."""
    directions = normal(150, 5)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.concatenate([np.zeros((20, 5)), directions * (1 + np.arange(150)[:, None] * 2.0**-28)])


CASES = {
    "plain": lambda: normal(150, 5),
    "one column": lambda: normal(150, 1),
    "far from the origin": lambda: normal(150, 5) + 1e6,
    "tight groups": lambda: np.repeat(normal(3, 5), 50, 0) + 1e-6 * normal(150, 5, seed=1),
    "groups of rounding": lambda: np.repeat(normal(3, 5), 50, 0) * (1 + 2e-16 * normal(150, 5, seed=1)),
    "shells": shells,
    "lattice": lambda: np.random.default_rng(0).integers(0, 3, (150, 5)).astype(float),
    "duplicates": lambda: np.repeat(normal(10, 5), 15, 0),
    "all the same": lambda: np.full((150, 5), 0.1),
    "lengths": lambda: normal(150, 5) * 10.0 ** np.random.default_rng(1).integers(-12, 12, (150, 1)),
    "columns": lambda: normal(150, 5) * 10.0 ** np.arange(-12, 13, 6),
    "an outlier": lambda: with_outlier(1e8),
    "a far outlier": lambda: with_outlier(1e30),
    "tiny": lambda: normal(150, 5) * 1e-40,
    "huge": lambda: np.clip(normal(150, 5), -3, 3) * 1e38,
}


def assert_exact(x, vectors, k):
    found = neighbours(torch.tensor(x), torch.tensor(vectors), k)
    np.testing.assert_array_equal(found.numpy(), by_definition(x, vectors, k))


@pytest.mark.parametrize("small_blocks", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_neighbours_are_those_of_the_definition(case, dtype, small_blocks, monkeypatch):
    if small_blocks:
        monkeypatch.setattr(module, "_BLOCK_ROWS", 32)
        monkeypatch.setattr(module, "BLOCK_BYTES", 32 * 4 * 50)  # 50 vectors at a time
    vectors = CASES[case]().astype(dtype)
    x = np.concatenate([vectors[::7], vectors[:40] / 2 + vectors[40:80] / 2, -vectors[:3]])
    for k in (2, 10, len(vectors) - 9, len(vectors) + 2):
        assert_exact(x.astype(dtype), vectors, k)


@pytest.mark.parametrize("factor", [1e-150, 1e-200, 1e200])
def test_squares_outside_the_range_of_doubles(factor):
    vectors = normal(100, 3) * factor
    assert_exact(vectors[::5], vectors, 4)


@pytest.mark.parametrize("distance", [1e10, 1e25, 1e38])
def test_rows_far_from_all_vectors(distance):
    vectors = normal(100, 3).astype("float32")
    assert_exact((normal(20, 3, seed=1) * distance).astype("float32"), vectors, 4)
    vectors[-1] = 1000  # on whose side a row has the same infinite product with all others
    assert_exact(np.full((1, 3), distance, "float32"), vectors, 4)


def test_what_is_not_finite_is_not_found():
    x, vectors = normal(40, 4).astype("float32"), normal(60, 4, seed=1).astype("float32")
    x[3, 1], x[9, 0], vectors[5, 2], vectors[59, 0] = np.nan, -np.inf, np.inf, np.nan
    for k in (2, 50, 58, 60):
        assert_exact(x, vectors, k)
    assert (neighbours(torch.tensor(x), torch.full((3, 4), torch.nan), 2) == -1).all()
    assert neighbours(torch.tensor(x[:0]), torch.tensor(vectors), 2).shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    vectors = torch.tensor(normal(150, 5)).to(dtype)
    expected = by_definition(vectors[:40].double().numpy(), vectors.double().numpy(), 6)
    np.testing.assert_array_equal(neighbours(vectors[:40], vectors, 6).numpy(), expected)


def test_products_of_reduced_precision_are_not_trusted():
    before = torch.get_float32_matmul_precision()
    vectors = normal(3000, 64).astype("float32")
    try:
        for precision in ("high", "medium"):
            torch.set_float32_matmul_precision(precision)
            assert_exact(vectors[:200], vectors, 5)
    finally:
        torch.set_float32_matmul_precision(before)


def test_autocast_makes_no_product_coarser():
    groups = 10 * np.repeat(normal(30, 64), 50, 0) + normal(1500, 64, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert_exact(groups[:200].astype("float32"), groups.astype("float32"), 5)


def test_float32_proves_most_rows(monkeypatch):
    """The pass in double is for the few: a bound that is far too wide would be right, but slow."""
    searched = []
    search = module._LowerBounds.search
    monkeypatch.setattr(
        module._LowerBounds,
        "search",
        lambda self, x, k: searched.append((self.operand.dtype, len(x))) or search(self, x, k),
    )
    vectors = torch.tensor(normal(3000, 64).astype("float32"))
    neighbours(vectors[:500], vectors, 10)
    assert sum(rows for dtype, rows in searched if dtype == torch.float64) < 5
