"""weighted_cross_entropy: each class counts the inverse of its cluster's size."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from dcfast.ops import _registry, _validate
from dcfast.ops._dtypes import wide_dtype
from dcfast.ops.weighted_cross_entropy import reference


def _check(
    logits: torch.Tensor,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> None:
    _validate.floats(logits, "logits")
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits has shape {tuple(logits.shape)}: expected (N, k) with k >= 1")
    _validate.weighted_classes(
        target, cluster_sizes, logits, "logits", logits.shape[1], "column of logits", label_smoothing
    )
    _validate.reduction(reduction)


def _outputs(logits: torch.Tensor, reduction: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every output of the forward op."""
    n, wide = logits.shape[0], wide_dtype(logits.dtype)
    loss = (n,) if reduction == "none" else ()
    return {"loss": (loss, wide), "statistics": ((2, n), wide), "total_weight": ((), wide)}


def _fake(logits: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, ...]:
    outputs = _outputs(logits, arguments[-1])
    return tuple(logits.new_empty(shape, dtype=dtype) for shape, dtype in outputs.values())


def _check_with_gradient(logits: torch.Tensor, *arguments: Any) -> None:
    _check(logits, *arguments)
    if arguments[-1] == "none":
        raise ValueError("reduction is 'none': the gradient is that of one number; use 'mean' or 'sum'")


def _fake_with_gradient(logits: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, ...]:
    return *_fake(logits, *arguments), logits.new_empty(logits.shape)


