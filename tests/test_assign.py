"""assign: every backend returns the label of the definition, on shapes and values that hurt."""

import ctypes

import pytest
import torch

from dcfast import ops
from dcfast.ops import _native
from dcfast.ops.assign import group_size

SHAPES = [(1, 1, 1), (5, 3, 2), (100, 7, 33), (257, 64, 100), (300, 300, 50), (97, 513, 17), (13, 1, 40), (211, 71, 7)]
SHAPES += [(150, 50, 30)]
KINDS = ["normal", "lattice", "holes", "tenths", "huge", "tiny", "duplicates", "offset", "mixed", "nonfinite"]


def make(n, d, k, kind, dtype):
    generator = torch.Generator().manual_seed(n * d + k)
    x = torch.randn(n, d, generator=generator)
    c = torch.randn(k, d, generator=generator)
    if kind == "lattice":  # ties everywhere
        x, c = (2 * x).round(), (2 * c).round()
    elif kind == "holes":  # of a lattice: every centroid is as near as every other
        x, c = x.round() * 0, c.sign()
    elif kind == "tenths":  # the same where no grid of a power of two helps
        x, c = x * 0, 0.1 * c.sign()
        x[::3] = 0.1 * (2 * c[torch.arange(len(x[::3])) % k]).round()
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
@pytest.mark.parametrize(("d", "k"), [(5, 9), (40, 6)])
def test_float64_beyond_the_range_of_squares_follows_ieee(d, k, scale):
    x, c = (t * scale for t in make(50, d, k, "normal", torch.float64))
    with ops.backend("native"):
        assert torch.equal(ops.assign(x, c), reference(x, c))


@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize("exponent", [-430, -160, -140, -125, 125, 140, 160, 430])
@pytest.mark.parametrize(("d", "k"), [(5, 9), (40, 6), (70, 60)])
def test_float64_beyond_the_range_of_float32(monkeypatch, isa, d, k, exponent):
    monkeypatch.setenv("DCFAST_ISA", isa)
    x, c = (t * 2.0**exponent for t in make(250, d, k, "normal", torch.float64))
    labels, bounds = torch.full((250,), -1), ops.distance_bounds(250, d, x.device)
    with ops.backend("native"):
        assert torch.equal(ops.assign(x, c), reference(x, c))
        for share in (0.4, 0.05, 0):
            new = c + share * x[:k]
            labels = reassign(x, new, c, labels, bounds)
            assert torch.equal(labels, reference(x, new))
            assert_bounds_hold(bounds, x, new, labels)
            c = new


@pytest.mark.parametrize("d", [16, 64])
def test_near_ties_in_the_last_bit(d):
    x = torch.rand(200, d, generator=torch.Generator().manual_seed(0))
    c = torch.cat([x[:50], torch.nextafter(x[:50], torch.ones(1)), torch.nextafter(x[:50], torch.zeros(1))])
    with ops.backend("native"):
        assert torch.equal(ops.assign(x, c), reference(x, c))


@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [4, 12])
def test_the_order_of_addition_decides(monkeypatch, isa, k, dtype):
    # The same terms in another order: equal distances but for the rounding of their sums.
    monkeypatch.setenv("DCFAST_ISA", isa)
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.zeros(1, 301, dtype=dtype), set()
    for _ in range(50):
        terms = torch.randn(301, generator=generator, dtype=dtype)
        c = torch.stack([terms[torch.randperm(301, generator=generator)] for _ in range(k)])
        expected = reference(x, c)
        labels.add(int(expected))
        with ops.backend("native"):
            assert torch.equal(ops.assign(x, c), expected)
    assert len(labels) >= 4


@pytest.mark.parametrize("d", [16, 64, 300])
def test_gaps_below_the_precision_of_the_pass(d):
    # Centroids that differ by 1e-5 of their length: neither float32 sums nor int16 operands can tell them apart.
    generator = torch.Generator().manual_seed(d)
    x = torch.randn(500, d, generator=generator)
    c = torch.randn(8, d, generator=generator).repeat_interleave(40, 0)
    c = c * (1 + 1e-5 * torch.rand(len(c), 1, generator=generator))
    with ops.backend("native"):
        assert torch.equal(ops.assign(x, c), reference(x, c))


def rechecked(monkeypatch, x, c):
    """The labels, and how many of the rows D64 had to decide."""
    core, counts = _native.cpu(), []
    assign = core.assign

    def counting(*arguments):
        assign(*arguments)
        counts.append(ctypes.c_int64.from_address(arguments[-2]).value)

    with monkeypatch.context() as patch, ops.backend("native"):
        patch.setattr(core, "assign", counting)
        labels = ops.assign(x, c)
    return labels, counts[-1]


