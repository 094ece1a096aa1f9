"""From a model's files to something that runs: native weights, tokenizer, and a cache of a stated size.

The weights are packed one tensor at a time and the file's mapped pages are given back as soon as each is
done, so that memory holds the packed weights and never the file beside them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from etude.engine.core import Limits, Parts
from etude.engine.grammar import GrammarFactory
from etude.engine.machine import memory_bytes, usable_cores
from etude.engine.sampling import SamplerFactory
from etude.engine.scheduler import Pages, pages_needed
from etude.engine.weights import WEIGHT_TYPES, Weight, held_type, set_weight
from etude.kernels import _native
from etude.model.chat import ChatTemplate
from etude.model.checkpoint import MatrixWeights, config_of, open_source, weights_of
from etude.model.family import ModelConfig, with_rope
from etude.model.gguf import GGUFFile
from etude.model.quants import GGMLType
from etude.model.rope import RopeOverrides
from etude.model.tokenizer import Tokenizer
from etude.model.tokenizer_json import metadata_from_folder
from etude.records import EtudeError

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0")
DEFAULT_CONTEXT = 8192
DEFAULT_CACHE_BYTES = 512 << 20


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory. chat: None for a base model. fingerprint: the same for the same weights
    and settings.
    """

    path: Path
    config: ModelConfig
    native: _native.Model
    tokenizer: Tokenizer
    chat: ChatTemplate | None
    weight_types: tuple[str, ...]
    fingerprint: str


def load_model(path: Path, *, rope: RopeOverrides | None, weight_type: str | None) -> LoadedModel:
    """Read a GGUF file or Hugging Face folder. EtudeError says what is wrong with it."""
    if weight_type is not None and weight_type not in WEIGHT_TYPES:
        raise EtudeError(f"weight_type is {weight_type!r}; it must be one of {', '.join(WEIGHT_TYPES)}")
    to = None if weight_type is None else WEIGHT_TYPES[weight_type]
    with open_source(path) as source:
        config = config_of(source)
        if rope is not None:
            config = with_rope(config, rope)
        metadata = source.metadata if isinstance(source, GGUFFile) else metadata_from_folder(path)
        tokenizer = Tokenizer.from_metadata(metadata)
        if tokenizer.n_vocab > config.n_vocab:
            raise EtudeError(
                f"{path}: its tokenizer has {tokenizer.n_vocab} tokens, its embedding {config.n_vocab} rows"
            )
        arguments = config.native_arguments()
        native = _native.Model(**arguments)
        described = repr(sorted((key, str(value)) for key, value in arguments.items()))
        digest = hashlib.blake2b(described.encode(), digest_size=16)
        types: dict[str, None] = {}
        for weight in weights_of(source, config):
            _digest(digest, weight, to)
            set_weight(native, weight, to)
            if isinstance(weight, MatrixWeights):
                held = held_type(weight, to)
                types[held.name if held == weight.type else f"{weight.type.name} as {held.name}"] = None
            source.release(weight.name)
        native.check()
    return LoadedModel(
        path=path,
        config=config,
        native=native,
        tokenizer=tokenizer,
        chat=ChatTemplate.from_metadata(metadata),
        weight_types=tuple(types),
        fingerprint=digest.hexdigest(),
    )


def _digest(digest: hashlib.blake2b, weight: Weight, to: GGMLType | None) -> None:
    """Name, type and both ends of a tensor: enough to tell files apart, and quick."""
    values = weight.data if isinstance(weight, MatrixWeights) else weight.values.view(np.uint8).reshape(-1)
    digest.update(f"{weight.name} {weight.slot} {weight.layer} {to} {len(values)}".encode())
    digest.update(values[:64].tobytes() + values[-64:].tobytes())


@dataclass(frozen=True)
class CacheSettings:
    """What the user asked of the cache; None: what suits the model and the machine."""

    context: int | None = None
    type_k: str = "f16"
    type_v: str = "f16"
    page_tokens: int = 32
    memory_bytes: int | None = None
    n_tokens: int | None = None


@dataclass(frozen=True)
class CachePlan:
    """A cache of `n_pages` pages, and the context that a sequence may have in it."""

    context: int
    n_pages: int
    page_bytes: int


