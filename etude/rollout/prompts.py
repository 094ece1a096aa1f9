"""Messages → token ids: the opening of an episode, and what goes between one reply and the next.

A conversation goes through the model's chat template; plain text, and the one question of a base model, are
tokenised as they are. What the model sampled is never tokenised again: a later prompt is the ids so far and
the template's text since the last reply.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from etude.model.chat import ChatTemplate
from etude.records import EtudeError, Message, Problem

TEXT = "text"
"""The role of a message that is plain text."""

MARK = "qzx{}a{}z"
"""Stands for a reply while the template renders what follows it. Plain letters: templates trim and quote."""


class Codec(Protocol):
    """What is needed of a Tokenizer."""

    bos_id: int | None
    eos_id: int | None
    eog_ids: frozenset[int]

    def encode(self, text: str) -> list[int]: ...

    def encode_rendered(self, prompt: Any) -> list[int]: ...

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str: ...


class Prompt(NamedTuple):
    """Token ids; opened: they end inside a block of thoughts."""

    ids: tuple[int, ...]
    opened: bool = False


class PromptWriter:
    """How problems become prompts of one model. template None: a base model, which completes text.

    variables: what the template reads, such as `enable_thinking`. context: tokens of a sequence, for
    `check_prompts` and for episodes of several turns; None: not known.
    """

    def __init__(
        self,
        codec: Codec,
        template: ChatTemplate | None,
        *,
        variables: Mapping[str, Any] | None = None,
        context: int | None = None,
    ) -> None:
        self.codec = codec
        self.template = template
        self.context = context
        self.variables = dict(variables or {})

    def opening(self, problem: Problem, messages: Sequence[Message] | None = None) -> Prompt:
        """The first prompt. messages: instead of the problem's own. EtudeError names the problem."""
        messages = problem.messages if messages is None else messages
        if not messages:
            raise EtudeError(f"problem {problem.id}: there are no messages")
        if messages[0].role == TEXT or self.template is None:
            if len(messages) > 1:
                why = "the model has no chat template: choose a built-in one, such as r1-zero"
                why = "plain text goes alone" if messages[0].role == TEXT else why
                raise EtudeError(f"problem {problem.id} has {len(messages)} messages, and {why}")
            ids = self.codec.encode(messages[0].content)
            if not ids:
                raise EtudeError(f"problem {problem.id}: its prompt is empty")
            return Prompt(tuple(ids))
        try:
            rendered = self.template.render(messages, **self.variables)
        except EtudeError as error:
            raise EtudeError(f"problem {problem.id}: {error}") from error
        ids = self.codec.encode_rendered(rendered)
        return Prompt(tuple(ids), self.template.opens_thinking(rendered))

    def continuation(
        self, conversation: Sequence[Message], added: Sequence[Message], last_id: int | None
    ) -> Prompt:
        """The ids between a reply and the next one. conversation: all messages up to that reply, which is the
        last of them; added: what the environment answers; last_id: the last token of the reply."""
        if self.template is None or conversation[0].role == TEXT:
            ids = self.codec.encode("".join(message.content for message in added))
            return Prompt(tuple(self._inside(ids)))
        mark = _mark([message.content for message in (*conversation, *added)])
        shown = [*conversation[:-1], Message("assistant", mark), *added]
        rendered = self.template.render(shown, **self.variables)
        if rendered.count(mark) != 1:
            raise EtudeError(
                "the chat template leaves out or repeats earlier replies: it allows one turn only"
            )

        def rest(text: str) -> str:
            return text.partition(mark)[2]

        def rest_marked(specials: Collection[str], character: str) -> str:
            return rest(rendered._render_marked(specials, character))

        ids = self._inside(self.codec.encode_rendered(type(rendered)(rest(rendered), rest_marked)))
        if last_id is not None and last_id in self.codec.eog_ids and ids[:1] == [last_id]:
            ids = ids[1:]  # the model has ended its turn itself
        return Prompt(tuple(ids), self.template.opens_thinking(rendered))

    def _inside(self, ids: list[int]) -> list[int]:
        """Without the BOS that a tokenizer puts before every text."""
        return ids[1:] if ids and ids[0] == self.codec.bos_id else ids


def check_prompts(prompts: PromptWriter, problems: Iterable[Problem], *, max_tokens: int) -> int:
    """The longest prompt in tokens. EtudeError, before anything is sampled, if one leaves no room for
    `max_tokens` in the context."""
    longest, n, too_long = 0, 0, []
    for problem in problems:
        n += 1
        length = len(prompts.opening(problem).ids)
        longest = max(longest, length)
        if prompts.context is not None and length + max_tokens > prompts.context:
            too_long.append((problem.id, length))
    if too_long:
        name, length = max(too_long, key=lambda pair: pair[1])
        raise EtudeError(
            f"problem {name}: its prompt has {length} tokens, and with {max_tokens} for the answer the "
            f"context of {prompts.context} is too small (so it is for {len(too_long)} of {n} problems); "
            "raise the context, lower max_tokens, or leave these problems out"
        )
    return longest


def _mark(texts: Sequence[str]) -> str:
    """A word that occurs in none of the texts."""
    salt = 0
    while any(MARK.format(salt, 0) in text for text in texts):
        salt += 1
    return MARK.format(salt, 0)
