"""What the tests on a GPU share: the backends that serve it, copies there, and equality to the bit."""

from __future__ import annotations

import contextlib

import numpy as np
import torch

from dcfast import ops

DEVICE = torch.device("cuda")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# What serves where nothing is asked for (native where it is built, else Triton), and Triton.
SERVING = ["default", "triton"]


def served_by(name):
    return contextlib.nullcontext() if name == "default" else ops.backend(name)


def there(value):
    """The same on the GPU: tensors, with their strides, also within tuples; everything else as it is."""
    if isinstance(value, torch.Tensor):
        if value.is_contiguous() or 0 in value.stride():
            return value.to(DEVICE)
        copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE)
        return copy.copy_(value)
    if isinstance(value, tuple):
        moved = [there(item) for item in value]
        return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
    return value


def bits(value):
    """Tensors, arrays and numbers of a result, also nested: dtype, shape and bytes of each."""
    if isinstance(value, (tuple, list)):
        return [bits(item) for item in value]
    if isinstance(value, torch.Tensor):
        flat = torch.empty(value.numel(), dtype=value.dtype).copy_(value.detach().reshape(-1))
        return str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return bits(torch.from_numpy(value))
    return value


def fitted(model):
    """All that an estimator found, whatever kind of array it answers with."""
    names = sorted(name for name in vars(model) if name.endswith("_") and not name.startswith("_"))
    found = {name: getattr(model, name) for name in names}
    return {name: v if isinstance(v, (int, float)) else bits(torch.as_tensor(v)) for name, v in found.items()}
