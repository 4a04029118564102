"""The networks: AlexNet and VGG-16 with batch normalisation as published, ResNets, small ones, and any."""

from __future__ import annotations

import copy
import itertools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dcfast import ops
from dcfast.nn import IMAGENET_MEAN, IMAGENET_STD, SobelConv2d, WinogradConv2d

__all__ = [
    "VGG16",
    "AlexNet",
    "Backbone",
    "ConvNet",
    "CustomBackbone",
    "FeatureExtractor",
    "MicroAlexNet",
    "NormalizedConv2d",
    "ResNet",
    "SmallConvNet",
    "build_model",
    "build_top_layer",
    "load_state",
    "misfits",
]

_NAMED = 3  # keys that an error names


class NormalizedConv2d(nn.Conv2d):
    """A convolution over RGB images that are normalised with the ImageNet mean and standard deviation first.

    Takes (N, 3, H, W) images, uint8 in 0..255 or float in 0..1, like `dcfast.nn.SobelConv2d`, whose place it takes in
    a network that sees colours.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__(3, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve the normalised images: (N, 3, H, W) -> (N, out_channels, H', W')."""
        return super().forward(_normalised(input, self.mean, self.std))


def _normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    pixels = images.to(mean.dtype)
    if images.dtype == torch.uint8:
        pixels = pixels / 255
    return (pixels - mean) / std


class FeatureExtractor(nn.Module, ABC):
    """A network that turns images into features.

    Attributes
    ----------
    feature_dim : int
        Width of the features.
    """

    feature_dim: int

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """Return what is clustered: (N, 3, H, W) images, uint8 or floats in 0..1 -> (N, feature_dim)."""


class Backbone(FeatureExtractor):
    """What a run trains under its top layer."""

    def forward(self, images: Tensor) -> Tensor:
        """Return what the top layer takes: `forward_features` after a ReLU."""
        return torch.relu(self.forward_features(images))

    @abstractmethod
    def conv_outputs(self, images: Tensor) -> list[Tensor]:
        """Return the output of every convolution block, first block first: what the probe looks at."""


