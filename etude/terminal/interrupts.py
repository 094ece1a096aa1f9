"""Ctrl-C in a program that goes on: noted where nothing must be torn apart, raised where keys are awaited."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def noting_interrupts() -> Iterator[threading.Event]:
    """While it holds, Ctrl-C sets the event and raises nothing. Only the main thread is ever interrupted."""
    noted = threading.Event()
    with _handling(lambda number, frame: noted.set()):
        yield noted


@contextmanager
def raising_interrupts() -> Iterator[None]:
    """While it holds, Ctrl-C raises KeyboardInterrupt, also out of a call that waits."""
    with _handling(signal.default_int_handler):
        yield


@contextmanager
def _handling(handler: Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
