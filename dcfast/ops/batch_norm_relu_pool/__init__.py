"""batch_norm_relu_pool: what follows a convolution in a network, in two passes over its output each way."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from dcfast.ops import _registry, _validate
from dcfast.ops.batch_norm_relu_pool._geometry import layout, pooled_size

# The position in a window is kept as a byte, of which one value says that nothing passed the ReLU.
_MOST_POSITIONS = 255


def _check_x(x: torch.Tensor, kernel_size: int, stride: int) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x has dtype {x.dtype}: expected float32 or float64; use .float()")
    if x.dim() != 4 or x.shape[1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected (N, C, H, W)")
    if kernel_size < 1 or kernel_size**2 > _MOST_POSITIONS:
        raise ValueError(f"kernel_size is {kernel_size}: expected 1 to 15")
    if stride < 1:
        raise ValueError(f"stride is {stride}: expected 1 or more")
    if min(x.shape[2:]) < kernel_size:
        raise ValueError(f"kernel_size is {kernel_size} and x has shape {tuple(x.shape)}: use a smaller kernel")


def _check_channels(x: torch.Tensor, **values: torch.Tensor | None) -> None:
    for name, value in values.items():
        if value is None:
            continue
        _validate.floats(value, name)
        if value.shape != x.shape[1:2]:
            raise ValueError(f"{name} has shape {tuple(value.shape)}: expected ({x.shape[1]},), one value per channel")
        _validate.same_device(value, name, x)


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor | None,
    variance: torch.Tensor | None,
    eps: float,
    kernel_size: int,
    stride: int,
) -> None:
    _check_x(x, kernel_size, stride)
    _check_channels(x, weight=weight, bias=bias, mean=mean, variance=variance)
    if (mean is None) != (variance is None):
        raise ValueError("mean and variance go together: give both, or neither for those of x")
    if mean is None and x.shape[0] * x.shape[2] * x.shape[3] < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: a variance needs more than one value per channel")


def _check_backward(
    grad: torch.Tensor,
    taken: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    eps: float,
    of_batch: bool,
    kernel_size: int,
    stride: int,
) -> None:
    _check_x(x, kernel_size, stride)
    _check_channels(x, weight=weight, mean=mean, variance=variance)
    (n, channels), size = x.shape[:2], pooled_size(x.shape, kernel_size, stride)
    if grad.shape != (n, channels, *size) or grad.dtype != x.dtype:
        raise ValueError(
            f"grad is {grad.dtype} of shape {tuple(grad.shape)}: expected {x.dtype} and {(n, channels, *size)}"
        )
    if taken.shape != (n, *size, channels) or taken.dtype != torch.uint8:
        raise ValueError(
            f"taken is {taken.dtype} of shape {tuple(taken.shape)}: expected uint8 and {(n, *size, channels)}"
        )
    for name, other in (("grad", grad), ("taken", taken)):
        _validate.same_device(other, name, x)


def _fake(
    x: torch.Tensor, weight: Any, bias: Any, mean: Any, variance: Any, eps: float, kernel_size: int, stride: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    (n, channels), size = x.shape[:2], pooled_size(x.shape, kernel_size, stride)
    out = torch.empty(n, channels, *size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    mean, variance = (x.new_empty(channels, dtype=torch.float64) for _ in range(2))
    return out, x.new_empty(n, *size, channels, dtype=torch.uint8), mean, variance


def _fake_backward(
    grad: Any, taken: Any, x: torch.Tensor, weight: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(x, memory_format=layout(x)), torch.empty_like(weight), torch.empty_like(weight)


_forward = _registry.define(
    "batch_norm_relu_pool",
    "(Tensor x, Tensor weight, Tensor bias, Tensor? mean, Tensor? variance, float eps, int kernel_size, int stride)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    package=__name__,
    check=_check,
    fake=_fake,
    native_cpu=("batch_moments", "batch_norm_relu_pool"),
)
_backward = _registry.define(
    "batch_norm_relu_pool_backward",
    "(Tensor grad, Tensor taken, Tensor x, Tensor weight, Tensor mean, Tensor variance, float eps, bool of_batch,"
    " int kernel_size, int stride) -> (Tensor, Tensor, Tensor)",
    package=__name__,
    check=_check_backward,
    fake=_fake_backward,
    native_cpu=("batch_norm_relu_pool_sums", "batch_norm_relu_pool_backward"),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, weight, _, mean, _, ctx.eps, ctx.kernel_size, ctx.stride = inputs
    _, *kept = output
    ctx.of_batch = mean is None
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(x, weight, *kept)


def _gradients(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, ...]:
    x, weight, taken, mean, variance = ctx.saved_tensors
    found = _backward(grad, taken, x, weight, mean, variance, ctx.eps, ctx.of_batch, ctx.kernel_size, ctx.stride)
    return *found, *(None,) * 5


def _no_double_backward(ctx: Any, *_: Any) -> NoReturn:
    raise RuntimeError(
        "dcfast.batch_norm_relu_pool has no second derivative: use torch.nn.functional.batch_norm, relu and max_pool2d "
        "where one is needed"
    )


torch.library.register_autograd("dcfast::batch_norm_relu_pool", _gradients, setup_context=_setup)
torch.library.register_autograd("dcfast::batch_norm_relu_pool_backward", _no_double_backward)


def batch_norm_relu_pool(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor | None = None,
    variance: torch.Tensor | None = None,
    eps: float = 1e-5,
    kernel_size: int = 1,
    stride: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalise each channel, let the positive values pass, and take the largest of each window.

    ``max_pool2d(relu(batch_norm(x)), kernel_size, stride)``, as networks have it after a convolution. On the CPU: no
    kernel for a GPU has been written, and there the op says so.

    Parameters
    ----------
    x : Tensor of shape (N, C, H, W)
        float32 or float64. Contiguous and channels_last are read as they are.
    weight, bias : Tensor of shape (C,)
        Of any floating dtype.
    mean, variance : Tensor of shape (C,), optional
        For inference. By default those of `x`, the variance that of a population; derivatives then go through them.
    eps : float, default 1e-5
        Is added to the variance.
    kernel_size, stride : int, default 1
        Of the windows, which lie inside the image; 1 and 1 for no pooling. At most 15 for the kernel.

    Returns
    -------
    output : Tensor of shape (N, C, H', W')
        channels_last, H' = (H - kernel_size) // stride + 1 and W' likewise.
    mean, variance : Tensor of shape (C,), float64
        With which it was normalised; without derivatives.

    Raises
    ------
    TypeError
        If a dtype is not one of those above.
    ValueError
        If shapes or devices do not fit each other, the kernel is larger than the image, or `mean` and `variance` are
        left out and `x` has but one value per channel.
    RuntimeError
        On a GPU, and where a second derivative is asked for.

    Notes
    -----
    Reads `x` twice forward (once for inference) and twice backward; one byte per element of the output is kept for the
    gradient, which goes to the first largest element of each window. Sums are taken in double, in an order that
    depends on the sizes alone: the same bits for any number of threads. First derivatives only. Batch normalisation is
    that of Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
    Shift", 2015.

    Examples
    --------
    >>> import torch, dcfast
    >>> x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    >>> dcfast.ops.batch_norm_relu_pool(x, torch.ones(1), torch.zeros(1), eps=0.0, kernel_size=2)[0]
    tensor([[[[1.3416]]]])
    """
    output, _, mean, variance = _forward(x, weight, bias, mean, variance, eps, kernel_size, stride)
    return output, mean, variance
