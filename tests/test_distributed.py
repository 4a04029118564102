"""Several processes fit one model: the bits of one process, however the rows are shared; errors reach all of them."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support import ranks

from dcfast import KMeans, ops
from dcfast.cluster.ranks import Ranks

SIZES = (2, 4)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every rank found, by the number of ranks."""
    results = {}
    for size in SIZES:
        folder = tmp_path_factory.mktemp(f"ranks{size}")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(
            [*command, ranks.__file__, folder],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        results[size] = [pickle.loads(Path(folder, f"{rank}.pickle").read_bytes()) for rank in range(size)]
    return results


@pytest.fixture(scope="module")
def alone():
    return {name: ranks.fit(*case) for name, case in ranks.FITS.items()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("share", "name"), list(ranks.cases()))
def test_the_bits_of_one_process(size, share, name, found, alone):
    expected, labels, output = alone[name]
    parts = [rank[share, name] for rank in found[size]]
    for part, _, _ in parts:
        assert part == expected
    bounds = ranks.cuts(ranks.SHARES[share][0](size))
    assert [len(own) for _, own, _ in parts] == list(np.diff(bounds))
    assert np.array_equal(np.concatenate([own for _, own, _ in parts]), labels)
    assert [text for _, _, text in parts] == [output] + [""] * (size - 1)


@pytest.mark.parametrize("size", SIZES)
def test_components_have_the_bits_of_one_process(size, found):
    expected = ranks.whitened(ranks.tall())
    for rank in found[size]:
        assert rank["whitened"] == expected
        assert rank["whitened chunks"] == expected[2]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ranks.FAILURES)
def test_errors_reach_every_rank(size, name, found):
    kind, message = ranks.FAILURES[name]
    for rank, result in enumerate(found[size]):
        raised, text, notes = result[name]
        assert raised is kind
        assert message in text
        local = name in ("not finite", "negative", "init", "later", "callback")
        assert notes == ([f"raised on rank {size - 1}"] if local and rank < size - 1 else [])


def test_cases_reach_what_they_are_there_for(alone):
    assert {found["n_iter"] for found, _, _ in alone.values()} >= {1, 2, 4}
    assert any(found["n_iter"] > 2 and found["steps"][-1][1] == 0 for found, _, _ in alone.values())
    assert "Converged" in alone["verbose"][2] or "Iteration 3" in alone["verbose"][2]


def test_a_group_of_one(tmp_path):
    X = ranks.rows()
    with pytest.raises(ValueError, match="init_process_group"):
        KMeans(3, process_group=True).fit(X)
    with pytest.raises(ValueError, match="process_group"):
        KMeans(3, process_group="gloo").fit(X)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        one = KMeans(3, random_state=0, process_group=True).fit(X)
    finally:
        dist.destroy_process_group()
    assert np.array_equal(one.cluster_centers_, KMeans(3, random_state=0).fit(X).cluster_centers_)


class Echo(Ranks):
    """Several ranks that all say what this one says."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def stack(self, tensor):
        return torch.stack([tensor] * self.size)


@pytest.mark.parametrize("scale", [1.0, 2.0**-1070, 2.0**900])
def test_sums_of_several_ranks_are_rounded_once(scale):
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-40, 40, (3, 500), generator=generator)
    values = torch.ldexp(torch.randn(3, 500, generator=generator, dtype=torch.float64), exponents) * scale
    expected = ops.exact_sum(torch.cat([values] * 4, 1))
    assert torch.equal(Echo(4).exact_sum(values), expected)
    values[1, 7] = torch.inf
    assert Echo(4).exact_sum(values).tolist() == [expected[0], torch.inf, expected[2]]
    assert Echo(4).exact_sum(values[:, :0]).tolist() == [0, 0, 0]
