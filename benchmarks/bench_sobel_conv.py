"""sobel_conv2d against eager torch (normalise and grey, Sobel, convolution) and torch.compile of the same."""

import functools

import pytest
import torch
from eager_sobel import sobel_conv2d as eager

from dcfast import ops

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

# images, pixels a side, filters, kernel, stride, padding
LAYERS = {"alexnet-conv1": (32, 224, 96, 11, 4, 2), "convnet-3x3": (256, 32, 64, 3, 1, 1)}


def inputs(layer, kind):
    """The arguments, and the operations of the convolution."""
    n, side, filters, kernel, stride, padding = LAYERS[layer]
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(n, 3, side, side, generator=generator)
    if kind == "bytes":  # as decoders give them
        image = (255 * image).to(torch.uint8).to(memory_format=torch.channels_last)
    weight = torch.randn(filters, 2, kernel, kernel, generator=generator) / (2 * kernel * kernel) ** 0.5
    bias = torch.randn(filters, generator=generator)
    out = (side + 2 * padding - kernel) // stride + 1
    return (image, weight, bias, stride, padding, MEAN, STD), 4.0 * n * filters * kernel * kernel * out * out


@pytest.mark.parametrize("kind", ["float", "bytes"])
@pytest.mark.parametrize("layer", LAYERS)
def test_forward(compare, layer, kind):
    arguments, operations = inputs(layer, kind)
    image, weight, bias, *rest = arguments
    exact = eager(image[:2], weight.double(), bias.double(), *rest)
    calls = {
        "dcfast": lambda: ops.sobel_conv2d(*arguments),
        "eager": lambda: eager(*arguments),
        "torch.compile": functools.partial(torch.compile(eager), *arguments),
    }
    quality = {name: f"error {(call()[:2] - exact).abs().max():.1e}" for name, call in calls.items()}
    compare(calls.pop("dcfast"), calls, operations=operations, quality=quality)


@pytest.mark.parametrize("layer", LAYERS)
def test_training(compare, layer):
    """Forward, and the gradients of weight and bias."""
    (image, weight, bias, *rest), operations = inputs(layer, "float")
    parameters = weight.requires_grad_(), bias.requires_grad_()

    def step(forward, image, weight, bias, *rest):
        output = forward(image, weight, bias, *rest)
        return torch.autograd.grad(output, (weight, bias), grad.to(output.dtype))[0]

    grad = torch.randn(eager(image, weight, bias, *rest).shape, generator=torch.Generator().manual_seed(1))
    double = (t.detach().double().requires_grad_() for t in parameters)
    exact = step(eager, image, *double, *rest)
    calls = {
        "dcfast": lambda: step(ops.sobel_conv2d, image, *parameters, *rest),
        "eager": lambda: step(eager, image, *parameters, *rest),
        "torch.compile": functools.partial(step, torch.compile(eager), image, *parameters, *rest),
    }
    quality = {name: f"error {(call() - exact).abs().max():.1e}" for name, call in calls.items()}
    compare(calls.pop("dcfast"), calls, operations=2 * operations, quality=quality)
