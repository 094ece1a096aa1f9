"""Structured output: a completion held to a JSON schema, regular expression, Lark or GBNF grammar.

llguidance computes, before each draw, the bitmask of tokens that the grammar allows; the native sampler
applies it. A grammar is compiled once and copied for each completion. What is slow is the tokenizer that
llguidance needs (half a second, five for a vocabulary of 262,144), so that waits for the first grammar. Masks
of 32 completions take a quarter of a millisecond one after the other; with threads they took no less.

A regular expression has to match the whole answer. GBNF means characters, as in llama.cpp (see lexemes.py);
Lark means llguidance's dialect, whose terminals are as long as possible.
"""

from __future__ import annotations

import json
import threading
from typing import Any, Protocol

import llguidance
import numpy as np
from numpy.typing import NDArray

from etude.engine.lexemes import gbnf_to_lark
from etude.records import EtudeError, Grammar

WHITESPACE = r"( |\n{1,2}[ \t]{0,20})"
"""Between the parts of JSON, as llama.cpp allows it: without a bound, a model can write blanks for ever."""
MAX_COMPILED = 16
KINDS = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "Lark", "gbnf": "GBNF"}


class Vocabulary(Protocol):
    """What a grammar needs of a tokenizer. to_json: in the format of Hugging Face's tokenizer.json."""

    @property
    def eog_ids(self) -> frozenset[int]: ...

    def to_json(self) -> str: ...


class GrammarState:
    """Where one completion stands in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, n_words: int) -> None:
        self._matcher = matcher
        self._n_words = n_words
        self._mask: NDArray[np.uint32] | None = None

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing but an end-of-generation token can follow."""
        return bool(self._matcher.is_stopped())

    @property
    def may_end(self) -> bool:
        """Whether the text so far is complete."""
        return bool(self._matcher.is_accepting())

    def mask(self) -> NDArray[np.uint32]:
        """Bit i % 32 of word i // 32: token i is allowed next. Where the text may end, so are the ends of
        generation. EtudeError if the grammar cannot be followed any further.
        """
        if self._mask is None:
            mask = np.zeros(self._n_words, np.uint32)
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            self._check()
            self._mask = mask
        return self._mask

    def accept(self, token_id: int) -> None:
        """Take a token. EtudeError if the mask did not allow it."""
        self._mask = None
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EtudeError(f"the answer left its grammar: {_reason(self._matcher)}")


class GrammarFactory:
    """Makes the grammar state of each completion. n_vocab: logits of the model. Any thread may call it."""

    def __init__(self, vocabulary: Vocabulary, n_vocab: int) -> None:
        self._vocabulary = vocabulary
        self._n_vocab = n_vocab
        self._lock = threading.Lock()
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._compiled: dict[Grammar, llguidance.LLMatcher] = {}

    def __call__(self, grammar: Grammar) -> GrammarState:
        """The beginning of a text in this grammar. EtudeError with the reason if it cannot be compiled."""
        with self._lock:
            compiled = self._compiled.pop(grammar, None)
            if compiled is None:
                compiled = self._compile(grammar)
                if len(self._compiled) == MAX_COMPILED:
                    del self._compiled[next(iter(self._compiled))]
            self._compiled[grammar] = compiled  # the one used last stands last
            return self._state(compiled)

    def _state(self, compiled: llguidance.LLMatcher) -> GrammarState:
        return GrammarState(compiled.deep_copy(), (self._n_vocab + 31) // 32)

    def _compile(self, grammar: Grammar) -> llguidance.LLMatcher:
        source = _source(grammar)
        if self._tokenizer is None:
            self._tokenizer = self._new_tokenizer()
        compiled = llguidance.LLMatcher(self._tokenizer, source, log_level=0)
        probe = compiled.deep_copy()
        probe.compute_bitmask()
        for matcher in (compiled, probe):
            if matcher.is_error():
                raise _refused(grammar, _reason(matcher))
        return compiled

    def _new_tokenizer(self) -> llguidance.LLTokenizer:
        ends = sorted(self._vocabulary.eog_ids)
        if not ends:
            raise EtudeError("a grammar needs a token that ends the answer, and this model has none")
        try:
            return llguidance.LLTokenizer(self._vocabulary.to_json(), n_vocab=self._n_vocab, eos_token=ends)
        except ValueError as error:
            raise EtudeError(f"llguidance cannot read this model's tokenizer: {error}") from error


def _source(grammar: Grammar) -> str:
    """The grammar in llguidance's own form."""
    if grammar.kind == "json_schema":
        schema = _json_object(grammar)
        return llguidance.LLMatcher.grammar_from_json_schema(
            schema, defaults={"whitespace_pattern": WHITESPACE}
        )
    if grammar.kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(grammar.source)
    if grammar.kind == "lark":
        return llguidance.LLMatcher.grammar_from_lark(grammar.source)
    if grammar.kind == "gbnf":
        return llguidance.LLMatcher.grammar_from_lark(gbnf_to_lark(grammar.source))
    raise EtudeError(f"the kind of a grammar is {grammar.kind!r}; it must be one of {', '.join(KINDS)}")


def _json_object(grammar: Grammar) -> dict[str, Any]:
    """The JSON schema; `true`, which every value fits, as an object."""
    try:
        schema = json.loads(grammar.source)
    except ValueError as error:
        raise _refused(grammar, f"it is not JSON: {error}") from None
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise _refused(grammar, f"it is {json.dumps(schema)[:40]}, but a schema is an object")
    return schema


def _refused(grammar: Grammar, reason: str) -> EtudeError:
    return EtudeError(f"the {KINDS[grammar.kind]} grammar cannot be used: {reason}")


def _reason(matcher: llguidance.LLMatcher) -> str:
    """llguidance's message, without the state of its parser."""
    message = matcher.get_error().split("\n<state>")[0].strip()
    return "no text fits it" if message.startswith("NoExtension") else message
