"""A prompt's keys and values in a file, so that a later start need not compute them again.

Layout: magic, length of the header (u32), header (JSON), token ids (i32), whole pages as the native cache
holds them. The header names everything that the bytes depend on; a file that differs in any of it is refused
by name. Only whole pages are kept; what is left of a prompt, at most a page, is computed again.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etude.engine.core import EngineCore
from etude.engine.scheduler import PageStore
from etude.records import EtudeError

MAGIC = b"ETUDEKV1"
MAX_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class CacheIdentity:
    """What cached bytes depend on. isa: the instruction-set path; between two of them bits differ."""

    model: str
    isa: str
    cache_type_k: str
    cache_type_v: str
    page_tokens: int
    page_bytes: int


def write_cache(path: Path, identity: CacheIdentity, ids: NDArray[np.int32], pages: list[bytes]) -> None:
    """Write the file; under its name it is complete, or as it was before."""
    header = json.dumps(asdict(identity) | {"n_tokens": len(ids)}).encode()
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            try:
                file.write(MAGIC + struct.pack("<I", len(header)) + header + ids.astype("<i4").tobytes())
                file.writelines(pages)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise EtudeError(f"{path}: the prompt cache cannot be written ({error.strerror})") from error


def read_cache(path: Path, identity: CacheIdentity) -> tuple[NDArray[np.int32], list[bytes]]:
    """(token ids, pages) of a file for this model and cache; EtudeError if it is for another, or damaged."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EtudeError(f"{path}: the prompt cache cannot be read ({error.strerror})") from error
    start = len(MAGIC) + 4
    if len(data) < start or not data.startswith(MAGIC):
        raise EtudeError(f"{path}: this is no prompt cache of etude")
    (n_header,) = struct.unpack_from("<I", data, len(MAGIC))
    header = _header(path, data[start : start + min(n_header, MAX_HEADER_BYTES)])
    for field in fields(identity):
        ours, theirs = getattr(identity, field.name), header.get(field.name)
        if ours != theirs:
            raise EtudeError(
                f"{path}: was written with another {field.name} ({str(theirs)[:80]}, here {ours}); delete "
                "it, or load the model as it was then"
            )
    n_tokens, at = header.get("n_tokens"), start + n_header
    if type(n_tokens) is not int or n_tokens < 0 or n_tokens % identity.page_tokens:
        raise EtudeError(f"{path}: damaged (n_tokens is {str(n_tokens)[:80]}); delete it")
    n_pages = n_tokens // identity.page_tokens
    if len(data) != at + 4 * n_tokens + n_pages * identity.page_bytes:
        raise EtudeError(f"{path}: damaged ({len(data)} bytes are not what its header says); delete it")
    ids = np.frombuffer(data, "<i4", n_tokens, at).astype(np.int32)
    first = at + 4 * n_tokens
    pages = range(first, first + n_pages * identity.page_bytes, identity.page_bytes)
    return ids, [data[page : page + identity.page_bytes] for page in pages]


def _header(path: Path, text: bytes) -> dict[str, object]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EtudeError(f"{path}: damaged (its header is not JSON); delete it") from error
    if not isinstance(header, dict):
        raise EtudeError(f"{path}: damaged (its header is not a JSON object); delete it")
    return header


def export_prefix(core: EngineCore, store: PageStore, ids: NDArray[np.int32]) -> list[bytes]:
    """The cached pages of a prompt under the base model."""
    cache = core.cache
    nodes = cache.match((core.weights_version, None), ids, len(ids) // cache.page_tokens)
    return [store.export_page(node.page) for node in nodes]


def import_prefix(core: EngineCore, store: PageStore, ids: NDArray[np.int32], pages: list[bytes]) -> int:
    """Put pages into the prefix tree as far as there is room; how many tokens are cached then."""
    cache, namespace = core.cache, (core.weights_version, None)
    nodes = cache.match(namespace, ids, len(pages))
    held = [node.page for node in nodes]
    cache.hold(held)
    parent = nodes[-1] if nodes else cache.tree.root(namespace)
    for at in range(len(held), len(pages)):
        if not cache.n_available:
            break
        page = cache.allocate()
        store.import_page(page, pages[at])
        parent = cache.store(parent, ids[at * cache.page_tokens : (at + 1) * cache.page_tokens], page)
        held.append(parent.page)
    cache.release(held)
    return len(held) * cache.page_tokens


def drop_prefix(core: EngineCore, ids: NDArray[np.int32]) -> int:
    """Forget the cached pages at the end of a prompt that nobody uses; how many tokens they held."""
    cache = core.cache
    nodes = cache.match((core.weights_version, None), ids, len(ids) // cache.page_tokens)
    return cache.drop(nodes) * cache.page_tokens


def saved_ids(path: Path) -> NDArray[np.int32]:
    """The token ids in a file that `read_cache` takes."""
    data = path.read_bytes()
    start = len(MAGIC) + 4
    (n_header,) = struct.unpack_from("<I", data, len(MAGIC))
    n_tokens = json.loads(data[start : start + n_header])["n_tokens"]
    return np.frombuffer(data, "<i4", n_tokens, start + n_header).astype(np.int32)
