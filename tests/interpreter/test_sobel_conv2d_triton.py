"""The Triton kernels of sobel_conv2d against the three-step definition in float64."""

import importlib

import pytest
import torch
from support.sobel import SIZES, assert_as_good_as_torch, assert_epilogue_as_good_as_torch, make

from dcfast import ops

# The first two of SIZES hold too many pixels for the interpreter.
SMALL = [(1, 19, 13, 7, (11, 11), (4, 4), (2, 2)), (2, 6, 7, 20, (3, 3), (1, 1), (1, 1)), *SIZES[2:]]


@pytest.mark.parametrize("size", SMALL)
@pytest.mark.parametrize("kind", ["contiguous", "bytes"])
def test_sizes(size, kind):
    assert_as_good_as_torch(ops.sobel_conv2d, make(size, kind, torch.float32))


@pytest.mark.parametrize("kind", ["channels_last", "strided", "grey bytes", "tiny", "huge"])
def test_layouts_and_scales(kind):
    assert_as_good_as_torch(ops.sobel_conv2d, make(SMALL[5], kind, torch.float32))


@pytest.mark.parametrize("kind", ["contiguous", "bytes"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_dtypes(kind, dtype):
    assert_as_good_as_torch(ops.sobel_conv2d, make(SMALL[1], kind, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_epilogue(dtype):
    assert_epilogue_as_good_as_torch(ops.sobel_conv2d, make(SMALL[1], "bytes", dtype))
    assert_epilogue_as_good_as_torch(ops.sobel_conv2d, make(SMALL[2], "contiguous", dtype), with_bias=False)


def test_several_ranges_of_pixels(monkeypatch):
    # Each range of pixels takes two blocks, and the last one is ragged.
    monkeypatch.setattr(importlib.import_module("dcfast.ops.sobel_conv2d.triton"), "_MAX_RANGES", 2)
    assert_as_good_as_torch(ops.sobel_conv2d, make((2, 7, 9, 3, (2, 2), (1, 1), (0, 0)), "bytes", torch.float32))


def test_no_images():
    image, weight = torch.zeros(0, 3, 8, 9, requires_grad=True), torch.ones(4, 2, 3, 3, requires_grad=True)
    output = ops.sobel_conv2d(image, weight)
    assert output.shape == (0, 4, 6, 7)
    output.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert image.grad.shape == image.shape


def test_opcheck():
    image, weight, bias, *rest = make(SIZES[2], "contiguous", torch.float32)
    arguments = (image.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), *rest, None, None, False)
    torch.library.opcheck(torch.ops.dcfast.sobel_conv2d.default, arguments)
