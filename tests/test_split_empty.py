"""split_empty: no empty cluster is left, the draw is keyed, every backend agrees to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcfast import ops
from dcfast.ops import _native
from dcfast.ops.split_empty.reference import philox


def test_philox_known_answers():
    # Salmon et al.'s vectors for Philox4x32-10: all zero, and the digits of pi.
    assert philox(0, 0, 0) == 0xE169C58D_6627E8D5
    assert philox(0x299F31D0_A4093822, 0x85A308D3_243F6A88, 0x03707344_13198A2E) == 0x94FDCCEB_D16CFE09


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=24),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**40),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
@settings(max_examples=200, deadline=None)
def test_native_equals_the_reference(counts, seed, iteration, dtype):
    counts = torch.tensor(counts)
    centroids = torch.randn(len(counts), 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for backend in ("reference", "native"):
        with ops.backend(backend):
            results.append(ops.split_empty(centroids, counts, seed, iteration))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    _, after = results[1]
    assert after.sum() == counts.sum()
    # Empty clusters remain only where there was nothing left to share.
    assert (after > 0).all() or after.max() <= 1


def test_the_rule(cpu_backend):
    centroids = torch.tensor([[1.0, 2.0, 4.0], [9.0, 9.0, 9.0]])
    new, counts = ops.split_empty(centroids, torch.tensor([7, 0]), 3, 0)
    up, down = 1 + 1 / 1024, 1 - 1 / 1024
    assert counts.tolist() == [4, 3]
    assert new[1].tolist() == [1 * up, 2 * down, 4 * up]
    assert new[0].tolist() == [1 * down, 2 * up, 4 * down]
    assert torch.equal(centroids[1], torch.full((3,), 9.0)), "the input stays as it was"


def test_donors_are_drawn_in_proportion_to_count_minus_one(cpu_backend):
    counts = torch.tensor([31, 0, 11, 1])  # weights 30, -, 10, 0
    donors = torch.zeros(4)
    for seed in range(400):
        _, after = ops.split_empty(torch.zeros(4, 1), counts, seed, 0)
        donors += (after < counts).double()
    assert donors[3] == 0
    assert donors[1] == 0
    assert 265 < donors[0] < 335  # 300 expected, 4 standard deviations


def test_seed_iteration_and_cluster_change_the_draw(cpu_backend):
    counts = torch.full((64,), 5)
    counts[::2] = 0
    draws = {
        tuple(ops.split_empty(torch.zeros(64, 1), counts, seed, it)[1].tolist()) for seed in range(3) for it in range(3)
    }
    assert len(draws) == 9


def test_batched_tensors_as_keys(cpu_backend):
    centroids, counts = torch.randn(2, 6, 3), torch.tensor([[9, 0, 0, 4, 0, 1], [0, 0, 12, 1, 1, 1]])
    seeds = torch.tensor([5, 6])
    both = ops.split_empty(centroids, counts, seeds, torch.tensor(2))
    for b in range(2):
        one = ops.split_empty(centroids[b], counts[b], int(seeds[b]), 2)
        assert torch.equal(both[0][b], one[0])
        assert torch.equal(both[1][b], one[1])


@pytest.mark.parametrize("isa", _native._C.isas)
def test_same_bits_for_every_instruction_set(monkeypatch, isa):
    centroids, counts = torch.randn(9, 7), torch.tensor([3, 0, 0, 8, 1, 0, 2, 2, 0])
    with ops.backend("reference"):
        expected = ops.split_empty(centroids, counts, 1, 1)
    monkeypatch.setenv("DCFAST_ISA", isa)
    with ops.backend("native"):
        result = ops.split_empty(centroids, counts, 1, 1)
    assert torch.equal(result[0], expected[0])
    assert torch.equal(result[1], expected[1])


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="at least one cluster"):
        ops.split_empty(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 0, 0)
    with pytest.raises(ValueError, match="counts has shape"):
        ops.split_empty(torch.zeros(3, 2), torch.zeros(2).long(), 0, 0)
    with pytest.raises(TypeError, match="counts has dtype"):
        ops.split_empty(torch.zeros(3, 2), torch.zeros(3), 0, 0)


def test_opcheck(cpu_backend):
    torch.library.opcheck(
        torch.ops.dcfast.split_empty.default,
        (torch.randn(4, 3), torch.tensor([5, 0, 2, 0]), torch.tensor(1), torch.tensor(2)),
    )
