"""The draws by NumPy itself: the definition."""

from __future__ import annotations

import numpy as np
import torch


def draw_rows(
    seeds: torch.Tensor, offsets: torch.Tensor, shares: torch.Tensor | None, n_rows: int, n_uniform: int, n_runs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.empty(seeds.shape[0], n_runs, n_rows, dtype=torch.int64)
    uniform = torch.empty(seeds.shape[0], n_runs, n_uniform, dtype=torch.float64)
    cuts = offsets.tolist()
    for b, (seed, first, last) in enumerate(zip(seeds.tolist(), cuts[:-1], cuts[1:], strict=True)):
        stream, n = np.random.RandomState(seed), last - first
        share = np.full(n, 1.0 / n) if shares is None else shares[first:last].numpy()
        for run in range(n_runs):
            if n_rows > 0:
                rows[b, run] = torch.from_numpy(stream.choice(n, size=n_rows, replace=False, p=share))
            uniform[b, run] = torch.from_numpy(stream.uniform(size=n_uniform))
    return rows, uniform
