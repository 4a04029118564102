"""sobel_conv2d: every backend against the three-step definition in float64, its derivatives, and its determinism."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sobel import (
    KINDS,
    MEAN,
    SIZES,
    STD,
    assert_as_good_as_torch,
    assert_epilogue_as_good_as_torch,
    make,
    three_steps,
    with_gradients,
)

from dcfast import ops
from dcfast.nn import SobelConv2d
from dcfast.ops import _native

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Several bands of the forward and of the image pass, several images.
BANDS = (3, 330, 260, 8, (5, 5), (3, 2), (2, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_forward_and_gradients(cpu_backend, size, kind):
    assert_as_good_as_torch(ops.sobel_conv2d, make(size, kind, torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["contiguous", "bytes"])
def test_dtypes(cpu_backend, kind, dtype):
    assert_as_good_as_torch(ops.sobel_conv2d, make(SIZES[0], kind, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bands(dtype):
    with ops.backend("native"):
        assert_as_good_as_torch(ops.sobel_conv2d, make(BANDS, "bytes", dtype))
        assert_as_good_as_torch(ops.sobel_conv2d, make(BANDS, "contiguous", dtype))


def test_an_output_that_asks_for_huge_pages():
    arguments = make((1, 200, 210, 40, (1, 1), (1, 1), (0, 0)), "contiguous", torch.float32)
    with ops.backend("native"):
        assert ops.sobel_conv2d(*arguments).nbytes > 2 * _native._HUGE_PAGE
        assert_as_good_as_torch(ops.sobel_conv2d, arguments)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_geometry(data):
    padding, stride, kernel = (
        (data.draw(st.integers(*limits)), data.draw(st.integers(*limits))) for limits in ((0, 5), (1, 4), (1, 12))
    )
    height, width = (max(data.draw(st.integers(1, 40)), k - 2 * p) for k, p in zip(kernel, padding, strict=True))
    n, filters = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 20))
    size = (n, height, width, filters, kernel, stride, padding)
    with ops.backend("native"):  # of few values the errors vary: a wrong geometry is off by far more
        arguments = make(size, data.draw(st.sampled_from(KINDS)), torch.float32)
        assert_as_good_as_torch(ops.sobel_conv2d, arguments, units=64)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [SIZES[0], SIZES[1], BANDS])
def test_epilogue(cpu_backend, size, dtype, with_bias):
    assert_epilogue_as_good_as_torch(ops.sobel_conv2d, make(size, "bytes", dtype), with_bias)


def test_the_epilogue_keeps_nan(cpu_backend):
    image = torch.full((1, 3, 4, 4), torch.nan)
    assert ops.sobel_conv2d(image, torch.ones(1, 2, 1, 1), relu=True).isnan().all()


@pytest.mark.parametrize("epilogue", [{"relu": True}, {"scale": torch.ones(3)}, {"shift": torch.ones(3)}])
def test_the_epilogue_has_no_derivative(cpu_backend, epilogue):
    arguments = leaves()
    output = ops.sobel_conv2d(*arguments, **epilogue)
    with pytest.raises(RuntimeError, match="scale, shift or relu has no derivative"):
        output.sum().backward()
    with torch.no_grad():
        assert torch.equal(ops.sobel_conv2d(*arguments, **epilogue), output)


def test_the_border_is_sobels_and_the_margin_is_zero(cpu_backend):
    # A convolution that picks out Sobel-x, of an image of integers whose grey is exact.
    image = torch.randint(0, 50, (1, 1, 6, 7), generator=torch.Generator().manual_seed(0)).float().expand(1, 3, 6, 7)
    for plane in range(2):
        weight = torch.zeros(1, 2, 1, 1)
        weight[0, plane] = 1
        output = ops.sobel_conv2d(image, weight, padding=3)[0, 0]
        assert torch.equal(output[3:-3, 3:-3], three_steps(image, weight, None, 1, 0, None, None)[0, 0].round())
        output[3:-3, 3:-3] = 0
        assert torch.equal(output, torch.zeros_like(output))
    # With a mean, grey is not 0 inside: its edge shows in the first and last row of Sobel-y and nowhere else.
    flat = ops.sobel_conv2d(torch.zeros(1, 3, 6, 7), weight, mean=MEAN, std=STD, padding=1)[0, 0]
    assert flat[2:-2].abs().max() < 1e-5
    assert flat[[1, -2], 1:-1].abs().min() > 1
    assert torch.equal(flat[[0, -1]], torch.zeros(2, 9))


def test_no_images(cpu_backend):
    image = torch.zeros(0, 3, 8, 9, requires_grad=True)
    weight, bias = torch.ones(4, 2, 3, 3, requires_grad=True), torch.ones(4, requires_grad=True)
    output = ops.sobel_conv2d(image, weight, bias, 2, 1)
    assert output.shape == (0, 4, 4, 5)
    output.sum().backward()
    assert image.grad.shape == image.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert torch.equal(bias.grad, torch.zeros(4))


def results(arguments):
    return with_gradients(ops.sobel_conv2d, arguments, arguments[1].dtype)


@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_for_every_thread_count_and_slice(monkeypatch, isa, dtype):
    arguments = make(BANDS, "contiguous", dtype)
    monkeypatch.setenv("DCFAST_ISA", isa)
    with ops.backend("native"):
        monkeypatch.setattr(_native, "threads", lambda: 1)
        expected = results(arguments)
        assert_as_good_as_torch(ops.sobel_conv2d, arguments)
        for threads in (2, 3):
            monkeypatch.setattr(_native, "threads", lambda threads=threads: threads)
            assert all(map(torch.equal, results(arguments), expected))
        monkeypatch.setattr(_native, "slices", lambda n, *_: ((i, i + 1) for i in range(n)))
        assert all(map(torch.equal, results(arguments), expected))


def test_half_precision_in_slices(monkeypatch):
    arguments = make(BANDS, "contiguous", torch.float16)
    with ops.backend("native"):
        expected = results(arguments)
        monkeypatch.setattr(_native, "_FIRST_SLICE_OPERATIONS", 1)
        monkeypatch.setattr(_native, "_SLICE_SECONDS", 0.0)
        assert all(map(torch.equal, results(arguments), expected))


def test_flushed_denormals_change_nothing():
    arguments = make(SIZES[1], "tiny", torch.float32)
    arguments = (arguments[0] * 1e-20, *arguments[1:])
    with ops.backend("native"):
        expected = ops.sobel_conv2d(*arguments)
        torch.set_flush_denormal(True)
        try:
            output = ops.sobel_conv2d(*arguments)
        finally:
            torch.set_flush_denormal(False)
    assert torch.equal(output, expected)
    assert output.abs().max() > 0


@pytest.mark.parametrize("stride", [7, np.int64(1000), 2**31 - 1])
def test_a_stride_past_the_image(cpu_backend, stride):
    image, weight, bias, *_ = make((2, 6, 7, 3, (3, 2), (2, 1), (0, 0)), "contiguous", torch.float64)
    image, weight = image.requires_grad_(), weight.requires_grad_()
    found = ops.sobel_conv2d(image, weight, bias, stride=stride)
    expected = ops.sobel_conv2d(image, weight, bias)[..., :1, :1]
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(*(torch.autograd.grad(y.sum(), (image, weight)) for y in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def leaves(kind="contiguous", dtype=torch.float64):
    arguments = make((2, 6, 7, 3, (3, 2), (2, 1), (1, 2)), kind, dtype)
    image, weight, bias = (t.requires_grad_() if t.is_floating_point() else t for t in arguments[:3])
    return (image, weight, bias, *arguments[3:])


@pytest.mark.parametrize("kind", ["contiguous", "bytes"])
def test_opcheck(cpu_backend, kind):
    image, weight, bias, stride, padding, mean, std = leaves(kind, torch.float32)
    torch.library.opcheck(
        torch.ops.dcfast.sobel_conv2d.default, (image, weight, bias, stride, padding, mean, std, None, None, False)
    )
    with torch.no_grad():
        inference = [t.detach() for t in (image, weight, bias)]
        epilogue = (torch.ones(3), torch.ones(3), True)
        arguments = (*inference, stride, padding, mean, std, *epilogue)
        torch.library.opcheck(torch.ops.dcfast.sobel_conv2d.default, arguments)
    grad = torch.randn_like(ops.sobel_conv2d(image, weight, bias, stride, padding)).requires_grad_()
    torch.library.opcheck(
        torch.ops.dcfast.sobel_conv2d_backward_weight.default,
        (grad, image, weight.shape[2:], stride, padding, mean, std),
    )
    torch.library.opcheck(
        torch.ops.dcfast.sobel_conv2d_backward_image.default, (grad, weight, image.shape[2:], stride, padding, std)
    )


def test_gradients_of_first_and_second_order(cpu_backend):
    image, weight, bias, *rest = leaves()

    def op(image, weight, bias):
        return torch.ops.dcfast.sobel_conv2d(image, weight, bias, *rest, None, None, False)

    assert torch.autograd.gradcheck(op, (image, weight, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(op, (image, weight, bias), fast_mode=True)


def test_only_the_wanted_gradients():
    image, weight, bias, *rest = leaves(dtype=torch.float32)
    output = ops.sobel_conv2d(image.detach(), weight.detach(), bias, *rest)
    output.sum().backward()
    assert torch.equal(bias.grad, torch.full((3,), float(output.numel() // 3)))
    assert weight.grad is None


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(cpu_backend, dynamic):
    arguments = make(SIZES[1], "contiguous", torch.float32)
    expected = with_gradients(ops.sobel_conv2d, arguments, torch.float32)
    compiled = torch.compile(ops.sobel_conv2d, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert all(map(torch.equal, with_gradients(compiled, arguments, torch.float32), expected))


def test_mean_and_std_as_numbers(cpu_backend):
    image, weight, bias, stride, padding, mean, std = make(SIZES[1], "bytes", torch.float32)
    numbers = ops.sobel_conv2d(image, weight, bias, stride, padding, mean.tolist(), std.tolist())
    assert torch.equal(numbers, ops.sobel_conv2d(image, weight, bias, stride, padding, mean, std))
    only_std = ops.sobel_conv2d(image, weight, bias, stride, padding, std=std)
    assert torch.equal(only_std, ops.sobel_conv2d(image, weight, bias, stride, padding, torch.zeros(3), std))
    only_mean = ops.sobel_conv2d(image, weight, bias, stride, padding, mean=mean)
    assert torch.equal(only_mean, ops.sobel_conv2d(image, weight, bias, stride, padding, mean, torch.ones(3)))


IMAGE, WEIGHT = torch.zeros(1, 3, 5, 6), torch.zeros(4, 2, 3, 3)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"image": IMAGE[0]}, ValueError, r"image has shape \(3, 5, 6\)"),
        ({"image": IMAGE[:, :2]}, ValueError, r"expected \(N, 3, H, W\)"),
        ({"image": IMAGE.int()}, TypeError, "image has dtype torch.int32"),
        ({"image": IMAGE.double()}, ValueError, "image has dtype torch.float64 and weight torch.float32"),
        ({"image": IMAGE[..., :0]}, ValueError, "at least 1 x 1"),
        ({"weight": WEIGHT[:, :1]}, ValueError, "Sobel-x and Sobel-y"),
        ({"weight": WEIGHT[:0]}, ValueError, "weight has shape"),
        ({"weight": WEIGHT.int()}, TypeError, "weight has dtype torch.int32"),
        ({"weight": WEIGHT[..., :0]}, ValueError, "kernel has size"),
        ({"weight": torch.zeros(1, 2, 7, 7)}, ValueError, "larger than the image"),
        ({"bias": torch.zeros(3)}, ValueError, "bias is"),
        ({"bias": torch.zeros(4).double()}, ValueError, "bias is"),
        ({"stride": [0, 1]}, ValueError, "stride is"),
        ({"padding": [0, -1]}, ValueError, "padding is"),
        ({"padding": [2**63 - 1, 0]}, ValueError, "padding is"),
        ({"mean": torch.zeros(2)}, ValueError, "mean has shape"),
        ({"std": torch.ones(3).int()}, TypeError, "std has dtype"),
        ({"scale": torch.ones(3)}, ValueError, r"scale has shape \(3,\): expected \(4,\)"),
        ({"shift": torch.ones(4).int()}, TypeError, "shift has dtype"),
        ({"weight": WEIGHT.to("meta")}, ValueError, "weight is on meta"),
    ],
)
def test_errors_name_the_argument(changes, error, match):
    arguments = {"image": IMAGE, "weight": WEIGHT, "bias": None, "stride": [1, 1], "padding": [0, 0]}
    arguments = {**arguments, "mean": None, "std": None, "scale": None, "shift": None, "relu": False, **changes}
    with pytest.raises(error, match=match):
        ops.sobel_conv2d(**arguments)
    if arguments["weight"].device.type == "cpu":
        with pytest.raises(error, match=match):
            torch.ops.dcfast.sobel_conv2d(*arguments.values())


def test_errors_of_the_gradients_and_of_sequences():
    with pytest.raises(ValueError, match="mean is"):
        ops.sobel_conv2d(IMAGE, WEIGHT, mean=[0.5])
    with pytest.raises(ValueError, match="stride is"):
        ops.sobel_conv2d(IMAGE, WEIGHT, stride=(1, 1, 1))
    with pytest.raises(TypeError, match=r"stride is 1\.5: expected an integer"):
        ops.sobel_conv2d(IMAGE, WEIGHT, stride=1.5)
    with pytest.raises(ValueError, match=r"mean is 0\.5: expected three values"):
        ops.sobel_conv2d(IMAGE, WEIGHT, mean=0.5)
    weight_pass = torch.ops.dcfast.sobel_conv2d_backward_weight
    image_pass = torch.ops.dcfast.sobel_conv2d_backward_image
    grad = torch.zeros(1, 4, 3, 4)
    with pytest.raises(ValueError, match="grad has shape"):
        weight_pass(grad[..., 1:], IMAGE, [3, 3], [1, 1], [0, 0], None, None)
    with pytest.raises(ValueError, match="grad has 2 images"):
        weight_pass(grad.expand(2, 4, 3, 4), IMAGE, [3, 3], [1, 1], [0, 0], None, None)
    with pytest.raises(ValueError, match="grad is"):
        image_pass(grad[:, 1:], WEIGHT, [5, 6], [1, 1], [0, 0], None)
    with pytest.raises(ValueError, match="grad has shape"):
        image_pass(grad, WEIGHT, [5, 7], [1, 1], [0, 0], None)


def test_module():
    layer = SobelConv2d(5, (3, 2), stride=2, padding=(1, 0))
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert torch.equal(layer.mean, MEAN)
    assert torch.equal(layer.std, STD)
    assert layer.weight.abs().max() <= 12**-0.5
    assert repr(layer) == "SobelConv2d(5, kernel_size=(3, 2), stride=(2, 2), padding=(1, 0))"
    image = make(SIZES[1], "bytes", torch.float32)[0]
    expected = ops.sobel_conv2d(image, layer.weight, layer.bias, 2, (1, 0), MEAN, STD)
    assert torch.equal(layer(image), expected)
    layer(image).square().sum().backward()
    assert layer.weight.grad.abs().max() > 0
    assert layer.bias.grad.abs().max() > 0
    on_meta = copy.deepcopy(layer).to("meta")
    assert on_meta(torch.empty(2, 3, 16, 16, device="meta")).shape == (2, 5, 8, 8)
    plain = SobelConv2d(5, 3, bias=False, mean=None, std=None, dtype=torch.float64)
    assert repr(plain) == "SobelConv2d(5, kernel_size=(3, 3), stride=(1, 1), bias=False)"
    assert torch.equal(plain(image), ops.sobel_conv2d(image, plain.weight))
    with pytest.raises(ValueError, match="out_channels is 0"):
        SobelConv2d(0, 3)
    with pytest.raises(ValueError, match="kernel_size is"):
        SobelConv2d(1, (3, 3, 3))
    with pytest.raises(ValueError, match="std is"):
        SobelConv2d(1, 3, std=(1.0, 1.0))
