"""Forward and weight gradient as implicit matrix products whose Sobel operand is computed while it is gathered.

A tile of pixels by taps of the operand costs 24 loads of pixels for its two Sobel values, nearly all of them from L1,
and serves up to 128 filters. float16 and bfloat16 are multiplied as such (the Sobel value is rounded as the three-step
definition rounds it) and summed in float32; float32 and float64 are multiplied in IEEE arithmetic, not in TF32.

The weight pass sums fixed ranges of pixels apart, and these sums in their order: no atomics, the same bits each time.
The image pass is for visualisation: the gradient of the Sobel planes goes through memory.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from dcfast.ops._dtypes import wide_dtype
from dcfast.ops._native import device_of
from dcfast.ops._triton import CompileCase, block
from dcfast.ops.sobel_conv2d._geometry import affine, fold, output_size

_TL = {torch.float32: tl.float32, torch.float64: tl.float64}
# Ranges of pixels whose weight gradients are summed apart: enough for every multiprocessor, few enough to add up.
_MAX_RANGES = 128
# Pixels of a program of the image pass.
_PLANES_BLOCK = 32


@triton.jit
def _grey(image, y, x, height, width, stride_c, stride_h, stride_w, r, g, b, offset, ACC: tl.constexpr):
    # Zero outside the image: that is the padding of the Sobel convolution.
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    at = image + y.to(tl.int64) * stride_h + x.to(tl.int64) * stride_w
    red = tl.load(at, mask=inside, other=0).to(ACC)
    green = tl.load(at + stride_c, mask=inside, other=0).to(ACC)
    blue = tl.load(at + 2 * stride_c, mask=inside, other=0).to(ACC)
    return tl.where(inside, red * r + green * g + blue * b + offset, 0.0)


@triton.jit
def _sobel(
    image,
    fold_ptr,
    y,
    x,
    valid,
    height,
    width,
    stride_c,
    stride_h,
    stride_w,
    ACC: tl.constexpr,
):
    # Sobel-x and Sobel-y at (y, x), zero where that is outside the image.
    inside = valid & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    # Nothing is loaded for what is zero: rows far above the image are outside it, and so are their neighbours.
    y = tl.where(inside, y, -4)
    r, g, b, offset = tl.load(fold_ptr), tl.load(fold_ptr + 1), tl.load(fold_ptr + 2), tl.load(fold_ptr + 3)
    sx = tl.zeros(y.shape, ACC)
    sy = tl.zeros(y.shape, ACC)
    # Not unrolled: a row of neighbours at a time keeps the loads in flight within the registers.
    for dy in range(-1, 2):
        row = y + dy
        left = _grey(image, row, x - 1, height, width, stride_c, stride_h, stride_w, r, g, b, offset, ACC)
        here = _grey(image, row, x, height, width, stride_c, stride_h, stride_w, r, g, b, offset, ACC)
        right = _grey(image, row, x + 1, height, width, stride_c, stride_h, stride_w, r, g, b, offset, ACC)
        sx += (left - right) * (2 - dy * dy)
        sy -= (left + 2 * here + right) * dy
    return sx, sy


@triton.jit
def _dot(a, b, acc):
    if acc.dtype == tl.float64:
        # Matrix units for double are not everywhere that this compiles for.
        acc += tl.sum(a[:, :, None] * b[None, :, :], 1)
    else:
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@triton.jit
def _forward(
    image_ptr,  # (N, 3, H, W), any strides
    fold_ptr,  # (4,) ACC
    weight_ptr,  # (filters, 2, KH, KW) contiguous
    scale_ptr,  # (filters,) ACC, not read without HAS_SCALE
    bias_ptr,  # (filters,) ACC, not read without HAS_BIAS
    out_ptr,  # out: (N, filters, out_h, out_w) contiguous
    pixels,  # N * out_h * out_w
    height,
    width,
    filters,
    out_h,
    out_w,
    conv_stride_h,
    conv_stride_w,
    padding_h,
    padding_w,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    KH: tl.constexpr,
    KW: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    TAPS: tl.constexpr = KH * KW
    tiles = tl.cdiv(filters, BLOCK_O)
    p = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    o = tl.program_id(0) % tiles * BLOCK_O + tl.arange(0, BLOCK_O)
    channel = (tl.zeros((), tl.int64) + out_h) * out_w
    n = p // channel
    at = (p - n * channel).to(tl.int32)
    y0 = at // out_w * conv_stride_h - padding_h
    x0 = at % out_w * conv_stride_w - padding_w
    image = image_ptr + (n * stride_n)[:, None]
    dtype = weight_ptr.dtype.element_ty
    acc = tl.zeros((BLOCK_P, BLOCK_O), ACC)
    for t0 in range(0, TAPS, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        sx, sy = _sobel(
            image,
            fold_ptr,
            y0[:, None] + (t // KW)[None, :],
            x0[:, None] + (t % KW)[None, :],
            (p < pixels)[:, None] & (t < TAPS)[None, :],
            height,
            width,
            stride_c,
            stride_h,
            stride_w,
            ACC,
        )
        weight = weight_ptr + o.to(tl.int64)[None, :] * (2 * TAPS) + t[:, None]
        mask = (o < filters)[None, :] & (t < TAPS)[:, None]
        wx = tl.load(weight, mask=mask, other=0.0)
        wy = tl.load(weight + TAPS, mask=mask, other=0.0)
        acc = _dot(sx.to(dtype), wx, acc)
        acc = _dot(sy.to(dtype), wy, acc)
    if HAS_SCALE:
        acc *= tl.load(scale_ptr + o, mask=o < filters, other=0.0)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + o, mask=o < filters, other=0.0)[None, :]
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)  # NaN stays
    to = out_ptr + (n * filters)[:, None] * channel + o.to(tl.int64)[None, :] * channel + at[:, None]
    tl.store(to, acc.to(dtype), mask=(p < pixels)[:, None] & (o < filters)[None, :])


@triton.jit
def _weight(
    grad_ptr,  # (N, filters, out_h, out_w) contiguous
    image_ptr,
    fold_ptr,
    partial_ptr,  # out: (ranges, filters, 2 TAPS + 1) ACC, the last column for the bias
    pixels,
    range_pixels,  # pixels of a range, a multiple of BLOCK_P
    height,
    width,
    filters,
    out_h,
    out_w,
    conv_stride_h,
    conv_stride_w,
    padding_h,
    padding_w,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    TAPS: tl.constexpr = KH * KW
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    start = tl.program_id(2).to(tl.int64) * range_pixels
    channel = (tl.zeros((), tl.int64) + out_h) * out_w
    dtype = grad_ptr.dtype.element_ty
    acc_x = tl.zeros((BLOCK_O, BLOCK_T), ACC)
    acc_y = tl.zeros((BLOCK_O, BLOCK_T), ACC)
    acc_bias = tl.zeros((BLOCK_O,), ACC)
    for step in range(0, range_pixels, BLOCK_P):
        p = start + step + tl.arange(0, BLOCK_P)
        n = p // channel
        at = (p - n * channel).to(tl.int32)
        y0 = at // out_w * conv_stride_h - padding_h
        x0 = at % out_w * conv_stride_w - padding_w
        sx, sy = _sobel(
            image_ptr + (n * stride_n)[:, None],
            fold_ptr,
            y0[:, None] + (t // KW)[None, :],
            x0[:, None] + (t % KW)[None, :],
            (p < pixels)[:, None] & (t < TAPS)[None, :],
            height,
            width,
            stride_c,
            stride_h,
            stride_w,
            ACC,
        )
        grad_at = grad_ptr + (n * filters)[None, :] * channel + o.to(tl.int64)[:, None] * channel + at[None, :]
        grad = tl.load(grad_at, mask=(o < filters)[:, None] & (p < pixels)[None, :], other=0.0)
        acc_x = _dot(grad, sx.to(dtype), acc_x)
        acc_y = _dot(grad, sy.to(dtype), acc_y)
        acc_bias += tl.sum(grad.to(ACC), 1)
    row = partial_ptr + (tl.program_id(2).to(tl.int64) * filters + o) * (2 * TAPS + 1)
    mask = (o < filters)[:, None] & (t < TAPS)[None, :]
    tl.store(row[:, None] + t[None, :], acc_x, mask=mask)
    tl.store(row[:, None] + TAPS + t[None, :], acc_y, mask=mask)
    tl.store(row + 2 * TAPS, acc_bias, mask=(o < filters) & (tl.program_id(0) == 0))


@triton.jit
def _planes(
    grad_ptr,  # (N, filters, out_h, out_w) contiguous
    weight_ptr,  # (filters, 2, KH, KW) contiguous
    planes_ptr,  # out: (N, 2, H, W) ACC, the gradient of the Sobel planes
    pixels,  # N * H * W
    height,
    width,
    filters,
    out_h,
    out_w,
    padding_h,
    padding_w,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    area = (tl.zeros((), tl.int64) + height) * width
    n = p // area
    at = (p - n * area).to(tl.int32)
    y = at // width + padding_h
    x = at % width + padding_w
    acc_x = tl.zeros((BLOCK_P,), ACC)
    acc_y = tl.zeros((BLOCK_P,), ACC)
    # Output row y // STRIDE_H meets the pixel with its first taps, the rows above it with later ones.
    for back_y in range(0, (KH + STRIDE_H - 1) // STRIDE_H):
        out_y = y // STRIDE_H - back_y
        i = y - out_y * STRIDE_H
        reached_y = (p < pixels) & (i < KH) & (out_y >= 0) & (out_y < out_h)
        for back_x in range(0, (KW + STRIDE_W - 1) // STRIDE_W):
            out_x = x // STRIDE_W - back_x
            j = x - out_x * STRIDE_W
            reached = reached_y & (j < KW) & (out_x >= 0) & (out_x < out_w)
            for o0 in range(0, filters, BLOCK_O):
                o = (o0 + tl.arange(0, BLOCK_O)).to(tl.int64)[None, :]
                mask = reached[:, None] & (o < filters)
                row = (n[:, None] * filters + o) * out_h + out_y[:, None]
                grad = tl.load(grad_ptr + row * out_w + out_x[:, None], mask=mask, other=0.0).to(ACC)
                weight = weight_ptr + o * (2 * KH * KW) + (i * KW + j)[:, None]
                acc_x += tl.sum(grad * tl.load(weight, mask=mask, other=0.0).to(ACC), 1)
                acc_y += tl.sum(grad * tl.load(weight + KH * KW, mask=mask, other=0.0).to(ACC), 1)
    out = planes_ptr + 2 * n * area + at
    tl.store(out, acc_x, mask=p < pixels)
    tl.store(out + area, acc_y, mask=p < pixels)


@triton.jit
def _image(
    planes_ptr,  # (N, 2, H, W) ACC
    fold_ptr,  # (4,) ACC
    out_ptr,  # out: (N, 3, H, W) contiguous
    pixels,
    height,
    width,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    area = (tl.zeros((), tl.int64) + height) * width
    n = p // area
    at = (p - n * area).to(tl.int32)
    y = at // width
    x = at % width
    planes = planes_ptr + 2 * n * area + at
    grey = tl.zeros((BLOCK,), ACC)
    for dy in tl.static_range(-1, 2):
        for dx in tl.static_range(-1, 2):
            mask = (p < pixels) & (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
            there = planes + dy * width + dx
            if dx != 0:
                grey += tl.load(there, mask=mask, other=0.0) * (dx * (2 - dy * dy))
            if dy != 0:
                grey += tl.load(there + area, mask=mask, other=0.0) * (dy * (2 - dx * dx))
    out = out_ptr + 3 * n * area + at
    for c in tl.static_range(3):
        tl.store(out + c * area, (grey * tl.load(fold_ptr + c)).to(out_ptr.dtype.element_ty), mask=p < pixels)


def _tile(dtype: torch.dtype, filters: int) -> dict[str, int]:
    """Tile of pixels, filters and taps, and warps: what fits the registers in each arithmetic."""
    if dtype == torch.float64:
        return {"BLOCK_P": 16, "BLOCK_O": 16, "BLOCK_T": 16, "num_warps": 4}
    if dtype == torch.float32:
        return {"BLOCK_P": 32, "BLOCK_O": block(filters, 16, 64), "BLOCK_T": 16, "num_warps": 8}
    return {"BLOCK_P": 64, "BLOCK_O": block(filters, 16, 128), "BLOCK_T": 16, "num_warps": 8}


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
    (n, _, *size), (filters, _, *kernel) = image.shape, weight.shape
    out_size = output_size(size, kernel, stride, padding)
    output = torch.empty((n, filters, *out_size), dtype=weight.dtype, device=image.device)
    if n == 0:
        return output
    acc = wide_dtype(weight.dtype)
    tile = _tile(weight.dtype, filters)
    pixels = n * out_size[0] * out_size[1]
    weight, bias = weight.contiguous(), affine(acc, bias, scale, shift)
    grid = (triton.cdiv(pixels, tile["BLOCK_P"]) * triton.cdiv(filters, tile["BLOCK_O"]),)
    with device_of(image):
        _forward[grid](
            image,
            fold(image.dtype, mean, std, image.device).to(acc),
            weight,
            weight if scale is None else scale.to(acc).contiguous(),
            weight if bias is None else bias,
            output,
            pixels,
            *size,
            filters,
            *out_size,
            *stride,
            *padding,
            *image.stride(),
            KH=kernel[0],
            KW=kernel[1],
            HAS_SCALE=scale is not None,
            HAS_BIAS=bias is not None,
            RELU=relu,
            ACC=_TL[acc],
            **tile,
        )
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
    (n, filters, *out_size), size = grad.shape, image.shape[2:]
    acc = wide_dtype(grad.dtype)
    taps = kernel_size[0] * kernel_size[1]
    tile = _tile(grad.dtype, filters)
    pixels = n * out_size[0] * out_size[1]
    range_pixels = triton.cdiv(triton.cdiv(pixels, _MAX_RANGES), tile["BLOCK_P"]) * tile["BLOCK_P"]
    ranges = triton.cdiv(pixels, range_pixels) if pixels else 0
    partial = torch.empty((ranges, filters, 2 * taps + 1), dtype=acc, device=grad.device)
    if ranges:
        grid = (triton.cdiv(taps, tile["BLOCK_T"]), triton.cdiv(filters, tile["BLOCK_O"]), ranges)
        with device_of(image):
            _weight[grid](
                grad.contiguous(),
                image,
                fold(image.dtype, mean, std, image.device).to(acc),
                partial,
                pixels,
                range_pixels,
                *size,
                filters,
                *out_size,
                *stride,
                *padding,
                *image.stride(),
                KH=kernel_size[0],
                KW=kernel_size[1],
                ACC=_TL[acc],
                **tile,
            )
    total = partial.double().sum(0).to(grad.dtype)
    by_weight = total[:, : 2 * taps].reshape(filters, 2, *kernel_size)
    return by_weight.contiguous(), total[:, 2 * taps].contiguous()


def sobel_conv2d_backward_image(
    grad: torch.Tensor,
    weight: torch.Tensor,
    image_size: list[int],
    stride: list[int],
    padding: list[int],
    std: torch.Tensor | None,
) -> torch.Tensor:
    (n, filters, *out_size), kernel = grad.shape, weight.shape[2:]
    output = torch.empty((n, 3, *image_size), dtype=grad.dtype, device=grad.device)
    if n == 0:
        return output
    acc = wide_dtype(grad.dtype)
    planes = torch.empty((n, 2, *image_size), dtype=acc, device=grad.device)
    pixels = n * image_size[0] * image_size[1]
    with device_of(grad):
        _planes[(triton.cdiv(pixels, _PLANES_BLOCK),)](
            grad.contiguous(),
            weight.contiguous(),
            planes,
            pixels,
            *image_size,
            filters,
            *out_size,
            *padding,
            KH=kernel[0],
            KW=kernel[1],
            STRIDE_H=stride[0],
            STRIDE_W=stride[1],
            ACC=_TL[acc],
            BLOCK_P=_PLANES_BLOCK,
            BLOCK_O=16,
        )
        _image[(triton.cdiv(pixels, 256),)](
            planes,
            fold(acc, None, std, grad.device).to(acc),
            output,
            pixels,
            *image_size,
            ACC=_TL[acc],
            BLOCK=256,
        )
    return output


def compile_cases() -> list[CompileCase]:
    """AlexNet's first layer in each arithmetic, with images of bytes and of the weights' dtype."""
    cases = []
    sizes = dict.fromkeys(("height", "width", "filters", "out_h", "out_w"), "i32")
    conv = dict.fromkeys(("conv_stride_h", "conv_stride_w", "padding_h", "padding_w"), "i32")
    strides = dict.fromkeys(("stride_n", "stride_c", "stride_h", "stride_w"), "i32")
    for name, image, dtype in (
        ("fp16", "fp16", torch.float16),
        ("bf16", "u8", torch.bfloat16),
        ("fp32", "u8", torch.float32),
        ("fp64", "fp64", torch.float64),
    ):
        acc = "fp64" if dtype == torch.float64 else "fp32"
        tile = _tile(dtype, 96)
        options = {"num_warps": tile.pop("num_warps")}
        expect = {80: ("HMMA",), 90: ("HGMMA",)} if dtype.itemsize == 2 else {}
        pointers = {"image_ptr": f"*{image}", "fold_ptr": f"*{acc}"}
        common: dict[str, Any] = {"KH": 11, "KW": 11, "ACC": _TL[wide_dtype(dtype)]}
        operands = {"weight_ptr": f"*{name}", "scale_ptr": f"*{acc}", "bias_ptr": f"*{acc}", "out_ptr": f"*{name}"}
        sums = {"partial_ptr": f"*{acc}", "pixels": "i64", "range_pixels": "i64"}
        gradient = {"grad_ptr": f"*{name}", "weight_ptr": f"*{name}", "planes_ptr": f"*{acc}", "pixels": "i64"}
        cases += [
            CompileCase(
                f"forward-{name}-{image}{'-epilogue' if epilogue else ''}",
                _forward,
                {**pointers, **operands, "pixels": "i64", **sizes, **conv, **strides},
                {**common, "HAS_SCALE": epilogue, "HAS_BIAS": True, "RELU": epilogue, **tile},
                options,
                expect=expect,
            )
            for epilogue in (False, True)
        ]
        cases += [
            CompileCase(
                f"weight-{name}-{image}",
                _weight,
                {"grad_ptr": f"*{name}", **pointers, **sums, **sizes, **conv, **strides},
                {**common, **tile},
                options,
                expect=expect,
            ),
            CompileCase(
                f"planes-{name}",
                _planes,
                {**gradient, **sizes, "padding_h": "i32", "padding_w": "i32"},
                {**common, "STRIDE_H": 4, "STRIDE_W": 4, "BLOCK_P": _PLANES_BLOCK, "BLOCK_O": 16},
            ),
            CompileCase(
                f"image-{name}",
                _image,
                {"planes_ptr": f"*{acc}", "fold_ptr": f"*{acc}", "out_ptr": f"*{name}", "pixels": "i64"}
                | {"height": "i32", "width": "i32"},
                {"ACC": _TL[wide_dtype(dtype)], "BLOCK": 256},
            ),
        ]
    return cases