@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize("kind", ["lattice", "holes"])
@pytest.mark.parametrize(("d", "k"), [(24, 61), (61, 200), (250, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize(("unit", "offset"), [(1.0, 0.0), (0.125, 3.0), (2.0, -100.0)])
def test_lattices_need_no_recheck(monkeypatch, isa, kind, d, k, dtype, unit, offset):
    monkeypatch.setenv("DCFAST_ISA", isa)
    x, c = (unit * t + offset for t in make(300, d, k, kind, dtype))
    labels, count = rechecked(monkeypatch, x, c)
    assert torch.equal(labels, reference(x, c))
    assert count == 0


@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bits", range(13))
@pytest.mark.parametrize("length", [0, 2, 5])
@pytest.mark.parametrize("pairs", [40, 150])  # rows in the lanes, and centroids
def test_units_of_a_lattice_are_told_apart_whatever_their_number(monkeypatch, isa, dtype, bits, length, pairs):
    """Of two centroids one unit apart in one element the row is level with the second, by half a unit of the score."""
    monkeypatch.setenv("DCFAST_ISA", isa)
    generator = torch.Generator().manual_seed(bits)
    centres = torch.randint(-(2**bits), 2**bits + 1, (pairs, 40), generator=generator)
    at = torch.randint(40, (pairs,), generator=generator)
    beside = centres.clone()
    beside[torch.arange(pairs), at] += 1
    c = torch.stack([beside, centres], 1).flatten(0, 1).to(dtype)
    rows = torch.arange(400) % pairs
    far = torch.randint(-1, 2, (400, 40), generator=generator) * 2**length * (torch.arange(400) % 3)[:, None]
    far[torch.arange(400), at[rows]] = 0
    x = (centres[rows] + far).to(dtype)
    labels, _ = rechecked(monkeypatch, x, c)
    assert torch.equal(labels, reference(x, c))
    assert (labels % 2 == 1).sum() > 100


@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at", [0, 40])  # in a vector, and behind the last
@pytest.mark.parametrize("pairs", [20, 100])
def test_rows_beside_a_lattice_are_not_on_it(monkeypatch, isa, dtype, at, pairs):
    monkeypatch.setenv("DCFAST_ISA", isa)
    centres = torch.randint(-3, 4, (pairs, 41), generator=torch.Generator().manual_seed(0)).to(dtype)
    c = centres.repeat_interleave(2, 0)
    c[::2, at] += 1
    c[1::2, at] -= 1
    x = centres.repeat(5, 1)
    x[:, at] -= 1e-6  # nearer to the second
    x[7], x[50, 3], x[51, at] = 1e30, torch.nan, torch.inf
    labels, count = rechecked(monkeypatch, x, c)
    assert torch.equal(labels, reference(x, c))
    assert count > 0
    level = centres.repeat(5, 1)
    level[13, at] += 0.5
    labels, _ = rechecked(monkeypatch, level, c)
    assert torch.equal(labels, reference(level, c))


@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_labels_for_every_instruction_set_and_thread_count(monkeypatch, isa, threads):
    x, c = make(1000, 33, 61, "lattice", torch.float32)
    monkeypatch.setenv("DCFAST_ISA", isa)
    monkeypatch.setattr(_native, "threads", lambda *_: threads)
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
    for d, k in ((40, 20), (100, 40)):
        x, c = make(300, d, k, "normal", torch.float32)
        gaps = torch.cat([x, -x], 1)[:, :d]
        assert torch.equal(ops.assign(gaps, c), reference(x, c))
        bounds = ops.distance_bounds(300, d, x.device)
        assert torch.equal(reassign(gaps, c, c, torch.full((300,), -1), bounds), reference(x, c))


def moved(c, kind, share, generator):
    """The centroids of the iteration after `c`: a share of them elsewhere, some only a hair, one a copy of another."""
    k = c.shape[0]
    changed = torch.randperm(k, generator=generator)[: max(1, int(share * k))]
    new = c.clone()
    step = torch.randn(len(changed), c.shape[1], generator=generator).to(c.dtype) * c[changed].abs()
    new[changed] += step * torch.tensor([0.5, 1e-3, 1e-7]).to(c.dtype).repeat(len(changed))[: len(changed), None]
    if kind == "duplicates":
        new[changed[0]] = new[0]
    if kind == "nonfinite":
        new[changed[-1]] = torch.nan
    return new


def reassign(x, c, previous, labels, bounds):
    out = torch.empty_like(labels)
    assert int(ops.reassign(x, c, previous, labels, bounds, out)) == int((out != labels).sum())
    return out


def assert_bounds_hold(bounds, x, c, labels):
    """No centroid but a row's own is nearer than the bound of its group says, and that one not farther than its own."""
    if not bounds.shape[1]:
        return
    distance = torch.cdist(x.double(), c.double(), compute_mode="donot_use_mm_for_euclid_dist")
    kept = (labels >= 0) & (bounds[:, :-1] > 0).any(1)
    own = distance[torch.arange(len(x)), labels.clamp(min=0)]
    assert (bounds[kept, -1].double() >= own[kept] * (1 - 1e-12)).all()
    distance[torch.arange(len(x)), labels.clamp(min=0)] = torch.inf
    group = torch.arange(len(c)) // group_size(len(c))
    known = labels >= 0  # of others nothing is kept
    allowed = (distance * (1 + 1e-12)).nan_to_num(nan=torch.inf)[known]
    assert (bounds[known][:, group].double() <= allowed).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0, 0.05, 0.4, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_reassign_is_assign(cpu_backend, dtype, share, kind):
    for n, d, k in [(257, 64, 100), (300, 33, 7), (300, 70, 7), (97, 213, 17), (100, 5, 33), (120, 20, 300)]:
        x, c = make(n, d, k, kind, dtype)
        generator = torch.Generator().manual_seed(n)
        bounds = ops.distance_bounds(n, d, x.device)
        labels = reference(x, c) if share == 0.4 else torch.full((n,), -1)
        for step in range(4):
            new = moved(c, kind, share, generator) if share and step else c.clone()
            labels = reassign(x, new, c, labels, bounds)
            assert torch.equal(labels, reference(x, new))
            assert_bounds_hold(bounds, x, new, labels)
            c = new


@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize(
    ("d", "k", "dtype"), [(80, 300, torch.float32), (300, 100, torch.float32), (80, 600, torch.float64)]
)
def test_reassign_on_real_steps(monkeypatch, isa, d, k, dtype):
    # Means of their members, as k-means moves them: most rows stay, few centroids change at last.
    monkeypatch.setenv("DCFAST_ISA", isa)
    n = 2000
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0)) + 6 * torch.eye(d)[torch.arange(n) % d]
    x = x.to(dtype)
    c = previous = x[:k].clone()
    labels, bounds = torch.full((n,), -1), ops.distance_bounds(n, d, x.device)
    with ops.backend("native"):
        for _ in range(8):
            labels = reassign(x, c, previous, labels, bounds)
            assert torch.equal(labels, ops.assign(x, c))
            assert_bounds_hold(bounds, x, c, labels)
            previous, c = c, ops.means(ops.accumulate(x, labels, k), c)
    assert torch.equal(labels, reference(x, previous))
    # In the tiles of AMX it costs less to compare with so few centroids than to look at bounds.
    assert isa == "amx" or (bounds[-100:] > 0).any(), "of rows outside the sample nothing was learnt"


@pytest.mark.parametrize("isa", _native._C.isas)
def test_most_rows_far_from_other_clusters_are_never_looked_at(monkeypatch, isa):
    monkeypatch.setenv("DCFAST_ISA", isa)
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(500, 64, generator=generator)
    x = centres.repeat(20, 1) + torch.randn(10_000, 64, generator=generator)
    c = previous = centres.clone()
    labels, bounds = torch.full((len(x),), -1), ops.distance_bounds(*x.shape, x.device)
    with ops.backend("native"):
        for _ in range(6):
            labels = reassign(x, c, previous, labels, bounds)
            assert_bounds_hold(bounds, x, c, labels)
            assert torch.equal(labels, ops.assign(x, c))
            previous, c = c, c + 1e-3 * torch.randn(c.shape, generator=generator)
        # Were they looked at, the NaN would show.
        known = labels.clone()
        labels = reassign(torch.full_like(x, torch.nan), c, previous, labels, bounds)
    assert (labels == known).float().mean() > 0.9


# Near one of many centroids, so that bytes pay: one span of columns and several, whole ones and not, groups and none.
@pytest.mark.parametrize(
    ("d", "k", "dtype"),
    [(64, 700, torch.float32), (61, 500, torch.float64), (130, 601, torch.float32), (333, 1100, torch.float64)],
)
def test_rows_near_their_own_centroids(d, k, dtype):
    generator = torch.Generator().manual_seed(d)
    n = 600
    c = torch.randn(k, d, generator=generator, dtype=torch.float64)
    c[::5] *= torch.rand(len(c[::5]), d, generator=generator) < 0.05  # few elements: their neighbours limit the unit
    x = c[torch.randint(k, (n,), generator=generator)] + 0.2 * torch.randn(n, d, generator=generator).double()
    # What a limit from the own centroid cannot settle: as near to two (and a hair off), far out, unknown, of no number.
    ties = torch.arange(0, n, 9)
    pairs = torch.randint(k, (2, len(ties)), generator=generator)
    share = torch.tensor([0.5, 0.5 + 1e-3, 0.5 + 1e-6, 0.5 - 1e-7]).double().repeat(len(ties))[: len(ties), None]
    x[ties] = c[pairs[0]] * share + c[pairs[1]] * (1 - share)
    x[40:80] *= torch.logspace(1, 16, 40).double()[:, None]
    x[n // 2], x[n // 3] = c.mean(0), 0.0  # near many at once
    x, c = x.to(dtype), c.to(dtype)
    x[11, 3], x[13, 4] = torch.nan, 1e4
    bounds = ops.distance_bounds(n, d, x.device)
    with ops.backend("native"):
        previous, labels = c, reference(x, c)
        labels[17:29] = -1
        for step in range(5):
            labels = reassign(x, c, previous, labels, bounds)
            assert torch.equal(labels, reference(x, c))
            assert_bounds_hold(bounds, x, c, labels)
            changed = torch.randperm(k, generator=generator)[: [k, 9, k // 2, 0, 3][step]]
            previous, c = c, c.clone()
            c[changed] += 1e-2 * torch.randn(len(changed), d, generator=generator).to(dtype) * c[changed]


@pytest.mark.parametrize("sparse", [False, True])
def test_bytes_neither_wrap_nor_saturate(sparse):
    """The largest sums of a span that bytes may have, and the largest of two neighbours."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(200, 64, generator=generator).sign()
    if sparse:
        centres = 0.3 * torch.randn(200, 64, generator=generator)
        first = 2 * torch.randint(32, (200,), generator=generator)
        centres[torch.arange(200), first] = centres[torch.arange(200), first + 1] = 3.0
    c = centres.repeat_interleave(2, 0) + 0.1 * torch.randn(400, 64, generator=generator)
    x = c.repeat(3, 1) + 0.05 * torch.randn(1200, 64, generator=generator)
    new = c.view(200, 2, 64).flip(1).reshape(400, 64)  # every row's nearest centroid is now the other one of two
    labels = reassign(x, new, c, reference(x, c), ops.distance_bounds(1200, 64, x.device))
    assert torch.equal(labels, reference(x, new))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reassign_knows_nothing_of_groups_with_copies(dtype):
    # Centroids that fall together and part again: a group's bound must not outlive what it was made from.
    x, c = make(400, 64, 100, "normal", dtype)
    together = c.clone()
    together[40:60] = c[:20]
    labels, bounds = torch.full((400,), -1), ops.distance_bounds(400, 64, x.device)
    previous = c
    with ops.backend("native"):
        for now in (c, together, together, c, x[:100], together, x[100:200]):
            labels = reassign(x, now, previous, labels, bounds)
            assert torch.equal(labels, reference(x, now))
            assert_bounds_hold(bounds, x, now, labels)
            previous = now


def test_reassign_checks_its_arguments():
    x, c = make(20, 25, 4, "normal", torch.float32)
    labels, bounds = torch.zeros(20, dtype=torch.int64), ops.distance_bounds(20, 25, x.device)
    out = torch.empty_like(labels)
    with pytest.raises(ValueError, match="previous is torch"):
        ops.reassign(x, c, c.double(), labels, bounds, out)
    with pytest.raises(ValueError, match="labels"):
        ops.reassign(x, c, c, labels[1:], bounds, out)
    with pytest.raises(ValueError, match="one problem"):
        ops.reassign(x[None], c[None], c[None], labels[None], bounds, out)
    for wrong in (bounds[1:], bounds.double(), bounds[:, 1:], torch.zeros(20, 0)):
        with pytest.raises(ValueError, match="bounds is torch"):
            ops.reassign(x, c, c, labels, wrong, out)
    for wrong in (out[1:], out.int(), torch.zeros(40, dtype=torch.int64)[::2]):
        with pytest.raises((ValueError, TypeError), match="out"):
            ops.reassign(x, c, c, labels, bounds, wrong)
    torch.library.opcheck(torch.ops.dcfast.reassign.default, (x, c, c + 1, reference(x, c), bounds, out))


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