class ConvNet(Backbone):
    """A sequence of convolution blocks and a fully connected head; the parts that the networks here share.

    Attributes
    ----------
    features : nn.Sequential
        Convolution, batch normalisation, ReLU, and pooling where the network has it.
    classifier : nn.Sequential
        The head up to its last fully connected layer, without the ReLU that follows it.
    feature_dim : int
        Width of that layer.
    """

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential, feature_dim: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.feature_dim = feature_dim
        self.apply(_initialise)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last fully connected layer before its ReLU: (N, 3, H, W) images -> (N, feature_dim)."""
        return self.classifier(self._convolve(images).flatten(1))

    def _convolve(self, images: Tensor) -> Tensor:
        x = images
        modules = list(self.features)
        for at, (conv, norm) in enumerate(itertools.pairwise(modules)):
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            pool = modules[at + 3] if at + 3 < len(modules) else None
            x = _block(conv, norm, pool if isinstance(pool, nn.MaxPool2d) else None, x)
        return x

    def conv_outputs(self, images: Tensor) -> list[Tensor]:
        """Return the output of every convolution block after its ReLU and before any pooling, first block first."""
        outputs = []
        x = images
        for module in self.features:
            x = module(x)
            if isinstance(module, nn.ReLU):
                outputs.append(x)
        return outputs


def _block(conv: nn.Module, norm: nn.BatchNorm2d, pool: nn.MaxPool2d | None, x: Tensor) -> Tensor:
    """Return convolution, normalisation, ReLU and pooling; in float32 on the CPU all but the first as one op."""
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or norm.weight.dtype != torch.float32:
        x = _first_block(conv, norm, x)
        return x if pool is None else pool(x)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    x = conv(x)
    kernel, stride = (1, 1) if pool is None else (pool.kernel_size, pool.stride)
    assert isinstance(kernel, int)
    assert isinstance(stride, int)
    constants = {} if norm.training else {"mean": norm.running_mean, "variance": norm.running_var}
    out, mean, variance = ops.batch_norm_relu_pool(
        x, norm.weight, norm.bias, **constants, eps=norm.eps, kernel_size=kernel, stride=stride
    )
    if norm.training:
        with torch.no_grad():
            norm.num_batches_tracked += 1
            share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            count = x.numel() // x.shape[1]
            norm.running_mean.lerp_(mean.float(), share)
            norm.running_var.lerp_((variance * (count / (count - 1))).float(), share)
    return out


def _first_block(conv: nn.Module, norm: nn.BatchNorm2d, images: Tensor) -> Tensor:
    """Return convolution, normalisation and ReLU; one op for inference behind Sobel."""
    if norm.training or torch.is_grad_enabled() or not isinstance(conv, SobelConv2d):
        return torch.relu(norm(conv(images)))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    return conv(images, scale, shift, relu=True)


class AlexNet(ConvNet):
    """AlexNet with batch normalisation, as DeepCluster published it.

    Parameters
    ----------
    image_size : int
        Side of the square images, 63 pixels or more.
    sobel : bool
        Look at Sobel gradients (fused with the first convolution) rather than colours.
    dropout : float
        Before each fully connected layer.
    width : int
        Units of each fully connected layer.
    """

    def __init__(self, image_size: int = 224, sobel: bool = True, dropout: float = 0.5, width: int = 4096) -> None:
        plan: list[_Conv | _Pool] = [
            _Conv(96, 11, 4, 2),
            _Pool(3, 2),
            _Conv(256, 5, 1, 2),
            _Pool(3, 2),
            _Conv(384, 3, 1, 1),
            _Conv(384, 3, 1, 1),
            _Conv(256, 3, 1, 1),
            _Pool(3, 2),
        ]
        features, flat = _stack("alexnet", plan, image_size, sobel)
        super().__init__(features, _alexnet_head(flat, width, dropout), width)


class VGG16(ConvNet):
    """VGG-16 with batch normalisation, as DeepCluster published it; parameters as for `AlexNet`, 32 pixels or more."""

    def __init__(self, image_size: int = 224, sobel: bool = True, dropout: float = 0.5, width: int = 4096) -> None:
        plan: list[_Conv | _Pool] = []
        for channels, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            plan += [_Conv(channels, 3, 1, 1)] * repeats + [_Pool(2, 2)]
        features, flat = _stack("vgg16", plan, image_size, sobel)
        classifier = nn.Sequential(nn.Linear(flat, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width))
        super().__init__(features, classifier, width)


class SmallConvNet(ConvNet):
    """Five 3x3 convolutions for images of 8 to 64 pixels, about a hundredth of AlexNet's work at 32 pixels.

    The layout follows AlexNet's (pooling after the first, second and fifth block) with strides and kernels that suit
    small images. Parameters as for `AlexNet`, and ``filters``, a factor on the number of filters of each block.
    """

    def __init__(
        self,
        image_size: int = 32,
        sobel: bool = True,
        dropout: float = 0.5,
        width: int = 512,
        filters: float = 1.0,
    ) -> None:
        features, flat = _small_stack("small", (32, 96, 192, 128, 128), image_size, sobel, filters)
        classifier = nn.Sequential(nn.Linear(flat, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width))
        super().__init__(features, classifier, width)
        _keep_scale(self.classifier)


class MicroAlexNet(ConvNet):
    """The micro AlexNet of "A Deep Dive into Deep Cluster" (2022) for images of 8 to 64 pixels.

    Five 3x3 convolutions of 64, 192, 384, 256 and 256 filters with batch normalisation, pooling after the first, second
    and fifth, and two fully connected layers of 2,048 units. Parameters as for `SmallConvNet`.
    """

    def __init__(
        self,
        image_size: int = 32,
        sobel: bool = True,
        dropout: float = 0.5,
        width: int = 2048,
        filters: float = 1.0,
    ) -> None:
        features, flat = _small_stack("micro", (64, 192, 384, 256, 256), image_size, sobel, filters)
        super().__init__(features, _alexnet_head(flat, width, dropout), width)
        _keep_scale(self.classifier)


class ResNet(Backbone):
    """ResNet-18 and ResNet-50 (He et al. 2016), their features being the mean over the last maps.

    Its state_dict has torchvision's names without ``fc``; the 3x3 convolution of a bottleneck has the stride, as there.

    Parameters
    ----------
    depth : {18, 50}
    sobel : bool
        Look at Sobel gradients (fused with the first convolution) rather than colours.
    """

    def __init__(self, depth: int, sobel: bool = True) -> None:
        super().__init__()
        repeats, expansion = {18: ((2, 2, 2, 2), 1), 50: ((3, 4, 6, 3), 4)}[depth]
        self.conv1 = (SobelConv2d if sobel else NormalizedConv2d)(64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        self.stages: list[str] = []
        for number, blocks in enumerate(repeats):
            width = 64 * 2**number
            layers = []
            for block in range(blocks):
                layers.append(_Residual(channels, width, 2 if number and not block else 1, expansion))
                channels = width * expansion
            self.stages.append(f"layer{number + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*layers))
        self.feature_dim = channels
        self.apply(_initialise)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the mean over the last maps: (N, 3, H, W) images -> (N, feature_dim), not negative."""
        return self.conv_outputs(images)[-1].mean((2, 3))

    def conv_outputs(self, images: Tensor) -> list[Tensor]:
        """Return the output of the first convolution and of every residual block, after their ReLUs."""
        outputs = [_first_block(self.conv1, self.bn1, images)]
        x = nn.functional.max_pool2d(outputs[0], 3, 2, 1)
        for stage in self.stages:
            for block in self.get_submodule(stage).children():
                x = block(x)
                outputs.append(x)
        return outputs


