"""A learner's state on disk: one JSON record, one safetensors file; all of it or nothing.

    FOLDER/learner.json            format, model, settings, counts, random state
    FOLDER/learner.safetensors     f32: "weight/NAME", "exp_avg/…", "exp_avg_sq/…", "step/…", "reference/…"

A folder is written under another name, flushed to the disk and then renamed, so that a process killed at any
moment leaves the old folder or the new one. Tensors are written one by one from where they lie: a checkpoint
costs no memory.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.model.checkpoint import read_json
from etude.model.safetensors import SafetensorsFile
from etude.records import EtudeError

FORMAT = 1
RECORD, TENSORS = "learner.json", "learner.safetensors"


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.writing")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        yield fresh
        for path in fresh.iterdir():
            _flush(path)
        _flush(fresh)
        if folder.exists():
            aside = folder.with_name(f".{folder.name}.{os.getpid()}.replaced")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            fresh.rename(folder)
            shutil.rmtree(aside)
        else:
            fresh.rename(folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_state(folder: Path, record: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write both files into an existing folder. Tensors are f32; OSError as the disk says."""
    named = dict(tensors)
    entries, end = {}, 0
    for name, tensor in named.items():
        assert tensor.dtype == torch.float32, name
        begin, end = end, end + 4 * tensor.numel()
        entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 64)
    with (folder / TENSORS).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in named.values():
            values = np.ascontiguousarray(tensor.detach().cpu().numpy(), "<f4")
            file.write(memoryview(values.reshape(-1)).cast("B"))
    (folder / RECORD).write_text(json.dumps({"format": FORMAT, **record}, indent=1))


class SavedState:
    """An opened checkpoint: the record, and tensors by name. A context manager."""

    def __init__(self, folder: Path) -> None:
        """EtudeError when something is missing or unreadable."""
        self.folder = folder
        self.record = read_json(folder / RECORD)
        if self.record.get("format") != FORMAT:
            raise EtudeError(
                f"{folder / RECORD}: format {self.record.get('format')!r}; this version reads {FORMAT}"
            )
        self._file = SafetensorsFile.open(folder / TENSORS)

    def names(self, kind: str) -> set[str]:
        """What stands behind "KIND/"."""
        return {name.partition("/")[2] for name in self._file.tensors if name.startswith(kind + "/")}

    def tensor(self, name: str) -> Tensor:
        """A copy of it; EtudeError if there is none."""
        if name not in self._file.tensors:
            raise EtudeError(
                f"{self.folder / TENSORS}: there is no tensor {name!r}; the checkpoint is damaged"
            )
        values, _ = self._file.array(name)
        tensor = torch.from_numpy(np.array(values))
        self._file.release(name)
        return tensor

    def check(self, expected: Mapping[str, Any]) -> None:
        """EtudeError for the first entry of the record that is not as expected."""
        for key, value in _flat(expected):
            found = dict(_flat(self.record)).get(key)
            if found != value:
                raise EtudeError(
                    f"{self.folder} does not fit this learner: its {key} is {found!r}, here it is {value!r}; "
                    "restore with the model and settings that it was saved with"
                )

    def __enter__(self) -> SavedState:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
