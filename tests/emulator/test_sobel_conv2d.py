"""The CUDA kernels of sobel_conv2d, on the emulated GPU, against the three-step definition in float64.

The emulated tensor cores cut their sums to float32 as the worst of the real ones do.
"""

import importlib

import pytest
import torch
from support.sobel import MEAN, SIZES, STD, assert_as_good_as_torch, assert_epilogue_as_good_as_torch, make, three_steps

from dcfast import ops

native = importlib.import_module("dcfast.ops.sobel_conv2d.native")

# SIZES with fewer pixels, and more filters than a warp takes.
SMALL = [
    (1, 19, 13, 7, (11, 11), (4, 4), (2, 2)),
    (2, 6, 7, 20, (3, 3), (1, 1), (1, 1)),
    (1, 3, 4, 50, (2, 2), (1, 2), (3, 0)),
    *SIZES[2:],
]


@pytest.fixture(autouse=True)
def _native_is_cuda(monkeypatch):
    monkeypatch.setattr(native, "sobel_conv2d", native._forward_on_cuda)
    monkeypatch.setattr(native, "sobel_conv2d_backward_weight", native._backward_weight_on_cuda)
    monkeypatch.setattr(native, "sobel_conv2d_backward_image", native._backward_image_on_cuda)
    with ops.backend("native"):
        yield


@pytest.mark.parametrize("kind", ["contiguous", "bytes"])
@pytest.mark.parametrize("size", SMALL)
def test_sizes(size, kind):
    # Of few values the largest errors vary, ours and torch's.
    units = 1 if size in SMALL[:3] else 4
    assert_as_good_as_torch(ops.sobel_conv2d, make(size, kind, torch.float32), units)


@pytest.mark.parametrize("kind", ["channels_last", "strided", "tiny", "huge"])
def test_layouts_and_scales(kind):
    assert_as_good_as_torch(ops.sobel_conv2d, make(SIZES[5], kind, torch.float32))


@pytest.mark.parametrize("kind", ["channels_last", "bytes"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", SMALL[:3])
def test_dtypes(size, dtype, kind):
    assert_as_good_as_torch(ops.sobel_conv2d, make(size, kind, dtype), units=4 if dtype == torch.float64 else 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_epilogue(dtype):
    assert_epilogue_as_good_as_torch(ops.sobel_conv2d, make(SMALL[1], "bytes", dtype))
    assert_epilogue_as_good_as_torch(ops.sobel_conv2d, make(SIZES[2], "contiguous", dtype), with_bias=False)


def test_the_epilogue_keeps_nan():
    image = torch.full((1, 3, 4, 4), torch.nan)
    assert ops.sobel_conv2d(image, torch.ones(1, 2, 1, 1), relu=True).isnan().all()


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        ((1, 130, 402, 2, (1, 1), (6, 4), (0, 0)), torch.float16),  # several bands, the last one lower
        ((6, 18, 34, 3, (1, 1), (2, 2), (0, 0)), torch.float16),  # more tiles than blocks, fewer products than warps
        ((1, 10, 10, 450, (11, 11), (1, 1), (1, 1)), torch.float16),  # filters for two blocks
        ((1, 29, 29, 9, (31, 31), (1, 1), (1, 1)), torch.float32),  # weights that do not fit: the plain loops
    ],
)
def test_tiles(size, dtype):
    assert_as_good_as_torch(ops.sobel_conv2d, make(size, "bytes", dtype))


def test_tiles_side_by_side():
    # More columns than a tile may have pixels, and an odd number, so that the second tile is narrower.
    image, weight, bias, *_ = make((1, 1, 4101, 1, (1, 1), (1, 1), (0, 0)), "bytes", torch.float16)
    exact = three_steps(image, weight.double(), bias.double(), 1, 0, None, None)
    assert (ops.sobel_conv2d(image, weight, bias) - exact).abs().max() <= 2.0**-10 * exact.abs().max()


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        ((2, 33, 127, 3, (3, 4), (3, 5), (1, 2)), torch.float32),  # several tiles, runs that are not full
        ((1, 70, 150, 2, (5, 7), (33, 70), (4, 3)), torch.float16),  # strides longer than a tile
        ((1, 5, 6, 3, (35, 70), (1, 1), (16, 34)), torch.float32),  # a kernel of several parts
        ((1, 31, 9, 2, (34, 2), (6, 2), (9, 0)), torch.float64),
    ],
)
def test_image_gradients(size, dtype):
    assert_as_good_as_torch(ops.sobel_conv2d, make(size, "contiguous", dtype), units=4)


