"""What crosses folders: frozen records, free of torch, and the Engine protocol.

One record per stage of a sample's life (see README). Token ids are the truth, text is a view: nothing that
was sampled is ever tokenised again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Finish = Literal["eos", "stop", "length", "abort"]
"""Why a completion ended: an end-of-generation token, a stop string or stop token, a limit, or `abort()`."""

DEFAULT_SAMPLERS = (
    "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature",
)  # fmt: skip
"""llama.cpp's default order of the sampler chain."""


class EtudeError(ValueError):
    """Something the user can mend. The text names the value, what is allowed, and what to do."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `tool_calls` and `extra` are passed to the chat template as they are."""

    role: str
    content: str
    reasoning_content: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Penalties:
    """llama.cpp's `penalties` sampler over the last `last_n` tokens (-1: the whole context, 0: off)."""

    repeat: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    last_n: int = 64


@dataclass(frozen=True)
class Dry:
    """DRY ("don't repeat yourself"): penalty `multiplier * base ** (match length - allowed_length)` for what
    repeats some of the last `last_n` tokens (-1: the whole context)."""

    multiplier: float = 0.8
    base: float = 1.75
    allowed_length: int = 2
    last_n: int = 64
    sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")


@dataclass(frozen=True)
class Xtc:
    """Exclude top choices: with `probability`, drop all but the least likely token above `threshold`."""

    probability: float
    threshold: float = 0.1


@dataclass(frozen=True)
class Mirostat:
    """Mirostat `version` 1 or 2 (arXiv:2007.14966): target surprise `tau` in bits, learning rate `eta`."""

    version: Literal[1, 2]
    tau: float = 5.0
    eta: float = 0.1


@dataclass(frozen=True)
class DynamicTemperature:
    """Temperature from `temperature - range` to `temperature + range` by the entropy of the distribution."""

    range: float
    exponent: float = 1.0


@dataclass(frozen=True)
class SamplingParams:
    """How to draw tokens. The defaults are plain sampling at temperature 1: nothing is truncated by accident.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0, typical_p 1 and top_n_sigma -1 switch a sampler off.
    `min_keep`: top_p, min_p, typ_p and xtc leave at least so many tokens.
    `max_tokens` None: until the context is full. `logprobs`: how many alternatives to report per token.
    `seed` None: a fresh seed, reported by the engine. The random number of a token is drawn from
    (seed, index of the completion, position), so a request gives the same tokens whatever runs beside it.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    min_keep: int = 0
    penalties: Penalties | None = None
    dry: Dry | None = None
    xtc: Xtc | None = None
    mirostat: Mirostat | None = None
    dynamic_temperature: DynamicTemperature | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    samplers: tuple[str, ...] = DEFAULT_SAMPLERS
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int = 0
    seed: int | None = None


@dataclass(frozen=True)
class Grammar:
    """What the text must look like. `kind` says how `source` is read."""

    kind: Literal["json_schema", "regex", "lark", "gbnf"]
    source: str


@dataclass(frozen=True)
class Request:
    """One prompt and how to complete it `n` times.

    adapter: name of a loaded LoRA adapter, with `adapter_scale`; None: the base model.
    priority: larger runs first. prompt_logprobs: report log p(token | tokens before it) of the prompt itself
    and that many alternatives (None: not at all). sampled_top: the alternatives of `SamplingParams.logprobs`
    are those of the distribution sampled from, not the model's own; that takes time for each token.
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams = SamplingParams()
    n: int = 1
    adapter: str | None = None
    adapter_scale: float = 1.0
    grammar: Grammar | None = None
    priority: int = 0
    prompt_logprobs: int | None = None
    sampled_top: bool = False


TopLogprobs = tuple[tuple[int, float], ...]
"""The most likely (token id, logprob) pairs of one position, best first; raw, but see `sampled_top`."""


@dataclass(frozen=True)
class Event:
    """What one engine step added to completion `index` of a request. Per-token fields have equal length.

    logprobs: of the distribution sampled from (temperature and truncation applied): what training needs.
    raw_logprobs: of the model's own softmax at temperature 1: what OpenAI's API returns.
    entropies: of the model's own softmax, in nats.
    """

    request_id: int
    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    raw_logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    top_logprobs: tuple[TopLogprobs, ...] = ()
    finish: Finish | None = None


@dataclass(frozen=True)
class Completion:
    """A finished completion; fields as in `Event`. `text` is a view of the ids, cut before a stop string.
    n_cached: prompt tokens that were found in the cache; not compared, as it says nothing of the answer.
    weights_version: of the weights that drew the first token. new_weights: where the weights were changed
    while it was written, (how many tokens it had, the version from then on)."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    raw_logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    finish: Finish
    weights_version: int
    seed: int
    top_logprobs: tuple[TopLogprobs, ...] = ()
    prompt_logprobs: tuple[float | None, ...] | None = None
    prompt_top_logprobs: tuple[TopLogprobs, ...] | None = None
    n_cached: int = field(default=0, compare=False)
    new_weights: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class FinishedEvent(Event):
    """The last event of a completion, with all of it. hidden: the hidden states that were asked for.
    error: why the engine had to end it itself."""

    completion: Completion | None = None
    hidden: NDArray[np.float32] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Problem:
    """One task: the opening messages of a conversation, and what its reward judges by.

    A problem whose `messages` is one of role "text" is completed as plain text, without a chat template (base
    models). `columns` holds everything else its row had; rewards get it whole.
    """

    id: str
    messages: tuple[Message, ...]
    answer: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """What one judged answer is worth. `total` is what training maximises; `parts` are its named terms.

    parsed: the answer as the judge read it (None: found none). verdict: the judge's finding in a word or two.
    failure: why a verifier broke (an exception, a timeout). A model's bad answer is data and no failure.
    """

    total: float
    parts: Mapping[str, float] = field(default_factory=dict)
    parsed: str | None = None
    verdict: str = ""
    failure: str | None = None


@dataclass(frozen=True)
class Rollout:
    """One episode, whole: prompt, everything the model said, and replies of the environment.

    token_ids, mask, logprobs have equal length; mask is True where the model sampled the token; logprobs, of
    the distribution sampled from, are 0.0 elsewhere. The first `prompt_length` tokens are the same in all
    rollouts of a `problem_id` in one step. `text` is a view of what follows the prompt.
    """

    problem_id: str
    index: int
    token_ids: tuple[int, ...]
    mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    prompt_length: int
    finish: Finish
    weights_version: int
    score: Score
    text: str = ""


class Engine(Protocol):
    """Ids in, ids and logprobs out. generate(), chat, server and rollout collector are loops over step()."""

    def submit(self, request: Request) -> int: ...

    def step(self) -> Sequence[Event]: ...

    def abort(self, request_id: int) -> None: ...

    def load_weights(self, tensors: Iterable[tuple[str, Any]], version: int) -> None:
        """Take tensors (DLPack) under Hugging Face names and layout, in place, between steps."""

    def close(self) -> None: ...
