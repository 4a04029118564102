"""Kernels that the host launches once and a GPU replays."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch


class Replayed:
    """A function that only launches kernels, on tensors that stay where they are: a CUDA graph from its second call on.

    The first call launches them one by one, which loads what a graph must not load while it is captured. So do all
    calls where the device has no memory left for a graph, which gets its own: the allocator's cache is not for it, and
    is not emptied while it is captured. And so do they, with a warning, where the capture fails for another reason.

    Parameters
    ----------
    launch : callable
        Without arguments or result. Neither waits for the device nor asks it for a value. After an error it can be
        called again.
    device : torch.device
        A GPU.
    """

    def __init__(self, launch: Callable[[], None], device: torch.device) -> None:
        self._launch, self._device = launch, device
        self._is_loaded, self._can_capture = False, True
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self._is_loaded and self._can_capture and self._graph is None:
            try:
                self._graph = capture(self._launch, self._device)
            except torch.OutOfMemoryError:
                self._can_capture = False
            except RuntimeError as error:
                self._can_capture = False
                warnings.warn(f"slower than need be: no CUDA graph could be captured ({error})", stacklevel=2)
        if self._graph is not None:
            self._graph.replay()
        else:
            self._launch()
            self._is_loaded = True


def capture(launch: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """What `launch` launches, as a graph; nothing runs."""
    graph, own = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    outer = torch.cuda.current_stream(device)
    own.wait_stream(outer)
    with torch.cuda.stream(own):
        # torch.cuda.graph would collect garbage and empty the allocator's cache first, which takes longer than a small
        # fit. Other threads may allocate meanwhile, but not draw from torch's generator of this device.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            launch()
        finally:
            graph.capture_end()
    outer.wait_stream(own)
    return graph
