"""Weights of a network on disk: published checkpoints in, and exports out."""

from __future__ import annotations

import argparse
import io
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dcfast._files import replace
from dcfast.deepcluster.config import ARCHITECTURES, TrainConfig
from dcfast.deepcluster.filters import SOBEL
from dcfast.deepcluster.models import CustomBackbone, FeatureExtractor, load_state, misfits
from dcfast.deepcluster.run import Run, initial_model, load_run
from dcfast.deepcluster.rundir import FORMATS, RunDir, decoded, saved
from dcfast.deepcluster.vit import ViT, is_vit, vit_state

__all__ = ["FORMATS", "export", "load_network", "load_weights", "wrap_network"]

# What sits around the network in published files; torchvision's VGG-16 counts its top layer as part of the classifier.
_AROUND = ("top_layer.", "fc.", "classifier.6.", "sobel.")
# The same of vision transformers: classifiers, the heads of DINO and iBOT, the token and the decoder of masked images.
_AROUND_VIT = ("head.", "fc_norm.", "dino_head.", "ibot_head.", "mask_token", "decoder_")

# What holds a state_dict in a file: of a run, as published, as DINO saves its training.
_WRAPPERS = ("model", "state_dict", "teacher", "student")

# Sides of images that the networks are trained on if nothing else is said.
_SIDES = {"small": (32, 16), "micro": (32, 16)}
_SIDES_OF_OTHERS = (224,)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load weights from a file into a network.

    Parameters
    ----------
    model : nn.Module
        One of `dcfast.deepcluster.models`.
    path : str or path
        A run directory, its ``checkpoint.pt``, a file of `export`, a checkpoint as DeepCluster published them
        (``features.module.N.*``), or a state_dict with torchvision's names. Top layers and Sobel filters in it are not
        read.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no checkpoint, is damaged, holds what is not finite, or does not fit the network; the message names the
        first keys.
    """
    remedy = "choose --arch, --image-size and --sobel or --no-sobel as it was trained with"
    load_state(model, _network_state(path), path, remedy)


def load_network(path: str | os.PathLike[str], image_size: int | None = None) -> tuple[FeatureExtractor, int]:
    """Return the network that a run or a file holds.

    Parameters
    ----------
    path : str or path
        A run directory, whose configuration tells which network it is; or a file of `load_weights`, or one of a vision
        transformer with timm's names (DINO, DINOv2, DeiT, MAE), of which the shapes tell.
    image_size : int, optional
        Side of the images that it is to take, which fully connected layers fix. By default that of the run; of a file,
        32 or 16 pixels for the small and the micro network, what its positions were made for but at most 224 for a
        vision transformer, else 224.

    Returns
    -------
    network : FeatureExtractor
        On the CPU, in eval mode.
    image_size : int

    Raises
    ------
    FileNotFoundError
        If there is no such file, no run, or none of its epochs has ended.
    ValueError
        If it is no checkpoint, is damaged, holds what is not finite, or fits no network for images of that size.
    """
    model: FeatureExtractor
    if Path(path).is_dir():
        run = load_run(path)
        model, size = run.model, image_size or run.options.image_size
        assert size is not None  # stored options are resolved
    else:
        model, size = _matching(path, image_size)
    try:
        with torch.inference_mode():
            model.eval().forward_features(torch.zeros(1, 3, size, size))
    except RuntimeError as error:  # of torch, from a layer that is fully connected
        raise ValueError(
            f"image_size={size} does not fit the network of {path}: leave --image-size out, or give what it was "
            "trained with"
        ) from error
    return model, size


def wrap_network(network: torch.nn.Module, image_size: int | None = None) -> tuple[FeatureExtractor, int]:
    """Return a copy in float32 of any network of (N, 3, H, W) images normalised with the ImageNet mean and deviation.

    Parameters
    ----------
    network : torch.nn.Module
        Returns features: a tensor of a row per image, or what flattens to it.
    image_size : int, optional
        Side of the images that it is to take, 224 by default.

    Returns
    -------
    network : FeatureExtractor
        On the CPU, in eval mode.
    image_size : int

    Raises
    ------
    TypeError
        If it returns no tensor.
    ValueError
        If it takes no images of that size, or returns no row for each.
    """
    size = _SIDES_OF_OTHERS[0] if image_size is None else image_size
    model = CustomBackbone(network, feature_dim=0).cpu().float().eval()
    try:
        with torch.inference_mode():
            model.feature_dim = model.outputs(torch.zeros(1, 3, size, size)).shape[1]
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"image_size={size} does not fit the {type(network).__name__} ({error}): give the side that it takes"
        ) from error
    return model, size


def _matching(path: str | os.PathLike[str], image_size: int | None) -> tuple[FeatureExtractor, int]:
    """Return the network whose names and shapes are those of a file, with its weights, and the side of its images."""
    state = _network_state(path)
    if is_vit(state):
        state = vit_state({name: value for name, value in state.items() if not name.startswith(_AROUND_VIT)})
        try:
            vit = ViT(state)
        except ValueError as error:
            raise ValueError(f"{path} holds no vision transformer that can be read: {error}") from None
        load_state(vit, state, path, "give a ViT with a class token, a plain perceptron and learned positions")
        return vit, image_size or vit.image_size
    first = state.get("features.0.weight", state.get("conv1.weight"))
    sobel = first is not None and first.ndim == 4 and first.shape[1] == 2
    for arch in ARCHITECTURES:
        for size in [image_size] if image_size else _SIDES.get(arch, _SIDES_OF_OTHERS):
            config = TrainConfig(arch=arch, image_size=size, sobel=sobel)
            try:
                with torch.device("meta"):
                    fits = not misfits(initial_model(config), state)
            except ValueError:  # such images are too small for this network, or too large
                continue
            if fits:
                model = initial_model(config)
                model.load_state_dict(state, strict=False)  # older files do not count batches
                return model, size
    names = ", ".join(list(state)[:3])
    usual = "the usual sizes" if image_size is None else f"{image_size} pixels"
    raise ValueError(
        f"{path} fits no network, for images of {usual}: it has {names} and {max(0, len(state) - 3)} more. Give "
        "--image-size as it was trained with, or the directory of its run, which tells all of it"
    )


def export(run: Run, format: str = "state_dict", output: str | os.PathLike[str] | None = None) -> Path:
    """Write the network of a run to a file of its own.

    Parameters
    ----------
    run : Run
        With a checkpoint.
    format : {'state_dict', 'safetensors', 'published'}
        The state_dict as torch saves it (a ResNet's with torchvision's names); the same as safetensors; or a checkpoint
        as DeepCluster published them, for 'alexnet' and 'vgg16', with its top layer and Sobel filters.
    output : str or path, optional
        The file, replaced in one step; by default one in the run directory.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        For an unknown format, and for one that has no names for this network.
    FileNotFoundError
        If no epoch has ended, or the folder of ``output`` is missing.
    IsADirectoryError
        If ``output`` is a folder.
    ModuleNotFoundError
        For safetensors without its package.

    Warns
    -----
    UserWarning
        If the run was interrupted inside an epoch: the weights are those of that moment.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {format!r}")
    arch = run.options.arch
    if format == "published" and arch not in ("alexnet", "vgg16"):
        raise ValueError(f"format='published' has names for 'alexnet' and 'vgg16' only, got {arch!r}: use 'state_dict'")
    path = Path(output) if output is not None else run.dir.path / FORMATS[format]
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} for {path.name}: make it first, or choose another --output")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give --output a file in it")
    model = run.model
    if not run.moment.startswith("after"):
        warnings.warn(f"{run.dir.path} was interrupted: these are its weights {run.moment}", stacklevel=2)
    network = model.network if isinstance(model, CustomBackbone) else model
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    if format == "safetensors":
        content = _safetensors("--format state_dict").save(state)
    else:
        content = saved(state if format == "state_dict" else _published(run, state))
    replace(path, content)
    return path


