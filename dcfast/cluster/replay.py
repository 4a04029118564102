"""Kernels that the host launches once and a GPU replays."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Replayed:
    """A function that only launches kernels, on tensors that stay where they are: a CUDA graph from its second call on.

    The first call launches them one by one, which loads what a graph must not load while it is captured.

    Parameters
    ----------
    launch : callable
        Without arguments or result. Neither waits for the device nor asks it for a value.
    device : torch.device
        A GPU.
    """

    def __init__(self, launch: Callable[[], None], device: torch.device) -> None:
        self._launch, self._device = launch, device
        self._is_loaded = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if not self._is_loaded:
            self._launch()
            self._is_loaded = True
            return
        if self._graph is None:
            self._graph = capture(self._launch, self._device)
        self._graph.replay()


def capture(launch: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """What `launch` launches, as a graph; nothing runs."""
    graph, own = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    outer = torch.cuda.current_stream(device)
    own.wait_stream(outer)
    with torch.cuda.stream(own):
        # torch.cuda.graph would collect garbage and empty the allocator's cache first, which takes longer than a small
        # fit. Other threads may allocate meanwhile.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            launch()
        finally:
            graph.capture_end()
    outer.wait_stream(own)
    return graph
