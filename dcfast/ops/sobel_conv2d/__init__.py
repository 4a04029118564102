"""sobel_conv2d: grey image, Sobel and a convolution in one op, and its derivatives of every order.

Three ops: F = sobel_conv2d, and the gradients W = sobel_conv2d_backward_weight and X = sobel_conv2d_backward_image.
All are linear in each argument (F affine in the image), so that each one's derivatives are the other two. With an
epilogue, which is for inference, F has none.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch

from dcfast.ops import _registry, _validate
from dcfast.ops._scalar import scalar
from dcfast.ops.sobel_conv2d._geometry import output_size

_Pair = Sequence[int]
_MOST = 2**31 - 1  # of stride and padding
_NO_EPILOGUE = (None, None, False)  # scale, shift, relu


def _check_geometry(image: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> None:
    for name, values, least in (("stride", stride, 1), ("padding", padding, 0)):
        if len(values) != 2 or min(values) < least or max(values) > _MOST:
            raise ValueError(f"{name} is {list(values)}: expected an integer, or two, from {least} to {_MOST}")
    if min(kernel) < 1:
        raise ValueError(f"the kernel has size {tuple(kernel)}: expected at least 1 x 1")
    if min(image) < 1:
        raise ValueError(f"the image has size {tuple(image)}: expected at least 1 x 1")
    if min(output_size(image, kernel, stride, padding)) < 1:
        raise ValueError(
            f"the kernel of size {tuple(kernel)} is larger than the image of size {tuple(image)} with padding "
            f"{tuple(padding)}: use a smaller kernel or more padding"
        )


def _check_image(image: torch.Tensor, dtype: torch.dtype, name: str) -> None:
    if image.dim() != 4 or image.shape[1] != 3:
        raise ValueError(f"image has shape {tuple(image.shape)}: expected (N, 3, H, W)")
    if image.dtype not in (torch.uint8, *_validate.FLOATS):
        raise TypeError(f"image has dtype {image.dtype}: expected uint8 or a floating dtype; use .float()")
    if image.dtype not in (torch.uint8, dtype):
        raise ValueError(f"image has dtype {image.dtype} and {name} {dtype}: convert one to the other's, or use uint8")


def _check_weight(weight: torch.Tensor) -> None:
    _validate.floats(weight, "weight")
    if weight.dim() != 4 or weight.shape[1] != 2 or weight.shape[0] == 0:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}: expected (filters, 2, kernel height, kernel width), "
            "its two channels being Sobel-x and Sobel-y"
        )


def _check_same_device(other: torch.Tensor, name: str, device: torch.device) -> None:
    if other.device != device:
        raise ValueError(f"{name} is on {other.device}, other arguments on {device}: move them to one device")


def _check_channels(values: torch.Tensor | None, name: str, device: torch.device, n: int = 3) -> None:
    if values is None:
        return
    _validate.floats(values, name)
    if values.shape != (n,):
        raise ValueError(f"{name} has shape {tuple(values.shape)}: expected ({n},), one value per channel")
    _check_same_device(values, name, device)


def _check(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: _Pair,
    padding: _Pair,
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    relu: bool,
) -> None:
    _check_weight(weight)
    _check_image(image, weight.dtype, "weight")
    _check_same_device(weight, "weight", image.device)
    if bias is not None:
        if bias.shape != weight.shape[:1] or bias.dtype != weight.dtype:
            raise ValueError(
                f"bias is {bias.dtype} of shape {tuple(bias.shape)}: expected {weight.dtype} of shape "
                f"({weight.shape[0]},), one value per filter of weight"
            )
        _check_same_device(bias, "bias", image.device)
    _check_channels(mean, "mean", image.device)
    _check_channels(std, "std", image.device)
    _check_channels(scale, "scale", image.device, weight.shape[0])
    _check_channels(shift, "shift", image.device, weight.shape[0])
    _check_geometry(image.shape[2:], weight.shape[2:], stride, padding)


def _check_grad(grad: torch.Tensor, expected: tuple[int, int]) -> None:
    _validate.floats(grad, "grad")
    if grad.dim() != 4 or tuple(grad.shape[2:]) != expected:
        raise ValueError(f"grad has shape {tuple(grad.shape)}: expected (N, filters, {expected[0]}, {expected[1]})")


def _check_backward_weight(
    grad: torch.Tensor,
    image: torch.Tensor,
    kernel_size: _Pair,
    stride: _Pair,
    padding: _Pair,
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
) -> None:
    _check_image(image, grad.dtype, "grad")
    _check_geometry(image.shape[2:], kernel_size, stride, padding)
    _check_grad(grad, output_size(image.shape[2:], kernel_size, stride, padding))
    if grad.shape[0] != image.shape[0]:
        raise ValueError(f"grad has {grad.shape[0]} images and image {image.shape[0]}: expected as many")
    _check_same_device(grad, "grad", image.device)
    _check_channels(mean, "mean", image.device)
    _check_channels(std, "std", image.device)


def _check_backward_image(
    grad: torch.Tensor,
    weight: torch.Tensor,
    image_size: _Pair,
    stride: _Pair,
    padding: _Pair,
    std: torch.Tensor | None,
) -> None:
    _check_weight(weight)
    _check_geometry(image_size, weight.shape[2:], stride, padding)
    _check_grad(grad, output_size(image_size, weight.shape[2:], stride, padding))
    if grad.shape[1] != weight.shape[0] or grad.dtype != weight.dtype:
        raise ValueError(
            f"grad is {grad.dtype} of {grad.shape[1]} channels: expected {weight.dtype} and {weight.shape[0]}, "
            "one channel per filter of weight"
        )
    _check_same_device(grad, "grad", weight.device)
    _check_channels(std, "std", weight.device)


def _fake(image: torch.Tensor, weight: torch.Tensor, bias: Any, stride: _Pair, padding: _Pair, *_: Any) -> torch.Tensor:
    size = output_size(image.shape[2:], weight.shape[2:], stride, padding)
    return weight.new_empty((image.shape[0], weight.shape[0], *size))


def _fake_backward_weight(
    grad: torch.Tensor,
    image: torch.Tensor,
    kernel_size: _Pair,
    stride: _Pair,
    padding: _Pair,
    mean: Any,
    std: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    return grad.new_empty((grad.shape[1], 2, *kernel_size)), grad.new_empty(grad.shape[1:2])


def _fake_backward_image(
    grad: torch.Tensor, weight: torch.Tensor, image_size: _Pair, stride: _Pair, padding: _Pair, std: Any
) -> torch.Tensor:
    return grad.new_empty((grad.shape[0], 3, *image_size))


_forward = _registry.define(
    "sobel_conv2d",
    "(Tensor image, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, Tensor? mean, Tensor? std,"
    " Tensor? scale, Tensor? shift, bool relu) -> Tensor",
    package=__name__,
    check=_check,
    fake=_fake,
    native_cpu=("sobel_conv2d_plan", "sobel_conv2d_pack", "sobel_conv2d"),
    native_cuda=("sobel_conv2d",),
)
_backward_weight = _registry.define(
    "sobel_conv2d_backward_weight",
    "(Tensor grad, Tensor image, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, Tensor? mean, "
    "Tensor? std) -> (Tensor, Tensor)",
    package=__name__,
    check=_check_backward_weight,
    fake=_fake_backward_weight,
    native_cpu=("sobel_conv2d_plan", "sobel_conv2d_backward_weight"),
    native_cuda=("sobel_conv2d_backward_weight",),
)
_backward_image = _registry.define(
    "sobel_conv2d_backward_image",
    "(Tensor grad, Tensor weight, SymInt[2] image_size, SymInt[2] stride, SymInt[2] padding, Tensor? std) -> Tensor",
    package=__name__,
    check=_check_backward_image,
    fake=_fake_backward_image,
    native_cpu=("sobel_conv2d_plan", "sobel_conv2d_pack", "sobel_conv2d_backward_image"),
    native_cuda=("sobel_conv2d_backward_image",),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    image, weight, _, ctx.stride, ctx.padding, mean, std, *epilogue = inputs
    ctx.has_epilogue = any(a is not None and a is not False for a in epilogue)
    ctx.save_for_backward(image, weight, mean, std)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    if ctx.has_epilogue:
        raise RuntimeError(
            "dcfast.sobel_conv2d with scale, shift or relu has no derivative: call it under torch.no_grad(), or leave "
            "them out and apply them to its output"
        )
    image, weight, mean, std = ctx.saved_tensors
    need_image, need_weight, need_bias = ctx.needs_input_grad[:3]
    grad_image = grad_weight = grad_bias = None
    if need_image:
        grad_image = _backward_image(grad, weight, image.shape[2:], ctx.stride, ctx.padding, std)
    if need_weight or need_bias:
        grad_weight, grad_bias = _backward_weight(grad, image, weight.shape[2:], ctx.stride, ctx.padding, mean, std)
    return (
        grad_image,
        grad_weight if need_weight else None,
        grad_bias if need_bias else None,
        *(None,) * 7,
    )


def _setup_weight(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, image, _, ctx.stride, ctx.padding, mean, std = inputs
    ctx.save_for_backward(grad, image, mean, std)


def _backward_of_weight(ctx: Any, by_weight: torch.Tensor, by_bias: torch.Tensor) -> tuple[Any, ...]:
    grad, image, mean, std = ctx.saved_tensors
    by_grad = by_image = None
    if ctx.needs_input_grad[0]:
        by_grad = _forward(image, by_weight, by_bias, ctx.stride, ctx.padding, mean, std, *_NO_EPILOGUE)
    if ctx.needs_input_grad[1]:
        by_image = _backward_image(grad, by_weight, image.shape[2:], ctx.stride, ctx.padding, std)
    return by_grad, by_image, None, None, None, None, None


def _setup_image(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, weight, _, ctx.stride, ctx.padding, std = inputs
    ctx.save_for_backward(grad, weight, std)


def _backward_of_image(ctx: Any, by_image: torch.Tensor) -> tuple[Any, ...]:
    grad, weight, std = ctx.saved_tensors
    by_grad = by_weight = None
    if ctx.needs_input_grad[0]:
        by_grad = _forward(by_image, weight, None, ctx.stride, ctx.padding, None, std, *_NO_EPILOGUE)
    if ctx.needs_input_grad[1]:
        by_weight, _ = _backward_weight(grad, by_image, weight.shape[2:], ctx.stride, ctx.padding, None, std)
    return by_grad, by_weight, None, None, None, None


torch.library.register_autograd("dcfast::sobel_conv2d", _backward, setup_context=_setup)
torch.library.register_autograd(
    "dcfast::sobel_conv2d_backward_weight", _backward_of_weight, setup_context=_setup_weight
)
torch.library.register_autograd("dcfast::sobel_conv2d_backward_image", _backward_of_image, setup_context=_setup_image)


def _pair(value: int | Sequence[int], name: str) -> tuple[int, ...]:
    try:
        return (operator.index(value),) * 2 if hasattr(value, "__index__") else tuple(map(operator.index, value))
    except TypeError:
        raise TypeError(f"{name} is {value!r}: expected an integer, or two") from None


def _channels(values: torch.Tensor | Sequence[float] | None, image: torch.Tensor, name: str) -> torch.Tensor | None:
    if values is None or isinstance(values, torch.Tensor):
        return values
    if not isinstance(values, Sequence) or len(values) != 3:
        raise ValueError(f"{name} is {values}: expected three values, one per channel")
    return torch.stack([scalar(float(v), torch.float64, image.device) for v in values])


def sobel_conv2d(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    mean: torch.Tensor | Sequence[float] | None = None,
    std: torch.Tensor | Sequence[float] | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    """Convolve the Sobel gradients of the grey image: the first layer of DeepCluster's networks in one pass.

    The definition, in three steps:

    1. normalise, ``(image - mean) / std`` (bytes are divided by 255 first), and average the channels to grey;
    2. Sobel-x ``[[1, 0, -1], [2, 0, -2], [1, 0, -1]]`` and Sobel-y ``[[1, 2, 1], [0, 0, 0], [-1, -2, -1]]`` of
       the grey image, with zero padding 1;
    3. ``torch.nn.functional.conv2d`` of these two channels with `weight`, `bias`, `stride` and `padding`.

    No intermediate is stored, and the gradients recompute what they need. All derivatives of `image`, `weight` and
    `bias` exist, of any order; `mean` and `std` are constants.

    For inference there is an epilogue, for instance batch normalisation in eval mode and a ReLU: the result is
    multiplied by `scale`, `shift` is added, and negative values become 0. With it there is no derivative.

    Parameters
    ----------
    image : Tensor of shape (N, 3, H, W)
        uint8, or of the dtype of `weight`. Any strides; contiguous and channels_last are the fast ones.
    weight : Tensor of shape (O, 2, kh, kw)
        float32, float64, float16 or bfloat16 (the latter two are summed in float32).
    bias : Tensor of shape (O,), optional
        Of the dtype of `weight`.
    stride, padding : int or two ints
        As for `torch.nn.functional.conv2d`.
    mean, std : Tensor of shape (3,) or three floats, optional
        Default: 0 and 1. In the units of a float image, or of bytes divided by 255.
    scale, shift : Tensor of shape (O,), optional
        Default: 1 and 0. Of any floating dtype.
    relu : bool, default False

    Returns
    -------
    Tensor of shape (N, O, H', W')
        Contiguous, of the dtype of `weight`, H' = (H + 2 padding - kh) // stride + 1 and W' likewise.

    Raises
    ------
    TypeError
        If a dtype is not one of those above.
    ValueError
        If shapes, dtypes or devices do not fit each other, or the kernel is larger than the padded image.
    RuntimeError
        By the backward pass, with an epilogue.

    Notes
    -----
    O(N H' W' O kh kw) operations. On the CPU the same bits for any number of threads; on a GPU the same bits each time,
    and float32 is as accurate as float32 is: TF32 is used only where torch may use it in both convolutions and matrix
    products (`torch.set_float32_matmul_precision("high")`; not by default). An infinite pixel may give NaN there.
    Sobel filters in front of the first layer are from Caron et al., "Deep Clustering for Unsupervised Learning of
    Visual Features", 2018.

    Examples
    --------
    >>> import torch, dcfast
    >>> image = torch.zeros(1, 3, 3, 4, dtype=torch.uint8)
    >>> image[..., 2:] = 255
    >>> dcfast.ops.sobel_conv2d(image, torch.tensor([[[[1.0]], [[0.0]]]]))[0, 0, 1]
    tensor([ 0., -4., -4.,  4.])
    """
    pair = [_pair(stride, "stride"), _pair(padding, "padding")]
    constants = _channels(mean, image, "mean"), _channels(std, image, "std")
    return _forward(image, weight, bias, *pair, *constants, scale, shift, relu)
