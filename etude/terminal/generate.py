"""`etude generate`: complete a text. Only the completion goes to the standard output, so it can be piped."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from etude.model.thinking import ThinkingTags
from etude.records import Completion, Engine, EtudeError, FinishedEvent, Request
from etude.terminal.answer import Manner, Writing
from etude.terminal.loading import Loaded, open_model, save_prompt
from etude.terminal.options import Options, UsageError
from etude.terminal.sampling import manner_of
from etude.terminal.screen import Screen, wants_color
from etude.terminal.session import show_prompt, speed_line
from etude.terminal.text_source import given_text


def run(options: Options) -> int:
    """The verb."""
    text = given_text(options)
    if text is None:
        raise UsageError("there is no text: give -p TEXT, -f FILE, or -p - to read the standard input")
    several = check(options)
    screen = Screen(sys.stdout, sys.stderr, color=wants_color(None, os.environ, sys.stdout))
    with open_model(options) as loaded:
        conversation = loaded.conversation()
        conversation.ask(text)
        prompt_ids = conversation.prompt_ids()
        manner = manner_in(options, loaded, len(prompt_ids))
        if options["verbose_prompt"]:
            show_prompt(screen, loaded.tokenizer, prompt_ids)
        if options["display_prompt"]:
            screen.answer(text)
        if several:
            write_all(loaded, prompt_ids, manner, options)
        else:
            write_one(loaded, prompt_ids, manner, options, screen)
    return 0


def manner_in(options: Options, loaded: Loaded, n_prompt: int) -> Manner:
    """How the flags want it completed."""
    context = loaded.engine.context
    manner = manner_of(options, n_prompt=n_prompt, context=context, logprobs=options["logprobs"])
    return replace(
        manner,
        adapter=loaded.adapter,
        adapter_scale=loaded.adapter_scale,
        tags=loaded.tags or ThinkingTags(),
    )


def check(options: Options) -> bool:
    """Whether completions are written whole: several, or as JSON. Raises for flags without effect then."""
    several: bool = options["samples"] > 1 or options["json"]
    if not options["json"]:
        options.refuse_without_effect(("logprobs",), "no effect without --json")
    elif options["null"] or options["display_prompt"]:
        key = "null" if options["null"] else "display_prompt"
        raise options.error(
            key, "no effect with --json: an object stands in a line of its own, with its prompt"
        )
    if several and options["reasoning_budget"] >= 0:
        raise options.error(
            "reasoning_budget", "works for one completion as text, not with --samples or --json"
        )
    return several


def write_one(
    loaded: Loaded, prompt_ids: tuple[int, ...], manner: Manner, options: Options, screen: Screen
) -> None:
    """Stream one completion."""
    writing = Writing(loaded.engine, loaded.tokenizer, prompt_ids, manner, loaded.splitter(prompt_ids))
    for kind, text in writing.pieces():
        (screen.thinking if kind == "thinking" else screen.answer)(text)
    save_prompt(options, loaded.engine, prompt_ids, writing.answer.ids)
    if options["null"]:
        screen.answer("\0")
    elif screen.is_terminal:
        screen.end_answer()
    shows = screen.is_terminal if options["show_timings"] is None else options["show_timings"]
    if shows:
        screen.note(speed_line(writing.timings))


def write_all(loaded: Loaded, prompt_ids: tuple[int, ...], manner: Manner, options: Options) -> None:
    """Completions of one prompt, computed together: as JSON when each is done, as text in their order."""
    waiting: dict[int, str] = {}
    written = 0
    for index, completion in completions(loaded.engine, prompt_ids, manner, options["samples"]):
        answer, thinking = split(loaded, prompt_ids, completion.text)
        if options["json"]:
            record = as_json(index, prompt_ids, completion, answer, thinking)
            print(json.dumps(record, ensure_ascii=False), flush=True)
            continue
        waiting[index] = answer
        while written in waiting:
            sys.stdout.write(waiting.pop(written) + ("\0" if options["null"] else "\n"))
            sys.stdout.flush()
            written += 1


def split(loaded: Loaded, prompt_ids: tuple[int, ...], text: str) -> tuple[str, str]:
    """(answer, thinking) of a whole completion."""
    splitter = loaded.splitter(prompt_ids)
    if splitter is None:
        return text, ""
    parts = [splitter.push(text), splitter.flush()]
    return "".join(part.answer for part in parts), "".join(part.thinking or "" for part in parts)


def completions(
    engine: Engine, prompt_ids: tuple[int, ...], manner: Manner, n: int
) -> Iterator[tuple[int, Completion]]:
    """(index, completion) as they finish."""
    running = engine.submit(
        Request(prompt_ids, manner.params, n, manner.adapter, manner.adapter_scale, manner.grammar)
    )
    unfinished = n
    while unfinished:
        for event in engine.step():
            if event.request_id != running or not isinstance(event, FinishedEvent):
                continue
            if event.error:
                raise EtudeError(event.error)
            assert event.completion is not None
            unfinished -= 1
            yield event.index, event.completion


def as_json(
    index: int, prompt_ids: tuple[int, ...], completion: Completion, answer: str, thinking: str
) -> dict[str, Any]:
    """A completion as a flat object. text: all of it; answer and thinking: told apart, in a chat."""
    return {
        "index": index,
        "text": completion.text,
        "answer": answer,
        "thinking": thinking,
        "finish": completion.finish,
        "seed": completion.seed,
        "weights_version": completion.weights_version,
        "prompt_ids": list(prompt_ids),
        "token_ids": list(completion.token_ids),
        "logprobs": list(completion.logprobs),
        "raw_logprobs": list(completion.raw_logprobs),
        "entropies": list(completion.entropies),
        "top_logprobs": [[list(pair) for pair in top] for top in completion.top_logprobs],
    }
