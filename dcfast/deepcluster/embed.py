"""Features of images by a network that is trained already."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator

import numpy as np
import torch

from dcfast.cluster.ranks import Ranks
from dcfast.deepcluster.config import TrainConfig, find_device
from dcfast.deepcluster.data import describe_source
from dcfast.deepcluster.embedding import DESCRIPTION, FEATURES, IMAGES, new_files
from dcfast.deepcluster.progress import Display
from dcfast.deepcluster.stages import feature_batches
from dcfast.deepcluster.trainer import Data, data_workers, look, out_of_memory, versions
from dcfast.deepcluster.weights import load_network, wrap_network

__all__ = ["embed"]


def embed(
    data: Data,
    weights: str | os.PathLike[str] | torch.nn.Module,
    output: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "float32",
    limit: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    display: Display | None = None,
) -> tuple[int, int]:
    """Write the features of all images that decode: of their centre crops, by a network in eval mode.

    Parameters
    ----------
    data : 'digits', a folder, or a torch Dataset
        The images.
    weights : str, path or torch.nn.Module
        What `dcfast.deepcluster.weights.load_network` reads: a run, an export, a published checkpoint of DeepCluster's
        networks or torchvision's, or one of a vision transformer (DINO, DINOv2, DeiT, MAE, timm). Or any network, with
        its weights, that takes (N, 3, H, W) float images, normalised with the ImageNet mean and standard deviation, and
        returns their features: a copy of it in float32 is used.
    output : str or path
        Folder for ``features.npy`` (float32, (N, d)), ``images.npz`` (files, label, class_names) and
        ``embedding.json`` (what made it).
    image_size : int, optional
        Side of the crops; by default what `load_network` says, and 224 for a network of your own.
    batch_size, workers, device, precision, limit, seed
        As of `dcfast.deepcluster.TrainConfig`.
    overwrite : bool
        Replace an embedding that is there already.
    display : Display, optional
        Shows the progress.

    Returns
    -------
    (N, d)
        The shape of the features.

    Raises
    ------
    FileNotFoundError, NotADirectoryError, TypeError, ValueError
        For images or weights that are missing or of no use, and for options out of range.
    FileExistsError
        If ``output`` holds an embedding, and ``overwrite`` is off.
    FloatingPointError
        If a feature is not finite.
    MemoryError, OSError
        If memory or the disk does not suffice.

    Notes
    -----
    Features are written batch by batch: memory does not grow with N, but for the names of the images. Whatever ends it
    early leaves ``output`` as it was.
    """
    config = TrainConfig(
        image_size=image_size,
        batch_size=batch_size,
        workers=workers,
        device=device,
        precision=precision,
        limit=limit,
        seed=seed,
    )
    place, display = find_device(device), display or Display()
    files = new_files(output, (FEATURES, IMAGES, DESCRIPTION), overwrite)
    # What says no device is made on the CPU, whatever torch's default device is, and moved to where it is wanted.
    with torch.device("cpu"), files as (features, images, description):
        if isinstance(weights, torch.nn.Module):
            model, side = wrap_network(weights, image_size)
            path, network = None, type(weights).__name__
        else:
            model, side = load_network(weights, image_size)
            path, network = os.path.abspath(weights), type(model).__name__
        found = look(data, config, display, Ranks())
        found.image_size = side
        config = dataclasses.replace(config, image_size=side, workers=data_workers(found.source, workers))
        shape = (len(found), model.feature_dim)
        free = shutil.disk_usage(output).free
        if free < 4 * shape[0] * shape[1]:
            raise OSError(
                f"features take {4 * shape[0] * shape[1]:,} bytes, and only {free:,} are free in {output}: make room, "
                "or choose another --output"
            )
        np.lib.format.write_array_header_1_0(
            features,
            {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape},
        )
        model.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
        batches = feature_batches(model, found, config, display, {}, range(len(found)))
        with contextlib.closing(batches), _memory_named():  # ends the bar before an error is told
            for batch in batches:
                rows = batch.float().cpu().numpy()
                if not np.isfinite(rows).all():
                    remedy = "" if precision == "float32" else ": use --precision float32"
                    raise FloatingPointError(f"the features of {path or network} are not finite{remedy}")
                features.write(rows.tobytes())
        np.savez(
            images,
            allow_pickle=False,
            files=np.array(found.names, dtype=np.str_),
            label=found.labels,
            class_names=np.array(found.class_names, dtype=np.str_),
        )
        about = {
            "weights": path,
            "network": network,
            "image_size": side,
            "precision": precision,
            "data": describe_source(found),
            "versions": versions(),
        }
        description.write((json.dumps(about, indent=2) + "\n").encode())
    return shape


@contextlib.contextmanager
def _memory_named() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise MemoryError("out of memory: give a lower --batch-size or --image-size") from error