def plan_cache(model: LoadedModel, asked: CacheSettings, *, shifts: bool) -> CachePlan:
    """How large context and cache become; EtudeError if what was asked does not fit together."""
    _check_settings(asked)
    page_bytes = _native.Cache.bytes_per_page(model.native, asked.page_tokens, asked.type_k, asked.type_v)
    trained = model.config.context_length
    context = min(trained, DEFAULT_CONTEXT) if asked.context is None else asked.context or trained
    needed = pages_needed(context, asked.page_tokens, shifts=shifts)
    if asked.n_tokens is not None:
        n_pages = -(-asked.n_tokens // asked.page_tokens)
    elif asked.memory_bytes is not None:
        n_pages = asked.memory_bytes // page_bytes
    else:
        limit = min(DEFAULT_CACHE_BYTES, memory_bytes() // 4)
        n_pages = max(needed, limit // page_bytes)
    if n_pages < needed and asked.context is None:
        context, needed = _fitting_context(n_pages, asked.page_tokens, shifts), n_pages
    if n_pages < needed or context < 1:
        raise EtudeError(
            f"a cache of {n_pages} pages of {asked.page_tokens} tokens ({n_pages * page_bytes:,} bytes) is "
            f"too small for a context of {context} tokens{' with context shift' if shifts else ''}, which "
            f"needs {needed * page_bytes:,} bytes: give it more memory, or ask for a smaller context"
        )
    return CachePlan(context, n_pages, page_bytes)


def _fitting_context(n_pages: int, page_tokens: int, shifts: bool) -> int:
    """The largest context, in whole pages, that fits."""
    pages = n_pages
    while pages > 0 and pages_needed(pages * page_tokens, page_tokens, shifts=shifts) > n_pages:
        pages -= 1
    return pages * page_tokens


def _check_settings(asked: CacheSettings) -> None:
    for name, kind in (("cache_type_k", asked.type_k), ("cache_type_v", asked.type_v)):
        if kind not in CACHE_TYPES:
            raise EtudeError(f"{name} is {kind!r}; it must be one of {', '.join(CACHE_TYPES)}")
    if asked.page_tokens < 32 or asked.page_tokens % 32:
        raise EtudeError(f"page_tokens is {asked.page_tokens}; it must be a multiple of 32")
    if asked.memory_bytes is not None and asked.n_tokens is not None:
        raise EtudeError("the size of the cache is given twice: as bytes and as tokens; give one of them")
    for name, value in (
        ("context", asked.context),
        ("cache_memory_bytes", asked.memory_bytes),
        ("cache_tokens", asked.n_tokens),
    ):
        if value is not None and value < (name != "context"):
            raise EtudeError(f"{name} is {value}; it must be positive")


@dataclass(frozen=True)
class RunSettings:
    """See `Engine.load`."""

    threads: int | None = None
    step_tokens: int = 512
    max_sequences: int | None = None
    context_shift: bool = False
    keep: int = 0

    @property
    def n_threads(self) -> int:
        if self.threads is not None and self.threads < 1:
            raise EtudeError(f"threads is {self.threads}; it must be at least 1")
        return usable_cores() if self.threads is None else self.threads


def limits_of(run: RunSettings, plan: CachePlan, tokenizer: Tokenizer) -> Limits:
    """The scheduler's limits; EtudeError for settings that contradict each other."""
    if run.step_tokens < 2:
        raise EtudeError(f"step_tokens is {run.step_tokens}; it must be at least 2")
    max_sequences = min(256, run.step_tokens // 2) if run.max_sequences is None else run.max_sequences
    if not 1 <= max_sequences < run.step_tokens:
        raise EtudeError(
            f"max_sequences is {max_sequences}; it must be at least 1, and below step_tokens "
            f"({run.step_tokens}): what it leaves of a step is for prompts"
        )
    if run.keep and not run.context_shift:
        raise EtudeError(f"keep is {run.keep}, which has no effect without context_shift")
    if run.keep < -1:
        raise EtudeError(f"keep is {run.keep}; it must be -1 (the whole prompt) or at least 0")
    if run.context_shift and plan.context < 8:
        raise EtudeError(f"a context of {plan.context} tokens is too short to be shifted; 8 are the least")
    shift_keep = run.keep if run.keep < 0 else run.keep + tokenizer.add_bos
    return Limits(plan.context, run.step_tokens, max_sequences, shift_keep if run.context_shift else None)


def parts_of(model: LoadedModel) -> Parts:
    """Samplers, grammars and text for the completions of a model."""
    tokenizer, n_vocab = model.tokenizer, model.config.n_vocab
    return Parts(
        new_sampler=SamplerFactory(tokenizer, n_vocab),
        new_matcher=GrammarFactory(tokenizer, n_vocab),
        new_stream=tokenizer.stream,
        n_vocab=n_vocab,
        d_model=model.config.d_model,
        eog_ids=tokenizer.eog_ids,
    )


class NativePages:
    """The native cache as the scheduler knows it: a context shift also needs the model's rope."""

    def __init__(self, model: _native.Model, cache: _native.Cache) -> None:
        self._model = model
        self._cache = cache
        self.copy_page = cache.copy_page
        self.export_page = cache.export_page
        self.import_page = cache.import_page
        self.release = cache.release

    def shift(self, src_pages: Pages, dst_pages: Pages, length: int, keep: int, discard: int) -> None:
        """See `_native.Cache.shift`."""
        self._cache.shift(self._model, src_pages, dst_pages, length, keep, discard)
