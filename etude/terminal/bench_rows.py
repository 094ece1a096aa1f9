"""Results of `etude bench` as rows, and their printers: llama-bench's table, CSV, JSON, JSON lines."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

_COLUMNS = (
    ("model", -30),
    ("size", 10),
    ("params", 10),
    ("backend", -10),
    ("threads", 7),
    ("test", 20),
    ("t/s", 20),
)
"""Of the table: title and width; negative is left-aligned."""


@dataclass(frozen=True)
class Setting:
    """What a row was measured with, under llama-bench's names. Sizes are in bytes."""

    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    n_threads: int
    n_ubatch: int
    type_k: str
    type_v: str
    cpu_info: str
    backends: str = "CPU"


@dataclass(frozen=True)
class Row:
    """A test's result. samples_ns: time of each run; n_tokens: what was computed in that time.

    group: the fields of llama-batched-bench, in seconds and tokens per second, for a test of a group.
    """

    test: str
    n_prompt: int
    n_gen: int
    n_depth: int
    n_tokens: int
    samples_ns: tuple[int, ...]
    group: dict[str, float] | None = None

    @property
    def samples_ts(self) -> list[float]:
        return [self.n_tokens * 1e9 / sample_ns for sample_ns in self.samples_ns]

    def as_json(self, setting: Setting) -> dict[str, Any]:
        """One flat object with llama-bench's fields."""
        return {
            **asdict(setting),
            "test": self.test,
            "n_prompt": self.n_prompt,
            "n_gen": self.n_gen,
            "n_depth": self.n_depth,
            "test_time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "avg_ns": round(statistics.fmean(self.samples_ns)),
            "stddev_ns": round(deviation(self.samples_ns)),
            "avg_ts": round(statistics.fmean(self.samples_ts), 6),
            "stddev_ts": round(deviation(self.samples_ts), 6),
            **(self.group or {}),
            "samples_ns": list(self.samples_ns),
            "samples_ts": [round(sample, 6) for sample in self.samples_ts],
        }


class Printer(Protocol):
    """Takes objects as they come, and the end."""

    def add(self, record: dict[str, Any]) -> None: ...

    def end(self) -> None: ...


class Markdown:
    """llama-bench's table."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._cells([title for title, _ in _COLUMNS])
        rules = ("-" * abs(width) if width < 0 else "-" * (width - 1) + ":" for _, width in _COLUMNS)
        print("| " + " | ".join(rules) + " |", file=stream, flush=True)

    def add(self, record: dict[str, Any]) -> None:
        """One line."""
        size, params = record["model_size"], record["model_n_params"]
        self._cells(
            [
                record["model_type"],
                f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB",
                f"{params / 1e9:.2f} B" if params >= 1e9 else f"{params / 1e6:.2f} M",
                record["backends"],
                str(record["n_threads"]),
                record["test"],
                f"{record['avg_ts']:.2f} ± {record['stddev_ts']:.2f}",
            ]
        )

    def end(self) -> None:
        """Nothing more to say."""

    def _cells(self, texts: Sequence[str]) -> None:
        padded = (
            text.ljust(-width) if width < 0 else text.rjust(width)
            for text, (_, width) in zip(texts, _COLUMNS, strict=True)
        )
        print("| " + " | ".join(padded) + " |", file=self._stream, flush=True)


class Csv:
    """A header with the first record's fields, then a line for each; lists are left out, as llama-bench does.

    Groups have more fields; they go without them here.
    """

    def __init__(self, stream: TextIO) -> None:
        self._writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
        self._fields: list[str] = []

    def add(self, record: dict[str, Any]) -> None:
        """One line."""
        if not self._fields:
            self._fields = [key for key, value in record.items() if not isinstance(value, list)]
            self._writer.writerow(self._fields)
        self._writer.writerow([record[key] for key in self._fields])

    def end(self) -> None:
        """Nothing more to say."""


class JsonLines:
    """An object a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def add(self, record: dict[str, Any]) -> None:
        """One line."""
        print(json.dumps(record), file=self._stream, flush=True)

    def end(self) -> None:
        """Nothing more to say."""


class Json:
    """One list, written at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._records: list[dict[str, Any]] = []

    def add(self, record: dict[str, Any]) -> None:
        """Keep it."""
        self._records.append(record)

    def end(self) -> None:
        """Write the list."""
        print(json.dumps(self._records, indent=2), file=self._stream, flush=True)


PRINTERS: dict[str, Callable[[TextIO], Printer]] = {
    "md": Markdown,
    "csv": Csv,
    "json": Json,
    "jsonl": JsonLines,
}


def deviation(samples: Sequence[float]) -> float:
    """Sample standard deviation, 0 for a single one."""
    return statistics.stdev(samples) if len(samples) > 1 else 0.0
