"""The CUDA kernels of assign, for sm_80 and for sm_90: equal to the definition, whatever comes first."""

import ctypes
import importlib
import math
from fractions import Fraction

import pytest
import torch
from support.emulated import fenced
from support.points import KINDS, generator, make

from dcfast import ops

NATIVE = importlib.import_module("dcfast.ops.assign.native")


@pytest.fixture(params=["8", "9"], ids=["sm_80", "sm_90"], autouse=True)
def capability(request, monkeypatch):
    monkeypatch.setenv("DCFAST_EMULATOR_CAPABILITY", request.param)


def assert_labels_are_nearest(x, c):
    labels = NATIVE.assign_on_cuda(x, c, torch.full(x.shape[:-1], -7))
    with ops.backend("reference"):
        expected = ops.assign(x, c)
    assert torch.equal(labels, expected)


# One of everything; two tiles of centroids; two blocks of rows for each of two multiprocessors, and a last one for one;
# rows that stay in shared memory beside the ring in blocks of 256, of 128, and not; a block of sums on top of another.
@pytest.mark.parametrize(
    ("n", "d", "k"), [(1, 1, 1), (67, 7, 33), (600, 3, 140), (300, 70, 20), (20, 300, 130), (30, 600, 20), (9, 1100, 5)]
)
def test_shapes(n, d, k):
    assert_labels_are_nearest(*make(n, d, k, "normal", torch.float32))


