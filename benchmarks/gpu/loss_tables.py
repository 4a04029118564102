"""weighted_cross_entropy of logits, and with the linear layer before it: forward, and forward with backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from dcfast import ops

from .case import Case, Missing, Prepare
from .measure import Call, rotation

FULL = [(256, 10_000, torch.float32), (4096, 100_000, torch.float32), (4096, 100_000, torch.bfloat16)]
SMALL = [(8, 30, torch.float32), (6, 50, torch.bfloat16)]
# Rows, features, classes of the layer and the loss together.
FULL_LINEAR = [(256, 4096, 10_000), (4096, 2048, 100_000)]
SMALL_LINEAR = [(8, 16, 30)]


class Batch(NamedTuple):
    """What is differentiated (the logits, or features and weight of a linear layer), targets, and cluster sizes."""

    leaves: tuple[torch.Tensor, ...]
    target: torch.Tensor
    sizes: torch.Tensor
    weight: torch.Tensor


def make(leaves: list[tuple[int, ...]], n: int, k: int, dtype: torch.dtype, device: torch.device, seed: int) -> Batch:
    generator = torch.Generator(device).manual_seed(seed)
    made = tuple(
        torch.randn(*shape, generator=generator, device=device).mul_(scale).to(dtype)
        for shape, scale in zip(leaves, (1.0, 0.02), strict=False)
    )
    target = torch.randint(k, (n,), generator=generator, device=device)
    sizes = torch.randint(1, 100, (k,), generator=generator, device=device)
    return Batch(made, target, sizes, ops.inverse_size_weights(sizes))


def ours(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    return ops.weighted_cross_entropy(logits, batch.target, batch.sizes)


def ours_linear(batch: Batch, features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return ops.linear_weighted_cross_entropy(features, weight, batch.target, batch.sizes)


def eager(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, batch.target, batch.weight.to(logits.dtype))


def eager_linear(batch: Batch, features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return eager(batch, F.linear(features, weight))


def torch_linear(batch: Batch, features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if not hasattr(F, "linear_cross_entropy"):
        raise Missing(f"torch {torch.__version__} has no torch.nn.functional.linear_cross_entropy")
    return F.linear_cross_entropy(features, weight, batch.target, weight=batch.weight.to(features.dtype))


def liger(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy(logits, batch.target, batch.weight)


def liger_linear(batch: Batch, features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(features, weight, batch.target, ce_weight=batch.weight)


def quack(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    from quack.cross_entropy import cross_entropy

    return cross_entropy(logits, batch.target, weight=batch.weight)


def cut_linear(batch: Batch, features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """It knows no weights of classes: they multiply its losses of rows."""
    from cut_cross_entropy import linear_cross_entropy

    rows = batch.weight[batch.target]
    losses = linear_cross_entropy(features, weight, batch.target, reduction="none")
    return (losses * rows).sum() / rows.sum()


def contestant(loss: Callable[..., torch.Tensor], train: bool, *, overwrites: bool = False) -> Prepare:
    """Returns the loss and, with the backward pass, the gradients of the leaves."""

    def prepare(batch: Batch) -> Call:
        if not train:
            return torch.no_grad()(lambda: (loss(batch, *batch.leaves),))
        # liger-kernel keeps the gradient where the logits were.
        leaves = [(t.clone() if overwrites else t.detach()).requires_grad_() for t in batch.leaves]

        def step() -> tuple[torch.Tensor, ...]:
            value = loss(batch, *leaves)
            return value.detach(), *torch.autograd.grad(value, leaves)

        return step

    return prepare


def _errors(exact: tuple[torch.Tensor, ...]) -> Callable[[Batch, Any], dict[str, float]]:
    def errors(batch: Batch, outputs: Any) -> dict[str, float]:
        relative = [float((o.double() - e).norm() / e.norm()) for o, e in zip(outputs, exact, strict=True)]
        return {"error of the loss": relative[0]} | (
            {"error of the gradients": max(relative[1:])} if relative[1:] else {}
        )

    return errors


def _within(dtype: torch.dtype, train: bool) -> dict[str, float]:
    """Of sums in float32; half precision rounds the loss, and the gradients, once at the end."""
    loss, gradients = (1e-5, 1e-5) if dtype == torch.float32 else (1e-2, 2e-2)
    return {"error of the loss": loss} | ({"error of the gradients": gradients} if train else {})


def _exact(loss: Callable[..., torch.Tensor], batch: Batch, train: bool) -> tuple[torch.Tensor, ...]:
    wide = batch._replace(leaves=tuple(t.double() for t in batch.leaves), weight=batch.weight.double())
    return contestant(loss, train)(wide)()


def cases(device: torch.device, small: bool) -> Iterator[Case]:
    for n, k, dtype in SMALL if small else FULL:
        size = n * k * dtype.itemsize
        batches = [make([(n, k)], n, k, dtype, device, seed) for seed in range(rotation(size, device))]
        compiled = torch.compile(eager, dynamic=False)
        for train in (False, True):
            yield Case(
                "weighted_cross_entropy" + (" forward + backward" if train else " forward"), f"{n} x {k}, {dtype}",
                contestant(ours, train),
                {
                    "torch": contestant(eager, train),
                    "torch.compile": contestant(compiled, train),
                    "liger-kernel": contestant(liger, train, overwrites=True),
                    "quack-kernels": contestant(quack, train),
                },
                batches, operations=0.0, moved=float(size * (3 if train else 1)),
                errors=_errors(_exact(eager, batches[0], train)),
                ours_within=_within(dtype, train), peers_within=_within(dtype, train),
                parameters={"rows": n, "classes": k, "dtype": str(dtype).split(".")[1]},
            )  # fmt: skip
        del batches


def linear_cases(device: torch.device, small: bool) -> Iterator[Case]:
    dtype = torch.bfloat16
    for n, d, k in SMALL_LINEAR if small else FULL_LINEAR:
        size = (n + k) * d * dtype.itemsize
        shapes = [(n, d), (k, d)]
        batches = [make(shapes, n, k, dtype, device, seed) for seed in range(rotation(size, device))]
        compiled = torch.compile(eager_linear, dynamic=False)
        for train in (False, True):
            passes = 3 if train else 1  # logits, and the gradients of features and weight
            yield Case(
                "linear + weighted_cross_entropy" + (" forward + backward" if train else " forward"),
                f"{n} x {d} x {k}, bfloat16", contestant(ours_linear, train),
                {
                    "torch": contestant(eager_linear, train),
                    "torch.compile": contestant(compiled, train),
                    "torch linear_cross_entropy": contestant(torch_linear, train),
                    "liger-kernel": contestant(liger_linear, train),
                    "cut-cross-entropy": contestant(cut_linear, train),
                },
                batches, operations=passes * 2.0 * n * d * k, moved=float(size * (2 if train else 1)),
                errors=_errors(_exact(eager_linear, batches[0], train)),
                ours_within=_within(dtype, train), peers_within=_within(dtype, train),
                parameters={"rows": n, "features": d, "classes": k, "dtype": "bfloat16"},
            )  # fmt: skip
        del batches
