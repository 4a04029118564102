"""The files of a run. Whatever is rewritten is written under another name first and then renamed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from dcfast._files import locked, partial, replace

__all__ = ["FORMATS", "RunDir", "decoded", "mapped_array", "saved"]

T = TypeVar("T")

# Format of an export -> its file in the run directory.
FORMATS = {"state_dict": "model.pt", "safetensors": "model.safetensors", "published": "published.pth.tar"}

# What the readers of a file look up in it.
_CONFIG_KEYS = ("options", "data", "versions")
_PROBE_KEYS = ("layers", "epoch", "moment", "n_train", "n_test", "n_classes", "chance", "test", "options")
_ASSIGNMENT_KEYS = ("files", "cluster", "label", "epoch")

_RESTORE = "bring it back from a copy, or start the run again with --overwrite"  # what nothing else can make again


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

    @property
    def quoted(self) -> str:
        """The path as a shell takes it."""
        return shlex.quote(str(self.path))

    def _made(self) -> list[Path]:
        """Return every file that a run makes. The configuration is first: without it the directory is no run."""
        files = (self.config, self.checkpoint, self.initial, self.metrics, self.assignments, self.probe, self.report)
        exports = (self.path / name for name in FORMATS.values())
        return [*files, *exports, *self.tensorboard.glob("events.*")]

    def require_free(self, overwrite: bool = False) -> None:
        """Raise an error if the directory cannot be made, or holds files that a run would replace and may not.

        Raises
        ------
        NotADirectoryError
            If it is, or lies in, a file.
        PermissionError
            If nothing can be written there.
        FileExistsError
            If it holds a run, or a file of the name of one of a run's, and ``overwrite`` is off.
        """
        there = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(f"{there} is a file: choose another --output for the run")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(f"{there} cannot be written to: choose another --output for the run")
        found = [] if overwrite else [path for path in self._made() if path.exists()]
        if self.config in found:
            raise FileExistsError(
                f"{self.path} already holds a run: continue it with --resume {self.quoted}, "
                "replace it with --overwrite, or choose another --output"
            )
        if found:
            raise FileExistsError(
                f"{self.path} is no run, but holds {found[0].relative_to(self.path)}, which a run would replace: "
                "choose another --output, or allow it with --overwrite"
            )

    def create(self, config: dict[str, Any], initial: dict[str, Any] | None = None) -> None:
        """Make the directory of a new run, without anything of an older one, and write its configuration.

        ``initial`` is the state_dict that the run starts from, where the seed alone does not give it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.held():
            self._clear()
            if initial is not None:
                replace(self.initial, saved(initial))
            self.write_config(config)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training into the directory inside the block, or until this one has ended.

        Raises
        ------
        FileExistsError
            If another one does.
        """
        refusal = f"another process is training into {self.path}: end it, wait for it, or choose another --output"
        with locked(self.path / "run.lock", refusal):
            yield

    def write_config(self, config: dict[str, Any]) -> None:
        """Replace ``config.json``."""
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        replace(self.config, text.encode())

    def _clear(self) -> None:
        for path in self._made():  # the configuration first: a kill leaves nothing half alive
            path.unlink(missing_ok=True)
            partial(path).unlink(missing_ok=True)

    def read_config(self) -> dict[str, Any]:
        """Return the configuration.

        Raises
        ------
        FileNotFoundError
            If the directory holds no run.
        ValueError
            If the file is damaged.
        """
        if not self.config.exists():
            raise FileNotFoundError(f"{self.path} holds no run: there is no config.json in it")
        return decoded(self.config, lambda content: _with(json.loads(content), _CONFIG_KEYS), _RESTORE)

    @property
    def _made_again(self) -> str:
        return f"make it again with dcfast train --resume {self.quoted}"

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint."""
        replace(self.checkpoint, saved(state))

    def read_checkpoint(
        self, device: torch.device | str = "cpu", needs: Iterable[str] = ("epoch", "model")
    ) -> dict[str, Any] | None:
        """Return the last complete checkpoint, or None before the first; ValueError if it is damaged or lacks a key."""
        if not self.checkpoint.exists():
            return None
        return decoded(self.checkpoint, lambda content: _with(_loaded(content, device), needs), _RESTORE)

    def read_initial(self) -> dict[str, Any] | None:
        """Return the state_dict that the run started from, or None where the seed gives it; ValueError if damaged."""
        return decoded(self.initial, _loaded, _RESTORE) if self.initial.exists() else None

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Replace ``metrics.jsonl`` by one line per epoch."""
        text = "".join(json.dumps(record) + "\n" for record in history)
        replace(self.metrics, text.encode())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the metrics, one dictionary per finished epoch; ValueError if they are damaged."""
        if not self.metrics.exists():
            return []
        return decoded(self.metrics, _lines, self._made_again)

    def write_assignments(self, names: list[str], cluster: np.ndarray, label: np.ndarray, epoch: int) -> None:
        """Replace ``assignments.npz``: arrays files (str), cluster, label (-1: none) and epoch."""
        arrays = {"files": np.array(names, dtype=np.str_), "cluster": cluster, "label": label}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays, epoch=epoch)
        replace(self.assignments, buffer.getbuffer())

    def read_assignments(self) -> dict[str, np.ndarray]:
        """Return the arrays of ``assignments.npz``.

        Raises
        ------
        FileNotFoundError
            Before the first epoch has ended.
        ValueError
            If the file is damaged.
        """
        if not self.assignments.exists():
            raise FileNotFoundError(f"{self.path} has no assignments yet: no epoch has ended")
        return decoded(self.assignments, _arrays, self._made_again)

    def write_probe(self, result: dict[str, Any]) -> None:
        """Replace ``probe.json``."""
        text = json.dumps(result, indent=2) + "\n"
        replace(self.probe, text.encode())

    def read_probe(self) -> dict[str, Any] | None:
        """Return what the probe found, or None if it has not been run; ValueError if the file is damaged."""
        if not self.probe.exists():
            return None
        remedy = f"make it again with dcfast probe {self.quoted}, or delete it"
        return decoded(self.probe, lambda content: _with(json.loads(content), _PROBE_KEYS), remedy)

    def write_report(self, html: str) -> None:
        """Replace ``report.html``."""
        replace(self.report, html.encode(errors="backslashreplace"))  # names of files may be no valid text


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


