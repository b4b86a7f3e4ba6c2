"""Ctrl-C, a polite kill and a lost terminal end a command the same way: by an exception, so that what is half-written goes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SIGHUP comes when an SSH session to a device breaks off
SIGNALS = tuple(number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None)
STATUS_BASE = 128


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end; `exit_status` is 128 and its number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_status = STATUS_BASE + number


@contextmanager
def interruptible() -> Iterator[list[Interrupted]]:
    """Raise Interrupted where one of SIGNALS comes in this block, unless somebody handles or ignores it already (nohup, a notebook).

    Yields:
        What was raised so far: a library may turn the exception into another one, or lose it.
    """
    caught: list[Interrupted] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        caught.append(Interrupted(number))
        raise caught[-1]

    previous = {}
    # only the main thread may set handlers, and only there do signals arrive
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                previous[number] = signal.signal(number, interrupt)
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