class _Residual(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of three, around which the input goes."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        out = width * expansion
        if expansion == 1:
            shapes = [(channels, width, 3, stride), (width, width, 3, 1)]
        else:
            shapes = [(channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
        self.depth = len(shapes)
        for number, (inner, outer, kernel, step) in enumerate(shapes, 1):
            conv = _conv(inner, outer, kernel, step, kernel // 2, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(outer))
        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(y))
            if number < self.depth:
                y = torch.relu(y)
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class CustomBackbone(Backbone):
    """A copy of any network, which gets (N, 3, H, W) images normalised with the ImageNet mean and standard deviation.

    Its output is clustered, and goes to the top layer, as it is; the probe looks at the outputs of its `nn.Conv2d`.

    Parameters
    ----------
    network : nn.Module
        Takes float images, returns (N, feature_dim) or what flattens to it.
    feature_dim : int
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, feature_dim: int) -> None:
        super().__init__()
        with torch.no_grad():  # or what torch.jit made would be a copy that has a history, and cannot be trained
            self.network = copy.deepcopy(network)
        for copied, given in zip(self.network.parameters(), network.parameters(), strict=True):
            copied.requires_grad = given.requires_grad
        self.feature_dim = feature_dim
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the network's output: (N, 3, H, W) images -> (N, feature_dim).

        Raises
        ------
        TypeError
            If it is no tensor.
        ValueError
            If it has another width, or not a row for every image.
        """
        features = self.outputs(images)
        if features.shape[1] != self.feature_dim:
            raise ValueError(
                f"the backbone returns {features.shape[1]} features per image of {images.shape[-1]} pixels, got "
                f"feature_dim={self.feature_dim}"
            )
        return features

    def outputs(self, images: Tensor) -> Tensor:
        """Return what the network makes of the images, a row for each, whatever its width.

        Raises
        ------
        TypeError
            If it is no tensor.
        ValueError
            If it has not a row of real numbers for every image.
        """
        # In rows, as torch makes images: networks that call `view` on their maps rely on it.
        output = self.network(_normalised(images, self.mean, self.std).contiguous())
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the backbone returns a {type(output).__name__}, not a tensor of features: wrap it in a module that "
                "returns them alone"
            )
        if output.shape[:1] != images.shape[:1] or output.numel() == 0 or output.is_complex():
            raise ValueError(
                f"the backbone returns {output.dtype} of shape {tuple(output.shape)} for {len(images)} image(s): a row "
                "of real features for each is needed"
            )
        return output.reshape(len(output), -1)

    def forward(self, images: Tensor) -> Tensor:
        """Return what the top layer takes: `forward_features`."""
        return self.forward_features(images)

    def conv_outputs(self, images: Tensor) -> list[Tensor]:
        """Return the output of every `nn.Conv2d`, in the order in which they run."""
        outputs: list[Tensor] = []
        hooks = [
            module.register_forward_hook(lambda _, __, output: outputs.append(output))
            for module in self.network.modules()
            if isinstance(module, nn.Conv2d)
        ]
        try:
            self.forward_features(images)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs


def build_model(arch: str, image_size: int, sobel: bool = True, dropout: float = 0.5, filters: float = 1.0) -> Backbone:
    """Return the freshly initialised network of that name, one of `dcfast.deepcluster.config.ARCHITECTURES`."""
    large: dict[str, type[AlexNet] | type[VGG16]] = {"alexnet": AlexNet, "vgg16": VGG16}
    small: dict[str, type[SmallConvNet] | type[MicroAlexNet]] = {"small": SmallConvNet, "micro": MicroAlexNet}
    depths = {"resnet18": 18, "resnet50": 50}
    if arch in small:
        return small[arch](image_size=image_size, sobel=sobel, dropout=dropout, filters=filters)
    if arch in large:
        return large[arch](image_size=image_size, sobel=sobel, dropout=dropout)
    if arch in depths:
        return ResNet(depths[arch], sobel)
    raise ValueError(f"arch must be one of {', '.join(map(repr, (*large, *small, *depths)))}, got {arch!r}")


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str], remedy: str) -> None:
    """Load a state_dict, or say in one line why it does not fit.

    Parameters
    ----------
    model : nn.Module
        Left as it was if the state does not fit.
    state : mapping of str to Tensor
        All values of the model; ``num_batches_tracked``, which older checkpoints lack, may be missing.
    path, remedy : str
        What the error names.

    Raises
    ------
    ValueError
        Naming up to three keys that are missing, unexpected, or of another shape.
    """
    found = misfits(model, state)
    if found:
        raise ValueError(f"{path} does not fit the network: {'; '.join(found)}. {remedy[0].upper()}{remedy[1:]}")
    model.load_state_dict(state, strict=False)


