"""Launches csrc/cpu/winograd_conv2d.cpp, some chunks of tiles at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dcfast.ops import _native

# Tiles of 4 x 4 outputs that are worked off at once: by a thread of its own, of which there are to be many, and by all
# of them for the gradient of the weights. The times with 12 to 60 differ by less than they vary.
_CHUNK, _SHARED_CHUNK = 24, 48


class _Call:
    """What the kernels are told, and their scratch."""

    def __init__(self, x: torch.Tensor, filters: int, chunk: int) -> None:
        n, channels, height, width = x.shape
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.sizes, self.dtype = torch.tensor([n, channels, filters, height, width, chunk]), _native.DTYPES[x.dtype]
        plan = torch.empty(4, dtype=torch.int64)
        _native.cpu().winograd_conv2d_plan(self.dtype, self.sizes.data_ptr(), plan.data_ptr())
        self.n_chunks, self.n_filters, self.n_scratch, self.n_totals = plan.tolist()
        self.operations = 2.0 * 36 * chunk * channels * filters
        self.threads = _native.threads(self.operations * self.n_chunks)

    def slices(self) -> Iterator[tuple[int, int]]:
        return _native.slices(self.n_chunks, self.operations, self.threads)

    def room(self, elements: int) -> torch.Tensor:
        return torch.empty(elements, dtype=self.x.dtype)


def winograd_conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    call = _Call(x, len(weight), _CHUNK)
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    filters, scratch = call.room(call.n_filters), call.room(call.n_scratch * call.threads)
    kernels, sizes = _native.cpu(), call.sizes.data_ptr()
    kernels.winograd_conv2d_filters(call.dtype, sizes, weight.data_ptr(), filters.data_ptr(), call.threads)
    out = _native.empty((len(x), len(weight), *x.shape[2:]), x.dtype, torch.channels_last)
    pointers = [call.x.data_ptr(), filters.data_ptr(), _native.pointer(bias)]
    pointers += [scratch.data_ptr(), out.data_ptr()]
    for start, stop in call.slices():
        kernels.winograd_conv2d(call.dtype, sizes, *pointers, start, stop, call.threads)
    return out


def winograd_conv2d_backward_weight(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    call = _Call(x, grad.shape[1], _SHARED_CHUNK)
    grad = grad.contiguous(memory_format=torch.channels_last)
    totals, scratch = call.room(call.n_totals).zero_(), call.room(call.n_scratch)
    kernels, sizes = _native.cpu(), call.sizes.data_ptr()
    pointers = [call.x.data_ptr(), grad.data_ptr(), scratch.data_ptr(), totals.data_ptr()]
    for start, stop in call.slices():
        kernels.winograd_conv2d_products(call.dtype, sizes, *pointers, start, stop, call.threads)
    weight = x.new_empty(grad.shape[1], x.shape[1], 3, 3)
    kernels.winograd_conv2d_weight(call.dtype, sizes, totals.data_ptr(), weight.data_ptr(), call.threads)
    return weight
