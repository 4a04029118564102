"""What a run shows while it works: a bar per stage and a line per epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Advance", "Display", "bound", "shares"]

Advance = Callable[..., None]

_COLUMNS = (
    ("epoch", 7),
    ("loss", 8),
    ("objective", 10),
    ("nmi/prev", 9),
    ("nmi/label", 10),
    ("k", 6),
    ("largest", 8),
    ("moved", 8),
    ("images/s", 9),
    ("feat", 7),
    ("pca", 6),
    ("kmeans", 7),
    ("train", 7),
    ("bound by", 15),
)


class Display:
    """Progress on a rich console; on anything but a terminal only the lines, without bars.

    Parameters
    ----------
    console : rich.console.Console, optional
        Where to show it; standard output by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()

    def say(self, text: str) -> None:
        """Print a line as it is."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Advance]:
        """Show a bar for a stage of ``total`` steps, None if nobody knows; gone when the block ends.

        Yields
        ------
        callable
            ``advance(count, note='')``: so many more steps are done.
        """
        bar = Progress(
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with bar:
            task = bar.add_task(name, total=total, note="")

            def advance(count: int, note: str = "") -> None:
                bar.update(task, advance=count, note=note)

            yield advance

    def header(self) -> None:
        """Print the names of what `epoch` prints."""
        self.say("".join(f"{name:>{width}}" for name, width in _COLUMNS))

    def epoch(self, record: dict[str, Any], n_epochs: int) -> None:
        """Print the metrics of an epoch as one line under `header`."""
        seconds = record["seconds"]
        cells = (
            f"{record['epoch']}/{n_epochs}",
            _number(record["loss"], 3),
            _number(record["objective"], 4),
            _number(record["nmi_previous"], 3),
            _number(record["nmi_labels"], 3),
            _number(record["n_clusters"], 0),
            _number(record["largest_cluster"], 0),
            _number(record["n_moved"], 0),
            _number(record["images_per_second"], 0),
            *(f"{seconds[stage]:.1f}s" for stage in ("features", "pca", "kmeans", "training")),
        )
        limit, share = max(shares(record).items(), key=lambda item: item[1])
        cells = (*cells, f"{limit} {share:.0%}")
        self.say("".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True)))


def bound(seconds: float, waited: float) -> str:
    """Say what bounds a stage that took so many seconds and waited for images so many of them."""
    share = waited / seconds if seconds else 0.0
    return f"bound by images ({share:.0%})" if share > 0.5 else f"bound by the network ({1 - share:.0%})"


def shares(record: dict[str, Any]) -> dict[str, float]:
    """Return the shares of an epoch's time: waiting for images, the network, PCA and k-means."""
    seconds, waited = record["seconds"], sum(record["waiting"].values())
    parts = {
        "images": waited,
        "network": seconds["features"] + seconds["training"] - waited,
        "PCA": seconds["pca"],
        "k-means": seconds["kmeans"],
    }
    total = sum(parts.values())
    return {name: part / total for name, part in parts.items()}


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
