"""Vision transformers: against torch's own encoder, by all the names that weights were published with.

No published weights are at hand: the weights here are random ones under the published names.
"""

import argparse

import pytest
import safetensors.torch
import torch
from support.vit import GRID, PATCH, WIDTH, make
from torch.nn.functional import conv2d, interpolate

from dcfast.deepcluster.vit import ViT, vit_state
from dcfast.deepcluster.weights import load_network
from dcfast.nn import IMAGENET_MEAN, IMAGENET_STD


def oracle(state, images):
    """The class token by torch's own encoder layers, whose weights take layer scale in."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    state = {name: value.double() for name, value in state.items()}
    width = state["cls_token"].shape[-1]
    pixels = (images.double() / 255 - mean) / std
    maps = conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    patches, positions = maps.flatten(2).mT, state["pos_embed"]
    grid = maps.shape[-1]
    if grid != GRID:
        square = positions[:, 1:].mT.reshape(1, width, GRID, GRID)
        resized = interpolate(square, size=(grid, grid), mode="bicubic", antialias="register_tokens" in state)
        positions = torch.cat([positions[:, :1], resized.flatten(2).mT], 1)
    tokens = torch.cat([state["cls_token"].expand(len(images), -1, -1), patches], 1) + positions
    if "register_tokens" in state:
        registers = state["register_tokens"].expand(len(images), -1, -1)
        tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], 1)
    depth = sum(name.endswith("norm1.weight") for name in state)
    for block in range(depth):
        own = {name.split(".", 2)[2]: value for name, value in state.items() if name.startswith(f"blocks.{block}.")}
        hidden = len(own["mlp.fc1.bias"])
        layer = torch.nn.TransformerEncoderLayer(
            width, width // 64, hidden, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True, dtype=torch.float64
        )
        first, second = (own.get(f"ls{one}.gamma", torch.ones(width)) for one in (1, 2))
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": own["attn.qkv.weight"],
                "self_attn.in_proj_bias": own.get("attn.qkv.bias", torch.zeros(3 * width)),
                "self_attn.out_proj.weight": own["attn.proj.weight"] * first[:, None],
                "self_attn.out_proj.bias": own["attn.proj.bias"] * first,
                "linear1.weight": own["mlp.fc1.weight"],
                "linear1.bias": own["mlp.fc1.bias"],
                "linear2.weight": own["mlp.fc2.weight"] * second[:, None],
                "linear2.bias": own["mlp.fc2.bias"] * second,
                **{
                    f"{name}.{part}": own[f"{name}.{part}"]
                    for name in ("norm1", "norm2")
                    for part in ("weight", "bias")
                },
            }
        )
        tokens = layer.train()(tokens)  # without dropout: the same, and never by the fused path of inference
    return torch.nn.functional.layer_norm(tokens[:, 0], (width,), state["norm.weight"], state["norm.bias"], 1e-6)


def images(side=PATCH * GRID, n=3):
    return torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def network(tmp_path, content, name="vit.pth"):
    torch.save(content, tmp_path / name)
    return load_network(tmp_path / name)[0]


@pytest.mark.parametrize(
    "options",
    [{}, {"scaled": True}, {"registers": 4, "scaled": True}, {"bias": False}, {"depth": 11}, {"width": 192}],
    ids=str,
)
@pytest.mark.parametrize("grid", [GRID, 3, 8])
def test_features_are_those_of_torch_s_encoder(tmp_path, options, grid):
    state, seen = make(**options), images(PATCH * grid)
    vit = network(tmp_path, state)
    assert (vit.feature_dim, vit.patch_size, vit.image_size) == (options.get("width", WIDTH), PATCH, PATCH * GRID)
    with torch.inference_mode():
        found, from_floats = vit.forward_features(seen), vit.forward_features(seen / 255)
    wanted = oracle(state, seen).float()
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(from_floats, wanted, atol=2e-5, rtol=2e-5)
    assert (wanted[0] - wanted[1]).abs().max() > 0.05  # features that hardly depend on the images would prove little


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": {**state, "head.weight": torch.zeros(9, WIDTH), "head.bias": torch.zeros(9)}},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {
            "model": {**state, "mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 2, 8)}
        },
        lambda state: {**state, "fc_norm.weight": torch.ones(WIDTH), "fc_norm.bias": torch.ones(WIDTH)},
        lambda state: {
            "student": {f"module.backbone.{name}": value + 1 for name, value in state.items()},
            "teacher": {"head.mlp.0.weight": torch.ones(2), **{f"backbone.{name}": v for name, v in state.items()}},
            "args": argparse.Namespace(arch="vit_small"),
            "epoch": 100,
        },
        lambda state: {"student": {f"module.backbone.{name}": value for name, value in state.items()}},
        lambda state: {name: value.half() for name, value in state.items()},
    ],
    ids=["deit", "module", "mae", "fc_norm", "dino", "student", "half"],
)
def test_published_files_hold_the_same_network(tmp_path, wrap):
    state = {name: value.half().float() for name, value in make().items()}
    with torch.inference_mode():
        found = network(tmp_path, wrap(state)).forward_features(images())
    torch.testing.assert_close(found, oracle(state, images()).float(), atol=2e-5, rtol=2e-5)


def test_timm_adds_the_position_of_the_class_token_to_it(tmp_path):
    state = make(registers=4)
    changed = {name: value for name, value in state.items() if name != "register_tokens"}
    changed["reg_token"] = state["register_tokens"]
    changed["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    changed["pos_embed"] = state["pos_embed"][:, 1:]
    safetensors.torch.save_file({name: v.contiguous() for name, v in changed.items()}, tmp_path / "timm.safetensors")
    vit, side = load_network(tmp_path / "timm.safetensors")
    assert side == PATCH * GRID
    for grid in (GRID, 7):
        with torch.inference_mode():
            found = vit.forward_features(images(PATCH * grid))
        torch.testing.assert_close(found, oracle(state, images(PATCH * grid)).float(), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6), (768, 12), (1024, 16), (1280, 16), (1536, 24)])
def test_published_sizes_have_their_heads(width, heads):
    with torch.device("meta"):
        vit = ViT(vit_state(make(1, width=width)))
    assert vit.blocks[0].attn.n_heads == heads


@pytest.mark.parametrize(("positions", "side"), [(37**2 + 1, 148), (57**2, 224), (101**2 + 1, 224)])
def test_images_are_as_large_as_the_positions_say_but_at_most_224(positions, side):
    assert ViT(make(1, positions=positions)).image_size == side


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos_embed": torch.zeros(1, 28, WIDTH)}, "pos_embed has 28 positions: not those of a square"),
        ({"pos_embed": torch.zeros(1, 26, 100)}, "pos_embed is 100 wide: heads are 64 wide"),
        ({"pos_embed": torch.zeros(26, WIDTH)}, r"pos_embed is \(26, 128\)"),
        ({"patch_embed.proj.weight": torch.zeros(WIDTH, 1, 4, 4)}, r"patch_embed.proj.weight \(128, 1, 4, 4\)"),
        ({"dist_token": torch.zeros(1, 1, WIDTH)}, "it has dist_token. Give a ViT with a class token"),
        ({"blocks.0.mlp.w12.weight": torch.zeros(1)}, "it has blocks.0.mlp.w12.weight"),
        ({"norm.weight": None}, "it lacks norm.weight"),
        ({"blocks.1.attn.proj.weight": None}, "it lacks blocks.1.attn.proj.weight"),
        ({"norm.bias": torch.full((WIDTH,), torch.nan)}, "norm.bias is not finite"),
    ],
)
def test_weights_of_other_transformers_are_refused_by_name(tmp_path, changes, message):
    state = {name: value for name, value in {**make(2), **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        network(tmp_path, state)


def test_images_must_divide_into_patches(tmp_path):
    torch.save(make(), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"22 x 22 pixels do not divide into patches of 4: .* such as 20"):
        load_network(tmp_path / "vit.pth", 22)
    assert load_network(tmp_path / "vit.pth", 24)[1] == 24
