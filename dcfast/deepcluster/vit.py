"""Vision transformers (Dosovitskiy et al. 2021) for weights that others have trained; here they are not trained."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, scaled_dot_product_attention

from dcfast.deepcluster.models import FeatureExtractor, NormalizedConv2d

__all__ = ["ViT", "is_vit", "vit_state"]

# Checkpoints do not say how many heads there are. They are 64 wide in every published size but the largest of
# "Scaling Vision Transformers" and the huge one, which have 16.
_HEAD_WIDTH = 64
_SIXTEEN_HEADS = (1280, 1408, 1664)

_EPS = 1e-6  # of layer norms, in all the published weights
_USUAL_SIDE = 224


def is_vit(state: Mapping[str, Tensor]) -> bool:
    """Tell whether a state_dict is one of a vision transformer, by the names of timm, DINO, DINOv2, DeiT and MAE."""
    return "pos_embed" in state and "patch_embed.proj.weight" in state


def vit_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state_dict with DINOv2's name for register tokens, where timm has its own."""
    return {{"reg_token": "register_tokens"}.get(name, name): value for name, value in state.items()}


class ViT(FeatureExtractor):
    """A vision transformer whose features are its class token after the last norm.

    Takes (N, 3, H, W) images, uint8 in 0..255 or float in 0..1, and normalises them with the ImageNet mean and standard
    deviation. Its state_dict has the names of timm, which DINO, DINOv2, DeiT and MAE share.

    Parameters
    ----------
    state : mapping of str to Tensor
        What `vit_state` returns. Everything but the number of heads is read from its shapes: width, depth, patches,
        biases, layer scale, register tokens. The weights themselves are not.

    Attributes
    ----------
    feature_dim : int
        The width.
    patch_size : int
        Side of the patches in pixels; that of an image must be a multiple of it.
    image_size : int
        Side of the images that the position embeddings were made for, at most 224.

    Raises
    ------
    ValueError
        If the shapes are those of no transformer that this class can be.

    Notes
    -----
    Images of another side get position embeddings by bicubic interpolation; with antialiasing where there are register
    tokens, as DINOv2 was published.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        positions, kernel = state["pos_embed"], state["patch_embed.proj.weight"]
        if positions.ndim != 3 or kernel.ndim != 4 or kernel.shape[1] != 3 or kernel.shape[2] != kernel.shape[3]:
            raise ValueError(
                f"pos_embed is {tuple(positions.shape)} and patch_embed.proj.weight {tuple(kernel.shape)}: a ViT has "
                "(1, positions, width) and (width, 3, patch, patch)"
            )
        _, n_positions, width = positions.shape
        # timm leaves the class token's position out where it has added it to the token itself.
        self._grid = math.isqrt(n_positions)
        self._placed = self._grid**2 != n_positions
        if self._placed:
            self._grid = math.isqrt(n_positions - 1)
        if self._grid**2 + self._placed != n_positions:
            raise ValueError(
                f"pos_embed has {n_positions} positions: not those of a square of patches and a class token"
            )
        n_heads = 16 if width in _SIXTEEN_HEADS else width // _HEAD_WIDTH
        if not n_heads or width % n_heads or (width not in _SIXTEEN_HEADS and width % _HEAD_WIDTH):
            raise ValueError(f"pos_embed is {width} wide: heads are {_HEAD_WIDTH} wide, and it is no multiple of that")
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        self.feature_dim, self.patch_size = width, kernel.shape[2]
        self.image_size = min(self._grid * self.patch_size, _USUAL_SIDE // self.patch_size * self.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, n_positions, width))
        self.register_tokens = None
        if "register_tokens" in state:
            self.register_tokens = nn.Parameter(torch.zeros(1, state["register_tokens"].shape[1], width))
        self.patch_embed = nn.ModuleDict({"proj": NormalizedConv2d(width, self.patch_size, stride=self.patch_size)})
        hidden = state.get("blocks.0.mlp.fc1.bias", torch.empty(4 * width)).numel()
        bias, scaled = "blocks.0.attn.qkv.bias" in state, "blocks.0.ls1.gamma" in state
        self.blocks = nn.Sequential(*(_Block(width, n_heads, hidden, bias, scaled) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, _EPS)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the class token after the last norm: (N, 3, H, W) images -> (N, feature_dim).

        Raises
        ------
        ValueError
            If H or W is no multiple of the patches' side.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"images of {width} x {height} pixels do not divide into patches of {self.patch_size}: choose a "
                f"multiple of it as --image-size, such as {self.image_size}"
            )
        maps = self.patch_embed["proj"](images)
        classes, patches = self._positions(maps.shape[-2:])
        tokens = [self.cls_token + classes, maps.flatten(2).transpose(1, 2) + patches]
        if self.register_tokens is not None:  # which have no position
            tokens.insert(1, self.register_tokens)
        x = torch.cat([token.expand(len(images), -1, -1) for token in tokens], 1)
        return self.norm(self.blocks(x)[:, 0])

    def _positions(self, grid: torch.Size) -> tuple[Tensor | float, Tensor]:
        """Return the position embeddings of the class token and of a grid of patches."""
        classes = self.pos_embed[:, :1] if self._placed else 0.0
        patches = self.pos_embed[:, int(self._placed) :]
        if grid != (self._grid, self._grid):
            square = patches.unflatten(1, (self._grid, self._grid)).permute(0, 3, 1, 2)
            antialias = self.register_tokens is not None
            patches = interpolate(square, grid, mode="bicubic", antialias=antialias).flatten(2).transpose(1, 2)
        return classes, patches


class _Block(nn.Module):
    """Attention and a perceptron, each behind a norm, and each added to what it saw."""

    def __init__(self, width: int, n_heads: int, hidden: int, bias: bool, scaled: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, _EPS), nn.LayerNorm(width, _EPS)
        self.attn = _Attention(width, n_heads, bias)
        self.mlp = _Perceptron(width, hidden)
        self.ls1, self.ls2 = (_Scale(width) if scaled else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Attention(nn.Module):
    def __init__(self, width: int, n_heads: int, bias: bool) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width, bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, N, heads, tokens, width)
        return self.proj(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class _Perceptron(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class _Scale(nn.Module):
    """Layer scale: a factor per feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma
