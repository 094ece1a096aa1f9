"""The state of a chat, without a terminal: questions, sampled ids, and the prompt that follows from them.

Token ids are the truth. A prompt is the template's text with a marker in the place of every earlier answer;
the text between the markers is tokenised, and the ids that were sampled stand where the markers were. So an
answer is never tokenised again, and the engine finds the whole conversation in its cache.

    <|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n   M0   <|im_end|>\\n<|im_start|>user\\n…
    └────────────── tokenised ──────────────────────────┘ sampled └───────── tokenised ─────────

Thinking of earlier answers stays or goes as the template does it: it is asked by a second marker. Without a
template (a base model) each text is completed by itself, and an empty one goes on where the last completion
ended.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, get_args

from etude.model.rendered import RenderedPrompt
from etude.model.thinking import ThinkingTags
from etude.records import EtudeError, Finish, Message

FORMAT = "etude chat 1"


class Codec(Protocol):
    """What a conversation needs of a Tokenizer."""

    n_vocab: int
    bos_id: int | None
    eog_ids: frozenset[int]

    def encode(self, text: str) -> list[int]: ...

    def encode_rendered(self, prompt: RenderedPrompt) -> list[int]: ...

    def token_text(self, token_id: int) -> str: ...


class Template(Protocol):
    """What a conversation needs of a ChatTemplate."""

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
    ) -> RenderedPrompt: ...


@dataclass(frozen=True)
class Answer:
    """What the model wrote. ids: as sampled (and what --reasoning-budget put in), with the end token.

    n_thinking: how many of the ids come before the answer proper. opened: the prompt began the thinking.
    """

    ids: tuple[int, ...]
    text: str
    finish: Finish
    seed: int | None = None
    thinking: str = ""
    n_thinking: int = 0
    opened: bool = False


@dataclass(frozen=True)
class Turn:
    """A question and, once it was given, its answer. continues: goes on with the completion before it."""

    question: str
    answer: Answer | None = None
    continues: bool = False


class Conversation:
    """Turns, of which only the last may lack its answer. template None: completes instead of chatting."""

    def __init__(
        self,
        codec: Codec,
        template: Template | None,
        *,
        system: str | None = None,
        variables: Mapping[str, Any] | None = None,
        tags: ThinkingTags | None = None,
    ) -> None:
        self.codec = codec
        self.template = template
        self.system = system
        self.variables = dict(variables or {})
        self.tags = tags or ThinkingTags()
        self.turns: list[Turn] = []

    # ── what happens ──

    def ask(self, question: str) -> None:
        """Begin a turn. Without a template an empty question goes on with the last completion."""
        continues = not question and self.template is None and bool(self.turns)
        self.turns.append(Turn(question, continues=continues))

    def answer(self, answer: Answer) -> None:
        """Finish the turn."""
        assert self.turns and self.turns[-1].answer is None
        self.turns[-1] = replace(self.turns[-1], answer=answer)

    def drop_answer(self) -> bool:
        """Take the last answer back (to give another one); False if there is none."""
        if not self.turns:
            return False
        self.turns[-1] = replace(self.turns[-1], answer=None)
        return True

    def undo(self) -> str | None:
        """Take the last question and its answer back; returns the question."""
        return self.turns.pop().question if self.turns else None

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.turns.clear()

    def forget_oldest(self) -> bool:
        """Forget the oldest turn to make room; False if only the last is left."""
        if len(self.turns) < 2 or self.turns[1].continues:
            return False
        del self.turns[0]
        return True

    # ── what the model reads ──

    def prompt_ids(self) -> tuple[int, ...]:
        """The ids to complete: everything up to where the last turn's answer begins."""
        assert self.turns
        if self.template is None:
            return tuple(self._completed(len(self.turns) - 1))
        return tuple(self._rendered(self.turns[:-1], self.turns[-1].question))

    @property
    def n_tokens(self) -> int:
        """Tokens of the conversation, last answer included."""
        if not self.turns:
            return 0
        last = self.turns[-1].answer
        return len(self.prompt_ids()) + (len(last.ids) if last else 0)

    def _completed(self, at: int) -> list[int]:
        """The prompt of turn `at` of a base model."""
        turn = self.turns[at]
        if not turn.continues:
            return self.codec.encode(turn.question)
        before = self.turns[at - 1].answer
        return self._completed(at - 1) + (self._without_end(before.ids) if before else [])

    def _rendered(self, past: Sequence[Turn], question: str) -> list[int]:
        """Template text and sampled ids, alternating."""
        assert self.template is not None
        texts = [self.system or "", question, *(turn.question for turn in past)]
        marks = [_Mark.unlike(texts, index) for index in range(len(past))]
        messages = [Message("system", self.system)] if self.system else []
        for turn, mark in zip(past, marks, strict=True):
            messages.append(Message("user", turn.question))
            messages.append(Message("assistant", self._stand_in(turn.answer, mark)))
        messages.append(Message("user", question))
        prompt = self.template.render(messages, add_generation_prompt=True, **self.variables)
        ids: list[int] = []
        start = 0
        for turn, mark in zip(past, marks, strict=True):
            stop, sampled, following = self._place(prompt, start, mark, turn.answer)
            ids += self._encoded(prompt, start, stop) + sampled
            start = following
        return ids + self._encoded(prompt, start, len(prompt))

    def _encoded(self, prompt: RenderedPrompt, start: int, stop: int) -> list[int]:
        """The ids of a piece of the prompt. Only the first one gets a BOS that is not written in it."""
        piece = _Piece(prompt, start, stop)
        ids = self.codec.encode_rendered(piece)
        bos_id = self.codec.bos_id
        added = (
            start > 0
            and bos_id is not None
            and ids[:1] == [bos_id]
            and not piece.startswith(self.codec.token_text(bos_id))
        )
        return ids[1:] if added else ids

    def _stand_in(self, answer: Answer | None, mark: _Mark) -> str:
        """The content that shows where an answer goes, and whether its thinking stays."""
        if answer is None or not answer.n_thinking:
            return mark.answer
        if answer.n_thinking == len(answer.ids):
            return f"{self.tags.open}\n{mark.thinking}{mark.answer}"
        return f"{self.tags.open}\n{mark.thinking}\n{self.tags.close}\n\n{mark.answer}"

    def _place(self, text: str, start: int, mark: _Mark, answer: Answer | None) -> tuple[int, list[int], int]:
        """Where the template's text stops before an answer, the answer's ids, and where the text goes on."""
        if text.count(mark.answer) != 1:
            raise EtudeError(
                "the chat template leaves out or repeats earlier answers, so no conversation can go on with "
                "it; give another one with --chat-template"
            )
        at = text.index(mark.answer)
        following = at + len(mark.answer)
        ids = self._without_end(answer.ids) if answer else []
        if answer is None or not answer.n_thinking:
            return at, ids, following
        thinking = text.find(mark.thinking, start, at)
        if thinking < 0:  # the template forgets it
            return at, self._without_leading_space(ids[answer.n_thinking :]), following
        return thinking if answer.opened else text.rindex(self.tags.open, start, thinking), ids, following

    def _without_end(self, ids: Sequence[int]) -> list[int]:
        """The end token belongs to the template's text."""
        return list(ids[:-1] if ids and ids[-1] in self.codec.eog_ids else ids)

    def _without_leading_space(self, ids: Sequence[int]) -> list[int]:
        start = 0
        while start < len(ids) and not self.codec.token_text(ids[start]).strip():
            start += 1
        return list(ids[start:])

    # ── files ──

    def to_json(self, model: str) -> str:
        """The conversation as a file. `model` is written into it for the reader."""
        turns = [asdict(turn) for turn in self.turns]
        record = {
            "format": FORMAT,
            "model": model,
            "n_vocab": self.codec.n_vocab,
            "system": self.system,
            "turns": turns,
        }
        return json.dumps(record, ensure_ascii=False, indent=1) + "\n"

    def load_json(self, text: str) -> None:
        """Replace the conversation by one that `to_json` wrote. EtudeError, and no change, if it is none."""
        try:
            record = json.loads(text)
            if not isinstance(record, dict) or record.get("format") != FORMAT:
                raise EtudeError(f"this is no saved conversation (a JSON object with format {FORMAT!r})")
            turns = [_turn(entry) for entry in record["turns"]]
            system = record["system"]
            n_vocab = record["n_vocab"]
        except EtudeError:
            raise
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise EtudeError(f"this is no saved conversation: {type(error).__name__}: {error}") from error
        highest = max((max(turn.answer.ids, default=0) for turn in turns if turn.answer), default=0)
        if n_vocab != self.codec.n_vocab or highest >= self.codec.n_vocab:
            raise EtudeError(
                f"it was saved with another vocabulary ({n_vocab} tokens, here are {self.codec.n_vocab}), so "
                f"its token ids mean something else here; load it with {record.get('model', 'its model')}"
            )
        self.turns, self.system = turns, system


