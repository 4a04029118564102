"""ClusterHead: a linear classifier without labels, on the fixed features of a pretrained network."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from itertools import cycle, islice
from numbers import Integral, Real
from typing import Any

import torch
from rich.progress import track
from sklearn.base import BaseEstimator, ClusterMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted
from torch.nn import functional as F
from torch.nn.utils import skip_init

from dcfast.cluster import arrays
from dcfast.cluster.base import unfitted_on_error
from dcfast.cluster.inputs import find_device
from dcfast.cluster.neighbours import other_neighbours
from dcfast.cluster.pair_loss import pair_gradient, pair_loss
from dcfast.nn import UnitLinear

# Squares of rows of any number of columns stay in the range of float32.
_LARGEST = 2.0**50


class ClusterHead(ClusterMixin, BaseEstimator):
    """A linear head whose classes are clusters, trained so that nearest neighbours share one.

    The second stage of deep clustering with features of a pretrained network (Zhou & Zhang 2022, "Deep Clustering with
    Features from Self-Supervised Pretraining"): the network stays as it is, and a clustering head alone is trained. As
    in SCAN (Van Gansbeke et al. 2020, section 2.2) a row and one of its nearest neighbours make a pair, several heads
    are trained, and the one of lowest loss is kept. The loss is the pointwise mutual information of TEMI (Adaloglou et
    al. 2023, "Exploring the Limits of Deep Image Clustering using Pretrained Models", section 3),

        -log(sum_c (p_ic p_jc)^beta / m_c)

    for the probabilities p_i and p_j of a pair and their mean m, here the batch's, with no teacher. Heads of several
    beta are compared by their loss at beta = 1.

    Parameters
    ----------
    n_clusters : int, default=8
    n_neighbors : int, default=20
        How many neighbours of each row make pairs. At most n_samples // (2 n_clusters), half the rows of a cluster of
        mean size, are taken (and at least 1), so that most pairs are of one class.
    n_heads : int, default=10
        Heads trained from different starts, all at once.
    beta : float or tuple of float, default=(0.6, 1.0)
        Above 0.5, at most 1; of several the heads take one after the other. A small one finds many separate clusters
        where 1 takes two for one; with neighbours that are often of different classes, or classes of unequal size, it
        ends in probabilities that are all about equal, and 1 does not.
    epochs : int, default=50
        Each takes every row once, with a random one of its neighbours.
    batch_size : int, default=256
        Pairs per step.
    learning_rate : float, default=6.0
        Of Adam, divided by the number of features, so that a step changes the logits alike whatever their number; it
        falls to 0 along half a cosine.
    normalize : bool, default=True
        Divide rows by their lengths, as is usual for features of networks, whose directions tell more. Off where
        lengths tell clusters apart.
    verbose : int, default=0
        Show a bar of the epochs, and the losses.
    callback : callable, optional
        Called with the number of epochs that are done after every one.
    random_state : int, RandomState instance or None, default=None
    device : str or torch.device, optional
        What trains the heads, if not the device that X is on.

    Attributes
    ----------
    head_ : torch.nn.Linear
        In float32. Takes features as they are given, of any length, and returns logits: append it to the network. A
        `dcfast.nn.UnitLinear`, which divides rows by their lengths itself, if `normalize`.
    labels_ : array of shape (n_samples,), int32
        Equal to ``predict(X)``.
    loss_ : float
        Of the head that was kept, over all rows and neighbours.
    losses_ : ndarray of shape (n_heads,)
        Of all heads.
    n_features_in_ : int
    feature_names_in_ : array of shape (n_features_in_,)
        Where X has string column names.

    Notes
    -----
    The same bits for the same `random_state` and number of threads on one machine.

    An epoch costs O(n_samples n_features n_clusters n_heads) operations in float32, the neighbours once
    O(n_samples^2 n_features). Memory beyond the input is O(n_samples (n_features + n_neighbors + n_clusters)) and a
    batch's probabilities.

    The division by m makes a cluster dear that takes all: clusters differ less in size than classes may. Where these
    are balls, k-means is as good and faster. A cluster that no row is in is warned of.

    SCAN's third step, training the whole network on augmented images with the most certain labels, is left out.

    Examples
    --------
    >>> import torch
    >>> from dcfast import ClusterHead
    >>> centres = torch.eye(3).repeat_interleave(30, 0)
    >>> X = centres + 0.1 * torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
    >>> model = ClusterHead(3, random_state=0).fit(X)
    >>> model.labels_.bincount().tolist()
    [30, 30, 30]
    """

    _parameter_constraints: dict = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "n_heads": [Interval(Integral, 1, None, closed="left")],
        "beta": [Interval(Real, 0.5, 1, closed="right"), tuple],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "normalize": ["boolean"],
        "verbose": ["verbose"],
        "callback": [callable, None],
        "random_state": ["random_state"],
        "device": [str, torch.device, None],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        n_neighbors: int = 20,
        n_heads: int = 10,
        beta: float | tuple[float, ...] = (0.6, 1.0),
        epochs: int = 50,
        batch_size: int = 256,
        learning_rate: float = 6.0,
        normalize: bool = True,
        verbose: int = 0,
        callback: Callable[[int], None] | None = None,
        random_state: Any = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_neighbors = n_neighbors
        self.n_heads = n_heads
        self.beta = beta
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.normalize = normalize
        self.verbose = verbose
        self.callback = callback
        self.random_state = random_state
        self.device = device

    @_fit_context(prefer_skip_nested_validation=True)
    @unfitted_on_error
    def fit(self, X: Any, y: Any = None) -> ClusterHead:
        """Train the heads, and keep the best.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Features: numpy, torch or whatever else has `__dlpack__`.
        y : Ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X is not finite, has one row, or fewer than n_clusters. After an error or an interrupt the estimator is
            not fitted, even if it was before.

        Warns
        -----
        ConvergenceWarning
            If a cluster is empty.
        """
        x = self._rows(X, reset=True)
        if isinstance(self.beta, tuple) and not (self.beta and all(0.5 < beta <= 1 for beta in self.beta)):
            raise ValueError(f"beta={self.beta} must hold numbers above 0.5 and at most 1, one at least")
        if len(x) < max(2, self.n_clusters):
            raise ValueError(
                f"n_samples={len(x)} must be at least n_clusters={self.n_clusters}, and 2 for a pair of neighbours: "
                "give more rows"
            )
        # Whatever modes the caller is in, float32 is float32 and the head can be trained further.
        with torch.inference_mode(False), torch.autocast(x.device.type, enabled=False):
            self._fit(x)
        labels = self._logits(x).argmax(1)
        self.labels_ = self._answer(X, labels.int())
        if (found := len(labels.unique())) < self.n_clusters:
            warnings.warn(
                f"Number of distinct clusters ({found}) found smaller than n_clusters ({self.n_clusters}): give a "
                "larger beta, more epochs or fewer clusters.",
                ConvergenceWarning,
                stacklevel=4,
            )
        return self

    def _fit(self, x: torch.Tensor) -> None:
        """Train the heads, and set `head_` and its loss."""
        n, d = x.shape
        rows, centre = self._centred(x)
        near = self._neighbours(rows)
        scale = torch.linalg.vector_norm(rows, dtype=torch.float64) / math.sqrt(n * d)
        scale = torch.where(scale > 2.0**-100, scale, 1).float()
        rows /= scale
        weights, biases = self._train(rows, near)
        losses = torch.stack(
            [
                pair_loss(F.linear(rows, weight, bias).log_softmax(1), near)
                for weight, bias in zip(weights, biases, strict=True)
            ]
        )
        best = int(losses.argmin())
        weight = weights[best] / scale
        self.head_ = skip_init(
            UnitLinear if self.normalize else torch.nn.Linear, *weight.T.shape, device=x.device, dtype=torch.float32
        )
        with torch.no_grad():
            self.head_.weight.copy_(weight)
            self.head_.bias.copy_(biases[best] - weight.to(centre) @ centre)
        self.losses_ = losses.cpu().numpy()
        self.loss_ = float(losses[best])
        if self.verbose:
            print(f"Head {best + 1} of {self.n_heads}: loss {self.loss_:.4f}, all {self.losses_.round(4).tolist()}")

    def _train(self, x: torch.Tensor, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (n_heads, n_clusters, d) and biases of all heads, for rows of mean 0 and mean square 1."""
        n, d = x.shape
        shape = (int(self.n_heads), int(self.n_clusters))
        # The draws are the CPU's on every device.
        draw = torch.Generator().manual_seed(int(check_random_state(self.random_state).randint(2**31 - 1)))
        on_cpu: dict[str, Any] = {"generator": draw, "device": "cpu"}
        start = torch.randn(math.prod(shape), d, dtype=torch.float32, **on_cpu).div_(math.sqrt(d))
        weight, bias = start.to(x.device), x.new_zeros(len(start))
        betas = self.beta if isinstance(self.beta, tuple) else (self.beta,)
        beta = x.new_tensor(list(islice(cycle(betas), shape[0]))).view(-1, 1, 1, 1)
        adam = torch.optim.Adam([weight, bias], fused=True)
        n_batches = -(-n // int(self.batch_size))
        n_steps, step = int(self.epochs) * n_batches, 0
        for epoch in track(range(self.epochs), "Clustering head", disable=not self.verbose):
            column = torch.randint(near.shape[1], (n, 1), **on_cpu).to(x.device)
            others = near.gather(1, column)[:, 0]
            for batch in torch.randperm(n, **on_cpu).to(x.device).tensor_split(n_batches):
                pairs = x[torch.cat([batch, others[batch]])]
                logits = torch.addmm(bias[:, None], weight, pairs.T).view(*shape, 2, len(batch))
                slope = pair_gradient(logits, beta).view(-1, len(pairs))
                weight.grad, bias.grad = slope @ pairs, slope.sum(1)
                adam.param_groups[0]["lr"] = self.learning_rate / d * (1 + math.cos(math.pi * step / n_steps)) / 2
                adam.step()
                step += 1
            if self.callback is not None:
                self.callback(epoch + 1)
        return weight.view(*shape, d), bias.view(shape)

    def _rows(self, X: Any, *, reset: bool) -> torch.Tensor:
        """The rows as float32 or float64 on the device that works on them."""
        x = arrays.as_points(self, X, reset=reset)
        x = x if x.dtype == torch.float64 else x.float()
        if (reach := float(x.abs().max())) > _LARGEST:
            raise ValueError(f"X reaches {reach:.3g}, whose squares overflow float32: divide it")
        return x if self.device is None else x.to(find_device(self.device))

    def _centred(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows, of unit length if asked for, less their mean; and the mean."""
        rows = F.normalize(x, dim=1) if self.normalize else x
        centre = rows.mean(0)
        return (rows - centre).float(), centre

    def _neighbours(self, rows: torch.Tensor) -> torch.Tensor:
        """The nearest others of each row."""
        return other_neighbours(rows, min(int(self.n_neighbors), max(1, len(rows) // (2 * int(self.n_clusters)))))

    @torch.no_grad()
    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits in the dtype of the rows."""
        with torch.autocast(x.device.type, enabled=False):
            return copy.deepcopy(self.head_).to(x)(x)  # `to` changes the module itself

    @staticmethod
    def _answer(X: Any, found: torch.Tensor) -> Any:
        """In the kind of X, and where it is."""
        return arrays.answer_like(X)(found.to(X.device) if isinstance(X, torch.Tensor) else found)

    def predict(self, X: Any) -> Any:
        """Most probable cluster of every row of X.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples,), int32
        """
        check_is_fitted(self)
        return self._answer(X, self._logits(self._rows(X, reset=False)).argmax(1).int())

    def predict_proba(self, X: Any) -> Any:
        """Probability of every cluster for every row of X.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples, n_clusters)
            float64 if X is, or holds integers; else float32.
        """
        check_is_fitted(self)
        return self._answer(X, self._logits(self._rows(X, reset=False)).softmax(1))

    def score(self, X: Any, y: Any = None) -> float:
        """Mean pointwise mutual information of the rows of X and their neighbours among them: the loss, negated.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Two rows at least.
        y : Ignored
        """
        check_is_fitted(self)
        x = self._rows(X, reset=False)
        if len(x) < 2:
            raise ValueError(f"X has {len(x)} sample(s): a pair of neighbours takes 2")
        near = self._neighbours(self._centred(x)[0])
        return -float(pair_loss(self._logits(x).log_softmax(1), near))
