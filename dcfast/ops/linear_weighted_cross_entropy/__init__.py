"""linear_weighted_cross_entropy: a linear layer and weighted_cross_entropy, without all logits at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from dcfast.ops import _registry, _validate
from dcfast.ops._dtypes import wide_dtype
from dcfast.ops.weighted_cross_entropy import inverse_size_weights


def _check(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    linear_bias: torch.Tensor | None,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> None:
    _validate.floats(input, "input")
    if input.dim() != 2 or input.shape[1] == 0:
        raise ValueError(f"input has shape {tuple(input.shape)}: expected (N, d) with d >= 1")
    if linear_weight.dim() != 2 or linear_weight.shape[1] != input.shape[1] or len(linear_weight) == 0:
        raise ValueError(
            f"linear_weight has shape {tuple(linear_weight.shape)} and input {tuple(input.shape)}: expected (k, d), "
            "k >= 1, for an input of (N, d)"
        )
    k = len(linear_weight)
    if linear_bias is not None and linear_bias.shape != (k,):
        raise ValueError(f"linear_bias has shape {tuple(linear_bias.shape)}: expected ({k},)")
    for name, operand in (("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if operand is None:
            continue
        _validate.same_device(operand, name, input, "input")
        if operand.dtype != input.dtype:
            raise ValueError(f"{name} has dtype {operand.dtype} and input {input.dtype}: convert one to the other's")
    _validate.weighted_classes(target, cluster_sizes, input, "input", k, "row of linear_weight", label_smoothing)


def _fake(input: torch.Tensor, *_: Any) -> torch.Tensor:
    return input.new_empty(len(input), dtype=wide_dtype(input.dtype))


def _check_gradient(row_gradients: torch.Tensor, input: torch.Tensor, *arguments: Any) -> None:
    *operands, wanted = arguments
    _check(input, *operands)
    _validate.same_device(row_gradients, "row_gradients", input, "input")
    if row_gradients.shape != input.shape[:1] or row_gradients.dtype != wide_dtype(input.dtype):
        raise ValueError(
            f"row_gradients has shape {tuple(row_gradients.shape)} and dtype {row_gradients.dtype}: expected "
            f"{tuple(input.shape[:1])} and {wide_dtype(input.dtype)}"
        )
    if wanted[2] and operands[1] is None:
        raise ValueError("wanted asks for the gradient of linear_bias, which is None")


def _fake_gradient(
    row_gradients: torch.Tensor, input: torch.Tensor, linear_weight: torch.Tensor, *arguments: Any
) -> tuple[torch.Tensor, ...]:
    shapes = (input.shape, linear_weight.shape, linear_weight.shape[:1])
    wanted = zip(shapes, arguments[-1], strict=True)
    return _fake(input), *(input.new_empty(shape if given else (0,)) for shape, given in wanted)


_OPERANDS = (
    "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor cluster_sizes, int ignore_index, "
    "float label_smoothing"
)

# The rows' weighted losses, in the dtype of the sums.
_op = _registry.define(
    "linear_weighted_cross_entropy",
    f"({_OPERANDS}) -> Tensor losses",
    package=__name__,
    check=_check,
    fake=_fake,
    native_cpu=("weighted_cross_entropy",),
    native_cuda=("weighted_cross_entropy",),
)

# The same and, where wanted, the gradients of sum_i row_gradients[i] losses[i] in input, linear_weight and linear_bias.
_op_gradient = _registry.define(
    "linear_weighted_cross_entropy_gradient",
    f"(Tensor row_gradients, {_OPERANDS}, bool[3] wanted) "
    "-> (Tensor losses, Tensor grad_input, Tensor grad_linear_weight, Tensor grad_linear_bias)",
    package=__name__,
    check=_check_gradient,
    fake=_fake_gradient,
    native_cpu=("weighted_cross_entropy",),
    native_cuda=("weighted_cross_entropy",),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.ignore_index, ctx.label_smoothing = inputs
    ctx.save_for_backward(*tensors)


def _gradients(
    ctx: Any, row_gradients: torch.Tensor, wanted: Sequence[bool]
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """The losses, and the gradients in the tensors of `ctx` that are wanted, None for the others."""
    options = (ctx.ignore_index, ctx.label_smoothing, list(wanted))
    losses, *gradients = _op_gradient(row_gradients, *ctx.saved_tensors, *options)
    return losses, [g if given else None for g, given in zip(gradients, wanted, strict=True)]


def _backward(ctx: Any, row_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return *_gradients(ctx, row_gradients, ctx.needs_input_grad[:3])[1], None, None, None, None


def _no_double_backward(ctx: Any, *_: Any) -> NoReturn:
    raise RuntimeError(
        "dcfast.linear_weighted_cross_entropy has no second derivative: use torch.nn.functional.linear and "
        "cross_entropy with weight=dcfast.ops.inverse_size_weights(cluster_sizes) where one is needed"
    )


torch.library.register_autograd("dcfast::linear_weighted_cross_entropy", _backward, setup_context=_setup_context)
torch.library.register_autograd("dcfast::linear_weighted_cross_entropy_gradient", _no_double_backward)


class _LossWithGradient(torch.autograd.Function):
    """The sum of the losses over a divisor, with gradients made along with it that wait for the backward pass.

    The first backward pass hands them out; another one, through a retained graph or for a second derivative, makes its
    own.
    """

    @staticmethod
    def forward(ctx: Any, divisor: torch.Tensor, *inputs: Any) -> torch.Tensor:
        *tensors, ignore_index, label_smoothing = inputs
        wanted = ctx.needs_input_grad[1:4]
        row_gradients = divisor.reciprocal().to(wide_dtype(tensors[0].dtype)).expand(len(tensors[0]))
        options = (ignore_index, label_smoothing, list(wanted))
        losses, *gradients = _op_gradient(row_gradients, *tensors, *options)
        ctx.gradients = [g if given else None for g, given in zip(gradients, wanted, strict=True)]
        ctx.ignore_index, ctx.label_smoothing = ignore_index, label_smoothing
        ctx.save_for_backward(*tensors, divisor)
        return losses.sum(dtype=torch.float64) / divisor

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *tensors, divisor = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None or torch.is_grad_enabled():
            row_gradients = (grad / divisor).to(wide_dtype(tensors[0].dtype)).expand(len(tensors[0]))
            wanted = list(ctx.needs_input_grad[1:4])
            made = _op_gradient(row_gradients, *tensors, ctx.ignore_index, ctx.label_smoothing, wanted)[1:]
            gradients = [g if given else None for g, given in zip(made, wanted, strict=True)]
        # On a GPU a look at the value would wait for the device.
        elif grad.is_cuda or grad.item() != 1.0:
            gradients = [g if g is None else g.mul_(grad) for g in gradients]
        return None, *gradients, None, None, None, None


def _gradient_is_due(tensors: Sequence[torch.Tensor], reduction: str) -> bool:
    """Whether to make the gradients along with the loss: a product less than where the backward pass makes logits anew.

    Not in float16, where a gradient that is scaled later underflows. A compiler plans the passes itself.
    """
    return (
        torch.is_grad_enabled()
        and all(type(t) in (torch.Tensor, torch.nn.Parameter) for t in tensors)
        and any(t.requires_grad for t in tensors)
        and tensors[0].dtype != torch.float16
        and reduction != "none"
        and not torch.compiler.is_compiling()
    )


def _total_weight(target: torch.Tensor, cluster_sizes: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """The sum of the targets' weights. (A target out of range is an error or makes its row's loss NaN.)"""
    weights = inverse_size_weights(cluster_sizes.detach().double())
    of_target = weights[target.clamp(0, len(weights) - 1)]
    return torch.where(target == ignore_index, 0.0, of_target).sum()


def linear_weighted_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    linear_bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross-entropy of a linear layer's output in which each class counts the inverse of its cluster's size.

    The same as

        logits = torch.nn.functional.linear(input, linear_weight, linear_bias)
        dcfast.ops.weighted_cross_entropy(logits, target, cluster_sizes, ...)

    without the N x k logits or their gradient: both exist for some rows at a time. Arguments are named as those of
    `torch.nn.functional.linear_cross_entropy` (of newer torch), whose `weight` is 1 / cluster_sizes here.

    Parameters
    ----------
    input : Tensor of shape (N, d)
        float32, float64, float16 or bfloat16; sums are taken in float32 at least.
    linear_weight : Tensor of shape (k, d)
        Of the dtype of `input`; under autocast both are converted as for a linear layer.
    target : Tensor of shape (N,), int64
        Classes, 0 to k - 1, or `ignore_index`.
    cluster_sizes : Tensor of shape (k,)
        How many points each cluster has: integers or floats, on the device of `input`. Not differentiated.
    linear_bias : Tensor of shape (k,), optional
        Of the dtype of `input`.
    ignore_index : int, default -100
        Rows with this target add nothing to the loss, to the sum of the weights or to the gradients.
    label_smoothing : float, default 0.0
        Share, 0 to 1, of the target that is spread evenly over all classes (each with its own weight).
    reduction : {'mean', 'sum', 'none'}
        'mean' divides by the sum of the targets' weights: NaN where that is 0, as in torch.

    Returns
    -------
    Tensor of shape () or, for 'none', (N,)
        Of the dtype of `input`, or under autocast float32 at least. Differentiable once, in `input`, `linear_weight`
        and `linear_bias`.

    Raises
    ------
    TypeError
        If a dtype is not one of those above.
    ValueError
        If shapes, dtypes or devices do not fit each other, if `label_smoothing` or `reduction` is unknown, or, on the
        CPU, if a target is out of range. On a GPU such a row's loss is NaN.

    Notes
    -----
    O(N k d) operations by torch's matrix products, in the precision that torch is set to. Beside results, memory for at
    most max(2^22, k d / 4) logits at a time on the CPU, max(2^26, k d / 4) on a GPU; in float16 and bfloat16, where the
    rows take several blocks, another such block and the weight's gradient in float32 as well.

    For 'mean' and 'sum' the gradients are made along with the loss (one product less) and wait for the backward pass.
    In float16, for 'none' and under torch.compile the backward pass makes the logits anew instead.

    Examples
    --------
    >>> import torch, dcfast
    >>> x, weight = torch.eye(2), torch.tensor([[2.0, 2.0], [0.0, 0.0]])
    >>> dcfast.ops.linear_weighted_cross_entropy(x, weight, torch.tensor([0, 1]), torch.tensor([1, 3]))
    tensor(0.6269)
    """
    _validate.reduction(reduction)
    tensors: list[Any] = [input, linear_weight, linear_bias]
    autocast = _registry.autocast_dtype(input.device)
    if autocast is not None and input.dtype != torch.float64:
        tensors = [None if t is None else t.to(autocast) for t in tensors]
    arguments = (*tensors, target, cluster_sizes, ignore_index, label_smoothing)
    _check(*arguments)
    given = [t for t in tensors if t is not None]
    if reduction == "none":
        loss = _op(*arguments)
    else:
        total = _total_weight(target, cluster_sizes, ignore_index)
        # Without any weight everything is NaN, as in torch.
        divisor = torch.where(total == 0, torch.nan, total) if reduction == "mean" else torch.ones_like(total)
        if _gradient_is_due(given, reduction):
            loss = _LossWithGradient.apply(divisor, *arguments)
        else:
            loss = _op(*arguments).sum(dtype=torch.float64) / divisor
    return loss.to(given[0].dtype if autocast is None else wide_dtype(given[0].dtype))
