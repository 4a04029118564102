"""assign: every backend returns the label of the definition, on shapes and values that hurt."""

import pytest
import torch

from dcfast import ops
from dcfast.ops import _native

SHAPES = [(1, 1, 1), (5, 3, 2), (100, 7, 33), (257, 64, 100), (300, 300, 50), (97, 513, 17), (13, 1, 40)]
KINDS = ["normal", "lattice", "huge", "tiny", "duplicates", "offset", "mixed", "nonfinite"]


def make(n, d, k, kind, dtype):
    generator = torch.Generator().manual_seed(n * d + k)
    x = torch.randn(n, d, generator=generator)
    c = torch.randn(k, d, generator=generator)
    if kind == "lattice":  # ties everywhere
        x, c = (2 * x).round(), (2 * c).round()
    elif kind == "huge":
        x, c = x * 1e20, c * 1e20
    elif kind == "tiny":
        x, c = x * 1e-30, c * 1e-30
    elif kind == "duplicates":
        c = c[torch.arange(k) // 2]
        x[: min(n, k)] = c[: min(n, k)]
    elif kind == "offset":
        x, c = x + 1e4, c + 1e4
    elif kind == "mixed":  # one centroid of huge norm, one outlier
        c[-1] *= 1e15
        x[-1] *= 1e25
    elif kind == "nonfinite":
        c[0, 0] = torch.nan
        c[-1, -1] = torch.inf
        x[n // 2, 0] = -torch.inf
    return x.to(dtype), c.to(dtype)


def reference(x, c):
    with ops.backend("reference"):
        return ops.assign(x, c)


def test_reference_is_the_definition():
    x, c = make(9, 4, 5, "lattice", torch.float32)
    expected = []
    for row in x.tolist():
        distances = []
        for centroid in c.tolist():
            acc = 0.0
            for a, b in zip(row, centroid, strict=True):
                t = a - b
                acc = acc + t * t
            distances.append(acc)
        expected.append(distances.index(min(distances)))
    assert reference(x, c).tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_labels_are_equal(n, d, k, kind, dtype):
    x, c = make(n, d, k, kind, dtype)
    with ops.backend("native"):
        labels = ops.assign(x, c)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, reference(x, c))


@pytest.mark.parametrize("scale", [1e-290, 1e-160, 1e150, 1e290])
def test_float64_beyond_the_range_of_squares_follows_ieee(scale):
    x, c = (t * scale for t in make(50, 5, 9, "normal", torch.float64))
    with ops.backend("native"):
        assert torch.equal(ops.assign(x, c), reference(x, c))


def test_near_ties_in_the_last_bit():
    x = torch.rand(200, 16, generator=torch.Generator().manual_seed(0))
    c = torch.cat([x[:50], torch.nextafter(x[:50], torch.ones(1)), torch.nextafter(x[:50], torch.zeros(1))])
    with ops.backend("native"):
        assert torch.equal(ops.assign(x, c), reference(x, c))


@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_labels_for_every_instruction_set_and_thread_count(monkeypatch, isa, threads):
    x, c = make(1000, 33, 61, "lattice", torch.float32)
    monkeypatch.setenv("DCFAST_ISA", isa)
    monkeypatch.setattr(_native, "threads", lambda: threads)
    with ops.backend("native"):
        assert torch.equal(ops.assign(x, c), reference(x, c))


def test_flushed_denormals_change_nothing(cpu_backend):
    if cpu_backend == "reference":
        pytest.skip("torch's own arithmetic follows its flush mode")
    x, c = (t * 1e-40 for t in make(200, 8, 20, "normal", torch.float32))
    expected = reference(x, c)
    torch.set_flush_denormal(True)
    try:
        labels = ops.assign(x, c)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(labels, expected)


def test_batched_and_strided(cpu_backend):
    x, c = make(120, 6, 12, "normal", torch.float32)
    xs, cs = x.view(3, 40, 6), c.view(3, 4, 6)
    labels = ops.assign(xs, cs)
    assert labels.shape == (3, 40)
    for b in range(3):
        assert torch.equal(labels[b], reference(xs[b], cs[b]))
    wide = torch.randn(40, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ops.assign(wide[:, ::2], c), reference(wide[:, ::2].contiguous(), c))
    assert torch.equal(ops.assign(wide.T[:6].T, c), reference(wide[:, :6].contiguous(), c))


def test_empty_inputs(cpu_backend):
    assert ops.assign(torch.zeros(0, 3), torch.zeros(2, 3)).shape == (0,)
    assert ops.assign(torch.zeros(0, 4, 3), torch.zeros(0, 2, 3)).shape == (0, 4)


@pytest.mark.parametrize(
    ("x", "c", "error", "match"),
    [
        (torch.zeros(3), torch.zeros(2, 3), ValueError, r"x has shape \(3,\)"),
        (torch.zeros(3, 2).int(), torch.zeros(2, 2).int(), TypeError, "int32"),
        (torch.zeros(3, 2), torch.zeros(2, 3), ValueError, "columns"),
        (torch.zeros(3, 2), torch.zeros(2, 2).double(), ValueError, "dtype"),
        (torch.zeros(3, 2), torch.zeros(0, 2), ValueError, "at least one centroid"),
        (torch.zeros(3, 0), torch.zeros(1, 0), ValueError, "no elements"),
    ],
)
def test_errors_name_the_argument(x, c, error, match):
    with pytest.raises(error, match=match):
        ops.assign(x, c)
    with pytest.raises(error, match=match):
        torch.ops.dcfast.assign(x, c)


def test_opcheck(cpu_backend):
    torch.library.opcheck(torch.ops.dcfast.assign.default, make(20, 5, 4, "normal", torch.float32))


def test_compiles_without_a_graph_break(cpu_backend):
    x, c = make(30, 5, 4, "normal", torch.float32)
    compiled = torch.compile(lambda a, b: ops.assign(a, b) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, c), reference(x, c) + 1)
