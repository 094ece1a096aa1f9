"""The models of a server: found by name, loaded when they are asked for, unloaded when nobody asks any more.

A spec says where a model lies and what it is called; the loader, which the command line gives, makes an
engine of it. At most `max_loaded` engines live at once: the one used longest ago makes room, as soon as
nothing runs on it. With a single model every name means it, as with llama.cpp: clients send "gpt-3.5-turbo".
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from etude.engine.engine import Engine
from etude.model.chat import ChatTemplate
from etude.model.thinking import ThinkingTags
from etude.model.tool_prompt import ToolPrompt, tool_prompt_of
from etude.records import EtudeError, SamplingParams
from etude.serve.errors import ApiError


@dataclass(frozen=True)
class ModelSpec:
    """A model that can be loaded. name: its id in the API; aliases mean it too. weight_type: what its
    matrices are converted to. template: instead of its own. prepare: done with its new engine; what it gives
    back is the adapter to answer with."""

    name: str
    path: Path
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    weight_type: str | None = None
    template: ChatTemplate | None = None
    prepare: Callable[[Engine], Adapter | None] | None = None


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that models are loaded with. scale: of requests that do not say; 0: they run without."""

    name: str
    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class ModelDefaults:
    """What a request does not say. template: instead of the model's own. prefill: an assistant's message at
    the end is continued instead of answered. pooling: of embeddings: mean, last, none."""

    params: SamplingParams = field(default_factory=SamplingParams)
    template: ChatTemplate | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    reasoning_format: str = "auto"
    prefill: bool = True
    pooling: str = "mean"
    adapters: tuple[Adapter, ...] = ()


Loader = Callable[[ModelSpec], Engine]
Finder = Callable[[str], ModelSpec | None]
"""Models that are in no list, by name; None for a name that is not of its kind."""


