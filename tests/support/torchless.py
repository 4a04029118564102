"""The ops of k-means without torch, which would take minutes to start in an emulator of another processor.

`python torchless.py ISA` prints as JSON what they compute: for few columns and for many, from scratch and after the
centroids have moved.
"""

import json
import sys
from array import array

import dcfast._C as core

N, K, TRIALS = 40, 37, 2


def numbers(count, factor, modulus):
    """Multiples of 1/8, so that everything that is computed from them is exact."""
    return array("f", [((i * factor) % modulus - modulus // 2) / 8 for i in range(count)])


def at(values):
    """The address of an array, 0 for None."""
    return 0 if values is None else values.buffer_info()[0]


class Memory:
    """Bytes at a multiple of 64."""

    def __init__(self, size):
        self._bytes = array("B", bytes(size + 64))
        self.address = -(-at(self._bytes) // 64) * 64


def assign(ops, x, d, centroids, previous=None, labels=None):
    """Labels of the rows; with `previous`, found from those for these centroids."""
    before = None if labels is None else array("q", labels)
    labels, sizes, counts = array("q", [0] * N), array("q", [0, 0]), array("q", [0, 0, 0])
    ops.assign_workspace(0, K, d, previous is not None, before is not None, at(sizes))
    ops.assign_scratch(0, K, d, at(sizes) + 8)
    workspace, scratch = Memory(sizes[0]), Memory(sizes[1])
    ops.assign_prepare(0, at(centroids), K, d, at(previous), before is not None, workspace.address, 1)
    memory = workspace.address, scratch.address
    ops.assign(0, at(x), d, N, d, at(centroids), K, at(previous), *memory, at(before), at(labels), at(counts), 1)
    return labels.tolist()


def column_range(ops, x, d, weight=None):
    """The smallest non-zero magnitudes of the columns, and the largest."""
    smallest, largest = array("d", [float("inf")] * d), array("d", [0.0] * d)
    ops.column_range(0, at(x), d, N, d, at(weight), at(smallest), at(largest), 1, 1)
    return smallest.tolist(), largest.tolist()


def means(ops, x, d, labels, previous):
    """Of the clusters, from exact sums in units of 1/8."""
    words, counts = array("q", [0] * (K * 2 * d)), array("q", [0] * K)
    labels, scale, low = array("q", labels), array("d", [8.0] * d), array("q", [-3] * d)
    ops.accumulate(0, at(x), d, N, d, at(labels), 0, K, 0, at(scale), 2, at(words), at(counts), 0, 0, 1, 1)
    total, out = array("d", counts), array("f", [0.0] * (K * d))
    ops.means(0, at(words), K, 2, d, at(low), at(total), at(previous), at(out), 1)
    return out.tolist(), counts.tolist()


def inertia(ops, x, d, centroids, labels):
    """The sum of the distances of the rows to their centroids."""
    distances, words, total = array("d", [0.0] * N), array("q", [0] * 80), array("d", [0.0])
    ops.point_distances(0, at(x), d, N, d, at(centroids), K, at(array("q", labels)), 0, at(distances), 1)
    ops.exact_sum_add(at(distances), N, at(words), 1)
    ops.exact_sum_round(at(words), 1, at(total))
    return total[0]


def kmeans_plusplus(ops, x, d, cached):
    """The rows that are chosen after row 3."""
    size, chosen = array("q", [0]), array("q", [0] * 10)
    uniform = array("d", [(i * 7919 % 101) / 101 for i in range(10 * TRIALS)])
    ops.kmeans_plusplus_workspace(0, N, d, TRIALS, cached, 1, at(size))
    workspace = Memory(size[0])
    for first, steps in ((3, 0), (-1, 10)):
        address, tail = workspace.address, (at(chosen), 1)
        ops.kmeans_plusplus(0, at(x), d, N, d, 0, TRIALS, cached, first, at(uniform), steps, address, *tail)
    return chosen.tolist()


def split(ops, d, centroids, counts):
    """Centroids and counts with no empty cluster."""
    centroids, counts = array("f", centroids), array("q", counts)
    ops.split_empty(0, at(centroids), at(counts), K, d, 5, 1)
    return centroids.tolist(), counts.tolist()


def main(isa):
    ops = getattr(core, isa)
    found = {}
    for d in (5, 21):
        x, centroids = numbers(N * d, 7919, 101), numbers(K * d, 104729, 97)
        moved = array("f", centroids)
        moved[: 3 * d] = numbers(3 * d, 31, 89)  # three centroids
        labels = assign(ops, x, d, centroids)
        averages, counts = means(ops, x, d, labels, centroids)
        found[d] = {
            "x": x.tolist(),
            "centroids": centroids.tolist(),
            "moved": moved.tolist(),
            "labels": labels,
            "labels of moved": assign(ops, x, d, moved, centroids, labels),
            "ranges": [column_range(ops, x, d), column_range(ops, x, d, array("d", [0.5] * N))],
            "means": averages,
            "inertia": inertia(ops, x, d, centroids, labels),
            "chosen": [kmeans_plusplus(ops, x, d, cached) for cached in (False, True)],
            "split": split(ops, d, averages, counts),
        }
    print(json.dumps({"isas": core.isas, "found": found}))


main(sys.argv[1])
