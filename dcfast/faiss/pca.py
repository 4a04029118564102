"""PCAMatrix: faiss's principal components over `dcfast.PCAWhiten`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dcfast.cluster import arrays
from dcfast.cluster.whiten import PCAWhiten, one_thread
from dcfast.faiss.starts import generator, permutation
from dcfast.faiss.vectors import Vector, as_rows

# Of the sample that faiss trains on.
_SEED = 1234
_ROTATION_SEED = 5


class PCAMatrix:
    """Projection on the leading principal components, with a power of the eigenvalues as scale.

    Parameters
    ----------
    din, dout : int
        Dimension of the input, and of the output: at most `din`.
    eigen_power : float, default=0
        Component i is multiplied by (eigenvalue_i + epsilon)^eigen_power: -0.5 whitens. faiss 1.15 names it
        `eigen_power_in`, which is taken too.
    random_rotation : bool, default=False
        Rotate the output at random, which spreads the variance over its columns; always the same rotation for one
        `dout`, but another than faiss's.

    Attributes
    ----------
    d_in, d_out, eigen_power, random_rotation, is_trained
    epsilon : float, default=0
        Added to the eigenvalues.
    max_points_per_d : int, default=1000
        `train` takes a random sample (the one of faiss) of more than max_points_per_d * d_in rows.
    mean, eigenvalues, A, b : vectors of float32, for `vector_to_array`
        Mean; eigenvalues of the scatter matrix, which is not divided by the number of rows, descending (0 after the
        first d_out); and the transform A x + b, A of shape (d_out, d_in).

    Notes
    -----
    Computed in double and rounded once, with the reproducibility, the cost and the signs of `dcfast.PCAWhiten`; faiss's
    components may have the opposite sign. A direction without variance gives 0 for a negative eigen_power, where faiss
    gives NaN or noise.
    """

    def __init__(
        self,
        din: int,
        dout: int,
        eigen_power: float = 0.0,
        random_rotation: bool = False,
        *,
        eigen_power_in: float | None = None,
    ) -> None:
        if not 1 <= dout <= din:
            raise ValueError(f"dout={dout}: expected 1 <= dout <= din = {din}")
        self.d_in = int(din)
        self.d_out = int(dout)
        self.eigen_power = float(eigen_power if eigen_power_in is None else eigen_power_in)
        self.random_rotation = bool(random_rotation)
        self.epsilon = 0.0
        self.max_points_per_d = 1000
        self.is_trained = False

    def train(self, x: Any) -> None:
        """Find the components of `x`, of shape (n, d_in).

        Raises
        ------
        ValueError
            If `x` is not finite, has another dimension, or d_out rows or fewer.
        """
        rows = as_rows(x, self.d_in)
        if rows.shape[0] > (most := self.max_points_per_d * self.d_in):
            chosen = permutation(rows.shape[0], most, _SEED)
            rows = rows[torch.as_tensor(chosen, device=rows.device)]
        if rows.shape[0] <= self.d_out:
            raise ValueError(f"x has {rows.shape[0]} rows: {self.d_out} components need at least {self.d_out + 1}")
        pca = PCAWhiten(self.d_out, whiten=False, normalize=False).fit(rows)
        variances = pca.explained_variance_
        # Below this an eigenvalue is the rounding of a zero.
        real = variances > torch.finfo(torch.float64).eps * max(rows.shape) * variances.max()
        eigenvalues = variances * (rows.shape[0] - 1)
        if self.eigen_power != 0:
            scale = (eigenvalues + self.epsilon) ** self.eigen_power
            pca.components_ = pca.components_ * torch.where(real | (self.epsilon > 0), scale, 0)[:, None]
        if self.random_rotation:
            normal = arrays.as_tensor(generator(_ROTATION_SEED).standard_normal((self.d_out, self.d_out)))
            with one_thread():
                rotation = torch.linalg.qr(normal).Q.to(pca.components_.device)
                pca.components_ = rotation @ pca.components_
        self._set(pca, torch.nn.functional.pad(eigenvalues, (0, self.d_in - self.d_out)))

    def _restore(self, mean: np.ndarray, eigenvalues: np.ndarray, A: np.ndarray) -> None:
        """Transform x to A (x - mean)."""
        pca = PCAWhiten(self.d_out, whiten=False, normalize=False)
        pca.mean_, pca.components_, variances = (
            torch.tensor(a, dtype=torch.float64, device="cpu") for a in (mean, A, eigenvalues)
        )
        pca.explained_variance_ = variances[: self.d_out]
        self._set(pca, variances)

    def _set(self, pca: PCAWhiten, eigenvalues: torch.Tensor) -> None:
        """Transform as `pca` does."""
        self._pca = pca
        self.mean = _vector(pca.mean_)
        self.eigenvalues = _vector(eigenvalues)
        self.A = _vector(pca.components_)
        self.b = _vector(-(pca.components_ * pca.mean_).sum(1))
        self.is_trained = True

    def apply(self, x: Any) -> Any:
        """Transform `x`, of shape (n, d_in), to float32 of shape (n, d_out) and the kind of `x`.

        Raises
        ------
        ValueError
            If not trained, or if `x` is not finite or has another dimension.
        """
        self._check_trained()
        rows = as_rows(x, self.d_in)
        transformed = self._pca.transform(rows) if len(rows) else rows.new_zeros(0, self.d_out)
        return arrays.answer_like(x)(transformed)

    apply_py = apply  # faiss's name for it

    def reverse_transform(self, x: Any) -> Any:
        """A^T (x - b), for `x` of shape (n, d_out): (n, d_in) float32, what `apply` maps to `x` if d_out = d_in.

        Raises
        ------
        ValueError
            If not trained, or if `eigen_power` is not 0.
        """
        self._check_trained()
        if self.eigen_power != 0:
            raise ValueError(f"eigen_power={self.eigen_power}: only a rotation, eigen_power=0, is reversed")
        rows = as_rows(x, self.d_out)
        components, mean = self._pca.components_.to(rows.device), self._pca.mean_.to(rows.device)
        with one_thread():
            reverse = (rows.double() + components @ mean) @ components
        return arrays.answer_like(x)(reverse.float())

    def _check_trained(self) -> None:
        if not self.is_trained:
            raise ValueError("the PCAMatrix is not trained: call train(x) first")


def _vector(values: torch.Tensor) -> Vector:
    return Vector(values.flatten().float().cpu().numpy())
