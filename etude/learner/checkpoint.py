"""A learner's state on disk: one JSON record, one safetensors file; all of it or nothing.

    FOLDER/learner.json            format, model, settings, counts, random state
    FOLDER/learner.safetensors     f32: "weight/NAME", "exp_avg/…", "exp_avg_sq/…", "step/…", "reference/…"

A folder is written under another name, flushed to the disk and then renamed, so that a process killed at any
moment leaves whole folders only. Tensors are written one by one from where they lie, and once: a checkpoint
costs no memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.model.checkpoint import read_json
from etude.model.safetensors import SafetensorsFile
from etude.model.safetensors_write import write_text
from etude.model.save import new_folder
from etude.records import EtudeError

FORMAT = 1
RECORD, TENSORS = "learner.json", "learner.safetensors"


def write_state(folder: Path, record: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write a checkpoint in place of an older one. Tensors are f32; EtudeError as `new_folder`."""
    named = dict(tensors)
    entries, end = {}, 0
    for name, tensor in named.items():
        assert tensor.dtype == torch.float32, name
        begin, end = end, end + 4 * tensor.numel()
        entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 64)
    with new_folder(folder, RECORD) as fresh:
        with (fresh / TENSORS).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for tensor in named.values():
                values = np.ascontiguousarray(tensor.detach().cpu().numpy(), "<f4")
                file.write(values.reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        write_text(fresh / RECORD, json.dumps({"format": FORMAT, **record}, indent=1))


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
