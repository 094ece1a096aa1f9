"""POST /completion: llama.cpp's own form of completions.

A prompt gives one object, several prompts or completions a list. A stream has an event for each token, then
one with `stop` true that has no text but all that is known of the answer; there is no [DONE].
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from etude.records import Request, SamplingParams
from etude.serve.errors import ApiError
from etude.serve.generation import Delta, Generation
from etude.serve.models import ServedModel
from etude.serve.native_answer import NativeAnswer
from etude.serve.native_choice import LineLimits, NativeChoice
from etude.serve.native_route import error_event, native_route
from etude.serve.native_settings import kept_tokens
from etude.serve.operations import Operation
from etude.serve.prompts import check_length, completion_prompts
from etude.serve.sampling import engine_request, grammar_of, params_of
from etude.serve.server import Server, server_of
from etude.serve.sse import EventStream, JsonResponse, event, until_gone
from etude.serve.types_native import NativePrompts, NativeRequest, Predicting, PromptObject

MAX_LISTED, MAX_PROBABILITIES = 1000, 1_000_000


class NativeWork:
    """One request on its way."""

    def __init__(self, asked: Predicting, prompt: NativePrompts) -> None:
        self.asked = _as_llama_reads(asked)
        self.n = asked.n_cmpl or asked.n or 1
        self.n_probs = asked.n_probs if asked.n_probs is not None else asked.logprobs or 0
        self._prompt = prompt

    def prompts(self, model: ServedModel) -> list[tuple[int, ...]]:
        """The ids of each prompt."""
        return completion_prompts(_plain(self._prompt), model.engine.tokenizer, context=model.engine.context)

    def make(self, model: ServedModel) -> list[Request]:
        """The requests for the engine, one per prompt. In a thread."""
        asked = self.asked
        _check(asked, model)
        limits = (asked.n_predict, asked.max_completion_tokens, asked.max_tokens)
        limit = next((each for each in limits if each is not None), -1)
        params = params_of(
            asked,
            model.defaults.params,
            model.engine.tokenizer,
            max_tokens=None if limit == -1 else limit,
            logprobs=min(self.n_probs, model.engine.tokenizer.n_vocab),
        )
        _check_probabilities(params)
        prompts = self.prompts(model)
        for ids in prompts:
            check_length(model, ids, params.max_tokens, "prompt")
        form = grammar_of(asked)
        return [engine_request(asked, model, ids, params, self.n, form) for ids in prompts]


def _as_llama_reads(asked: Predicting) -> Predicting:
    """n_predict -1 is the server's limit; a grammar goes before a schema."""
    changed: dict[str, Any] = {}
    if asked.n_predict == -1:
        changed["n_predict"] = None
    if asked.grammar and asked.json_schema is not None:
        changed["json_schema"] = None
    return asked.model_copy(update=changed)


def _check(asked: Predicting, model: ServedModel) -> None:
    """ApiError 400 for what would have no effect."""
    if isinstance(asked.samplers, list) and "adaptive_p" in asked.samplers:
        raise ApiError(400, "samplers has 'adaptive_p', which this server has not", param="samplers")
    shifts, wanted = model.engine.shift_keep is not None, asked.n_keep
    if shifts and wanted is not None and wanted != kept_tokens(model):
        raise ApiError(
            400,
            f"n_keep is {wanted}; a context shift keeps {kept_tokens(model)} tokens, as --keep says",
            param="n_keep",
        )


def _check_probabilities(params: SamplingParams) -> None:
    """ApiError 400 for so many alternatives of so many tokens that the answer would fill the memory."""
    n_tokens = MAX_PROBABILITIES if params.max_tokens is None else params.max_tokens
    if params.logprobs > MAX_LISTED and params.logprobs * n_tokens > MAX_PROBABILITIES:
        raise ApiError(
            400,
            f"n_probs is {params.logprobs}; above {MAX_LISTED}, n_probs times n_predict may be "
            f"{MAX_PROBABILITIES} at most",
            param="n_probs",
        )


