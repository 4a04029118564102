"""The networks: layer for layer as published."""

import copy
import math

import pytest
import torch
from torch import nn

from dcfast import ops
from dcfast.deepcluster.models import (
    VGG16,
    AlexNet,
    CustomBackbone,
    MicroAlexNet,
    ResNet,
    SmallConvNet,
    build_model,
    build_top_layer,
)
from dcfast.nn import SobelConv2d


def _images(n, size, dtype=torch.uint8):
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images if dtype == torch.uint8 else images.to(dtype) / 255


def _convolutions(model):
    return [m for m in model.features if isinstance(m, nn.Conv2d | SobelConv2d)]


def test_alexnet_is_the_published_one():
    with torch.device("meta"):
        model = AlexNet()
    shapes = [tuple(conv.weight.shape) for conv in _convolutions(model)]
    assert shapes == [(96, 2, 11, 11), (256, 96, 5, 5), (384, 256, 3, 3), (384, 384, 3, 3), (256, 384, 3, 3)]
    assert [type(m).__name__ for m in model.features] == (
        ["SobelConv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
        + ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
        + ["WinogradConv2d", "BatchNorm2d", "ReLU"] * 3
        + ["MaxPool2d"]
    )
    assert all(m.kernel_size == 3 and m.stride == 2 for m in model.features if isinstance(m, nn.MaxPool2d))
    assert [type(m).__name__ for m in model.classifier] == ["Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert [m.weight.shape for m in model.classifier if isinstance(m, nn.Linear)] == [(4096, 9216), (4096, 4096)]
    assert model.feature_dim == 4096


def test_vgg16_is_the_published_one():
    with torch.device("meta"):
        model = VGG16(sobel=False)
    channels = [conv.weight.shape[0] for conv in _convolutions(model)]
    assert channels == [64, 64, 128, 128] + [256] * 3 + [512] * 6
    assert all(conv.weight.shape[2:] == (3, 3) for conv in _convolutions(model))
    assert sum(isinstance(m, nn.MaxPool2d) for m in model.features) == 5
    assert [type(m).__name__ for m in model.classifier] == ["Linear", "ReLU", "Dropout", "Linear"]
    assert [m.weight.shape for m in model.classifier if isinstance(m, nn.Linear)] == [(4096, 25088), (4096, 4096)]


def test_the_micro_alexnet_is_the_published_one():
    with torch.device("meta"):
        model = MicroAlexNet()
    assert [conv.weight.shape[0] for conv in _convolutions(model)] == [64, 192, 384, 256, 256]
    assert all(conv.weight.shape[2:] == (3, 3) for conv in _convolutions(model))
    assert [m.weight.shape for m in model.classifier if isinstance(m, nn.Linear)] == [(2048, 4096), (2048, 2048)]


# torchvision's models without the 513,000 and 2,049,000 parameters of fc.
@pytest.mark.parametrize(("depth", "parameters", "keys"), [(18, 11_176_512, 120), (50, 23_508_032, 318)])
def test_resnets_have_torchvision_s_parameters(depth, parameters, keys):
    with torch.device("meta"):
        model = ResNet(depth, sobel=False)
    assert sum(p.numel() for p in model.parameters()) == parameters
    names = model.state_dict().keys()
    assert len(names) == keys
    last = "layer4.1.bn2" if depth == 18 else "layer4.2.bn3"
    expected = {"conv1.weight", "bn1.running_mean", "layer2.0.downsample.0.weight", "layer2.0.downsample.1.bias"}
    assert {*expected, f"{last}.num_batches_tracked"} < names
    assert ("layer1.0.downsample.0.weight" in names) == (depth == 50)
    assert model.get_submodule("layer3.0.conv2" if depth == 50 else "layer3.0.conv1").stride == (2, 2)


@pytest.mark.parametrize(("depth", "blocks", "width"), [(18, 9, 512), (50, 17, 2048)])
@pytest.mark.parametrize("sobel", [True, False])
def test_resnet_shapes(depth, blocks, width, sobel):
    torch.manual_seed(0)
    model = ResNet(depth, sobel=sobel).eval()
    with torch.inference_mode():
        outputs = model.conv_outputs(_images(2, 64))
        features = model.forward_features(_images(2, 64))
        assert torch.equal(model(_images(2, 64)), features)  # not negative already
    assert features.shape == (2, width)
    assert len(outputs) == blocks
    assert [outputs[place].shape[2] for place in (0, 1, -1)] == [32, 16, 2]
    torch.testing.assert_close(features, outputs[-1].mean((2, 3)))
    with torch.enable_grad():  # without the fused first layer
        torch.testing.assert_close(model.forward_features(_images(2, 64)).detach(), features, rtol=1e-3, atol=1e-4)


def test_a_residual_block_adds_its_input():
    block = ResNet(18).layer1[0].eval()
    x = torch.randn(1, 64, 4, 4)
    with torch.no_grad():
        block.bn2.weight.zero_()
        assert torch.equal(block(x), x.relu())


def test_any_network_sees_normalised_colours():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 2), nn.Flatten())
    model = CustomBackbone(network, 2 * 7 * 7)
    images = _images(3, 8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = network((images / 255 - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(model.forward_features(images / 255), expected)
    assert [tuple(out.shape) for out in model.conv_outputs(images)] == [(3, 4, 8, 8), (3, 2, 7, 7)]
    with torch.no_grad():
        model.network[0].weight.zero_()
    assert network[0].weight.abs().sum() > 0  # a copy
    with pytest.raises(ValueError, match=r"returns 98 features per image of 8 pixels, got feature_dim=5"):
        CustomBackbone(network, 5)(images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inference_fuses_normalisation_and_relu_into_the_first_layer(monkeypatch, dtype):
    model = SmallConvNet(16, width=32).to(dtype)
    model.train()
    for seed in range(3):  # statistics that are not 0 and 1
        model(_images(8, 16).roll(seed, 0))
    norm = model.features[1]
    with torch.no_grad():
        norm.weight.uniform_(-2, 2, generator=torch.Generator().manual_seed(0))
        norm.bias.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    model.eval()
    expected = model.forward_features(_images(4, 16)).detach()
    monkeypatch.setattr(norm, "forward", None)
    with torch.inference_mode():
        features = model.forward_features(_images(4, 16))
    assert not torch.equal(features, torch.zeros_like(features))
    error = (features - expected).abs().max() / expected.abs().max()
    assert error < 50 * torch.finfo(dtype).eps


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("network", "size"), [(SmallConvNet, 16), (AlexNet, 63)])
def test_a_network_on_the_cpu_does_what_its_modules_do(monkeypatch, network, size, training, momentum):
    model = network(size, width=16, dropout=0.0)
    for norm in model.features:
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = momentum
    plain = copy.deepcopy(model)
    model.train(training)
    plain.train(training)
    blocks, op = [], ops.batch_norm_relu_pool
    monkeypatch.setattr(ops, "batch_norm_relu_pool", lambda *args, **kwargs: blocks.append(0) or op(*args, **kwargs))
    for seed in range(2):
        images = _images(6, size).roll(seed, 3)
        features = model.forward_features(images)
        torch.testing.assert_close(features, plain.classifier(plain.features(images).flatten(1)), atol=1e-5, rtol=1e-4)
    assert len(blocks) == 2 * len(_convolutions(model))
    assert model.state_dict().keys() == plain.state_dict().keys()
    for name, value in model.state_dict().items():  # running statistics too
        torch.testing.assert_close(value, plain.state_dict()[name], msg=name)
    if training:
        grad = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
        model.forward_features(images).backward(grad)
        plain.classifier(plain.features(images).flatten(1)).backward(grad)
        for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
            close = torch.linalg.vector_norm(ours.grad - theirs.grad) <= 1e-3 * torch.linalg.vector_norm(theirs.grad)
            # A constant before normalisation has no gradient but rounding.
            assert close or (name.endswith("bias") and theirs.grad.abs().max() < 1e-3), name


def test_other_arithmetic_than_float32_is_left_to_the_modules(monkeypatch):
    model, images = SmallConvNet(16, dropout=0.0), _images(4, 16)
    plain = copy.deepcopy(model)
    blocks = []
    monkeypatch.setattr(ops, "batch_norm_relu_pool", lambda *args, **kwargs: blocks.append(args))
    with torch.autocast("cpu", torch.bfloat16):
        features, expected = model.forward_features(images), plain.classifier(plain.features(images).flatten(1))
    assert features.dtype == torch.bfloat16
    assert torch.equal(features, expected)
    model, plain = model.double(), plain.double()
    features, expected = model.forward_features(images), plain.classifier(plain.features(images).flatten(1))
    assert features.dtype == torch.float64
    assert torch.equal(features, expected)
    assert not blocks


@pytest.mark.parametrize("sobel", [True, False])
@pytest.mark.parametrize(
    ("network", "size", "blocks"),
    [(AlexNet, 63, 5), (VGG16, 32, 13), (SmallConvNet, 32, 5), (SmallConvNet, 16, 5), (MicroAlexNet, 16, 5)],
)
def test_shapes(network, size, blocks, sobel):
    model = network(image_size=size, sobel=sobel, width=64).eval()
    with torch.inference_mode():
        features = model.forward_features(_images(2, size))
        outputs = model.conv_outputs(_images(2, size))
        top = model(_images(2, size))
    assert features.shape == (2, 64)
    assert torch.equal(top, features.relu())
    assert len(outputs) == blocks
    assert all(out.shape[0] == 2 and (out >= 0).all() and out.max() > 0 for out in outputs)
    assert [out.shape[1] for out in outputs] == [conv.weight.shape[0] for conv in _convolutions(model)]


@pytest.mark.parametrize("sobel", [True, False])
def test_bytes_and_fractions_are_the_same_image(sobel):
    model = SmallConvNet(16, sobel=sobel).eval()
    with torch.inference_mode():
        from_bytes = model.forward_features(_images(3, 16))
        from_floats = model.forward_features(_images(3, 16, torch.float32))
    torch.testing.assert_close(from_bytes, from_floats)


def test_gradients_reach_the_first_convolution():
    model = SmallConvNet(16, dropout=0.0)
    nn.functional.cross_entropy(build_top_layer(512, 7)(model(_images(4, 16))), torch.arange(4)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.features[0].weight.grad.abs().sum() > 0


def test_published_initialisation():
    torch.manual_seed(0)
    model = AlexNet(image_size=63)
    for conv in _convolutions(model):
        out, _, height, width = conv.weight.shape
        expected = math.sqrt(2 / (height * width * out))
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.03)
        assert conv.bias.abs().max() == 0
    for layer in (*model.classifier, build_top_layer(4096, 1000)):
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.01)
            assert layer.bias.abs().max() == 0


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at most 64"):
        SmallConvNet(65)
    with pytest.raises(ValueError, match="too small for 'alexnet'"):
        AlexNet(32)
    with pytest.raises(ValueError, match="arch must be one of 'alexnet'"):
        build_model("resnet", 32)
    with pytest.raises(ValueError, match="at most 64 for 'micro'"):
        MicroAlexNet(65)
