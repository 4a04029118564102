"""AlexNet's first layer on Sobel gradients: forward, and forward with the gradients of weight and bias."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from eager_sobel import SOBEL, sobel_conv2d

from dcfast import ops

from .case import Case
from .measure import Call, rotation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FILTERS, _KERNEL, _STRIDE, _PADDING = 96, 11, 4, 2
# Name, dtype of the images, dtype of the weights and the output.
KINDS = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "uint8 to bfloat16": (torch.uint8, torch.bfloat16),
}
# Images whose result is compared with float64.
_CHECKED = 4


class Layer(NamedTuple):
    image: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    grad: torch.Tensor
    # On the device beforehand, as in a network's buffers.
    mean: torch.Tensor
    std: torch.Tensor
    sobel: torch.Tensor


def make(n: int, side: int, image: torch.dtype, dtype: torch.dtype, device: torch.device, seed: int) -> Layer:
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    pixels = torch.rand(n, 3, side, side, generator=generator, device=device)
    pixels = (255 * pixels).to(image) if image == torch.uint8 else pixels.to(image)
    weight = (normal(_FILTERS, 2, _KERNEL, _KERNEL) / (2 * _KERNEL**2) ** 0.5).to(dtype)
    out = (side + 2 * _PADDING - _KERNEL) // _STRIDE + 1
    mean, std = (torch.tensor(v, dtype=torch.float64, device=device) for v in (MEAN, STD))
    sobel = SOBEL.to(device, dtype)
    return Layer(pixels, weight, normal(_FILTERS).to(dtype), normal(n, _FILTERS, out, out).to(dtype), mean, std, sobel)


def definition(layer: Layer, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The three steps as torch ops, in the dtype of the weight."""
    return sobel_conv2d(layer.image, weight, bias, _STRIDE, _PADDING, layer.mean, layer.std, layer.sobel)


def ours(layer: Layer, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return ops.sobel_conv2d(layer.image, weight, bias, _STRIDE, _PADDING, layer.mean, layer.std)


def _channels_last(layer: Layer) -> Layer:
    image, weight, grad = (t.to(memory_format=torch.channels_last) for t in (layer.image, layer.weight, layer.grad))
    return layer._replace(image=image, weight=weight, grad=grad)


def contestant(forward: Callable[..., torch.Tensor], train: bool, channels_last: bool) -> Callable[[Layer], Call]:
    def prepare(layer: Layer) -> Call:
        if channels_last:
            layer = _channels_last(layer)
        if not train:
            return torch.no_grad()(lambda: (forward(layer, layer.weight, layer.bias),))
        weight, bias = (t.detach().requires_grad_() for t in (layer.weight, layer.bias))
        return lambda: torch.autograd.grad(forward(layer, weight, bias), (weight, bias), layer.grad)

    return prepare


def without_tf32(prepare: Callable[[Layer], Call]) -> Callable[[Layer], Call]:
    """torch allows TF32 in convolutions unless it is told not to."""

    def prepared(layer: Layer) -> Call:
        call = prepare(layer)

        def run() -> object:
            allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
            try:
                return call()
            finally:
                torch.backends.cudnn.allow_tf32 = allowed

        return run

    return prepared


def _errors(train: bool) -> Callable[[Layer, Any], dict[str, float]]:
    """Of the forward on some images; of the gradients, which are sums over all images, on all of them."""

    def errors(layer: Layer, outputs: Any) -> dict[str, float]:
        layer = layer if train else layer._replace(image=layer.image[:_CHECKED])
        outputs = outputs if train else [outputs[0][:_CHECKED]]
        exact = contestant(definition, train, False)(
            layer._replace(weight=layer.weight.double(), bias=layer.bias.double(), grad=layer.grad.double())
        )()
        return {"error": max(float((o.double() - e).norm() / e.norm()) for o, e in zip(outputs, exact, strict=True))}

    return errors


def cases(device: torch.device, small: bool) -> Iterator[Case]:
    n, side = (2, 32) if small else (256, 224)
    for kind, (image, dtype) in KINDS.items():
        size = n * 3 * side * side * image.itemsize
        layers = [make(n, side, image, dtype, device, seed) for seed in range(rotation(size, device))]
        out = layers[0].grad
        products = 4.0 * out.numel() * _KERNEL**2
        # Rounding of the operands, and of the Sobel planes that the definition stores.
        within = {"error": 2e-6 if dtype == torch.float32 else 2e-2}
        with_tf32 = {"error": 2e-3 if dtype == torch.float32 else 2e-2}
        compiled = torch.compile(definition, dynamic=False)
        for train in (False, True):
            passes = 2 if train else 1
            yield Case(
                "sobel_conv2d" + (" forward + backward" if train else " forward"), f"AlexNet conv1, {n} images, {kind}",
                contestant(ours, train, False),
                {
                    "torch, channels_last": contestant(definition, train, True),
                    "torch, channels_last, no TF32": without_tf32(contestant(definition, train, True)),
                    "torch": contestant(definition, train, False),
                    "torch.compile": contestant(compiled, train, True),
                },
                layers, operations=passes * products, moved=float(passes * (size + out.nbytes)), errors=_errors(train),
                ours_within=within, peers_within=with_tf32,
                parameters={"images": n, "side": side, "dtype": kind, "filters": _FILTERS, "kernel": _KERNEL},
            )  # fmt: skip
