"""draw_rows: the draws of numpy.random.RandomState, for many seeds at once."""

import pytest
import torch

from dcfast import ops
from dcfast.ops import _native


def problems(sizes, weighted, seed=0):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    seeds = torch.randint(2**32, (len(sizes),), generator=generator)
    if not weighted:
        return seeds, offsets, None
    weight = torch.rand(int(offsets[-1]), generator=generator, dtype=torch.float64) ** 8
    weight[1::4] = 0
    return seeds, offsets, torch.cat([part / part.numpy().sum() for part in weight.split(sizes)])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n_rows", "n_uniform", "n_runs"), [(1, 28, 1), (5, 0, 10), (0, 1, 1), (7, 3, 4), (2, 700, 2)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("isa", _native._C.isas)
def test_numpy_draws_the_same(monkeypatch, isa, threads, n_rows, n_uniform, n_runs, weighted):
    seeds, offsets, shares = problems([10, 300, 12, 1000, 11], weighted)
    seeds[:2] = torch.tensor([0, 2**32 - 1])
    monkeypatch.setenv("DCFAST_ISA", isa)
    monkeypatch.setattr(_native, "threads", lambda *_: threads)
    draws = []
    for backend in ("native", "reference"):
        with ops.backend(backend):
            draws.append(ops.draw_rows(seeds, offsets, n_rows, shares=shares, n_uniform=n_uniform, n_runs=n_runs))
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])


def test_all_rows_are_drawn_once(cpu_backend):
    seeds, offsets, shares = problems([8, 8], False)
    rows, _ = ops.draw_rows(seeds, offsets, 8, shares=shares, n_runs=3)
    assert torch.equal(rows.sort(-1).values, torch.arange(8).expand(2, 3, 8))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seeds": torch.tensor([0, 2**32])}, "seeds go from 0 to 4294967296"),
        ({"seeds": torch.tensor([0.0, 1.0])}, "seeds is torch.float32"),
        ({"offsets": torch.tensor([0, 9])}, "offsets has shape"),
        ({"n_rows": 5}, "a problem of 4 row"),
        ({"offsets": torch.tensor([0, -2, 9])}, "offsets must rise from 0"),
        ({"offsets": torch.tensor([0, 10**9, 9]), "shares": torch.ones(9).double() / 9}, "offsets must rise from 0"),
        ({"offsets": torch.tensor([1, 4, 9])}, "offsets must rise from 0"),
        ({"n_rows": -1}, "n_rows=-1"),
        ({"n_rows": 2, "shares": torch.tensor([1.0, 0, 0, 0, 0.5, 0.5, 0, 0, 0]).double()}, "a problem of 1 row"),
        ({"shares": torch.ones(8).double()}, "shares has shape"),
        ({"shares": torch.ones(9)}, "shares is torch.float32"),
        ({"shares": torch.tensor([0.5, torch.nan, 0, torch.inf, -0.5, 0.5, 0, 0.5, 0]).double()}, "3 element"),
    ],
)
def test_errors_name_the_argument(change, match):
    arguments = {"seeds": torch.tensor([1, 2]), "offsets": torch.tensor([0, 4, 9]), "n_rows": 1}
    with pytest.raises(ValueError, match=match):
        ops.draw_rows(**(arguments | change))


def test_opcheck(cpu_backend):
    seeds, offsets, shares = problems([8, 9], True)
    torch.library.opcheck(torch.ops.dcfast.draw_rows.default, (seeds, offsets, shares, 2, 5, 3))
