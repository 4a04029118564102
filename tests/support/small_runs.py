"""Rows that hurt, and weights, for the ops that make whole runs of Lloyd's iteration."""

import torch


def changed(x: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """Normal rows, turned into those of a kind."""
    if kind == "lattice":
        return (x * 0.7).round()
    if kind == "mixed":
        return x * 10.0 ** torch.randint(-12, 12, (len(x), 1), generator=generator)
    if kind == "far":
        return x * 1e-3 + 1e4
    if kind == "equal":
        return x[:1].expand_as(x).clone()
    return x


def weights(n: int) -> torch.Tensor:
    """Weights of n rows, a fifth of them 0."""
    weight = torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    weight[::5] = 0
    return weight


def equal(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    """Whether two results have the same bits."""
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