@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (67, 7, 33), (30, 600, 20)])
def test_nothing_past_the_end_is_read(n, d, k):
    assert_labels_are_nearest(*map(fenced, make(n, d, k, "normal", torch.float32)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_that_hurt(kind, dtype):
    assert_labels_are_nearest(*make(67, 7, 33, kind, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_data_is_widened_exactly(dtype):
    assert_labels_are_nearest(*make(67, 7, 33, "mixed", dtype))


@pytest.mark.parametrize("scale", [1e-290, 1e-160, 1e150, 1e307])
def test_float64_beyond_the_range_of_squares_follows_ieee(scale):
    assert_labels_are_nearest(*(t * scale for t in make(40, 5, 9, "normal", torch.float64)))


def test_near_ties_in_the_last_bit():
    x = torch.rand(30, 9, generator=generator(0))
    c = torch.cat([torch.nextafter(x[:10], torch.ones(())), x[:10], torch.nextafter(x[:10], torch.zeros(()))])
    assert_labels_are_nearest(torch.cat([x, (c[:10] + c[10:20]) / 2, (c[3:10] + c[2:9]) / 2]), c)


def test_problems_beside_one_another():
    # Rows of several problems share the lists of the recheck.
    x, c = make(3 * 70, 6, 3 * 20, "lattice", torch.float32)
    assert_labels_are_nearest(x.reshape(3, 70, 6), c.reshape(3, 20, 6))


def test_strides():
    x, c = make(80, 6, 40, "normal", torch.float32)
    assert_labels_are_nearest(x.t().contiguous().t()[::2, 1:], c[1:, :].flip(0)[::3, 1:])


@pytest.mark.parametrize("seed", range(4))
def test_every_interleaving_gives_the_same_labels(seed, monkeypatch):
    # Four tiles, so that the ring and the slots of the bounds come round, and rows of a second block behind the first.
    monkeypatch.setenv("DCFAST_EMULATOR_SEED", str(seed))
    assert_labels_are_nearest(*make(1100 if seed % 2 else 300, 130, 500, "normal", torch.float32))


def test_many_open_rows_are_rechecked_together():
    # More than 4,096 rows half-way between two centroids that a third ties with: every one needs every centroid.
    c = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    x = torch.tensor([[1.0, 0.0]]).repeat(4200, 1)
    x[7] = 5.0
    assert_labels_are_nearest(x, c)


def test_no_rows():
    assert NATIVE.assign_on_cuda(torch.empty(0, 3), torch.ones(2, 3), torch.empty(0).long()).shape == (0,)


def test_the_pass_proves_nearly_all_rows(capability, emulated_gpu, monkeypatch):
    # What it proves is written by the pass; the rest only by the rechecks, which find empty lists here.
    x, c = make(200, 70, 20, "normal", torch.float32)
    workspaces = []
    empty = torch.empty

    def kept(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        workspaces.append(tensor)
        return tensor

    monkeypatch.setattr(torch, "empty", kept)
    assert_labels_are_nearest(x, c)
    # The two counts are the workspace's last piece.
    workspace = next(w for w in workspaces if w.dtype == torch.uint8)
    counts = workspace[-256:][:8].view(torch.int32)
    assert 0 <= counts.sum() < 0.05 * len(x)


def root_above(square):
    """A rational not below the square root of one."""
    scaled = square.numerator * 2**200 // square.denominator + 1
    return Fraction(math.isqrt(scaled) + 1, 2**100)


def gamma(n, u):
    return n * u / (1 - n * u)


@pytest.mark.parametrize("kind", ["normal", "offset", "mixed", "tiny", "cancelling", "centre", "half-way"])
def test_bounds_hold_in_exact_arithmetic(kind, emulated_gpu, capability):
    """Whatever order the tensor cores add in, truncating every sum: v_j <= s_j <= v_j + 2 (a_j + n b_j)."""
    d, n, k = 70, 5, 4
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    if kind == "cancelling":  # products that cancel to the last bit beside large ones
        x = 1 + torch.rand(n, d, generator=generator(1), dtype=torch.float64) * 2**-9
        c = signs.repeat(d // 2) * 2.0 ** torch.arange(k)[:, None]
    elif kind == "centre":  # nothing but the norms of the centroids in the scores
        x = torch.full((n, d), 2.0**-20, dtype=torch.float64)
        c = (
            torch.rand(2, d, generator=generator(2), dtype=torch.float64).repeat(2, 1)
            * signs.repeat_interleave(2)[:, None]
        )
        c[1::2] *= 0.7
    elif kind == "half-way":  # every element between two float16 numbers, and every error the same way
        x = torch.full((n, d), 64 + 2.0**-5, dtype=torch.float64)
        c = torch.ones(k, d, dtype=torch.float64) * torch.tensor([128.0, -128.0, 64.0, -64.0])[:, None]
    else:
        x, c = make(n, d, k, kind, torch.float64)
    blocks = -(-d // 64)
    summed = gamma(Fraction(2 * 64 * blocks), Fraction(1, 2**23))
    w = Fraction(105, 100) / 2**18
    spread = float(summed + w * (1 + summed)) * (1 + 2.0**-20)
    shift, scale = torch.empty(d, dtype=torch.float64), torch.empty(1, dtype=torch.float64)
    halves_c = torch.empty(blocks, 128, 64, dtype=torch.float16)
    halves_x = torch.empty(blocks, 256, 64, dtype=torch.float16)
    bounds, error, size = torch.empty(128, 2), torch.empty(128), torch.empty(256)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (shift, scale, halves_c, bounds, error, halves_x, size)]
    run = ctypes.CDLL(emulated_gpu.__file__).emulated_assign_operands
    long = ctypes.c_int64
    x_ptr, c_ptr = ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(c.data_ptr())
    assert run(x_ptr, long(n), c_ptr, long(k), long(d), ctypes.c_double(spread), *pointers) == 0

    def unswizzled(halves, row):
        # Piece p of a row lies at p ^ (row % 8).
        pieces = halves[:, row].reshape(blocks, 8, 8)[:, torch.arange(8) ^ (row % 8)]
        return [Fraction(v) for v in pieces.reshape(-1)[:d].tolist()]

    def exact(v):
        return [(Fraction(a) - Fraction(m)) * Fraction(scale.item()) for a, m in zip(v, shift.tolist(), strict=True)]

    def dot(a, b):
        return sum((p * q for p, q in zip(a, b, strict=True)), Fraction(0))

    unit = Fraction(1, 2**24)
    proved = 0
    for i in range(n):
        if size[i] == 0:  # a row that float16 cannot hold
            continue
        true_x, half_x, norm = exact(x[i].tolist()), unswizzled(halves_x, i), Fraction(size[i].item())
        for j in range(k):
            true_c, half_c = exact(c[j].tolist()), unswizzled(halves_c, j)
            score = dot(true_c, true_c) / 2 - dot(true_x, true_c)
            low, b, a = (Fraction(v) for v in (*bounds[j].tolist(), error[j].item()))
            off = summed * root_above(dot(half_x, half_x) * dot(half_c, half_c))
            for sign in (-1, 1):
                value = low - norm * b - (dot(half_x, half_c) - sign * off)
                # Two roundings, each relative to its result, and the place in the low 5 bits.
                slack = unit * (abs(low - norm * b) + abs(value) * 2) + 31 * 2 * unit * abs(value) * (1 + 4 * unit)
                assert value + slack <= score
                assert score <= value - slack + 2 * (a + norm * b) * (1 + Fraction(1, 2**20))
            proved += 1
    assert proved >= (n - 1) * k


def test_rows_at_every_distance_from_the_bound():
    # Half-way between two centroids, and up to 2^-30 of the way from there to one: none may be proved wrongly.
    g = generator(7)
    c = torch.randn(2, 150, generator=g, dtype=torch.float64)
    steps = torch.cat([s * 2.0 ** -torch.arange(3.0, 31.0) for s in (1, -1)]).double()
    x = (c[0] + c[1]) / 2 + steps[:, None] * (c[1] - c[0])
    assert_labels_are_nearest(x, c)
    assert_labels_are_nearest(x + 1e4, c + 1e4)
