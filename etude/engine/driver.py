"""Who runs the steps when several callers wait for the engine at once.

One caller at a time drives: it runs steps and hands every event to the inbox of the request it belongs to.
The others sleep until their own inbox has something, or until the driver leaves and one of them takes over.
So a program with one caller pays for nothing, and threads, asyncio and plain `step()` mix. For asyncio a
background thread is one more caller, started when it is first needed.

A step is never interrupted halfway: Ctrl-C is kept back until its end. While the driver is paused nobody
steps: what runs stays where it is, and what is done between steps is still done.
"""

from __future__ import annotations

import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

from etude.engine.core import EngineCore
from etude.engine.sequence import Sequence
from etude.records import Event

Result = TypeVar("Result")


class Inbox:
    """Where the events of some requests arrive; `only_ends`: only those that end a completion.

    arrived: called with each event instead, by the driving thread, and with the error when the engine fails.
    """

    def __init__(
        self,
        arrived: Callable[[Event | BaseException], None] | None = None,
        *,
        only_ends: bool = False,
    ) -> None:
        self.events: deque[Event] = deque()
        self.arrived = arrived
        self.only_ends = only_ends
        self.wake = threading.Event()


NOBODY = Inbox(lambda event: None)


class Driver:
    """Steps a core for everybody. Every method may be called by any thread."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self._public = Inbox()
        self._inboxes: dict[int, Inbox] = {}
        self._orders: deque[Callable[[Driver], None]] = (
            deque()
        )  # they get the driver: no cycle keeps it alive
        self._mutex = threading.Lock()
        self._driver: int | None = None  # thread that drives
        self._sleeping: list[Inbox] = []
        self._failure: BaseException | None = None
        self._background: _Background | None = None
        self._stops = 0  # who wants that nobody begins a step
        self._paused = False
        self._going = threading.Event()
        self._going.set()

    def submit(self, reader: Sequence, inbox: Inbox | None = None) -> int:
        """Put a prepared request in line before the next step; its events go to `inbox`, or to `step`."""
        self._check()
        request_id = reader.group.id
        if inbox is not None:
            self._inboxes[request_id] = inbox
        self._orders.append(lambda driver: driver.core.add(reader))
        if inbox is not None and inbox.arrived is not None:
            self._wake_background()
        return request_id

    def abort(self, request_id: int) -> None:
        """End a request before the next step; its last events arrive as usual."""
        self._orders.append(lambda driver: driver.core.abort(request_id))

    def forget(self, request_id: int) -> None:
        """Abort a request of which nobody wants to hear any more."""
        self._orders.append(lambda driver: driver._drop(request_id))

    def _drop(self, request_id: int) -> None:
        if request_id in self._inboxes:  # until its last event was delivered
            self._inboxes[request_id] = NOBODY
            self.core.abort(request_id)

    def between_steps(self, action: Callable[[], Result]) -> Result:
        """Run something while no step runs, after the orders so far. Who drives makes way for it: otherwise
        the wheel would hardly ever be free while much runs."""
        self._stop()
        try:
            with self._wheel(), _interrupts_later():
                self._obey()
                return action()
        finally:
            self._go()

    def pause(self) -> None:
        """No step begins from now on; returns when the one that runs has ended. `wait` waits for `resume`."""
        with self._mutex:
            paused, self._paused = self._paused, True
        if not paused:
            self._stop()
        with self._wheel():
            pass

    def resume(self) -> None:
        """Let steps run again."""
        with self._mutex:
            paused, self._paused = self._paused, False
        if paused:
            self._go()

    def _stop(self) -> None:
        with self._mutex:
            self._stops += 1
            self._going.clear()

    def _go(self) -> None:
        with self._mutex:
            self._stops -= 1
            if self._stops:
                return
            self._going.set()
            if self._background is not None:
                self._background.wake.set()

    def step(self) -> list[Event]:
        """The events that have arrived from steps of other callers, or else those of one step; none is run
        while paused.
        """
        with self._wheel(self._public) as drives:
            if drives and not self._paused:
                self._advance()
        return _take(self._public)

    def wait(self, inbox: Inbox) -> list[Event]:
        """Events of an inbox that expects some; runs steps, or sleeps while somebody else does."""
        while not inbox.events:
            self._going.wait()
            with self._wheel(inbox) as drives:
                while drives and not inbox.events and self._going.is_set():
                    self._advance()
        return _take(inbox)

    def close(self) -> None:
        """Let nobody step any more."""
        self._going.set()  # for good: those who waited hear below that it is over
        if self._background is not None:
            self._background.stop()
        if self._failure is None:
            with self._wheel():
                self._fail(RuntimeError("the engine is closed"))

    @contextmanager
    def _wheel(self, until: Inbox | None = None) -> Iterator[bool]:
        """Wait for the right to drive; gives False if something came to the inbox `until` before."""
        me = threading.get_ident()
        while True:
            with self._mutex:
                self._check()
                if until is not None and until.events:
                    drives = False
                    break
                if self._driver in (None, me):  # me: left by an interrupt between two steps
                    self._driver = me
                    drives = True
                    break
                sleeper = until or Inbox()
                sleeper.wake.clear()
                self._sleeping.append(sleeper)
            sleeper.wake.wait()
        try:
            yield drives
        finally:
            if drives:
                with self._mutex:
                    self._driver = None
                    self._wake(self._sleeping)

    def _advance(self) -> None:
        """One step, and its events to their inboxes. Only with the wheel."""
        with _interrupts_later():
            try:
                self._obey()
                events = self.core.step()
            except BaseException as error:
                self._fail(error)
                raise
            for event in events:
                self._deliver(event)
            for event in events:
                if event.finish is not None and not self.core.is_live(event.request_id):
                    self._inboxes.pop(event.request_id, None)
            if self._sleeping:
                with self._mutex:
                    self._wake([inbox for inbox in self._sleeping if inbox.events])

    def _obey(self) -> None:
        while self._orders:
            self._orders.popleft()(self)

    def _deliver(self, event: Event) -> None:
        inbox = self._inboxes.get(event.request_id, self._public)
        if inbox.only_ends and event.finish is None:
            return
        if inbox.arrived is None:
            inbox.events.append(event)
        else:
            try:
                inbox.arrived(event)
            except RuntimeError:  # its event loop has been closed
                self.forget(event.request_id)

    def _wake(self, inboxes: list[Inbox]) -> None:
        for inbox in inboxes:
            inbox.wake.set()
        self._sleeping = [inbox for inbox in self._sleeping if not inbox.wake.is_set()]

    def _fail(self, error: BaseException) -> None:
        """Nothing is certain any more about the core: all callers hear of it, now and later."""
        self._failure = error
        for inbox in set(self._inboxes.values()):
            if inbox.arrived is not None:
                with suppress(RuntimeError):  # its event loop has been closed
                    inbox.arrived(error)
        self._inboxes.clear()

    def _check(self) -> None:
        if self._failure is not None:
            raise RuntimeError(f"the engine has stopped: {self._failure}") from self._failure

    # ── asyncio ──

    @property
    def has_background_work(self) -> bool:
        """Whether events are expected that no caller drives for."""
        return any(inbox.arrived is not None for inbox in list(self._inboxes.values()))

    def _wake_background(self) -> None:
        with self._mutex:
            if self._background is None:
                self._background = _Background(self)
        self._background.wake.set()

    def run_background(self, stopped: Callable[[], bool]) -> None:
        """Drive, or let others, as long as there is background work and no pause."""
        turn = Inbox()
        while self.has_background_work and self._going.is_set() and not stopped():
            with self._wheel(turn) as drives:
                if drives and self._going.is_set():
                    self._advance()


class _Background:
    """The thread that drives for asyncio. It sleeps without holding the engine, so that one which
    is dropped goes.
    """

    def __init__(self, driver: Driver) -> None:
        self.wake = threading.Event()
        self._stopped = False
        reference = weakref.ref(driver)
        self._thread = threading.Thread(target=self._run, args=(reference,), name="etude-engine", daemon=True)
        self._thread.start()
        # Also at the end of the program: a thread that returns from native code after that would crash it.
        weakref.finalize(driver, self.stop)

    def _run(self, reference: weakref.ref[Driver]) -> None:
        while not self._stopped:
            self.wake.wait()
            self.wake.clear()
            driver = reference()
            if driver is None or self._stopped:
                return
            try:
                driver.run_background(lambda: self._stopped)
            except Exception:  # whoever waits was told by the driver
                return
            del driver

    def stop(self) -> None:
        self._stopped = True
        self.wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()


def _take(inbox: Inbox) -> list[Event]:
    """Everything in an inbox."""
    events = []
    while inbox.events:
        events.append(inbox.events.popleft())
    return events


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Keep Ctrl-C back until the block has ended. Only the main thread is ever interrupted by it."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    kept: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: kept.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if kept:
            handler(*kept[-1])
