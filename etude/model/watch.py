"""Progress of a download as the growth of a folder: the same for pip and for every hub's library."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from etude.model.source import Progress, ProgressCallback

INTERVAL_S = 0.2


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder that others may be writing to and moving about."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # gone between listing and asking
            if path.is_file():
                total += path.stat().st_size
    return total


@contextlib.contextmanager
def watch_folder(
    folder: Path, text: str, total_bytes: int | None, report: ProgressCallback
) -> Iterator[None]:
    """Report the size of `folder` every 0.2 s, from a thread, while the body runs; and once at the end."""
    stop = threading.Event()

    def report_size() -> None:
        done = folder_bytes(folder)
        report(Progress(text, done if total_bytes is None else min(done, total_bytes), total_bytes))

    def loop() -> None:
        while not stop.wait(INTERVAL_S):
            report_size()

    report(Progress(text, 0, total_bytes))
    thread = threading.Thread(target=loop, name="etude-pull-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        report_size()
