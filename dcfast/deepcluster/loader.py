"""Items of a data set, made by worker processes: in order, without a draw, and with errors as they were raised."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch

__all__ = ["Loader"]

Item = TypeVar("Item")


class Loader(Generic[Item]):
    """The items of a data set in order.

    Parameters
    ----------
    items : torch Dataset
        With a length.
    workers : int
        Processes that make them; 0 for this one. What making an item raises, iterating raises, whoever made it.
    pin_memory : bool
        Put tensors where a GPU copies them from at once.
    """

    def __init__(self, items: torch.utils.data.Dataset[Item], workers: int, pin_memory: bool = False) -> None:
        self._loader = torch.utils.data.DataLoader(
            _Told(items),
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_is,
            pin_memory=pin_memory,
            worker_init_fn=_spared if workers else None,
            # The loader numbers its workers' generators with a draw; nothing here reads them, and the caller's stay
            # put.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Item]:
        with _kept_from_signals():
            items = iter(self._loader)
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item


class _Told(torch.utils.data.Dataset[Any]):
    """The items of another data set. What a worker process raises is an item too.

    torch would raise it with the worker's whole traceback as its message.
    """

    def __init__(self, items: torch.utils.data.Dataset[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        try:
            return self._items[index]
        except Exception as error:
            if torch.utils.data.get_worker_info() is None:
                raise
            return _portable(error)


def _portable(error: Exception) -> Exception:
    error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _as_is(item: Item) -> Item:
    return item


# A terminal's Ctrl-C reaches all processes, and so does the SIGTERM of a scheduler; the one that trains ends the others
# when it is done with them.

_KEPT = {signal.SIGINT, signal.SIGTERM}


def _spared(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT)
    threading.Thread(target=_obey, args=(multiprocessing.parent_process(),), daemon=True).start()


def _obey(parent: Any) -> None:
    """End this process on a SIGTERM of the one that made it."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)


@contextmanager
def _kept_from_signals() -> Iterator[None]:
    """Keep signals from processes that are made inside the block, for as long as they live: `_spared` runs late."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
