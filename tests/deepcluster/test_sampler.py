"""The sampler and the keyed draws: uniform over clusters, and functions of their key alone."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcfast.deepcluster import metrics
from dcfast.deepcluster.keyed import Stream, generator, seed_for, torch_draws, uniform_rows
from dcfast.deepcluster.metrics import ami, ari, matched_accuracy, moved_points, nmi
from dcfast.deepcluster.sampler import plain_order, uniform_order


def test_a_key_names_its_draws():
    first = generator(3, Stream.CROP, 5, 7).random(8)
    np.testing.assert_array_equal(first, generator(3, Stream.CROP, 5, 7).random(8))
    for other in (
        generator(4, Stream.CROP, 5, 7),
        generator(3, Stream.ORDER, 5, 7),
        generator(3, Stream.CROP, 6, 7),
        generator(3, Stream.CROP, 5, 8),
    ):
        assert not np.intersect1d(first, other.random(8)).size


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 500), count=st.integers(0, 40), width=st.sampled_from([4, 24]))
def test_rows_do_not_depend_on_the_slice(start, count, width):
    everything = uniform_rows(1, Stream.CROP, 2, 0, 600, width)
    part = uniform_rows(1, Stream.CROP, 2, start, count, width)
    np.testing.assert_array_equal(part, everything[start : start + count])


def test_rows_need_whole_counter_steps():
    with pytest.raises(ValueError, match="multiple of 4"):
        uniform_rows(0, Stream.CROP, 0, 0, 1, 5)


def test_torch_draws_leave_the_callers_generator_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    with torch_draws(torch.device("cpu"), 1, Stream.DROPOUT, 2, 3):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(seed_for(1, Stream.DROPOUT, 2, 3))
    assert torch.equal(torch.rand(3), inside)


def test_seeds_keep_to_their_bits():
    seeds = [seed_for(0, Stream.KMEANS, epoch, bits=31) for epoch in range(200)]
    assert min(seeds) >= 0
    assert max(seeds) < 2**31
    assert len(set(seeds)) == 200


def test_every_cluster_is_equally_likely():
    # Sizes from 1 to 900; each of the four clusters must give a quarter of the draws, less the cut at the end.
    assignments = np.repeat([0, 1, 2, 4], [1, 9, 90, 900])
    order = uniform_order(assignments, 1000, seed=0, epoch=0)
    assert order.shape == (1000,)
    drawn = np.bincount(assignments[order], minlength=5)
    each = 1000 // 4 + 1
    assert drawn[3] == 0
    assert drawn[[0, 1, 2, 4]].max() <= each
    assert drawn[[0, 1, 2, 4]].min() >= each - 4  # four more draws than needed, cut at random
    large = order[assignments[order] == 4]
    assert len(np.unique(large)) == len(large)  # no replacement where the cluster suffices


def test_positions_are_shuffled():
    assignments = np.repeat([0, 1], [500, 500])
    order = uniform_order(assignments, 1000, seed=1, epoch=0)
    first_half = (assignments[order[:500]] == 0).sum()
    assert 200 < first_half < 300  # within 6 standard deviations of 250


def test_orders_are_keyed_by_seed_and_epoch():
    assignments = np.arange(60) % 7
    for make in (lambda s, e: uniform_order(assignments, 60, s, e), lambda s, e: plain_order(assignments, 60, s, e)):
        np.testing.assert_array_equal(make(1, 2), make(1, 2))
        assert (make(1, 2) != make(1, 3)).any()
        assert (make(1, 2) != make(2, 2)).any()


def test_plain_order_shows_every_image_each_round():
    order = plain_order(np.zeros(50, np.int64), 125, seed=0, epoch=0)
    assert len(order) == 125
    np.testing.assert_array_equal(np.sort(order[:50]), np.arange(50))
    np.testing.assert_array_equal(np.sort(order[50:100]), np.arange(50))
    assert (order[:50] != order[50:100]).any()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40), st.randoms())
def test_moved_points_ignore_the_names_of_clusters(pairs, random):
    previous, current = np.array(pairs).T
    names = list(range(5))
    random.shuffle(names)
    renamed = np.array(names)[current]
    moved = moved_points(previous, current)
    assert moved == moved_points(previous, renamed)
    stayed = sum(max(np.sum((current == c) & (previous == p)) for p in range(5)) for c in np.unique(current))
    assert moved == len(pairs) - stayed


def test_nmi_by_hand():
    a = np.array([0, 0, 1, 1])
    assert nmi(a, 1 - a) == pytest.approx(1.0)
    assert nmi(a, np.array([0, 1, 0, 1])) == pytest.approx(0.0, abs=1e-12)
    # I = log 2, H = log 2 and log 4: the geometric mean of the entropies gives 1/sqrt(2).
    assert nmi(a, np.arange(4)) == pytest.approx(2**-0.5)


def test_ami_is_nothing_for_random_clusters(monkeypatch):
    labels = np.arange(1000) % 10
    clusters = np.random.default_rng(0).integers(0, 300, 1000)
    assert nmi(labels, clusters) > 0.3
    assert abs(ami(labels, clusters)) < 0.05
    assert ami(labels, 9 - labels) == pytest.approx(1.0)
    assert ami(np.where(clusters < 5, -1, labels), np.where(clusters < 5, clusters, labels)) == pytest.approx(1.0)
    assert ami(np.full(3, -1), np.arange(3)) is None
    monkeypatch.setattr(metrics, "MOST_TERMS", 9_999)
    assert ami(labels, clusters) is None


def test_nmi_leaves_out_what_has_no_label():
    labels = np.array([0, 0, 1, 1, -1])
    assert nmi(labels, np.array([5, 5, 2, 2, 2])) == pytest.approx(1.0)
    assert nmi(np.full(3, -1), np.arange(3)) is None


def test_matched_accuracy_is_that_of_the_best_permutation():
    rng = np.random.default_rng(0)
    for n_classes, n_clusters in ((3, 3), (4, 2), (2, 5)):
        classes, clusters = rng.integers(0, n_classes, 60), rng.integers(0, n_clusters, 60)
        size = max(n_classes, n_clusters)
        best = max(np.mean(np.array(p)[clusters] == classes) for p in itertools.permutations(range(size)))
        assert matched_accuracy(classes, clusters) == pytest.approx(best)
    classes = np.array([0, 0, 1, 1, -1])
    assert matched_accuracy(classes, np.array([9, 9, 4, -1, 4])) == pytest.approx(0.75)  # noise is wrong
    assert matched_accuracy(classes, np.full(5, -1)) == 0
    assert matched_accuracy(np.full(3, -1), np.arange(3)) is None


def test_ari_knows_chance_and_identity():
    labels = np.arange(1000) % 10
    assert ari(labels, (labels + 3) % 10) == pytest.approx(1.0)
    assert ari(labels, np.random.default_rng(0).permutation(labels)) == pytest.approx(0.0, abs=0.01)
    assert ari(labels, np.full(1000, -1)) is None
