"""The files of a run. Whatever is rewritten is written under another name first and then renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

__all__ = ["RunDir", "mapped_array", "replace"]


class RunDir:
    """Paths of a run directory, and how its files are read and written.

    The checkpoint is the only authority: it holds the metrics and the assignments of its epoch too, from which
    ``metrics.jsonl`` and ``assignments.npz`` are made again when a run is resumed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoint.pt"
        self.initial = self.path / "initial.pt"
        self.assignments = self.path / "assignments.npz"
        self.tensorboard = self.path / "tensorboard"
        self.probe = self.path / "probe.json"
        self.report = self.path / "report.html"

    def require_free(self, overwrite: bool = False) -> None:
        """Raise FileExistsError if the directory holds a run that may not be replaced."""
        if self.config.exists() and not overwrite:
            raise FileExistsError(
                f"{self.path} already holds a run: continue it with --resume {self.path}, "
                "replace it with --overwrite, or choose another --output"
            )

    def create(self, config: dict[str, Any], initial: dict[str, Any] | None = None) -> None:
        """Make the directory of a new run, without anything of an older one, and write its configuration.

        ``initial`` is the state_dict that the run starts from, where the seed alone does not give it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._clear()
        if initial is not None:
            replace(self.initial, lambda file: torch.save(initial, file))
        self.write_config(config)

    def write_config(self, config: dict[str, Any]) -> None:
        """Replace ``config.json``."""
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        replace(self.config, lambda file: file.write(text.encode()))

    def _clear(self) -> None:
        # The configuration goes first: without it the directory is no run, so a kill leaves nothing half alive.
        made = (self.checkpoint, self.initial, self.metrics, self.assignments, self.probe, self.report)
        for path in (self.config, *made):
            path.unlink(missing_ok=True)
            _partial(path).unlink(missing_ok=True)
        for events in self.tensorboard.glob("events.*"):
            events.unlink()

    def read_config(self) -> dict[str, Any]:
        """Return the configuration; FileNotFoundError if the directory holds no run."""
        if not self.config.exists():
            raise FileNotFoundError(f"{self.path} holds no run: there is no config.json in it")
        return json.loads(self.config.read_text())

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint."""
        replace(self.checkpoint, lambda file: torch.save(state, file))

    def read_checkpoint(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """Return the last complete checkpoint, or None before the first."""
        if not self.checkpoint.exists():
            return None
        return torch.load(self.checkpoint, map_location=device, weights_only=True)

    def read_initial(self) -> dict[str, Any] | None:
        """Return the state_dict that the run started from, or None where the seed gives it."""
        return torch.load(self.initial, weights_only=True) if self.initial.exists() else None

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Replace ``metrics.jsonl`` by one line per epoch."""
        text = "".join(json.dumps(record) + "\n" for record in history)
        replace(self.metrics, lambda file: file.write(text.encode()))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the metrics, one dictionary per finished epoch."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

    def write_assignments(self, names: list[str], cluster: np.ndarray, label: np.ndarray, epoch: int) -> None:
        """Replace ``assignments.npz``: arrays files (str), cluster, label (-1: none) and epoch."""
        arrays = {"files": np.array(names, dtype=np.str_), "cluster": cluster, "label": label}
        replace(self.assignments, lambda file: np.savez(file, allow_pickle=False, **arrays, epoch=epoch))

    def read_assignments(self) -> dict[str, np.ndarray]:
        """Return the arrays of ``assignments.npz``; FileNotFoundError before the first epoch has ended."""
        if not self.assignments.exists():
            raise FileNotFoundError(f"{self.path} has no assignments yet: no epoch has ended")
        with np.load(self.assignments) as arrays:
            return dict(arrays)

    def write_probe(self, result: dict[str, Any]) -> None:
        """Replace ``probe.json``."""
        text = json.dumps(result, indent=2) + "\n"
        replace(self.probe, lambda file: file.write(text.encode()))

    def read_probe(self) -> dict[str, Any] | None:
        """Return what the probe found, or None if it has not been run."""
        return json.loads(self.probe.read_text()) if self.probe.exists() else None

    def write_report(self, html: str) -> None:
        """Replace ``report.html``."""
        replace(self.report, lambda file: file.write(html.encode()))


def mapped_array(n_rows: int, width: int, folder: Path | None) -> np.memmap:
    """Return an array of zeros, float32 (n_rows, width), in a file that vanishes with it.

    Parameters
    ----------
    n_rows, width : int
        The shape.
    folder : Path or None
        Where the file is; None for the system's directory of temporary files.

    Raises
    ------
    OSError
        If the disk has no room for it: a page that cannot be written later would end the process without a word.
    """
    n_bytes = 4 * n_rows * width
    with tempfile.TemporaryFile(dir=folder) as file:
        free = shutil.disk_usage(folder or tempfile.gettempdir()).free
        if free < n_bytes:
            raise OSError(
                f"features take {n_bytes:,} bytes, more than the memory they may have, and only {free:,} are free in "
                f"{folder or tempfile.gettempdir()}: raise max_memory or make room"
            )
        file.truncate(n_bytes)
        return np.memmap(file, dtype=np.float32, shape=(n_rows, width), mode="r+")


def replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let ``write`` fill a neighbour of ``path``, flush it to disk, and rename it to ``path``."""
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)  # half a file would only keep a full disk full
        raise
    os.replace(partial, path)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
