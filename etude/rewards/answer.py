"""What a model said, as a reward sees it: a `str` that also knows how it came about."""

from __future__ import annotations

from etude.records import Finish


class Answer(str):
    """The text of a completion. n_tokens: tokens sampled, the end token included. finish: why it ended.

    opened: the prompt ended inside a block of thoughts, so that the text begins there, without an opening
    tag. A plain `str` serves a reward as well, unless it asks for what only sampling knows.

    >>> answer = Answer("<think>2 + 2</think>4", n_tokens=9)
    >>> answer.endswith("4"), answer.n_tokens, answer.finish
    (True, 9, None)
    """

    n_tokens: int | None
    finish: Finish | None
    opened: bool

    def __new__(
        cls, text: str, *, n_tokens: int | None = None, finish: Finish | None = None, opened: bool = False
    ) -> Answer:
        answer = super().__new__(cls, text)
        answer.n_tokens, answer.finish, answer.opened = n_tokens, finish, opened
        return answer


def is_opened(answer: str) -> bool:
    """Whether the text begins inside a block of thoughts."""
    return isinstance(answer, Answer) and answer.opened
