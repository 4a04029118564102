"""How well clusters tell classes apart, held against chance, with all labels or a few."""

from __future__ import annotations

from statistics import fmean

import numpy as np

from dcfast.deepcluster.data import ImageData
from dcfast.deepcluster.keyed import Stream, generator
from dcfast.deepcluster.metrics import MOST_TERMS, ami, class_entropy, nmi, purity

__all__ = ["against_chance", "check_labelled", "choose_labelled", "known_labels"]

_CHANCE_DRAWS = 10  # of what chance gives: its mean is then known to a third of what one draw scatters


def against_chance(classes: np.ndarray, clusters: np.ndarray, seed: int) -> dict[str, float | int | None]:
    """Measure clusters by classes (negative: unknown), next to what permuted classes give, on average over ten draws.

    The closed form of the latter is known for the mutual information alone, and makes NMI into AMI.
    """
    known = classes >= 0
    classes, clusters = classes[known], clusters[known]
    draws = generator(seed, Stream.CHANCE)
    found: dict[str, float | int | None] = {"n_labelled": len(classes)}
    permuted = [draws.permutation(classes) for _ in range(_CHANCE_DRAWS)]
    for name, measure in (("purity", purity), ("entropy", class_entropy)):
        found[name] = measure(classes, clusters)
        found[f"{name}_chance"] = fmean(measure(one, clusters) or 0.0 for one in permuted)
    return {**found, "nmi": nmi(classes, clusters), "ami": ami(classes, clusters)}


def check_labelled(labelled: float | None) -> None:
    """Raise ValueError unless it is a share or a number of labels, or None for all."""
    whole = isinstance(labelled, int)
    if labelled is not None and not (labelled >= 2 if whole else 0 < labelled <= 1):
        raise ValueError(f"labelled must be a share above 0 and up to 1.0, or a number from 2 on, got {labelled!r}")


def known_labels(images: ImageData, labelled: float | None, seed: int) -> np.ndarray | None:
    """Return the labels to be looked at, None if there are none: fewer than two classes tell nothing."""
    labels = images.labels
    if len(np.unique(labels[labels >= 0])) < 2:
        if labelled is not None:
            raise ValueError(
                f"labelled={labelled}, but the images of {images.source.location} are not of two or more classes: "
                "leave it out"
            )
        return None
    if labelled is not None:
        # One order of all images of the source, so that all seeds see the same labels as far as a limit allows.
        order = generator(seed, Stream.LABELLED).random(len(images.source.names))
        labels = choose_labelled(labels, labelled, order[images.indices])
    n_classes, n_known = len(np.unique(labels[labels >= 0])), int((labels >= 0).sum())
    if n_classes < 2:
        raise ValueError(f"labelled={labelled} keeps labels of {n_classes} classes: raise --labelled")
    if n_known * n_classes > MOST_TERMS:
        raise ValueError(
            f"labelled={labelled}: {n_known} labels of {n_classes} classes are more than AMI takes in a few seconds: "
            f"give --labelled {MOST_TERMS // n_classes} or fewer"
        )
    return labels


def choose_labelled(labels: np.ndarray, labelled: float, order: np.ndarray) -> np.ndarray:
    """Keep some of the labels, of each class its share, and set the others to -1.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
        -1 where there is none.
    labelled : float or int
        Share or number to keep.
    order : ndarray of shape (N,)
        Within a class those that come first by it are kept.

    Raises
    ------
    ValueError
        If there are not so many labels.
    """
    known = np.flatnonzero(labels >= 0)
    n_kept = labelled if isinstance(labelled, int) else round(labelled * len(known))
    if n_kept > len(known):
        raise ValueError(f"labelled={labelled}, but only {len(known)} images have a label: lower --labelled")
    known = known[np.lexsort((order[known], labels[known]))]
    sizes = np.bincount(labels[known])
    rank = np.arange(len(known)) - (sizes.cumsum() - sizes)[labels[known]]
    # The i-th of a class of n lies at (i + 1/2) / n of the way: any first part of the way holds its share of each.
    kept = known[np.lexsort((order[known], (rank + 0.5) / sizes[labels[known]]))[:n_kept]]
    chosen = np.full_like(labels, -1)
    chosen[kept] = labels[kept]
    return chosen
