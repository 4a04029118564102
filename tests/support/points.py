"""Rows and centroids that hurt."""

import torch

KINDS = ["normal", "lattice", "huge", "tiny", "duplicates", "offset", "mixed", "nonfinite", "equal"]


def generator(*key):
    return torch.Generator().manual_seed(hash(key) % 2**31)


def make(n, d, k, kind, dtype):
    g = generator(n, d, k)
    x, c = torch.randn(n, d, generator=g), torch.randn(k, d, generator=g)
    if kind == "lattice":  # ties everywhere
        x, c = (2 * x).round(), (2 * c).round()
    elif kind == "huge":
        x, c = x * 1e20, c * 1e20
    elif kind == "tiny":
        x, c = x * 1e-20, c * 1e-20
    elif kind == "duplicates":  # threes of equal centroids, some with the other zero
        c = c[torch.arange(k) // 3]
        c[:, 0] = 0.0
        c[1::3, 0] = -0.0
        x[: min(n, k)] = c[: min(n, k)]
    elif kind == "offset":
        x, c = x + 1e4, c + 1e4
    elif kind == "mixed":  # one centroid of huge norm, rows that float16 cannot hold, rows far too small
        c[-1] *= 1e15
        x[-1] *= 1e25
        x[0] *= 1e-25
    elif kind == "nonfinite":
        c[0, 0] = torch.nan
        c[-1, -1] = torch.inf
        x[n // 2, 0] = -torch.inf
        x[n // 3, -1] = torch.nan
    elif kind == "equal":
        x, c = torch.ones(n, d), torch.ones(k, d)
    return x.to(dtype), c.to(dtype)
