"""The Triton kernels of sobel_conv2d against the three-step definition in float64."""

import pytest
import torch
from support.sobel import SIZES, assert_as_good_as_torch, make

from dcfast import ops


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["contiguous", "bytes"])
def test_sizes(size, kind):
    assert_as_good_as_torch(ops.sobel_conv2d, make(size, kind, torch.float32))


@pytest.mark.parametrize("kind", ["channels_last", "strided", "tiny", "huge"])
def test_layouts_and_scales(kind):
    assert_as_good_as_torch(ops.sobel_conv2d, make(SIZES[5], kind, torch.float32))


@pytest.mark.parametrize("kind", ["contiguous", "bytes"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_dtypes(kind, dtype):
    assert_as_good_as_torch(ops.sobel_conv2d, make(SIZES[1], kind, dtype))


def test_several_ranges_of_pixels():
    # More pixels than 128 ranges of one block: some program walks two blocks, and the last range is ragged.
    assert_as_good_as_torch(ops.sobel_conv2d, make((1, 130, 64, 3, (2, 2), (1, 1), (0, 0)), "bytes", torch.float32))


def test_no_images():
    image, weight = torch.zeros(0, 3, 8, 9, requires_grad=True), torch.ones(4, 2, 3, 3, requires_grad=True)
    output = ops.sobel_conv2d(image, weight)
    assert output.shape == (0, 4, 6, 7)
    output.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert image.grad.shape == image.shape


def test_opcheck():
    image, weight, bias, *rest = make(SIZES[2], "contiguous", torch.float32)
    arguments = (image.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), *rest)
    torch.library.opcheck(torch.ops.dcfast.sobel_conv2d.default, arguments)
