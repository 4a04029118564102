"""Ctrl-C and SIGTERM, put off until a step has ended or an epoch is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupted", "Request", "put_off"]


class Interrupted(KeyboardInterrupt):
    """Training was asked to end, and has ended between two steps.

    Attributes
    ----------
    step : int
        Steps of the epoch that are done.
    total : float
        Their losses, summed over the images.
    signal : int
        Which signal asked for it.
    """

    def __init__(self, step: int, total: float, number: int) -> None:
        super().__init__()
        self.step, self.total, self.signal = step, total, number


class Request:
    """What has been asked so far: ``signal`` is 0, or the number of the first signal that came."""

    def __init__(self) -> None:
        self.signal = 0


@contextmanager
def put_off(patient: bool) -> Iterator[Request]:
    """Note SIGINT and SIGTERM inside the block instead of acting on them, outside Python's main thread too.

    A second SIGINT acts at once, unless ``patient``: torchrun passes on the one that the terminal has sent already. A
    signal that is ignored outside, as a shell has it of what it runs in the background, is ignored inside.

    The signal reaches what the block waits for too, such as a compiler: a RuntimeError after it becomes a
    KeyboardInterrupt, but for one of several processes, which ends as the others do.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request  # no signal reaches this thread
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal and number == signal.SIGINT and not patient:
            signal.default_int_handler(number, frame)
        request.signal = request.signal or number

    heard = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield request
    except RuntimeError as error:
        if request.signal and not patient:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