class _Piece(RenderedPrompt):
    """Characters [start, stop) of a rendered prompt, as a rendered prompt."""

    _whole: RenderedPrompt
    _start: int

    def __new__(cls, whole: RenderedPrompt, start: int, stop: int) -> _Piece:
        piece = str.__new__(cls, whole[start:stop])
        piece._whole, piece._start = whole, start
        return piece

    def locate(self, specials: Collection[str]) -> tuple[str, frozenset[int]]:
        """As of the whole prompt, counted from the start of the piece."""
        text, positions = self._whole.locate(specials)
        start, stop = self._start, self._start + len(self)
        return text[start:stop], frozenset(at - start for at in positions if start < at < stop)


@dataclass(frozen=True)
class _Mark:
    """Two words that occur in no message: one stands for an answer, one for its thinking."""

    answer: str
    thinking: str

    @staticmethod
    def unlike(texts: Sequence[str], index: int) -> _Mark:
        """The marks of answer `index`. Plain letters and digits: templates trim, split and quote."""
        salt = 0
        while any(f"qzx{salt}" in text for text in texts):
            salt += 1
        return _Mark(f"qzx{salt}a{index}z", f"qzx{salt}t{index}z")


def _turn(entry: Any) -> Turn:
    """A turn from its JSON, checked."""
    answer = entry["answer"]
    if not isinstance(entry["question"], str):
        raise TypeError("a question is no text")
    if answer is None:
        return Turn(entry["question"], None, bool(entry["continues"]))
    ids = tuple(answer["ids"])
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise TypeError("a token id is no number")
    if answer["finish"] not in get_args(Finish):
        raise ValueError(f"{answer['finish']!r} is no reason to end")
    answer = Answer(**{**answer, "ids": ids})
    if not 0 <= answer.n_thinking <= len(ids) or not isinstance(answer.text, str):
        raise ValueError("an answer is inconsistent")
    return Turn(entry["question"], answer, bool(entry["continues"]))
