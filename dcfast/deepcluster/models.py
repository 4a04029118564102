"""The networks: AlexNet and VGG-16 with batch normalisation as published, and a small one for small images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dcfast.nn import SobelConv2d

__all__ = ["VGG16", "AlexNet", "ConvNet", "NormalizedConv2d", "SmallConvNet", "build_model", "build_top_layer"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class NormalizedConv2d(nn.Conv2d):
    """A convolution over RGB images that are normalised with the ImageNet mean and standard deviation first.

    Takes (N, 3, H, W) images, uint8 in 0..255 or float in 0..1, like `dcfast.nn.SobelConv2d`, whose place it takes in
    a network that sees colours.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(3, out_channels, kernel_size, stride=stride, padding=padding)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve the normalised images: (N, 3, H, W) -> (N, out_channels, H', W')."""
        pixels = input.to(self.weight.dtype)
        if input.dtype == torch.uint8:
            pixels = pixels / 255
        return super().forward((pixels - self.mean) / self.std)


class ConvNet(nn.Module):
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

    feature_dim: int

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
        """Return what `features` does; for inference its first three layers are one op."""
        conv, norm, relu, *_ = self.features
        if self.training or torch.is_grad_enabled() or not isinstance(conv, SobelConv2d):
            return self.features(images)
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(relu, nn.ReLU)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        return self.features[3:](conv(images, scale, shift, relu=True))

    def forward(self, images: Tensor) -> Tensor:
        """Return what the top layer takes: `forward_features` after its ReLU."""
        return torch.relu(self.forward_features(images))

    def conv_outputs(self, images: Tensor) -> list[Tensor]:
        """Return the output of every convolution block after its ReLU and before any pooling, first block first."""
        outputs = []
        x = images
        for module in self.features:
            x = module(x)
            if isinstance(module, nn.ReLU):
                outputs.append(x)
        return outputs


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
        classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(flat, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
        )
        super().__init__(features, classifier, width)


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
    small images. Parameters as for `AlexNet`.
    """

    def __init__(self, image_size: int = 32, sobel: bool = True, dropout: float = 0.5, width: int = 512) -> None:
        plan: list[_Conv | _Pool] = [
            _Conv(32, 3, 1, 1),
            _Pool(2, 2),
            _Conv(96, 3, 1, 1),
            _Pool(2, 2),
            _Conv(192, 3, 1, 1),
            _Conv(128, 3, 1, 1),
            _Conv(128, 3, 1, 1),
            _Pool(2, 2),
        ]
        if image_size > 64:
            raise ValueError(f"image_size must be at most 64 for 'small', got {image_size}: use --arch alexnet")
        features, flat = _stack("small", plan, image_size, sobel)
        classifier = nn.Sequential(nn.Linear(flat, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width))
        super().__init__(features, classifier, width)
        # N(0, 0.01) suits the published width of 4,096; in narrower layers it shrinks the signal to nothing.
        for layer in self.classifier:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / layer.in_features))


def build_model(arch: str, image_size: int, sobel: bool = True, dropout: float = 0.5) -> ConvNet:
    """Return the freshly initialised network of that name, 'alexnet', 'vgg16' or 'small'."""
    networks: dict[str, type[AlexNet] | type[VGG16] | type[SmallConvNet]] = {
        "alexnet": AlexNet,
        "vgg16": VGG16,
        "small": SmallConvNet,
    }
    if arch not in networks:
        raise ValueError(f"arch must be one of {', '.join(map(repr, networks))}, got {arch!r}")
    return networks[arch](image_size=image_size, sobel=sobel, dropout=dropout)


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
            conv = nn.Conv2d(channels, step.channels, step.kernel, step.stride, step.padding)
        else:
            first = SobelConv2d if sobel else NormalizedConv2d
            conv = first(step.channels, step.kernel, stride=step.stride, padding=step.padding)
        layers += [conv, nn.BatchNorm2d(step.channels), nn.ReLU()]
        channels = step.channels
    return nn.Sequential(*layers), channels * size * size


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
