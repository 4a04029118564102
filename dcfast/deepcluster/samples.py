"""What a report shows of a clustering: the sizes of its clusters, and images of some."""

from __future__ import annotations

import base64
import io
import math
from html import escape

import numpy as np
from PIL import Image

from dcfast.deepcluster.charts import size_chart
from dcfast.deepcluster.data import ImageData
from dcfast.deepcluster.metrics import cluster_sizes
from dcfast.deepcluster.page import number
from dcfast.deepcluster.sources import Unreadable

__all__ = ["cluster_samples", "picture", "size_figure"]

CLUSTERS_SHOWN = 24
IMAGES_PER_CLUSTER = 8
THUMBNAIL = 64


def size_figure(sizes: np.ndarray, n_empty: int, remark: str = "") -> str:
    """Return a figure of the sizes of the clusters that hold images; ``remark``, in HTML, ends its caption."""
    chart = size_chart(
        f"Sizes of {len(sizes)} clusters from {sizes.max()} down to {sizes.min()} images, {n_empty} empty",
        sizes.tolist(),
        n_empty,
    )
    shares = sizes / sizes.sum()
    effective = math.exp(-float((shares * np.log(shares)).sum()))
    facts = (
        f"{number(len(sizes))} clusters hold {number(int(sizes.min()))} to "
        f"{number(int(sizes.max()))} images, {number(float(np.median(sizes)))} in the middle; {number(n_empty)} of "
        f"{number(len(sizes) + n_empty)} are empty. The exponential of the entropy of the sizes, the number "
        f"of equal clusters that would be as even, is {number(round(effective))}."
    )
    return f"<figure>{chart}<figcaption>{facts}{remark}</figcaption></figure>"


def cluster_samples(data: ImageData, cluster: np.ndarray, label: np.ndarray) -> str:
    """Return images of some of the clusters, as HTML.

    Parameters
    ----------
    data : ImageData
        N images.
    cluster, label : ndarray of int, shape (N,)
        Of each image, negative for none.
    """
    majority = _majorities(cluster, label)
    groups = _choose_clusters(cluster_sizes(cluster), majority)
    text = (
        f"Up to {IMAGES_PER_CLUSTER} images of {sum(len(group) for _, group in groups)} of the "
        f"{number(int(cluster.max()) + 1)} clusters, evenly spaced in the order of the files."
    )
    if majority:
        text += " The share is that of the most frequent class; no clustering sees the classes."
    parts = [f'<p class="note">{text}</p>']
    for title, chosen in groups:
        cards = "".join(_card(data, int(number_), np.flatnonzero(cluster == number_), majority) for number_ in chosen)
        parts.append(f'<h3>{escape(title)}</h3><div class="clusters">{cards}</div>')
    return "".join(parts)


def _majorities(cluster: np.ndarray, label: np.ndarray) -> dict[int, tuple[int, float]]:
    """Return the most frequent label and its share for each cluster that has labelled images."""
    known = (label >= 0) & (cluster >= 0)
    found = {}
    for one in np.unique(cluster[known]):
        counts = np.bincount(label[known & (cluster == one)])
        found[int(one)] = (int(counts.argmax()), float(counts.max() / counts.sum()))
    return found


def _choose_clusters(sizes: np.ndarray, majority: dict[int, tuple[int, float]]) -> list[tuple[str, list[int]]]:
    """Choose which clusters to show: the purest where there are labels, and some over the range of sizes."""
    by_size = np.argsort(-sizes, kind="stable").tolist()
    purest: list[int] = []
    if majority:
        # Tiny clusters are pure by accident.
        large = [one for one in by_size if one in majority and 2 * sizes[one] >= sizes.mean()]
        purest = sorted(large, key=lambda one: -majority[one][1])[: CLUSTERS_SHOWN // 2]
    rest = [one for one in by_size if one not in set(purest)]
    places = np.linspace(0, len(rest) - 1, min(len(rest), CLUSTERS_SHOWN - len(purest))).round().astype(int)
    groups = [
        ("Purest clusters", purest),
        ("From the largest to the smallest", [rest[place] for place in places]),
    ]
    return [(title, chosen) for title, chosen in groups if chosen]


def _card(data: ImageData, one: int, members: np.ndarray, majority: dict[int, tuple[int, float]]) -> str:
    places = np.linspace(0, len(members) - 1, min(len(members), IMAGES_PER_CLUSTER)).round().astype(int)
    pictures = "".join(_thumbnail(data, int(members[place])) for place in places)
    title = f"<b>Cluster {one}</b> {number(len(members))} {'image' if len(members) == 1 else 'images'}"
    if one in majority:
        label, share = majority[one]
        name = data.class_names[label] if label < len(data.class_names) else f"class {label}"
        title += f' <span class="share">{escape(name)} {share:.0%}</span>'
    return f'<figure class="cluster"><figcaption>{title}</figcaption><div>{pictures}</div></figure>'


def _thumbnail(data: ImageData, index: int) -> str:
    name = data.source.names[data.indices[index]]
    try:
        return picture(data.thumbnail(index, THUMBNAIL), name, "thumb", name)
    except Unreadable as error:
        return f'<span class="gone" title="{escape(name)}: {escape(str(error))}">unreadable</span>'


def picture(image: Image.Image, alt: str, css: str = "", title: str = "") -> str:
    """Return an ``img`` with the picture inside: PNG for RGBA, JPEG for RGB."""
    buffer = io.BytesIO()
    kind = "png" if image.mode == "RGBA" else "jpeg"
    image.save(buffer, kind, **({"quality": 85} if kind == "jpeg" else {"optimize": True}))
    data = base64.b64encode(buffer.getvalue()).decode()
    described = f' title="{escape(title)}"' if title else ""
    return (
        f'<img class="{css}" width="{image.width}" height="{image.height}" alt="{escape(alt)}"{described} '
        f'src="data:image/{kind};base64,{data}">'
    )
