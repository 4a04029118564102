"""Launches csrc/cpu/draw_rows.cpp."""

from __future__ import annotations

import torch

from dcfast.ops import _native


def draw_rows(
    seeds: torch.Tensor, offsets: torch.Tensor, shares: torch.Tensor | None, n_rows: int, n_uniform: int, n_runs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    problems, n_threads = seeds.shape[0], _native.threads()
    rows = torch.empty(problems, n_runs, n_rows, dtype=torch.int64)
    uniform = torch.empty(problems, n_runs, n_uniform, dtype=torch.float64)
    if problems == 0:
        return rows, uniform
    seeds, offsets = seeds.contiguous(), offsets.contiguous()
    shares = None if shares is None else shares.contiguous()
    n = int(offsets.diff().max())
    workspace = torch.empty(n_threads * 2 * n, dtype=torch.float64)
    operations = 5e3 + n_runs * (4.0 * (n + 100 * n_rows if n_rows else 0) + 10.0 * n_uniform)
    for start, stop in _native.slices(problems, operations):
        _native.cpu().draw_rows(
            seeds[start:].data_ptr(),
            offsets[start:].data_ptr(),
            stop - start,
            _native.pointer(shares),
            n_rows,
            n_uniform,
            n_runs,
            workspace.data_ptr(),
            n,
            rows[start:].data_ptr(),
            uniform[start:].data_ptr(),
            n_threads,
        )
    return rows, uniform
