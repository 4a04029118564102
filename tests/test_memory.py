"""No N x k matrix, no copy of the input: what a fit takes beyond its input stays below what is promised."""

import sys

import pytest
from support import memory

# Each would break the promise by a matrix of N x k, by a copy of the input in its dtype or another, by sums for every
# thread, by all trials of k-means++ at once, or by blocks for more rows than there are.
CASES = [
    (400_000, 8, 100, "float32", 4, "k-means++", "weighted"),
    (300_000, 8, 100, "float64", 2, "k-means++", "array"),
    (3_000, 3_000, 3_000, "float32", 4, "random", "array"),
    (3_000, 2_000, 3_000, "float64", 2, "random", "array"),
    (60_000, 20, 60_000, "float32", 8, "random", "array"),
    (400_000, 64, 4, "float64", 2, "random", "integers"),
    (400_000, 64, 4, "float32", 2, "random", "turned"),
    (400_000, 64, 4, "float32", 2, "k-means++", "spherical"),
    (400_000, 64, 4, "float32", 4, "k-means++", "path"),
    (400_000, 64, 4, "float32", 2, "random", "chunks"),
    (400_000, 200, 4, "float64", 2, "random", "sparse"),
    (15, 100_000, 2, "float32", 2, "random", "array"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_memory_beyond_the_input(case):
    taken, promised = memory.taken(memory, *case), memory.promised(*case[:4])
    print(f"{case}: {taken / 2**20:.0f} MiB of {promised / 2**20:.0f} MiB")
    assert taken <= promised
