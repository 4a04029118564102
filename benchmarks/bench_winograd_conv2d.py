"""winograd_conv2d against torch's own convolution, forward and a step of training, on a batch of 256 maps."""

import functools

import pytest
import torch
from torch.nn import functional as F

from dcfast import ops

N = 256
# channels, filters, side of the map: of the small network, the micro AlexNet, AlexNet and VGG-16 (fewer images)
LAYERS = {
    "small-conv2": (N, 32, 96, 16),
    "small-conv4": (N, 192, 128, 8),
    "micro-conv4": (N, 384, 256, 8),
    "alexnet-conv4": (32, 384, 384, 13),
    "vgg-conv4": (8, 128, 128, 56),
}


def torchs(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)


def inputs(layer):
    """x, weight, bias and the operations of the sum itself; both sides read channels_last."""
    n, channels, filters, side = LAYERS[layer]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels, side, side, generator=generator).relu()
    weight = torch.randn(filters, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, weight)]
    return [*last, torch.randn(filters, generator=generator)], 18.0 * n * channels * filters * side * side


@pytest.mark.parametrize("layer", LAYERS)
def test_forward(compare, layer):
    arguments, operations = inputs(layer)
    exact = torchs(arguments[0][:2].double(), *(t.double() for t in arguments[1:]))
    calls = {
        "dcfast": functools.partial(ops.winograd_conv2d, *arguments),
        "torch": functools.partial(torchs, *arguments),
    }
    quality = {name: f"error {(call()[:2] - exact).abs().max():.1e}" for name, call in calls.items()}
    compare(calls.pop("dcfast"), calls, operations=operations, quality=quality)


@pytest.mark.parametrize("layer", LAYERS)
def test_training(compare, layer):
    """Forward and all gradients."""
    arguments, operations = inputs(layer)
    leaves = [t.requires_grad_() for t in arguments]
    grad = torch.randn(torchs(*arguments).shape, generator=torch.Generator().manual_seed(1))
    grad = grad.contiguous(memory_format=torch.channels_last)

    def step(forward, leaves, grad):
        return torch.autograd.grad(forward(*leaves), leaves, grad)[1]

    exact = step(torchs, [t.detach().double().requires_grad_() for t in leaves], grad.double())
    calls = {
        "dcfast": functools.partial(step, ops.winograd_conv2d, leaves, grad),
        "torch": functools.partial(step, torchs, leaves, grad),
    }
    quality = {name: f"error {(call() - exact).abs().max():.1e}" for name, call in calls.items()}
    compare(calls.pop("dcfast"), calls, operations=3 * operations, quality=quality)
