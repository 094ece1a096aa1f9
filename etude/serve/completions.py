"""POST /v1/completions: text or token ids in, their continuation out; also what the prompt itself was worth.

Beyond llama.cpp: `echo` with `logprobs` gives the logprobs of the prompt's own tokens (what evaluation
harnesses score answers with; `max_tokens` 0 generates nothing), and `prompt_logprobs` does so in vLLM's form.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from etude.model.tokenizer import Tokenizer
from etude.records import Completion, Request, TopLogprobs
from etude.serve.errors import ApiError
from etude.serve.generation import Delta, Generation
from etude.serve.models import ServedModel
from etude.serve.native_answer import explanation
from etude.serve.openai_json import (
    LEAST,
    MAX_PROMPT_LOGPROBS,
    as_probabilities,
    drawn_ids,
    envelope,
    finish_reason,
    logprobs_of,
    prompt_rows,
    token_by_id,
    token_entries,
)
from etude.serve.operations import Operation
from etude.serve.prompts import check_length, completion_prompts
from etude.serve.sampling import engine_request, grammar_of, params_of
from etude.serve.server import Server, server_of
from etude.serve.sse import DONE, EventStream, JsonResponse, event, until_gone
from etude.serve.types_openai import MAX_LOGPROBS, CompletionRequest


class CompletionWork:
    """One request on its way. n_top: alternatives per token, None: no logprobs."""

    def __init__(self, asked: CompletionRequest, server: Server) -> None:
        self.asked = asked
        self._server = server
        self.n = asked.n or asked.n_cmpl or 1
        self.n_top = _n_top(asked)
        self.by_id = bool(asked.return_tokens_as_token_ids)
        self.prompts: list[tuple[int, ...]] = []
        self.echoed: list[str] = []
        scores = [asked.prompt_logprobs, self.n_top if asked.echo else None]
        given = [min(int(score), MAX_PROMPT_LOGPROBS) for score in scores if score not in (None, False)]
        self.n_prompt_top = max(given) if given else None
        _check(asked, self.n, self.n_prompt_top)

    def make(self, model: ServedModel) -> list[Request]:
        """The requests for the engine, one per prompt. In a thread."""
        asked, tokenizer = self.asked, model.engine.tokenizer
        special = asked.add_special_tokens is not False
        self.prompts = completion_prompts(asked.prompt, tokenizer, special, model.engine.context)
        if asked.echo:
            self.echoed = [_echo(tokenizer, ids) for ids in self.prompts]
        params = params_of(
            asked, model.defaults.params, tokenizer, max_tokens=asked.max_tokens, logprobs=self.n_top or 0
        )
        for ids in self.prompts:
            check_length(model, ids, params.max_tokens, "prompt")
        form = grammar_of(asked, asked.response_format)
        return [
            engine_request(asked, model, ids, params, self.n, form, prompt_logprobs=self.n_prompt_top)
            for ids in self.prompts
        ]

    def explained(self, generation: Generation) -> dict[str, Any]:
        """llama.cpp's `__verbose` of the first choice, if it is wanted."""
        server, first = self._server, generation.writings[0].completion
        wanted = server.settings.explains if self.asked.verbose is None else self.asked.verbose
        if not wanted or first is None:
            return {}
        slots = server.slots_of(generation.model)
        return {"__verbose": explanation(self.asked, self.n_top, generation, slots, first.text)}


def _n_top(asked: CompletionRequest) -> int | None:
    if asked.logprobs is None or asked.logprobs is False:
        return None
    return min(MAX_LOGPROBS if asked.logprobs is True else asked.logprobs, 1000)