def _network_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the state_dict of the network in a file, and nothing that sits around it; errors as for `load_weights`."""
    state = {_plain(name): value for name, value in _read(Path(path)).items()}
    state = {name: value for name, value in state.items() if not name.startswith(_AROUND)}
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{path} is of no use: {name} is not finite. Give weights of a run that did not diverge")
    return state


def _read(path: Path) -> Mapping[str, Tensor]:
    found: Any
    if path.is_dir():
        found = RunDir(path).read_checkpoint()
        if found is None:
            raise FileNotFoundError(f"no checkpoint in {path}")
    elif not path.exists():
        raise FileNotFoundError(f"no checkpoint {path}")
    else:
        load: Callable[[bytes], Any] = _load_torch
        if path.suffix == ".safetensors":
            load = _safetensors("a file of --format state_dict").load
        remedy = "give a state_dict of tensors as torch.save or safetensors write it, a published checkpoint, or a run"
        found = decoded(path, load, remedy)
    for name in _WRAPPERS:
        found = found.get(name, found) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise ValueError(f"{path} holds no state_dict: expected names and tensors, alone or under 'state_dict'")
    return found


def _load_torch(content: bytes) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):  # the options of a training, beside the weights
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _plain(name: str) -> str:
    """Take out what torch's DataParallel puts into a name, and what DINO calls the network that it trains."""
    return name.removeprefix("module.").replace(".module.", ".").removeprefix("backbone.")


def _published(run: Run, state: dict[str, Tensor]) -> dict[str, Any]:
    checkpoint = run.dir.read_checkpoint(needs=("epoch", "model", "head"))
    assert checkpoint is not None  # run.model was read from it
    names = {name.replace("features.", "features.module.", 1): value for name, value in state.items()}
    names |= {f"top_layer.{name}": value for name, value in checkpoint["head"].items()}
    if run.options.sobel:
        names |= {
            "sobel.0.weight": torch.full((1, 3, 1, 1), 1 / 3),
            "sobel.0.bias": torch.zeros(1),
            "sobel.1.weight": SOBEL[:, None].float(),
            "sobel.1.bias": torch.zeros(2),
        }
    return {"epoch": checkpoint["epoch"], "arch": run.options.arch, "state_dict": names}


def _safetensors(otherwise: str) -> ModuleType:
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"the package safetensors is missing: pip install safetensors, or use {otherwise}"
        ) from None
    return safetensors.torch