def _plain(prompt: NativePrompts) -> Any:
    """Without objects around text. ApiError 400 for pictures."""
    if isinstance(prompt, PromptObject):
        return _text(prompt)
    if isinstance(prompt, str):
        return prompt
    return [_text(each) if isinstance(each, PromptObject) else each for each in prompt]


def _text(prompt: PromptObject) -> Any:
    if prompt.multimodal_data is not None:
        raise ApiError(
            400,
            "Multimodal data provided, but model does not support multimodal requests.",
            param="prompt",
        )
    return prompt.prompt_string


async def completion(request: HttpRequest) -> Response:
    """The handler."""
    server = server_of(request)
    asked = await server.body(request, NativeRequest)
    return await answer_native(request, server, NativeWork(asked, asked.prompt))


async def answer_native(request: HttpRequest, server: Server, work: NativeWork) -> Response:
    """Generate and answer, as a stream if it was asked for."""
    asked = work.asked
    shows_reading = bool(asked.stream and asked.return_progress)
    starting = server.generate(asked.model, work.make, slot=asked.id_slot, shows_reading=shows_reading)
    generation = await until_gone(request, starting)
    answer = NativeAnswer(asked, work.n_probs, generation, server.slots_of(generation.model))
    running = RunningAnswer(asked, generation, answer)
    try:
        if asked.stream:
            options: dict[str, Any] = {"describe": error_event}
            if asked.sse_ping_interval is not None:
                options["ping_interval_s"] = float(asked.sse_ping_interval)
            return EventStream.of(server, running.events(), generation.close, **options)
        return JsonResponse(await until_gone(request, running.whole()))
    except BaseException:
        generation.close()
        raise


class RunningAnswer:
    """The choices of a generation, and when to stop them."""

    def __init__(self, asked: Predicting, generation: Generation, answer: NativeAnswer) -> None:
        self._asked = asked
        self._generation = generation
        self._answer = answer
        self._choices = [
            NativeChoice(LineLimits(asked.n_indent or 0, asked.t_max_predict_ms or 0))
            for _ in range(generation.n_choices)
        ]

    async def whole(self) -> dict[str, Any] | list[dict[str, Any]]:
        """One object, or a list of them."""
        try:
            async for delta in self._generation.deltas():
                self._take(delta)
            found = [self._answer.final(at, choice) for at, choice in enumerate(self._choices)]
            return found[0] if len(found) == 1 else found
        finally:
            self._generation.close()

    async def events(self) -> AsyncIterator[bytes]:
        """An event per token, and a last one per choice."""
        done: set[int] = set()
        async for delta in self._generation.deltas():
            choice = self._choices[delta.choice]
            for reading in delta.readings:
                yield event(self._answer.reading(delta.choice, reading))
            for at in self._take(delta):
                yield event(self._answer.partial(delta.choice, choice, at))
            if choice.loose and delta.choice not in done:
                yield event(self._answer.loose(delta.choice, choice))
                choice.loose = ""
            if (delta.finish is not None or choice.is_cut) and delta.choice not in done:
                done.add(delta.choice)
                yield event(self._answer.final(delta.choice, choice))

    def _take(self, delta: Delta) -> range:
        choice = self._choices[delta.choice]
        was_cut = choice.is_cut
        since_s = time.perf_counter() - self._generation.writings[delta.choice].first_s
        places = choice.take(delta, 1e3 * since_s)
        if choice.is_cut and not was_cut:
            self._stop(delta.choice)
        return places

    def _stop(self, at: int) -> None:
        """Let the engine stop, if nobody else needs what it does for this prompt."""
        n = self._generation.n
        first = at - at % n
        if all(choice.is_cut for choice in self._choices[first : first + n]):
            self._generation.stop(at)


PATHS = ("/completion", "/completions")
ROUTES = [native_route(path, completion) for path in PATHS]
OPERATIONS = (Operation("post", PATHS[0], "Continue text, llama.cpp's way", NativeRequest, streams=True),)