def saved(value: Any) -> memoryview:
    """Return what ``torch.save`` writes.

    It is made in memory: where writing fails, torch's own writer hides the error of the disk behind one of its own.
    """
    buffer = io.BytesIO()
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)  # `_loaded` relies on them
    try:
        torch.save(value, buffer)
    finally:
        torch.serialization.set_crc32_options(before)
    return buffer.getbuffer()


def decoded(path: Path, decode: Callable[[bytes], T], remedy: str) -> T:
    """Return what ``decode`` makes of the bytes of a file.

    Raises
    ------
    ValueError
        If it raises anything: the file is named with ``remedy``.
    """
    content = path.read_bytes()
    try:
        return decode(content)
    except MemoryError:
        raise
    except Exception as error:  # damage can raise anything
        raise ValueError(f"{path} is damaged, or a file of another kind: {remedy}") from error


def _loaded(content: bytes, device: torch.device | str = "cpu") -> Any:
    """Return what `saved` was given; torch itself does not look at the checksums of a file."""
    damaged = zipfile.ZipFile(io.BytesIO(content)).testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} has another checksum")
    return torch.load(io.BytesIO(content), map_location=device, weights_only=True)


def _lines(content: bytes) -> list[dict[str, Any]]:
    return [_with(json.loads(line), ("epoch",)) for line in content.splitlines()]


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content)) as arrays:
        return _with(dict(arrays), _ASSIGNMENT_KEYS)


def _with(found: Any, keys: Iterable[str]) -> Any:
    """Return a dictionary that has these keys as it is; `decoded` turns the errors of others into its own."""
    if not isinstance(found, dict):
        raise TypeError(f"expected a dictionary, got {type(found).__name__}")
    for key in keys:
        found[key]
    return found
