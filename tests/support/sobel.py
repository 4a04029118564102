"""The three-step definition of sobel_conv2d in plain torch, differentiable, and the cases that hurt."""

from __future__ import annotations

import torch
from torch.nn import functional as F

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

# images, height, width, filters, kernel, stride, padding
SIZES = [
    (2, 35, 23, 7, (11, 11), (4, 4), (2, 2)),  # AlexNet's geometry, with a ragged right edge
    (3, 16, 18, 20, (3, 3), (1, 1), (1, 1)),
    (1, 1, 5, 3, (3, 2), (3, 2), (5, 4)),  # one row, and windows that see only padding
    (2, 7, 1, 13, (1, 3), (1, 1), (0, 1)),  # one column
    (1, 1, 1, 1, (1, 1), (1, 1), (0, 0)),
    (1, 5, 6, 4, (7, 9), (2, 3), (5, 4)),  # a kernel larger than the image
    (1, 9, 30, 6, (2, 1), (1, 4), (0, 3)),  # a stride larger than the kernel
]
KINDS = ["contiguous", "channels_last", "strided", "bytes", "grey bytes", "tiny", "huge"]


def make(size, kind, dtype, seed=0):
    """image, weight, bias, stride, padding, mean, std of one case."""
    n, height, width, filters, kernel, stride, padding = size
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(n, 3, height, width, generator=generator)
    if kind == "channels_last":
        image = image.to(memory_format=torch.channels_last)
    elif kind == "strided":
        image = torch.rand(n, width, 2 * height, 4, generator=generator)[:, :, ::2, 1:].permute(0, 3, 2, 1)
    elif kind == "bytes":
        image = (255 * image).round().to(torch.uint8)
    elif kind == "grey bytes":  # three channels that are one in memory
        image = (255 * image[:, :1]).round().to(torch.uint8).expand(-1, 3, -1, -1)
    elif kind in ("tiny", "huge"):
        image = image * (1e-20 if kind == "tiny" else 1e20)
    weight = torch.randn(filters, 2, *kernel, generator=generator) / (2 * kernel[0] * kernel[1]) ** 0.5
    bias = torch.randn(filters, generator=generator)
    normalised = kind not in ("tiny", "huge")  # else mean and bias would hide the image
    if image.dtype != torch.uint8:
        image = image.to(dtype)
    mean, std = (MEAN, STD) if normalised else (None, None)
    return image, weight.to(dtype), bias.to(dtype) if normalised else None, stride, padding, mean, std


def three_steps(image, weight, bias, stride, padding, mean, std):
    """Normalise and average; Sobel with zero padding 1; convolve. Every step in the dtype of `weight`."""
    dtype = weight.dtype
    x = image.to(dtype) / 255 if image.dtype == torch.uint8 else image.to(dtype)
    if mean is not None:
        x = (x - mean.to(dtype).view(3, 1, 1)) / std.to(dtype).view(3, 1, 1)
    grey = x.mean(1, keepdim=True)
    sobel_x = torch.tensor([[1, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=dtype)
    sobel = F.conv2d(grey, torch.stack([sobel_x, sobel_x.T])[:, None], padding=1)
    return F.conv2d(sobel, weight, bias, stride, padding)


def with_gradients(function, arguments, dtype):
    """The output, and the gradients of image (if it is not bytes), weight and bias for a fixed output gradient."""
    tensors = []
    for t in arguments[:3]:
        if t is not None and t.is_floating_point():
            t = t.detach().to(dtype).requires_grad_()
        tensors.append(t)
    output = function(*tensors, *arguments[3:])
    generator = torch.Generator().manual_seed(output.numel())
    # The same values in every dtype: those of the arguments'.
    grad = torch.randn(output.shape, generator=generator).to(arguments[1].dtype).to(dtype)
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, wanted, grad)]


def assert_as_good_as_torch(function, arguments, units=1):
    """The errors of output and gradients against float64 are at most twice those of torch's three steps.

    Plus `units` in the last place of the largest value: where torch's own error happens to be zero, rounding may
    differ. float64 is held to the error that torch makes in float32, scaled to the finer rounding.
    """
    dtype = arguments[1].dtype
    exact = with_gradients(three_steps, arguments, torch.float64)
    ours = with_gradients(function, arguments, dtype)
    if dtype == torch.float64:
        single = [t.float() if t is not None and t.dtype == dtype else t for t in arguments[:3]] + [*arguments[3:]]
        truth, scale = with_gradients(three_steps, single, torch.float64), 2.0**-29
        torchs = with_gradients(three_steps, single, torch.float32)
    else:
        truth, scale = exact, 1.0
        torchs = with_gradients(three_steps, arguments, dtype)
    assert len(ours) == len(exact)
    for mine, own, close, true in zip(ours, torchs, truth, exact, strict=True):
        assert mine.dtype == dtype
        assert mine.shape == true.shape
        assert mine.isfinite().all()
        error, allowed = (mine - true).abs().max(), 2 * scale * (own - close).abs().max()
        assert error <= allowed + units * torch.finfo(dtype).eps * true.abs().max()


def assert_epilogue_as_good_as_torch(function, arguments, with_bias=True):
    """Scale, shift and ReLU, alone and together, on top of the three steps; negative scales and a zero among them."""
    image, weight, bias, *rest = arguments
    generator = torch.Generator().manual_seed(1)
    scale, shift = (torch.randn(len(weight), generator=generator) for _ in range(2))
    scale[0] = 0.0
    bias = bias if with_bias else None
    for a, b, relu in ((scale, shift, True), (scale, None, False), (None, shift, False), (None, None, True)):
        ours = function(image, weight, bias, *rest, scale=a, shift=b, relu=relu)

        def definition(dtype, a=a, b=b, relu=relu):
            inputs = [t.to(dtype) if t is not None and t.is_floating_point() else t for t in (image, weight, bias)]
            output = three_steps(*inputs, *rest)
            output = output if a is None else output * a.to(dtype)[:, None, None]
            output = output if b is None else output + b.to(dtype)[:, None, None]
            return output.relu() if relu else output

        exact, own = definition(torch.float64), definition(weight.dtype)
        assert ours.dtype == weight.dtype
        assert not relu or (ours >= 0).all()
        error, eps = (ours - exact).abs().max(), torch.finfo(weight.dtype).eps
        # float64 is its own measure here: three roundings on top of the sum's.
        allowed = 0.0 if weight.dtype == torch.float64 else 2 * (own - exact).abs().max()
        assert error <= allowed + (64 if weight.dtype == torch.float64 else 1) * eps * exact.abs().max()