class Mailbox:
    """Carries what the computing thread finds to the event loop: one wake-up for all that a step gave."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pending: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._scheduled = False

    def put(self, take: Callable[[Any], None], item: Any) -> None:
        """Have `take(item)` called in the event loop. For any thread."""
        self._pending.append((take, item))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._scheduled = False
        while self._pending:
            take, item = self._pending.popleft()
            take(item)


class ServedModel:
    """A loaded model. uses: who works with it now. open: cleared while paused; new work waits for it.
    changed: it has weights or adapters that its files have not, so it is not unloaded to be loaded again.
    tags: of thoughts; own_tags: None where the template knows none, and the model may think all the same."""

    def __init__(
        self, spec: ModelSpec, engine: Engine, defaults: ModelDefaults, open: asyncio.Event | None = None
    ) -> None:
        self.spec = spec
        self.engine = engine
        self.defaults = defaults
        given = spec.template or defaults.template
        self.template = engine.chat if given is None else given.for_model(engine.tokenizer.metadata)
        self.own_tags = _tags_of(self.template)
        self.tags = self.own_tags or ThinkingTags()
        self.adapters = {adapter.name: adapter for adapter in defaults.adapters}
        self.mailbox = Mailbox()
        self.loaded_at = int(time.time())
        self.uses = 0
        self.used_at = time.monotonic()
        self.open = open or opened()
        self.changed = False

    @property
    def name(self) -> str:
        return self.spec.name

    @cached_property
    def tool_prompt(self) -> ToolPrompt:
        """What its template can do with tools. EtudeError for a base model."""
        if self.template is None:
            raise EtudeError(f"{self.name} is a base model without a chat template, so it knows no tools")
        return tool_prompt_of(self.template)

    def default_adapter(self) -> tuple[str | None, float]:
        """Name and scale of the adapter that a request runs with if it names none."""
        applied = [adapter for adapter in self.adapters.values() if adapter.scale != 0]
        return (applied[0].name, applied[0].scale) if applied else (None, 1.0)


def opened() -> asyncio.Event:
    """An event that has happened."""
    event = asyncio.Event()
    event.set()
    return event


def _tags_of(template: ChatTemplate | None) -> ThinkingTags | None:
    """What a template writes around thoughts, or only at their beginning."""
    if template is None or template.tags is not None:
        return None if template is None else template.tags
    usual = ThinkingTags()
    return usual if usual.open in template.source else None


class ModelPool:
    """Specs, and the engines of those in use. Belongs to one event loop. open: cleared while paused.

    max_loaded: engines at once. idle_s: an engine that nobody used for so long is closed; None: never.
    before_unload: told of a model that is about to be closed.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        loader: Loader,
        defaults: ModelDefaults | None = None,
        *,
        max_loaded: int = 1,
        idle_s: float | None = None,
        finder: Finder | None = None,
    ) -> None:
        names = [name for spec in specs for name in (spec.name, *spec.aliases)]
        twice = [name for name in names if names.count(name) > 1]
        if twice or not (specs or finder):
            raise EtudeError(f"two models are called {twice[0]!r}" if twice else "there is no model to serve")
        self.specs = tuple(specs)
        self.defaults = defaults or ModelDefaults()
        self.max_loaded = max_loaded
        self.idle_s = idle_s
        self.open = opened()
        self._by_name = {name: spec for spec in specs for name in (spec.name, *spec.aliases)}
        self._loader = loader
        self._finder = finder
        self._loaded: dict[str, ServedModel] = {}
        self.before_unload: Callable[[ServedModel], None] = lambda model: None
        self._done_before = (0, 0)  # by engines that were closed
        self._lock = asyncio.Lock()
        self._freed = asyncio.Event()

    def find(self, name: str | None) -> ModelSpec:
        """The model a request means, by its own name or that of an adapter it has; without a name the first.
        ApiError 404 for a name that none of several has."""
        found = self._finder(name) if self._finder is not None and name else None
        if found is not None:
            return found
        if self.specs and (not name or len(self.specs) == 1):
            return self.specs[0]
        return self.named(name or "")

    def named(self, name: str) -> ModelSpec:
        """The model that has this name. ApiError 404 if none has."""
        if name in self._by_name:
            return self._by_name[name]
        if self._finder is not None and (found := self._finder(name)) is not None:
            return found
        for model in self.all_loaded:
            if name in model.adapters:
                return model.spec
        known = ", ".join(spec.name for spec in self.specs) or "those of its runs (runs/NAME/STEP)"
        raise ApiError(
            404,
            f"the model {name!r} does not exist; there are: {known}",
            param="model",
            code="model_not_found",
        )

    def loaded(self, name: str | None = None) -> ServedModel | None:
        """The model, if it is loaded now."""
        return self._loaded.get(self.find(name).name)

    @property
    def all_loaded(self) -> list[ServedModel]:
        return list(self._loaded.values())

    def work_done(self) -> tuple[int, int]:
        """(model steps, drawn tokens) since the start, of all engines that ever were."""
        counters = [model.engine.counters for model in self.all_loaded]
        steps, drawn = self._done_before
        return steps + sum(each.steps for each in counters), drawn + sum(
            each.drawn_tokens for each in counters
        )

    async def acquire(self, name: str | None = None) -> ServedModel:
        """The model, loaded if it has to be, for use until `release`. Waits where others must end first."""
        spec = self.find(name)
        model = self._loaded.get(spec.name)
        if model is None:
            async with self._lock:
                model = self._loaded.get(spec.name) or await self._load(spec)
                model.uses += 1  # before anyone else may unload it
        else:
            model.uses += 1
        model.used_at = time.monotonic()
        return model

    def release(self, model: ServedModel) -> None:
        """The other end of `acquire`."""
        model.uses -= 1
        model.used_at = time.monotonic()
        if not model.uses:
            self._freed.set()

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[ServedModel]:
        """`acquire` and `release` around a block."""
        model = await self.acquire(name)
        try:
            yield model
        finally:
            self.release(model)

    async def _load(self, spec: ModelSpec) -> ServedModel:
        while len(self._loaded) >= self.max_loaded:
            idle = [model for model in self._loaded.values() if not model.uses and not model.changed]
            if all(model.changed for model in self._loaded.values()):
                raise ApiError(
                    503,
                    f"there is no room for {spec.name!r}: what is loaded got new weights or adapters, which "
                    "would be lost; start the server with a larger --models-max",
                )
            if idle:
                await self._unload(min(idle, key=lambda model: model.used_at))
            else:
                self._freed.clear()
                await self._freed.wait()
        engine, adapter = await asyncio.to_thread(self._opened, spec)
        model = ServedModel(spec, engine, self.defaults, self.open)
        if adapter is not None:
            model.adapters = {adapter.name: adapter}
        self._loaded[spec.name] = model
        return model

    def _opened(self, spec: ModelSpec) -> tuple[Engine, Adapter | None]:
        """An engine as the spec wants it."""
        engine = self._loader(spec)
        try:
            return engine, None if spec.prepare is None else spec.prepare(engine)
        except BaseException:
            engine.close()
            raise

    async def _unload(self, model: ServedModel) -> None:
        self.before_unload(model)
        done, counters = self._done_before, model.engine.counters
        self._done_before = (done[0] + counters.steps, done[1] + counters.drawn_tokens)
        del self._loaded[model.name]
        await asyncio.to_thread(model.engine.close)

    async def unload_idle(self) -> None:
        """Close what nobody used for `idle_s`."""
        if self.idle_s is None:
            return
        async with self._lock:
            oldest = time.monotonic() - self.idle_s
            for model in self.all_loaded:
                if not model.uses and not model.changed and model.used_at <= oldest:
                    await self._unload(model)

    async def close(self) -> None:
        """Close all engines; what still runs on them ends with an error."""
        for model in self.all_loaded:
            await self._unload(model)
