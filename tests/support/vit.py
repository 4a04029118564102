"""Weights of small vision transformers."""

import torch

WIDTH, PATCH, GRID = 128, 4, 5


def make(depth=3, *, width=WIDTH, positions=GRID**2 + 1, scaled=False, registers=0, bias=True):
    """A state_dict with the published names and random weights."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, scale=0.1, mean=0.0):
        return mean + scale * torch.randn(*shape, generator=generator)

    state = {
        "cls_token": draw(1, 1, width, scale=1.0),
        "pos_embed": draw(1, positions, width, scale=1.0),
        "patch_embed.proj.weight": draw(width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": draw(width),
        "norm.weight": draw(width, mean=1.0),
        "norm.bias": draw(width),
    }
    if registers:
        state["register_tokens"] = draw(1, registers, width, scale=1.0)
    for block in range(depth):
        layers = {
            "norm1": (draw(width, mean=1.0), draw(width)),
            "attn.qkv": (draw(3 * width, width), draw(3 * width)),
            "attn.proj": (draw(width, width), draw(width)),
            "norm2": (draw(width, mean=1.0), draw(width)),
            "mlp.fc1": (draw(3 * width, width), draw(3 * width)),
            "mlp.fc2": (draw(width, 3 * width), draw(width)),
        }
        for name, (weight, shift) in layers.items():
            state[f"blocks.{block}.{name}.weight"] = weight
            if bias or name != "attn.qkv":
                state[f"blocks.{block}.{name}.bias"] = shift
        if scaled:
            state |= {f"blocks.{block}.ls{one}.gamma": draw(width, mean=0.5) for one in (1, 2)}
    return state