def test_a_gradient_of_several_ranges(monkeypatch):
    monkeypatch.setattr(native, "_RANGES", 2)
    assert_as_good_as_torch(ops.sobel_conv2d, make((3, 4, 5, 3, (2, 2), (1, 1), (0, 0)), "bytes", torch.float32))
    assert_as_good_as_torch(ops.sobel_conv2d, make((3, 4, 5, 3, (2, 2), (1, 1), (0, 0)), "bytes", torch.float64))


def test_other_orders_of_threads_and_a_smaller_gpu_give_the_same_bits(monkeypatch):
    image, weight, bias, *rest = make((2, 9, 12, 50, (3, 3), (1, 1), (1, 1)), "contiguous", torch.float32)
    grad = torch.randn(2, 50, 9, 12, generator=torch.Generator().manual_seed(0))

    def results():
        gradients = native._backward_weight_on_cuda(grad, image, [3, 3], *rest)
        by_image = native._backward_image_on_cuda(grad, weight, [9, 12], *rest[:2], rest[3])
        return [native._forward_on_cuda(image, weight, bias, *rest, None, None, False), *gradients, by_image]

    expected = results()
    monkeypatch.setenv("DCFAST_EMULATOR_SEED", "7")
    monkeypatch.setenv("DCFAST_EMULATOR_CAPABILITY", "8")
    assert all(map(torch.equal, results(), expected))


def test_the_error_of_a_split_product():
    # With std 1/3 grey is R + G + B: Sobel's values are integers, exact in float32, of 20 bits.
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 2**17, (1, 1, 12, 12), generator=generator).float().expand(1, 3, 12, 12)
    weight = torch.randn(48, 2, 1, 1, generator=generator)
    std = torch.full((3,), 1 / 3, dtype=torch.float64)
    output = ops.sobel_conv2d(image, weight, std=std)
    exact = ops.sobel_conv2d(image.double(), weight.double(), std=std)
    parts = [torch.zeros_like(weight, dtype=torch.float64) for _ in range(2)]
    for plane, part in enumerate(parts):
        part[:, plane] = weight[:, plane].double()
    magnitude = sum(ops.sobel_conv2d(image.double(), part, std=std).abs() for part in parts)
    # In units of 2^-24: 8.1 for the pieces left out (see sobel_conv2d.cuh), 4 and 2 for what the tensor cores cut off
    # the two large addends and their sum (of the small ones it is 2^-11 of that), 1 for the last rounding.
    assert ((output - exact).abs() <= 15.1 * 2.0**-24 * magnitude).all()


def test_tf32_only_where_torch_allows_it():
    arguments = make(SMALL[1], "contiguous", torch.float32)
    exact = ops.sobel_conv2d(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
    before = torch.get_float32_matmul_precision()
    errors = []
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        try:
            assert native._allow_tf32() == (precision == "high")
            errors.append((ops.sobel_conv2d(*arguments) - exact).abs().max() / exact.abs().max())
            gradient = native._backward_weight_on_cuda(
                torch.ones(2, 20, 6, 7), arguments[0], [3, 3], *arguments[3:5], MEAN, STD
            )[0]
        finally:
            torch.set_float32_matmul_precision(before)
        wide = native._backward_weight_on_cuda(
            torch.ones(2, 20, 6, 7).double(), arguments[0].double(), [3, 3], *arguments[3:5], MEAN, STD
        )[0]
        errors.append((gradient - wide).abs().max() / wide.abs().max())
    assert max(errors[:2]) < 1e-6
    assert all(1e-6 < error < 2e-3 for error in errors[2:])


def test_no_images():
    image, weight = torch.zeros(0, 3, 8, 9, requires_grad=True), torch.ones(4, 2, 3, 3, requires_grad=True)
    output = ops.sobel_conv2d(image, weight)
    assert output.shape == (0, 4, 6, 7)
    output.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert image.grad.shape == image.shape
