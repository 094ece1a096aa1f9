"""Rows out of files and data sets, each with the place it came from, so that an error can name it.

train.jsonl  train.jsonl.gz  train.json  train.parquet  data.arrow
FOLDER               files of a data set, or what `datasets` saved with save_to_disk
owner/name           at Hugging Face, by the package `datasets`, where it can be reached
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etude.records import EtudeError

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".json", ".parquet", ".arrow")
BATCH_ROWS = 1000


@dataclass(frozen=True)
class Row:
    """values: its columns; where: "train.jsonl:12", for people; number: counted from 0 within the source."""

    values: Mapping[str, Any]
    where: str
    number: int

    def error(self, text: str) -> EtudeError:
        """An error about this row."""
        return EtudeError(f"{self.where}: {text}")


def read_rows(source: str | Path, *, split: str = "train", config: str | None = None) -> Iterator[Row]:
    """All rows, in order. split, config: which part of a data set in a folder or at Hugging Face. EtudeError
    with the place of what cannot be read."""
    path = Path(source).expanduser()
    if path.is_file():
        rows = _read_file(path)
    elif path.is_dir():
        rows = _read_folder(path, split)
    elif re.fullmatch(r"(?:hf:)?[\w.-]+/[\w.-]+", str(source)) and not str(source).endswith(SUFFIXES):
        rows = _read_hub(str(source).removeprefix("hf:"), split, config)
    else:
        raise EtudeError(
            f"there is no file or folder {str(source)!r}; a data set at Hugging Face is named owner/name"
        )
    for number, (values, where) in enumerate(rows):
        if not isinstance(values, Mapping):
            raise EtudeError(f"{where}: got {type(values).__name__}, a row is a JSON object")
        yield Row(values, where, number)


def _read_file(path: Path) -> Iterator[tuple[Any, str]]:
    """(values, where) of each row of one file."""
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise EtudeError(
            f"{path}: got {path.suffix or 'no suffix'!r}, data is read from {', '.join(SUFFIXES)}"
        )
    try:
        if name.endswith(".parquet"):
            yield from _read_parquet(path)
        elif name.endswith(".arrow"):
            yield from _read_arrow(path)
        elif name.endswith(".json"):
            yield from _read_json(path)
        else:
            yield from _read_lines(path)
    except (OSError, EOFError) as error:
        raise EtudeError(f"{path} cannot be read: {error}") from error


def _read_lines(path: Path) -> Iterator[tuple[Any, str]]:
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    with opened as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            try:
                yield json.loads(line), where
            except UnicodeDecodeError as error:
                raise EtudeError(f"{where}: the line is not UTF-8: {error.reason}") from None
            except ValueError as error:
                raise EtudeError(f"{where}: the line is not JSON: {error}") from None
            except RecursionError:
                raise EtudeError(f"{where}: the JSON is nested too deeply") from None


def _read_json(path: Path) -> Iterator[tuple[Any, str]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise EtudeError(f"{path.name} is not JSON: {error} (one object a line belongs in .jsonl)") from None
    if isinstance(data, Mapping) and isinstance(data.get("data"), list):
        data = data["data"]
    if not isinstance(data, list):
        raise EtudeError(f"{path.name}: got {type(data).__name__}, a .json file holds a list of rows")
    for number, values in enumerate(data):
        yield values, f"{path.name}, row {number}"


def _read_parquet(path: Path) -> Iterator[tuple[Any, str]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            batches = file.iter_batches(BATCH_ROWS)
            for number, values in enumerate(value for batch in batches for value in batch.to_pylist()):
                yield values, f"{path.name}, row {number}"
    except ArrowException as error:
        raise EtudeError(f"{path.name} is not Parquet: {error}") from None


def _read_arrow(path: Path) -> Iterator[tuple[Any, str]]:
    from pyarrow import ArrowException, ipc, memory_map

    try:
        with memory_map(str(path)) as mapped, ipc.open_stream(mapped) as stream:
            for number, values in enumerate(value for batch in stream for value in batch.to_pylist()):
                yield values, f"{path.name}, row {number}"
    except ArrowException as error:
        raise EtudeError(f"{path.name} is not an Arrow stream: {error}") from None


def _read_folder(folder: Path, split: str) -> Iterator[tuple[Any, str]]:
    """The files of one split; all of them where names tell no splits apart."""
    if (folder / split).is_dir():  # a DatasetDict on the disk
        folder = folder / split
        split = ""
    state = folder / "state.json"
    if state.is_file():
        names = [entry["filename"] for entry in json.loads(state.read_text())["_data_files"]]
        files = [folder / name for name in names]
    else:
        found = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(SUFFIXES))
        files = [path for path in found if path.name not in ("dataset_info.json", "dataset_infos.json")]
        known = re.compile(r"(train|test|validation|valid|dev|val)(?![a-z])")
        told_apart = [path for path in files if known.match(path.name)]
        if split and told_apart:
            files = [path for path in files if re.match(rf"{re.escape(split)}(?![a-z])", path.name)]
            if not files:
                names = sorted({path.name for path in told_apart})
                raise EtudeError(f"{folder} has no split {split!r}; it has: {', '.join(names[:8])}")
    if not files:
        raise EtudeError(f"{folder} holds no data ({', '.join(SUFFIXES)})")
    for file in files:
        yield from _read_file(file)


def _read_hub(name: str, split: str, config: str | None) -> Iterator[tuple[Any, str]]:
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise EtudeError(
            f"there is no folder {name}, and data sets at Hugging Face are read by the package `datasets`: "
            "pip install 'etude[data]'"
        ) from None
    try:
        dataset = load_dataset(name, config, split=split)
    except Exception as error:  # of many kinds: no network, no such name, no such split
        raise EtudeError(
            f"{name} (split {split}) cannot be read from Hugging Face: {type(error).__name__}: {error}"
        ) from error
    for number, values in enumerate(dataset):
        yield values, f"{name}, row {number}"
