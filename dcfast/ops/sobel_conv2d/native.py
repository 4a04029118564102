"""Launches csrc/cpu/sobel_conv2d.cpp (weights packed once, then slices of bands) and csrc/cuda/sobel_conv2d*.cu."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dcfast.ops import _native
from dcfast.ops._dtypes import wide_dtype
from dcfast.ops.sobel_conv2d._geometry import affine, fold, output_size

_FORWARD, _WEIGHT, _IMAGE = range(3)
# Partial sums of the weight pass: as many units per call as fit, but enough to keep every thread busy.
_PARTIAL_BYTES = 2**24
# Ranges of tiles whose weight gradients are summed apart on a GPU: one for nearly every multiprocessor of the largest,
# and the same number on all of them, so that they give the same bits.
_RANGES = 128


def _sizes(
    images: int,
    image_size: Sequence[int],
    filters: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> torch.Tensor:
    """`dcfast_sobel_conv2d_sizes` of core.h; the strides of the image are set slice by slice."""
    out = output_size(image_size, kernel, stride, padding)
    # One output has no next one to stride to; a workspace is as wide as the stride.
    stride = [min(s, i + 2 * p) for s, i, p in zip(stride, image_size, padding, strict=True)]
    return torch.tensor([images, *image_size, filters, *kernel, *stride, *padding, *out, 0, 0, 0, 0], dtype=torch.int64)


def _plan(which: int, dtype: int, sizes: torch.Tensor) -> list[int]:
    plan = torch.zeros(5, dtype=torch.int64)
    _native.cpu().sobel_conv2d_plan(which, dtype, sizes.data_ptr(), plan.data_ptr())
    return plan.tolist()


def _bytes(n: int) -> torch.Tensor:
    return torch.empty(n, dtype=torch.uint8)


def _work(sizes: torch.Tensor, units: int) -> float:
    """Operations of one unit of any pass."""
    n, _, _, filters, kernel_h, kernel_w, *_, out_h, out_w = sizes[:12].tolist()
    return 4.0 * n * filters * kernel_h * kernel_w * out_h * out_w / max(1, units)


def _allow_tf32() -> bool:
    """Whether torch may use TF32 in its own products and convolutions; for the former it may not by default."""
    convolution = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return torch.backends.cuda.matmul.fp32_precision == convolution.fp32_precision == "tf32"


def _forward_on_cuda(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    relu: bool,
) -> torch.Tensor:
    (n, _, *size), (filters, _, *kernel) = image.shape, weight.shape
    sizes = _sizes(n, size, filters, kernel, stride, padding)
    sizes[12:] = torch.tensor(image.stride())
    output = weight.new_empty((n, filters, *sizes[10:12].tolist()))
    if n == 0:
        return output
    dtype = wide_dtype(weight.dtype)
    to_grey, weight, bias = (
        fold(image.dtype, mean, std, image.device),
        weight.contiguous(),
        affine(dtype, bias, scale, shift),
    )
    scale = None if scale is None else scale.to(dtype).contiguous()
    with _native.device_of(image):
        _native.cuda().sobel_conv2d(
            _native.DTYPES[weight.dtype],
            _native.DTYPES[image.dtype],
            _allow_tf32(),
            sizes.data_ptr(),
            image.data_ptr(),
            to_grey.data_ptr(),
            weight.data_ptr(),
            _native.pointer(scale),
            _native.pointer(bias),
            relu,
            output.data_ptr(),
            _native.stream(image.device),
        )
    return output


def _backward_weight_on_cuda(
    grad: torch.Tensor,
    image: torch.Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    n, filters = grad.shape[:2]
    sizes = _sizes(n, image.shape[2:], filters, kernel_size, stride, padding)
    sizes[12:] = torch.tensor(image.stride())
    taps = kernel_size[0] * kernel_size[1]
    partial = torch.empty(_RANGES, filters, 2 * taps + 1, dtype=wide_dtype(grad.dtype), device=grad.device)
    rows = torch.zeros(1, dtype=torch.int64)
    to_grey, grad = fold(image.dtype, mean, std, image.device), grad.contiguous()
    if n:
        with _native.device_of(image):
            _native.cuda().sobel_conv2d_backward_weight(
                _native.DTYPES[grad.dtype],
                _native.DTYPES[image.dtype],
                _allow_tf32(),
                sizes.data_ptr(),
                image.data_ptr(),
                to_grey.data_ptr(),
                grad.data_ptr(),
                _RANGES,
                partial.data_ptr(),
                rows.data_ptr(),
                _native.stream(image.device),
            )
    total = partial[: rows.item()].sum(0, dtype=torch.float64).to(grad.dtype)
    by_weight = total[:, : 2 * taps].reshape(filters, 2, *kernel_size)
    return by_weight.contiguous(), total[:, 2 * taps].contiguous()


def _backward_image_on_cuda(
    grad: torch.Tensor,
    weight: torch.Tensor,
    image_size: list[int],
    stride: list[int],
    padding: list[int],
    std: torch.Tensor | None,
) -> torch.Tensor:
    n, (filters, _, *kernel) = grad.shape[0], weight.shape
    sizes = _sizes(n, image_size, filters, kernel, stride, padding)
    output = grad.new_empty((n, 3, *image_size))
    if n == 0:
        return output
    scale, grad, weight = fold(grad.dtype, None, std, grad.device), grad.contiguous(), weight.contiguous()
    with _native.device_of(grad):
        _native.cuda().sobel_conv2d_backward_image(
            _native.DTYPES[grad.dtype],
            sizes.data_ptr(),
            grad.data_ptr(),
            scale.data_ptr(),
            weight.data_ptr(),
            output.data_ptr(),
            _native.stream(grad.device),
        )
    return output


class _Images:
    """Slices of a tensor of images in a dtype that the kernels read; float16 and bfloat16 are widened exactly."""

    def __init__(self, tensor: torch.Tensor, dtype: torch.dtype, units: int, contiguous: bool = False) -> None:
        self._tensor, self._dtype, self._contiguous = tensor, dtype, contiguous
        self._bands = units // max(1, tensor.shape[0])

    def __call__(self, start: int, stop: int) -> tuple[torch.Tensor, int]:
        """The images of units [start, stop), and the first unit of the first of them."""
        first, last = start // self._bands, -(-stop // self._bands)
        part = self._tensor[first:last].to(self._dtype)
        return part.contiguous() if self._contiguous else part, first * self._bands


def sobel_conv2d(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    relu: bool,
) -> torch.Tensor:
    if image.is_cuda:
        return _forward_on_cuda(image, weight, bias, stride, padding, mean, std, scale, shift, relu)
    core, n_threads, dtype = _native.cpu(), _native.threads(), wide_dtype(weight.dtype)
    (n, _, *size), (filters, _, *kernel) = image.shape, weight.shape
    sizes = _sizes(n, size, filters, kernel, stride, padding)
    units, packed_bytes, scratch_bytes, *_ = _plan(_FORWARD, _native.DTYPES[dtype], sizes)
    output = _native.empty((n, filters, *sizes[10:12].tolist()), weight.dtype)
    weight = (weight if scale is None else weight * scale.to(dtype)[:, None, None, None]).to(dtype).contiguous()
    bias = affine(dtype, bias, scale, shift)
    packed, scratch = _bytes(packed_bytes), _bytes(scratch_bytes * n_threads)
    core.sobel_conv2d_pack(_FORWARD, _native.DTYPES[dtype], sizes.data_ptr(), weight.data_ptr(), packed.data_ptr())
    to_grey = fold(image.dtype, mean, std, image.device)
    images = _Images(image, torch.uint8 if image.dtype == torch.uint8 else dtype, units)
    # A slice of converted output holds whole images.
    multiple = 1 if output.dtype == dtype else units // max(1, n)
    for start, stop in _native.slices(units, _work(sizes, units), multiple):
        part, base = images(start, stop)
        sizes[12:] = torch.tensor(part.stride())
        bands = units // n
        out = output[start // bands : -(-stop // bands)]
        result = out if out.dtype == dtype else torch.empty(out.shape, dtype=dtype)
        core.sobel_conv2d(
            _native.DTYPES[dtype],
            _native.DTYPES[part.dtype],
            sizes.data_ptr(),
            part.data_ptr(),
            to_grey.data_ptr(),
            packed.data_ptr(),
            _native.pointer(bias),
            relu,
            scratch.data_ptr(),
            result.data_ptr(),
            start - base,
            stop - base,
            n_threads,
        )
        if result is not out:
            out.copy_(result)
    return output


def sobel_conv2d_backward_weight(
    grad: torch.Tensor,
    image: torch.Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    if image.is_cuda:
        return _backward_weight_on_cuda(grad, image, kernel_size, stride, padding, mean, std)
    core, n_threads, dtype = _native.cpu(), _native.threads(), wide_dtype(grad.dtype)
    n, filters = grad.shape[:2]
    sizes = _sizes(n, image.shape[2:], filters, kernel_size, stride, padding)
    units, _, scratch_bytes, rows, columns = _plan(_WEIGHT, _native.DTYPES[dtype], sizes)
    partial_bytes = rows * columns * dtype.itemsize
    slots = min(units, max(4 * n_threads, _PARTIAL_BYTES // partial_bytes))
    scratch, partial = _bytes(scratch_bytes * n_threads), _bytes(slots * partial_bytes)
    total = torch.zeros(rows, columns, dtype=torch.float64)
    to_grey = fold(image.dtype, mean, std, image.device)
    images = _Images(image, torch.uint8 if image.dtype == torch.uint8 else dtype, units)
    grads = _Images(grad, dtype, units, contiguous=True)
    for first, last in _native.slices(units, _work(sizes, units)):
        for start in range(first, last, slots):
            stop = min(last, start + slots)
            (part, base), (g, _) = images(start, stop), grads(start, stop)
            sizes[12:] = torch.tensor(part.stride())
            core.sobel_conv2d_backward_weight(
                _native.DTYPES[dtype],
                _native.DTYPES[part.dtype],
                sizes.data_ptr(),
                part.data_ptr(),
                to_grey.data_ptr(),
                g.data_ptr(),
                scratch.data_ptr(),
                partial.data_ptr(),
                total.data_ptr(),
                start - base,
                stop - base,
                n_threads,
            )
    taps = 2 * kernel_size[0] * kernel_size[1]
    by_weight = total[:filters, :taps].reshape(filters, 2, *kernel_size).to(grad.dtype)
    return by_weight.contiguous(), total[:filters, taps].to(grad.dtype).contiguous()


def sobel_conv2d_backward_image(
    grad: torch.Tensor,
    weight: torch.Tensor,
    image_size: list[int],
    stride: list[int],
    padding: list[int],
    std: torch.Tensor | None,
) -> torch.Tensor:
    if grad.is_cuda:
        return _backward_image_on_cuda(grad, weight, image_size, stride, padding, std)
    core, n_threads, dtype = _native.cpu(), _native.threads(), wide_dtype(grad.dtype)
    n, (filters, _, *kernel) = grad.shape[0], weight.shape
    sizes = _sizes(n, image_size, filters, kernel, stride, padding)
    units, packed_bytes, scratch_bytes, *_ = _plan(_IMAGE, _native.DTYPES[dtype], sizes)
    output = _native.empty((n, 3, *image_size), grad.dtype)
    weight = weight.to(dtype).contiguous()
    packed, scratch = _bytes(packed_bytes), _bytes(scratch_bytes * n_threads)
    core.sobel_conv2d_pack(_IMAGE, _native.DTYPES[dtype], sizes.data_ptr(), weight.data_ptr(), packed.data_ptr())
    scale = fold(dtype, None, std, grad.device)
    grads = _Images(grad, dtype, units, contiguous=True)
    multiple = 1 if output.dtype == dtype else units // max(1, n)
    for start, stop in _native.slices(units, _work(sizes, units), multiple):
        g, base = grads(start, stop)
        bands = units // n
        out = output[start // bands : -(-stop // bands)]
        result = out if out.dtype == dtype else torch.empty(out.shape, dtype=dtype)
        core.sobel_conv2d_backward_image(
            _native.DTYPES[dtype],
            sizes.data_ptr(),
            g.data_ptr(),
            scale.data_ptr(),
            packed.data_ptr(),
            scratch.data_ptr(),
            result.data_ptr(),
            start - base,
            stop - base,
            n_threads,
        )
        if result is not out:
            out.copy_(result)
    return output
