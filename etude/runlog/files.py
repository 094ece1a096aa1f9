"""Files and folders that are whole whenever one looks: written beside their place, then renamed into it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etude.records import EtudeError

LEFTOVER = ".tmp-"
"""How the names of drafts begin; one that is found was left by a process that was killed."""
LEFTOVERS = (LEFTOVER, f".{LEFTOVER}")
"""The second: of model/save.py, which replaces a draft's folder by one that it writes beside it."""


def write_atomic(path: Path, data: bytes) -> None:
    """A whole file, or none."""
    draft = path.with_name(f"{LEFTOVER}{path.name}")
    with naming(path):
        try:
            with draft.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync(path.parent)


def append_line(path: Path, line: bytes) -> None:
    """One line to the end of a file, on the disk when this returns; without room, the file is as before."""
    with naming(path), path.open("ab", buffering=0) as file:
        length = file.tell()
        try:
            written = file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(length)
            raise


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder that appears under its name when the block has ended, with all its files on the disk."""
    draft = final.with_name(f"{LEFTOVER}{final.name}")
    with naming(final):
        remove(draft)
        draft.mkdir()
        try:
            yield draft
            for path in sorted(draft.rglob("*")):
                sync(path)
            sync(draft)
            if final.exists():
                remove(final)
            draft.rename(final)
        except BaseException:
            remove(draft)
            raise
        sync(final.parent)


def remove(path: Path) -> None:
    """Remove a file or folder; a folder leaves its name first, so that no half of it is ever found there."""
    if path.is_dir():
        if not path.name.startswith(LEFTOVER):
            path = path.rename(path.with_name(f"{LEFTOVER}old-{path.name}"))
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """What is in a file or folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take_lock(folder: Path) -> int:
    """The descriptor that holds the lock of a run. EtudeError while another process has it."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    for attempt in range(20):  # a reader that looks whether it is held has it for a moment
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            return descriptor
        except BlockingIOError:
            time.sleep(0.01 * (attempt < 19))
    holder = os.pread(descriptor, 32, 0).decode().strip()
    os.close(descriptor)
    raise EtudeError(f"{folder} is being written by another process ({holder or 'unknown'}); stop it first")


def check_room(folder: Path, size_bytes: int) -> None:
    """Reserve that many bytes for a moment: finds full disks and quotas. EtudeError if they are not there."""
    probe = folder / f"{LEFTOVER}room"
    try:
        with probe.open("wb") as file:
            if sys.platform == "darwin" or size_bytes > shutil.disk_usage(folder).free:
                fits = size_bytes <= shutil.disk_usage(folder).free
            else:
                os.posix_fallocate(file.fileno(), 0, size_bytes)
                fits = True
    except OSError as error:
        # a file system may reserve nothing; then what it says is free must do
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        fits = error.errno in (errno.EOPNOTSUPP, errno.EINVAL)
    finally:
        probe.unlink(missing_ok=True)
    if not fits:
        needed, free = size_bytes / 2**20, shutil.disk_usage(folder).free / 2**20
        raise EtudeError(
            f"{folder} has too little room: the run needs about {needed:,.0f} MiB, and {free:,.0f} MiB are "
            "free on the disk; make room, keep fewer checkpoints, or choose another folder"
        )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the file system, as one that the user can read."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise EtudeError(f"cannot write {where}: {error.strerror or error}") from error
