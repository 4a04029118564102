"""Drives every op by every backend that serves the device, on small odd shapes: what the sanitizers look at.

Results of the k-means ops must equal those on the CPU to the bit, the others must be finite.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from dcfast import ops
from dcfast.ops import _registry

# Less than a tile, and more than one by an odd number; batched; every dtype. Few: each needs its own compilation.
_POINTS = [
    ((37, 5, 3), torch.float32),
    ((300, 33, 70), torch.float32),
    ((2, 130, 17, 9), torch.float32),
    ((130, 17, 9), torch.float64),
    ((300, 33, 70), torch.float16),
    ((130, 17, 9), torch.bfloat16),
]
_HALVES = (torch.float32, torch.bfloat16)


def _kmeans(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Any]]:
    *batch, n, d, k = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*batch, n, d, generator=generator).to(dtype).to(device)
    c = torch.randn(*batch, k, d, generator=generator).to(dtype).to(device)
    weight = torch.rand(*batch, n, generator=generator, dtype=torch.float64).to(device)
    labels = ops.assign(x, c)
    yield "assign", labels
    yield "point_distances", ops.point_distances(x, c, labels, weight)
    yield "inertia", ops.inertia(x, c, labels, weight)
    for given in (None, weight):
        sums = ops.accumulate(x, labels, k, given)
        yield "accumulate", (sums.words, sums.counts, sums.total)
        means = ops.means(sums, c)
        yield "means", means
        yield "split_empty", ops.split_empty(means, sums.counts, 3, 4)
    if not batch:
        out = torch.empty_like(labels)
        yield "reassign", (ops.reassign(x, means, c, labels, ops.distance_bounds(n, d, device), out), out)
        grid = ops.sum_grid(x, weight)
        running = ops.RunningSums(k, grid, ops.sum_grid(weight[:, None]), device)
        running.move(x, labels, torch.full_like(labels, -1), weight)
        yield "accumulate_moves", (running.sums().words, running.sums().total)
        uniform = torch.rand(min(n, k) - 1, 3, generator=generator, dtype=torch.float64)
        yield "kmeans_plusplus", ops.kmeans_plusplus(x, weight, 0, uniform)
        offsets = torch.tensor([0, n // 2, n] if n > 1 else [0, n])
        if dtype in (torch.float32, torch.float64):
            starts = c[:1].expand(len(offsets) - 1, 1, d)
            yield "lloyd", tuple(ops.lloyd(x, offsets, starts, max_iter=3))
            numbers = torch.arange(n, device=device)
            yield "bisect", tuple(ops.bisect(x, numbers, c[:1].expand(2, d), weight, grid=grid, max_iter=3))
        seen = torch.arange(k, dtype=torch.float64, device=device)
        yield "minibatch_step", tuple(ops.minibatch_step(x, c, seen, weight, grid))


def _sobel(dtype: torch.dtype, image: torch.dtype, device: torch.device) -> Iterator[tuple[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 19, 23, generator=generator).mul(255 if image == torch.uint8 else 1).to(image)
    weight = torch.randn(5, 2, 5, 3, generator=generator).to(dtype).to(device).requires_grad_()
    bias = torch.randn(5, generator=generator).to(dtype).to(device).requires_grad_()
    for layout in (torch.contiguous_format, torch.channels_last):
        x = pixels.to(device).contiguous(memory_format=layout).requires_grad_(image != torch.uint8)
        output = ops.sobel_conv2d(x, weight, bias, 2, 1, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
        leaves = [weight, bias, *([x] if x.requires_grad else [])]
        yield "sobel_conv2d", (output.detach(), *torch.autograd.grad(output.sum(), leaves))
    scale = torch.rand(5, device=device)
    with torch.no_grad():
        yield "sobel_conv2d, epilogue", ops.sobel_conv2d(x, weight, bias, scale=scale, shift=scale, relu=True)


def _loss(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Any]]:
    for n, k, smoothing in ((7, 33, 0.1), (65, 1030, 0.0)):
        generator = torch.Generator().manual_seed(n)
        logits = torch.randn(n, k, generator=generator).to(dtype).to(device).requires_grad_()
        target = torch.randint(k, (n,), generator=generator).to(device)
        sizes = torch.randint(1, 9, (k,), generator=generator).to(device)
        loss = ops.weighted_cross_entropy(logits, target, sizes, label_smoothing=smoothing)
        yield "weighted_cross_entropy", (loss.detach(), *torch.autograd.grad(loss, logits))
        operands = [torch.randn(m, 24, generator=generator).to(device, dtype).requires_grad_() for m in (n, k)]
        for reduction in ("mean", "none"):  # gradients along with the loss, and from the logits anew
            loss = ops.linear_weighted_cross_entropy(*operands, target, sizes, reduction=reduction)
            yield "linear_weighted_cross_entropy", (loss.detach(), *torch.autograd.grad(loss.sum(), operands))


def _tensors(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value)


def _equal(name: str, ours: Any, expected: Any) -> None:
    for mine, theirs in zip(_tensors(ours), _tensors(expected), strict=True):
        if not torch.equal(mine.cpu(), theirs):
            raise AssertionError(f"{name}: unlike the CPU in {int((mine.cpu() != theirs).sum())} elements")


def _finite(name: str, ours: Any) -> None:
    for tensor in _tensors(ours):
        if not bool(tensor.isfinite().all()):
            raise AssertionError(f"{name}: not finite")


def backends(device: torch.device) -> list[str]:
    """Those that serve at least one op there."""
    have = _registry.installed(device.index or 0 if device.type == "cuda" else None)
    every = itertools.product(_registry.BACKENDS[:2], _registry.ops.values())
    return sorted({b for b, op in every if _registry.why_not(op, b, device.type, have) is None})


@contextlib.contextmanager
def _preferring(backend: str, device: torch.device) -> Iterator[set[str]]:
    """Ops that the backend does not serve go to whoever serves them. Yields the names of those that it served."""
    choose = _registry._backend_for
    names = set()

    def chosen(op: _registry.Op, where: torch.device) -> str:
        have = _registry.installed(where.index or 0 if where.type == "cuda" else None)
        served = where.type == device.type and _registry.why_not(op, backend, where.type, have) is None
        if not served:
            return choose(op, where)
        names.add(op.name)
        return backend

    _registry._backend_for = chosen
    try:
        yield names
    finally:
        _registry._backend_for = choose


def drive(device: torch.device) -> dict[str, set[str]]:
    """Every op by every backend, in each shape and dtype; returns the names of the ops that each backend served."""
    driven = {}
    for backend in backends(device):
        with _preferring(backend, device) as driven[backend]:
            for shape, dtype in _POINTS:
                for (name, ours), (_, expected) in zip(
                    _kmeans(shape, dtype, device), _kmeans(shape, dtype, torch.device("cpu")), strict=True
                ):
                    _equal(f"{name} {shape} {dtype} by {backend}", ours, expected)
            for dtype in _HALVES:
                images = [_sobel(dtype, image, device) for image in (torch.uint8, dtype)]
                for name, ours in itertools.chain(*images, _loss(dtype, device)):
                    _finite(f"{name} {dtype} by {backend}", ours)
        print(f"{backend}: {', '.join(sorted(driven[backend]))}", flush=True)
    return driven


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default="cuda")
    device = parser.parse_args().device
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    drive(device)


if __name__ == "__main__":
    main()