def _echo(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of a prompt, without the BOS that no client wrote."""
    return tokenizer.decode(ids[ids[0] == tokenizer.bos_id :], special=True)


def _check(asked: CompletionRequest, n: int, n_prompt_top: int | None) -> None:
    """ApiError 400 for what is not there."""
    if asked.suffix:
        raise ApiError(400, "suffix: text is only continued, not filled in", param="suffix")
    if asked.best_of is not None and asked.best_of != n:
        raise ApiError(400, "best_of: all n completions are returned; leave it out", param="best_of")
    if asked.stream and n_prompt_top is not None:
        raise ApiError(
            400,
            "logprobs of the prompt come with the whole answer: leave out stream, or echo",
            param="stream",
        )


async def completions(request: HttpRequest) -> Response:
    """The handler."""
    server = server_of(request)
    work = CompletionWork(await server.body(request, CompletionRequest), server)
    shows_reading = bool(work.asked.stream and work.asked.return_progress)
    starting = server.generate(work.asked.model, work.make, shows_reading=shows_reading)
    generation = await until_gone(request, starting)
    try:
        if work.asked.stream:
            return EventStream.of(server, stream(work, generation), generation.close)
        return JsonResponse(await until_gone(request, whole(work, generation)))
    except BaseException:
        generation.close()
        raise


async def whole(work: CompletionWork, generation: Generation) -> dict[str, Any]:
    """The answer in one piece."""
    try:
        found = await generation.completions()
        answer = envelope("text_completion", "cmpl", generation.model)
        choices = [_choice(work, generation.model, at, completion) for at, completion in enumerate(found)]
        answer |= {"choices": choices, "usage": generation.usage(), **generation.summary()}
        return answer | work.explained(generation)
    finally:
        generation.close()


def _choice(work: CompletionWork, model: ServedModel, at: int, completion: Completion) -> dict[str, Any]:
    asked, tokenizer = work.asked, model.engine.tokenizer
    ids = work.prompts[at // work.n]
    choice: dict[str, Any] = {
        "index": at,
        "text": (work.echoed[at // work.n] if asked.echo else "") + completion.text,
        "logprobs": None,
        "finish_reason": finish_reason(completion.finish),
    }
    if work.n_top is not None:
        tokens = LegacyLogprobs(tokenizer, work.n_top, by_id=work.by_id)
        if asked.echo and completion.prompt_logprobs is not None:
            tops = completion.prompt_top_logprobs or ((),) * len(ids)
            tokens.add(ids, completion.prompt_logprobs, tops)
        tokens.add(completion.token_ids, logprobs_of(asked, completion), completion.top_logprobs)
        choice["logprobs"] = tokens.as_json(asked)
    if asked.prompt_logprobs not in (None, False) and completion.prompt_logprobs is not None:
        choice["prompt_logprobs"] = prompt_rows(tokenizer, ids, completion, int(asked.prompt_logprobs))
    if asked.return_token_ids:
        choice |= {"prompt_token_ids": list(ids), **drawn_ids(completion.token_ids, completion)}
    return choice


class LegacyLogprobs:
    """The logprobs object of OpenAI's completions, and beside it llama.cpp's `content`."""

    def __init__(self, tokenizer: Tokenizer, n_top: int, offset: int = 0, by_id: bool = False) -> None:
        self._tokenizer = tokenizer
        self._by_id = by_id
        self._n_top = n_top
        self._offset = offset
        self._json: dict[str, list[Any]] = {
            "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [], "content": [],
        }  # fmt: skip

    def add(self, ids: Sequence[int], logprobs: Sequence[float | None], tops: Sequence[TopLogprobs]) -> None:
        """Tokens with the model's own logprobs; None for the first of a prompt, which nothing predicts."""
        tokenizer, found = self._tokenizer, self._json
        for at, (token, logprob) in enumerate(zip(ids, logprobs, strict=True)):
            found["tokens"].append(self._name(token))
            found["token_logprobs"].append(None if logprob is None else max(logprob, LEAST))
            found["text_offset"].append(self._offset)
            self._offset += len(tokenizer.token_text(token))
            top = tops[at][: self._n_top] if tops else ()
            shown = {self._name(each): max(value, LEAST) for each, value in top}
            found["top_logprobs"].append(None if logprob is None else shown)
        known = [0.0 if logprob is None else logprob for logprob in logprobs]
        found["content"] += token_entries(tokenizer, ids, known, tops, self._by_id)

    def _name(self, token: int) -> str:
        return token_by_id(token) if self._by_id else token_name(self._tokenizer, token)

    def as_json(self, asked: CompletionRequest) -> dict[str, Any]:
        """The object. `content` has probabilities where llama.cpp would have them."""
        content = self._json["content"]
        return (
            self._json | {"content": as_probabilities(content)} if asked.post_sampling_probs else self._json
        )


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token; where it is no text, its bytes as OpenAI writes them."""
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


async def stream(work: CompletionWork, generation: Generation) -> AsyncIterator[bytes]:
    """The answer as events. The last of a choice says why it ended, and has no text."""
    asked, model = work.asked, generation.model
    head = envelope("text_completion", "cmpl", model)
    offsets: list[int | None] = [None] * generation.n_choices
    async for delta in generation.deltas():
        for reading in delta.readings:
            timings = {"timings": reading.timings()} if asked.timings_per_token else {}
            nothing = {"index": delta.choice, "text": "", "logprobs": None, "finish_reason": None}
            yield event({**head, "choices": [nothing], "prompt_progress": reading.progress(), **timings})
        if not delta.token_ids and delta.finish is None:
            continue
        offset = offsets[delta.choice]
        choice = _piece(work, model, delta, offset)
        offsets[delta.choice] = (offset or 0) + len(choice["text"])
        if choice["text"] or delta.token_ids or offset is None:
            extra = {"timings": generation.timings()} if asked.timings_per_token else {}
            yield event({**head, "choices": [choice], **extra})
        if delta.finish is not None:
            extra = generation.stream_extra(asked.stream_options, bool(asked.timings_per_token))
            if delta.choice == 0:
                extra |= work.explained(generation)
            yield event({**head, "choices": [_last(work, model, delta)], **extra})
    if asked.stream_options is not None and asked.stream_options.include_usage:
        yield event({**head, "choices": [], "usage": generation.usage(), **generation.summary()})
    yield DONE


def _piece(work: CompletionWork, model: ServedModel, delta: Delta, offset: int | None) -> dict[str, Any]:
    """What a delta adds to a choice. offset: characters of the choice before it, None: it is the first."""
    asked = work.asked
    choice: dict[str, Any] = {
        "index": delta.choice,
        "text": delta.text,
        "logprobs": None,
        "finish_reason": None,
    }
    if offset is None and asked.echo:
        choice["text"] = work.echoed[delta.choice // work.n] + delta.text
    if offset is None and asked.return_token_ids:
        choice["prompt_token_ids"] = list(work.prompts[delta.choice // work.n])
    if work.n_top is not None:
        tokens = LegacyLogprobs(model.engine.tokenizer, work.n_top, offset or 0, work.by_id)
        tokens.add(delta.token_ids, logprobs_of(asked, delta), delta.top_logprobs)
        choice["logprobs"] = tokens.as_json(asked)
    if asked.return_token_ids:
        choice |= drawn_ids(delta.token_ids, None)
    return choice


def _last(work: CompletionWork, model: ServedModel, delta: Delta) -> dict[str, Any]:
    """The end of a choice."""
    assert delta.finish is not None
    reason = finish_reason(delta.finish)
    choice: dict[str, Any] = {"index": delta.choice, "text": "", "logprobs": None, "finish_reason": reason}
    if work.n_top is not None:
        choice["logprobs"] = LegacyLogprobs(model.engine.tokenizer, work.n_top).as_json(work.asked)
    if work.asked.return_token_ids:
        choice |= drawn_ids((), delta.completion)
    return choice


PATHS = ("/v1/completions",)
ROUTES = [Route(path, completions, methods=["POST"]) for path in PATHS]
OPERATIONS = (
    Operation("post", "/v1/completions", "Continue text or token ids", CompletionRequest, streams=True),
)