def misfits(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Return why a state_dict does not fit a model, in words: nothing if it does."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    strange = [name for name in state if name not in expected]
    shapes = [
        f"{name} is {tuple(state[name].shape)} there and {tuple(value.shape)} here"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    return [
        f"{what}{', '.join(names[:_NAMED])}{f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''}"
        for what, names in (("it lacks ", missing), ("it has ", strange), ("", shapes))
        if names
    ]


def build_top_layer(feature_dim: int, n_clusters: int) -> nn.Linear:
    """Return a new top layer: weights from N(0, 0.01), biases 0."""
    layer = nn.Linear(feature_dim, n_clusters)
    _initialise(layer)
    return layer


class _Conv:
    """Filters, kernel, stride and padding of a convolution block."""

    def __init__(self, channels: int, kernel: int, stride: int, padding: int) -> None:
        self.channels, self.kernel, self.stride, self.padding = channels, kernel, stride, padding


class _Pool:
    """Kernel and stride of a max pooling."""

    def __init__(self, kernel: int, stride: int) -> None:
        self.kernel, self.stride, self.padding = kernel, stride, 0


def _conv(inner: int, outer: int, kernel: int, stride: int, padding: int, bias: bool = True) -> nn.Conv2d:
    if (kernel, stride, padding) == (3, 1, 1):
        return WinogradConv2d(inner, outer, bias)
    return nn.Conv2d(inner, outer, kernel, stride, padding, bias=bias)


def _stack(arch: str, plan: Sequence[_Conv | _Pool], image_size: int, sobel: bool) -> tuple[nn.Sequential, int]:
    """Build the convolution blocks, and count the values that they leave per image."""
    layers: list[nn.Module] = []
    channels, size = 0, image_size
    for step in plan:
        size = (size + 2 * step.padding - step.kernel) // step.stride + 1
        if size < 1:
            raise ValueError(f"image_size={image_size} is too small for {arch!r}: choose larger images")
        if isinstance(step, _Pool):
            layers.append(nn.MaxPool2d(step.kernel, step.stride))
            continue
        conv: nn.Module
        if channels:
            conv = _conv(channels, step.channels, step.kernel, step.stride, step.padding)
        else:
            first = SobelConv2d if sobel else NormalizedConv2d
            conv = first(step.channels, step.kernel, stride=step.stride, padding=step.padding)
        layers += [conv, nn.BatchNorm2d(step.channels), nn.ReLU()]
        channels = step.channels
    return nn.Sequential(*layers), channels * size * size


def _small_stack(
    arch: str, channels: Sequence[int], image_size: int, sobel: bool, filters: float
) -> tuple[nn.Sequential, int]:
    """Build five 3x3 convolution blocks for small images, pooled where AlexNet is."""
    if image_size > 64:
        raise ValueError(f"image_size must be at most 64 for {arch!r}, got {image_size}: use --arch alexnet")
    plan: list[_Conv | _Pool] = []
    for number, published in enumerate(channels):
        plan += [_Conv(max(1, round(filters * published)), 3, 1, 1), *([_Pool(2, 2)] if number in (0, 1, 4) else [])]
    return _stack(arch, plan, image_size, sobel)


def _alexnet_head(flat: int, width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(flat, width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, width),
    )


def _keep_scale(classifier: nn.Sequential) -> None:
    # N(0, 0.01) suits the published width of 4,096; in narrower layers it shrinks the signal to nothing.
    for layer in classifier:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / layer.in_features))


def _initialise(module: nn.Module) -> None:
    """Initialise one layer as published: N(0, sqrt(2 / (kh kw out))) for convolutions, N(0, 0.01) for linear ones."""
    if isinstance(module, nn.Conv2d | SobelConv2d):
        out_channels, _, height, width = module.weight.shape
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / (height * width * out_channels)))
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.01)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
