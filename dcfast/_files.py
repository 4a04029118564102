"""Files that are written as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["is_full", "locked", "partial", "replace", "replacing"]


@contextlib.contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock on a file made for it inside the block, or until this process has ended.

    Raises
    ------
    FileExistsError
        With that refusal, if another process holds it.
    """
    with path.open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise FileExistsError(refusal) from None
        except OSError:
            pass  # not every file system has locks
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a neighbour of ``path`` for writing; in the end it is flushed to disk and renamed to ``path``.

    After an error ``path`` is as it was, and nothing else is left.
    """
    neighbour = partial(path)
    try:
        with neighbour.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(neighbour, path)
    except BaseException:
        neighbour.unlink(missing_ok=True)  # half a file would only keep a full disk full
        raise


def replace(path: Path, *parts: Any) -> None:
    """Write a file by `replacing`: one buffer (bytes, memoryview, contiguous array) after the other.

    Raises
    ------
    OSError
        If it cannot be written: ``path`` is as it was, and nothing else is left. Of a full disk it names the remedy.
    """
    try:
        with replacing(path) as file:
            for part in parts:
                file.write(part)
    except OSError as error:
        if not is_full(error):
            raise
        size = sum(memoryview(part).nbytes for part in parts)
        full = OSError(f"the disk is full: {path} was not written. Make room for {size:,} bytes and try again")
        full.errno = error.errno
        raise full from error


def is_full(error: OSError) -> bool:
    """Tell whether an error says that the disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def partial(path: Path) -> Path:
    """Return the neighbour of a file that is written before it is renamed."""
    return path.with_name(path.name + ".partial")
