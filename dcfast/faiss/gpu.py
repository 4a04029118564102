"""What code written for faiss-gpu calls around a clustering: exact flat indices whose vectors live on a CUDA device."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from dcfast.faiss.index import METRIC_L2, IndexFlatL2, flat
from dcfast.faiss.inner_product import IndexFlatIP


class StandardGpuResources:
    """What faiss keeps for a GPU; nothing here, where torch manages the memory."""

    def noTempMemory(self) -> None:
        """Do nothing: no memory is reserved."""

    def setTempMemory(self, size: int) -> None:
        """Do nothing: no memory is reserved."""


@dataclass(eq=False)
class GpuIndexFlatConfig:
    """How a `GpuIndexFlatL2` or `GpuIndexFlatIP` is made; other attributes of faiss's can be set and change nothing.

    Attributes
    ----------
    device : int, default=0
        Number of the CUDA device.
    useFloat16 : bool, default=False
        Whether faiss stores and compares in half precision. Here the answer is that of float32 either way.
    """

    device: int = 0
    useFloat16: bool = False


class _OnGpu(IndexFlatL2):
    def __init__(self, provider: StandardGpuResources, d: int, config: GpuIndexFlatConfig | None = None) -> None:
        self._device = _chosen((config or GpuIndexFlatConfig()).device)
        super().__init__(d)


class GpuIndexFlatL2(_OnGpu):
    """An `IndexFlatL2` whose vectors live on a CUDA device, where rows from anywhere are searched and clustered.

    Parameters
    ----------
    provider : StandardGpuResources
        Not looked at.
    d : int
        Dimension of the vectors.
    config : GpuIndexFlatConfig, optional
        Says on which device; by default the first.

    Raises
    ------
    ValueError
        If torch sees CUDA devices, but none of this number.

    Warns
    -----
    UserWarning
        If torch sees no CUDA device: the CPU is used.

    Notes
    -----
    `add`, `search`, `range_search` and `Clustering.train` copy what is elsewhere, such as numpy arrays, to the device,
    and answer in the kind and on the device of their argument, with the bits of the index of the CPU.
    """


class GpuIndexFlatIP(_OnGpu, IndexFlatIP):
    """An `IndexFlatIP` whose vectors live on a CUDA device; see `GpuIndexFlatL2`."""


def index_cpu_to_gpu(provider: StandardGpuResources, device: int, index: IndexFlatL2) -> IndexFlatL2:
    """A copy of the index on a CUDA device.

    Parameters
    ----------
    provider : StandardGpuResources
        Not looked at.
    device : int
        Number of the device.
    index : IndexFlatL2 or IndexFlatIP

    Returns
    -------
    GpuIndexFlatL2 or GpuIndexFlatIP

    Raises
    ------
    TypeError
        If the index is of another kind.
    ValueError
        As `GpuIndexFlatL2`.

    Warns
    -----
    UserWarning
        As `GpuIndexFlatL2`.
    """
    return _copy(flat(index), _chosen(device))


def index_cpu_to_all_gpus(index: IndexFlatL2) -> IndexFlatL2:
    """A copy of the index on the current CUDA device: as in `Kmeans`, one serves a run.

    Parameters, results, errors and warnings are those of `index_cpu_to_gpu`.
    """
    return _copy(flat(index), _chosen(torch.cuda.current_device() if torch.cuda.is_available() else 0))


def index_gpu_to_cpu(index: IndexFlatL2) -> IndexFlatL2:
    """A copy of the index in the host's memory: an `IndexFlatL2` or `IndexFlatIP`; TypeError for another kind."""
    copy = IndexFlatL2(index.d) if flat(index).metric_type == METRIC_L2 else IndexFlatIP(index.d)
    copy.add(index._vectors.cpu())
    return copy


def _copy(index: IndexFlatL2, device: torch.device) -> IndexFlatL2:
    kind: type[_OnGpu] = GpuIndexFlatL2 if index.metric_type == METRIC_L2 else GpuIndexFlatIP
    copy = kind.__new__(kind)  # the device is chosen, and a warning given, already
    copy._device = device
    IndexFlatL2.__init__(copy, index.d)
    copy.add(index._vectors)
    return copy


def _chosen(device: Any) -> torch.device:
    """The device of this number, or the CPU with a warning to the caller's caller."""
    if not torch.cuda.is_available():
        warnings.warn(f"device={device}: torch sees no CUDA device here, so the CPU is used", stacklevel=3)
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if not 0 <= device < count:
        raise ValueError(f"device={device}: expected 0 <= device < {count}, the number of CUDA devices that torch sees")
    return torch.device("cuda", device)