def _check_backward(
    grad: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    statistics: torch.Tensor,
    total_weight: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> None:
    _check(logits, target, cluster_sizes, ignore_index, label_smoothing, reduction)
    outputs = _outputs(logits, reduction)
    for name, given, (shape, dtype) in (
        ("grad", grad, outputs["loss"]),
        ("statistics", statistics, outputs["statistics"]),
        ("total_weight", total_weight, outputs["total_weight"]),
    ):
        _validate.same_device(given, name, logits, "logits")
        if given.shape != shape or given.dtype != dtype:
            raise ValueError(
                f"{name} has shape {tuple(given.shape)} and dtype {given.dtype}: expected {shape} and {dtype}"
            )


def _fake_backward(grad: torch.Tensor, logits: torch.Tensor, *_: Any) -> torch.Tensor:
    return logits.new_empty(logits.shape)


def _check_gradient(
    logits: torch.Tensor,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    row_gradients: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> None:
    _check(logits, target, cluster_sizes, ignore_index, label_smoothing, "none")
    if not logits.is_contiguous():
        raise ValueError(f"logits has strides {logits.stride()}: the gradient replaces them; use .contiguous()")
    wide = _outputs(logits, "none")["loss"][1]
    _validate.same_device(row_gradients, "row_gradients", logits, "logits")
    if row_gradients.shape not in ((), logits.shape[:1]) or row_gradients.dtype != wide:
        raise ValueError(
            f"row_gradients has shape {tuple(row_gradients.shape)} and dtype {row_gradients.dtype}: expected () or "
            f"{tuple(logits.shape[:1])} and {wide}"
        )


def _fake_gradient(logits: torch.Tensor, *_: Any) -> torch.Tensor:
    shape, dtype = _outputs(logits, "none")["loss"]
    return logits.new_empty(shape, dtype=dtype)


# No defaults: the dispatcher would drop arguments that equal them.
_ARGUMENTS = "int ignore_index, float label_smoothing, str reduction"

_op = _registry.define(
    "weighted_cross_entropy",
    f"(Tensor logits, Tensor target, Tensor cluster_sizes, {_ARGUMENTS}) "
    "-> (Tensor loss, Tensor statistics, Tensor total_weight)",
    package=__name__,
    check=_check,
    fake=_fake,
    native_cpu=("weighted_cross_entropy_total", "weighted_cross_entropy"),
    native_cuda=("weighted_cross_entropy",),
)

# The same and the gradient in the logits, read once. Not differentiable itself: see _LossWithGradient.
_op_with_gradient = _registry.define(
    "weighted_cross_entropy_with_gradient",
    f"(Tensor logits, Tensor target, Tensor cluster_sizes, {_ARGUMENTS}) "
    "-> (Tensor loss, Tensor statistics, Tensor total_weight, Tensor gradient)",
    package=__name__,
    check=_check_with_gradient,
    fake=_fake_with_gradient,
    native_cpu=("weighted_cross_entropy_total", "weighted_cross_entropy"),
    native_cuda=("weighted_cross_entropy",),
)

# The rows' losses, and in the logits' place the gradient of sum_i row_gradients[i] losses[i].
_registry.define(
    "weighted_cross_entropy_gradient_",
    "(Tensor(a!) logits, Tensor target, Tensor cluster_sizes, Tensor row_gradients, int ignore_index, "
    "float label_smoothing) -> Tensor losses",
    package=__name__,
    check=_check_gradient,
    fake=_fake_gradient,
    native_cpu=("weighted_cross_entropy",),
    native_cuda=("weighted_cross_entropy",),
)

_op_backward = _registry.define(
    "weighted_cross_entropy_backward",
    "(Tensor grad, Tensor logits, Tensor target, Tensor cluster_sizes, Tensor statistics, Tensor total_weight, "
    f"{_ARGUMENTS}) -> Tensor",
    package=__name__,
    check=_check_backward,
    fake=_fake_backward,
    native_cpu=("weighted_cross_entropy_backward",),
    native_cuda=("weighted_cross_entropy_backward",),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    logits, target, cluster_sizes, *ctx.arguments = inputs
    _, statistics, total_weight = output
    ctx.mark_non_differentiable(statistics, total_weight)
    ctx.save_for_backward(logits, target, cluster_sizes, statistics, total_weight)


def _backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
    return _op_backward(grad, *ctx.saved_tensors, *ctx.arguments), None, None, None, None, None


def _no_double_backward(ctx: Any, grad: torch.Tensor) -> NoReturn:
    raise RuntimeError(
        "dcfast.weighted_cross_entropy has no second derivative: use torch.nn.functional.cross_entropy with "
        "weight=dcfast.ops.inverse_size_weights(cluster_sizes) where one is needed"
    )


torch.library.register_autograd("dcfast::weighted_cross_entropy", _backward, setup_context=_setup_context)
torch.library.register_autograd("dcfast::weighted_cross_entropy_backward", _no_double_backward)


class _LossWithGradient(torch.autograd.Function):
    """The loss whose gradient is made along with it and waits for the backward pass.

    The first backward pass hands it out, and whoever receives it owns it; should there be another one through a
    retained graph, it computes its own. The same if a second derivative is asked for, so that it is refused.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        loss, statistics, total_weight, ctx.gradient = _op_with_gradient(*inputs)
        ctx.arguments = inputs[3:]
        ctx.save_for_backward(*inputs[:3], statistics, total_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradient is None or torch.is_grad_enabled():
            return _backward(ctx, grad)
        gradient, ctx.gradient = ctx.gradient, None
        return gradient if grad.item() == 1.0 else gradient.mul_(grad), None, None, None, None, None


def _gradient_is_due(logits: torch.Tensor, reduction: str) -> bool:
    """Whether to make the gradient along with the loss.

    On the CPU only, where reading the logits again costs more than a comparison with 1 that waits for the device, and
    not in half precision, where a gradient that is scaled later underflows. A compiler plans the passes itself.
    """
    return (
        torch.is_grad_enabled()
        and type(logits) in (torch.Tensor, torch.nn.Parameter)
        and logits.requires_grad
        and logits.device.type == "cpu"
        and logits.dtype in (torch.float32, torch.float64)
        and reduction != "none"
        and not torch.compiler.is_compiling()
    )


def inverse_size_weights(cluster_sizes: torch.Tensor) -> torch.Tensor:
    """Weight every cluster with the inverse of its size.

    Parameters
    ----------
    cluster_sizes : Tensor of shape (k,)
        Counts, integers or floats.

    Returns
    -------
    Tensor of shape (k,)
        1 / size, and 0 for an empty cluster; of the dtype of `cluster_sizes` if that is a floating one, else
        float32. On the device of `cluster_sizes`, with no synchronisation.

    Raises
    ------
    TypeError
        If the sizes are bool or complex.
    ValueError
        If `cluster_sizes` is not one-dimensional.

    Examples
    --------
    >>> import torch, dcfast
    >>> dcfast.ops.inverse_size_weights(torch.tensor([4, 0, 1]))
    tensor([0.2500, 0.0000, 1.0000])
    """
    _validate.cluster_sizes(cluster_sizes)
    return reference.inverse_size_weights(cluster_sizes)


def weighted_cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross-entropy in which each class counts the inverse of its cluster's size.

    With w_j = 1 / cluster_sizes[j] (0 for an empty cluster) the loss is

        sum_i w[y_i] nll_i / sum_i w[y_i],    nll_i = log(sum_j exp(logits_ij)) - logits[i, y_i]

    that is `torch.nn.functional.cross_entropy(logits, target, weight=w, ...)` with the same meaning of every
    argument. Over a whole data set it is the mean over the clusters of each cluster's mean loss, so minimising it
    equals sampling uniformly over clusters, as DeepCluster [1]_ does.

    Parameters
    ----------
    logits : Tensor of shape (N, k)
        float32, float64, float16 or bfloat16; sums are taken in float32 at least. Any strides.
    target : Tensor of shape (N,), int64
        Classes, 0 to k - 1, or `ignore_index`.
    cluster_sizes : Tensor of shape (k,)
        How many points each cluster has: integers or floats, on the device of `logits`. Not differentiated.
    ignore_index : int, default -100
        Rows with this target add nothing to the loss, to the sum of the weights or to the gradient.
    label_smoothing : float, default 0.0
        Share, 0 to 1, of the target that is spread evenly over all classes (each with its own weight).
    reduction : {'mean', 'sum', 'none'}
        'mean' divides by the sum of the targets' weights: NaN where that is 0, as in torch.

    Returns
    -------
    Tensor of shape () or, for 'none', (N,)
        Of the dtype of `logits`, or under autocast float32 at least. Differentiable once, in `logits`.

    Raises
    ------
    TypeError
        If a dtype is not one of those above.
    ValueError
        If shapes or devices do not fit each other, if `label_smoothing` or `reduction` is unknown, or, on the
        CPU, if a target is out of range. On a GPU that could be seen only by waiting for the device: there the
        row's loss, and with it the reduced loss, is NaN.

    Notes
    -----
    One pass over the logits forward and one backward, O(N k) operations, and O(N + k) memory beside the gradient:
    no N x k matrix of probabilities. On the CPU, for float32 and float64 and one loss, the gradient is made in the
    forward pass and the logits are read once. The bits of the result do not depend on the number of threads.

    `torch.ops.dcfast.weighted_cross_entropy` returns the loss in the dtype of the sums, and what its backward needs:
    per row the largest logit and the logarithm of the sum of exp(logit - largest), which are kept apart because their
    sum, the log-sum-exp, loses digits where logits are large; and the sum of the targets' weights.
    `torch.ops.dcfast.weighted_cross_entropy_with_gradient` makes the gradient as well, reading the logits once, and
    `torch.ops.dcfast.weighted_cross_entropy_gradient_` leaves it in their place, a factor for each row given.

    References
    ----------
    .. [1] M. Caron, P. Bojanowski, A. Joulin, M. Douze, "Deep clustering for unsupervised learning of visual
       features", ECCV 2018.

    Examples
    --------
    >>> import torch, dcfast
    >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    >>> dcfast.ops.weighted_cross_entropy(logits, torch.tensor([0, 1]), torch.tensor([1, 3]))
    tensor(0.6269)
    """
    arguments = (logits, target, cluster_sizes, ignore_index, label_smoothing, reduction)
    if _gradient_is_due(logits, reduction):
        return _LossWithGradient.apply(*arguments)
    loss = _op(*arguments)[0]
    return loss.to(logits.dtype) if _registry.autocast_dtype(logits.device) is None else loss
