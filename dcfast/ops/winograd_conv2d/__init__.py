"""winograd_conv2d: 3x3 convolutions with a quarter of the products."""

from __future__ import annotations

from typing import Any

import torch

from dcfast.ops import _registry, _validate


def _check_maps(**maps: torch.Tensor) -> None:
    (_, first), *_ = maps.items()
    for name, value in maps.items():
        if value.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name} has dtype {value.dtype}: expected float32 or float64; use .float()")
        if value.dim() != 4 or 0 in value.shape[1:]:
            raise ValueError(f"{name} has shape {tuple(value.shape)}: expected (N, C, H, W)")
        if value.dtype != first.dtype:
            raise TypeError(f"{name} has dtype {value.dtype}: expected {first.dtype}, that of x")
        _validate.same_device(value, name, first)


def _check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    _check_maps(x=x)
    if weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3) or len(weight) == 0:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}: expected (filters, {x.shape[1]}, 3, 3) for x of shape "
            f"{tuple(x.shape)}"
        )
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        if value.dtype != x.dtype:
            raise TypeError(f"{name} has dtype {value.dtype}: expected {x.dtype}, that of x")
        _validate.same_device(value, name, x)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}: expected ({len(weight)},), one value per filter")


def _check_backward_weight(x: torch.Tensor, grad: torch.Tensor) -> None:
    _check_maps(x=x, grad=grad)
    if (len(grad), *grad.shape[2:]) != (len(x), *x.shape[2:]):
        raise ValueError(
            f"grad has shape {tuple(grad.shape)}: expected (N, filters, H, W) as x of shape {tuple(x.shape)} has them"
        )


def _fake(x: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
    size = (len(x), len(weight), *x.shape[2:])
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _fake_backward_weight(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    return x.new_empty(grad.shape[1], x.shape[1], 3, 3)


_forward = _registry.define(
    "winograd_conv2d",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    package=__name__,
    check=_check,
    fake=_fake,
    native_cpu=("winograd_conv2d_plan", "winograd_conv2d_filters", "winograd_conv2d"),
)
_backward_weight = _registry.define(
    "winograd_conv2d_backward_weight",
    "(Tensor x, Tensor grad) -> Tensor",
    package=__name__,
    check=_check_backward_weight,
    fake=_fake_backward_weight,
    native_cpu=("winograd_conv2d_plan", "winograd_conv2d_products", "winograd_conv2d_weight"),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    by_x, by_weight, by_bias = ctx.needs_input_grad
    grad = grad.contiguous(memory_format=torch.channels_last)  # once for all
    return (
        # A convolution too, by the filters turned round.
        _forward(grad, weight.flip(2, 3).transpose(0, 1), None) if by_x else None,
        _backward_weight(x, grad) if by_weight else None,
        grad.sum((0, 2, 3)) if by_bias else None,
    )


def _setup_weight(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients_of_weight(ctx: Any, by_weight: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    # The gradient by the weight is linear in x and in grad: the same convolutions, by another weight.
    x, grad = ctx.saved_tensors
    by_x, by_grad = ctx.needs_input_grad
    return (
        _forward(grad, by_weight.flip(2, 3).transpose(0, 1), None) if by_x else None,
        _forward(x, by_weight, None) if by_grad else None,
    )


torch.library.register_autograd("dcfast::winograd_conv2d", _gradients, setup_context=_setup)
torch.library.register_autograd(
    "dcfast::winograd_conv2d_backward_weight", _gradients_of_weight, setup_context=_setup_weight
)


def winograd_conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Convolve by 3x3 filters, with stride 1 and a border of one zero: an output of the size of the input.

    ``conv2d(x, weight, bias, padding=1)`` with a quarter of its multiplications. On the CPU: no kernel for a GPU has
    been written, and there the op says so.

    Parameters
    ----------
    x : Tensor of shape (N, C, H, W)
        float32 or float64. Read as channels_last; other layouts are copied.
    weight : Tensor of shape (F, C, 3, 3)
        Of the dtype of `x`.
    bias : Tensor of shape (F,), optional
        Likewise.

    Returns
    -------
    Tensor of shape (N, F, H, W)
        channels_last.

    Raises
    ------
    TypeError
        If a dtype is not one of those above.
    ValueError
        If shapes or devices do not fit each other.
    RuntimeError
        On a GPU.

    Notes
    -----
    F(4x4, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, with the points 0, 5/8,
    -5/8, 3/2, -3/2 and infinity: 36 C F multiplications for each tile of 4 x 4 outputs, or part of one, where the sum
    itself has 144 C F. In float32 the errors are about twice those of adding up the products one after the other.
    An infinity or a NaN in a tile of the input makes every output of the tile NaN or infinite.

    The gradients of `x` and `weight` are computed likewise; their bits, and those of the output, depend neither on the
    number of threads nor on other images. All derivatives exist, of any order.

    Examples
    --------
    >>> import torch, dcfast
    >>> dcfast.ops.winograd_conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))[0, 0].round()
    tensor([[4., 6., 4.],
            [6., 9., 6.],
            [4., 6., 4.]])
    """
    return _forward(x, weight, bias)
