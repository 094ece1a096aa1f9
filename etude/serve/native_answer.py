"""The JSON of /completion and /infill: an event per token, and the object that says all of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etude.model.tokenizer import Tokenizer
from etude.records import TopLogprobs
from etude.serve.generation import Generation
from etude.serve.native_choice import NativeChoice
from etude.serve.native_settings import Shown, kept_tokens, lora_of, settings_of_request
from etude.serve.openai_json import LEAST, as_probabilities
from etude.serve.slot_table import SlotTable
from etude.serve.timings import Reading
from etude.serve.types_native import Predicting
from etude.serve.types_openai import Answering


class NativeAnswer:
    """Writes what has become of a generation."""

    def __init__(self, asked: Predicting, n_probs: int, generation: Generation, slots: SlotTable) -> None:
        self._asked = asked
        self._n_probs = n_probs
        self._generation = generation
        self._slots = slots
        self._prompts: dict[int, str] = {}

    # ── a stream's events ──

    def partial(self, at: int, choice: NativeChoice, token: int) -> dict[str, Any]:
        """The event of a token, the place of which in its choice is `token`."""
        found = self._partial(at, choice.pieces[token], [choice.token_ids[token]], token + 1)
        if self._asked.timings_per_token:
            found["timings"] = self._generation.timings(at, token + 1)
        if self._n_probs:
            found["completion_probabilities"] = self._probabilities(choice, [token])
        return found

    def loose(self, at: int, choice: NativeChoice) -> dict[str, Any]:
        """Text that no token brought."""
        return self._partial(at, choice.loose, [], len(choice.token_ids))

    def reading(self, at: int, reading: Reading) -> dict[str, Any]:
        """How far the prompt is."""
        found = self._partial(at, "", [], 0) | {"prompt_progress": reading.progress()}
        return found | {"timings": reading.timings()} if self._asked.timings_per_token else found

    def _partial(self, at: int, text: str, ids: list[int], n_predicted: int) -> dict[str, Any]:
        return {
            "index": at,
            "content": text,
            "tokens": ids,
            "stop": False,
            "id_slot": self._slots.number(self._generation, at),
            "tokens_predicted": n_predicted,
            "tokens_evaluated": self._n_prompt(at),
        }

    # ── all of it ──

    def final(self, at: int, choice: NativeChoice) -> dict[str, Any]:
        """The whole answer, or the last event of a stream, where text and tokens have been said."""
        asked, generation = self._asked, self._generation
        stop_type, word = self._stop(at, choice)
        n_predicted = len(choice.token_ids)
        streamed = bool(asked.stream)
        found = {
            "index": at,
            "content": "" if streamed else choice.text,
            "tokens": choice.token_ids if asked.return_tokens and not streamed else [],
            "id_slot": self._slots.number(generation, at),
            "stop": True,
            "model": generation.model.name,
            "tokens_predicted": n_predicted,
            "tokens_evaluated": self._n_prompt(at),
            "generation_settings": self._settings(at),
            "prompt": self._prompt(at),
            "has_new_line": choice.has_new_line,
            "truncated": self._is_truncated(at, n_predicted),
            "stop_type": stop_type,
            "stopping_word": word,
            "tokens_cached": self._n_computed(at, n_predicted),
            "timings": generation.timings(at, n_predicted),
        }
        if self._n_probs and n_predicted and not streamed:
            places = range(n_predicted - self._n_stopping(word, n_predicted))
            found["completion_probabilities"] = self._probabilities(choice, places)
        return nested(found, asked.response_fields) if asked.response_fields else found

    def _stop(self, at: int, choice: NativeChoice) -> tuple[str, str]:
        """llama.cpp's stop_type, and the word that stopped it."""
        writing = self._generation.writings[at]
        finish = None if writing.completion is None else writing.completion.finish
        if choice.is_cut or finish == "length":
            return "limit", ""
        if finish == "eos":
            return "eos", ""
        if finish == "stop":
            last = shown_text(self._tokenizer, choice.token_ids[-1:])
            return "word", last if writing.stop_string is None else writing.stop_string
        return "none", ""

    def _n_stopping(self, word: str, n_predicted: int) -> int:
        """Tokens at the end that only wrote the word that stopped the answer; llama.cpp's estimate."""
        return min(n_predicted, len(self._tokenizer.encode(word, add_special=False))) if word else 0

    def _settings(self, at: int) -> dict[str, Any]:
        asked, model = self._asked, self._generation.model
        request = self._generation.requests[at // self._generation.n]
        shown = Shown(
            stream=bool(asked.stream),
            n_probs=self._n_probs,
            timings_per_token=bool(asked.timings_per_token),
            post_sampling_probs=bool(asked.post_sampling_probs),
            n_keep=kept_tokens(model),
            n_discard=asked.n_discard or 0,
            lora=lora_of(request, model),
            reasoning_format=model.defaults.reasoning_format,
        )
        return settings_of_request(request, model, shown)

    # ── facts ──

    @property
    def _tokenizer(self) -> Tokenizer:
        return self._generation.model.engine.tokenizer

    def _n_prompt(self, at: int) -> int:
        return len(self._generation.requests[at // self._generation.n].prompt_ids)

    def _prompt(self, at: int) -> str:
        """A prompt as the model read it, with its control tokens."""
        which = at // self._generation.n
        if which not in self._prompts:
            ids = self._generation.requests[which].prompt_ids
            self._prompts[which] = shown_text(self._tokenizer, ids)
        return self._prompts[which]

    def _is_truncated(self, at: int, n_predicted: int) -> bool:
        """Whether the context was full: the answer ended by that, or went on without its beginning."""
        engine = self._generation.model.engine
        n_total = self._n_prompt(at) + n_predicted
        return n_total >= engine.context if engine.shift_keep is None else n_total > engine.context

    def _n_computed(self, at: int, n_predicted: int) -> int:
        """Tokens in the cache at the end: all but the last, less those that a context shift discarded."""
        engine, n_prompt = self._generation.model.engine, self._n_prompt(at)
        n_total = n_prompt + n_predicted
        if engine.shift_keep is not None:
            keep = n_prompt if engine.shift_keep < 0 else min(engine.shift_keep, n_prompt)
            keep = min(keep, engine.context - 4)
            while n_total > engine.context:
                n_total -= (engine.context - 1 - keep) // 2
        return n_total - 1 if n_predicted else n_total

    def _probabilities(self, choice: NativeChoice, places: Sequence[int]) -> list[dict[str, Any]]:
        """Entries of tokens: the model's own logprobs, or the probabilities that were sampled from."""
        sampled = bool(self._asked.post_sampling_probs)
        logprobs = choice.logprobs if sampled else choice.raw_logprobs
        entries = []
        for at in places:
            top = choice.tops[at] if choice.tops else ()
            entry = entry_of(self._tokenizer, choice.token_ids[at], logprobs[at])
            entries.append(entry | {"top_logprobs": tops_of(self._tokenizer, top)})
        return as_probabilities(entries) if sampled else entries


def explanation(
    asked: Answering, n_top: int | None, generation: Generation, slots: SlotTable, text: str
) -> dict[str, Any]:
    """llama.cpp's `__verbose` beside an answer of another form: what /completion would have said of its first
    choice. text: the whole of it, as it was written."""
    completion = generation.writings[0].completion
    assert completion is not None
    choice = NativeChoice(
        text=text,
        token_ids=list(completion.token_ids),
        logprobs=list(completion.logprobs),
        raw_logprobs=list(completion.raw_logprobs),
        tops=list(completion.top_logprobs),
    )
    same = Predicting.model_construct(
        stream=asked.stream,
        return_tokens=asked.return_token_ids,
        timings_per_token=asked.timings_per_token,
        post_sampling_probs=asked.post_sampling_probs,
    )
    return NativeAnswer(same, n_top or 0, generation, slots).final(0, choice)


def shown_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids as llama.cpp shows it: with control tokens, and with the first space."""
    return b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")


def tops_of(tokenizer: Tokenizer, top: TopLogprobs) -> list[dict[str, Any]]:
    """The alternatives of a token."""
    return [entry_of(tokenizer, token, logprob) for token, logprob in top]


def entry_of(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    """A token with its logprob. Its text ends with its last whole character; control tokens have none."""
    raw = b"" if tokenizer.is_control(token) else tokenizer.token_bytes(token)
    return {
        "id": token,
        "token": whole_characters(raw).decode("utf-8", "replace"),
        "bytes": list(raw),
        "logprob": max(logprob, LEAST),
    }


def whole_characters(raw: bytes) -> bytes:
    """Bytes without the beginning of a character at their end.

    >>> whole_characters("a€".encode()[:-1])
    b'a'
    """
    for back in range(1, min(4, len(raw)) + 1):
        byte = raw[-back]
        needed = 2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4 if byte & 0xF8 == 0xF0 else 0
        if needed > back:
            return raw[:-back]
    return raw


def nested(found: dict[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """The fields that were asked for; a/b is b of a, under that name. Those that are not there are left out.

    >>> nested({"a": {"b": 1}, "c": 2}, ["a/b", "d"])
    {'a/b': 1}
    """
    chosen: dict[str, Any] = {}
    for path in paths:
        value: Any = found
        for key in path.split("/"):
            if not isinstance(value, dict) or key not in value:
                break
            value = value[key]
        else:
            chosen[path] = value
    return chosen
