"""Where the answer stands in what a model said: strictly where it was asked for, or wherever it can be found.

Strict: in `<answer>…</answer>`, in `\\boxed{…}`, behind `####`, or the whole reply. Lenient: also behind "the
answer is", or the last number. The gap between the two is how much of a model's "gain" is only form.
"""

from __future__ import annotations

import re
from typing import Literal

Parse = Literal["strict", "lenient"]
Form = Literal["any", "tag", "boxed", "hashes", "whole"]

THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE = "<think>", "</think>", "<answer>", "</answer>"
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(
    # a sign counts only where no operand stands before it: "= -3" has one, "10-3" and "10 - 3" have none
    r"(?:(?<![0-9A-Za-z)\]}])(?<![0-9)\]}]\s)[-−+])?"
    rf"(?:{_DIGITS}(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9A-Za-z]))?"
    rf"(?:(?<!/)\s?/\s?{_DIGITS}(?![0-9/]|\.[0-9]))?"
)
_CUE = re.compile(
    r"answer\s*(?:is|was|=|:|\*\*:|:\*\*)+\s*(?:that\s+)?(.+?)\s*(?:\.(?![0-9])|[;!\n]|,\s|$)", re.IGNORECASE
)
_INLINE = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def after_thinking(text: str, *, opened: bool = False) -> str | None:
    """What follows the thoughts; all of it where there are none; None if they never end.

    >>> after_thinking("<think>maybe 3</think> 4"), after_thinking("4"), after_thinking("<think>maybe 3")
    (' 4', '4', None)
    """
    if not opened and not text.lstrip().startswith(THINK_OPEN):
        return text
    _, close, after = text.partition(THINK_CLOSE)
    return after if close else None


def tagged(text: str) -> str | None:
    """The content of `<answer>…</answer>`, if there is one such block and nothing follows it.

    >>> tagged("so <answer> 4 </answer>"), tagged("<answer>4</answer><answer>5</answer>")
    ('4', None)
    """
    if text.count(ANSWER_OPEN) != 1 or text.count(ANSWER_CLOSE) != 1:
        return None
    content, close, rest = text.partition(ANSWER_OPEN)[2].partition(ANSWER_CLOSE)
    return content.strip() if close and not rest.strip() else None


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` (or `\fbox{…}`, `\boxed 4`), braces balanced.

    >>> boxed(r"so \boxed{1}, no: $\boxed{\frac{1}{2}}$."), boxed(r"\boxed{\{1, 2\}}"), boxed(r"\boxed{1")
    ('\\frac{1}{2}', '\\{1, 2\\}', None)
    """
    starts = [match.end() for match in re.finditer(r"\\(?:boxed|fbox)(?![A-Za-z])", text)]
    if not starts:
        return None
    rest = text[starts[-1] :].lstrip()
    if not rest.startswith("{"):
        bare = re.match(r"[^\s$}]+", rest)
        return bare[0].rstrip(".,") if bare else None
    depth = 0
    for match in re.finditer(r"\\.|[{}]", rest, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return rest[1 : match.start()].strip()
    return None


def hashes(text: str) -> str | None:
    """What follows the last `####` on its line, as in GSM8K.

    >>> hashes("2 + 2 = <<2+2=4>>4\\n#### 4"), hashes("4")
    ('4', None)
    """
    _, mark, after = text.rpartition("####")
    return (after.strip().splitlines() or [""])[0].strip() or None if mark else None


def last_number(text: str) -> str | None:
    """The last number, with its sign, as it is written.

    >>> [last_number(text) for text in ("It is -3.", "10-3", "1,234.5 m", "3/4!", "1,2,3", "none")]
    ['-3', '3', '1,234.5', '3/4', '3', None]
    """
    found = [match[0] for match in _NUMBER.finditer(text)]
    return found[-1] if found else None


def strict_answer(text: str, form: Form = "any", *, opened: bool = False) -> str | None:
    r"""The answer where it was asked for; None if it is not there. "any": the first form that is used at all.

    Once a reply uses tags, its answer is in them or nowhere. A box or `####` inside tags is taken off.

    >>> strict_answer("<think>…</think><answer>\\boxed{4}</answer>"), strict_answer("<answer>4")
    ('4', None)
    >>> strict_answer("It is \\boxed{4}."), strict_answer("4", "boxed"), strict_answer("4")
    ('4', None, '4')
    """
    body = after_thinking(text, opened=opened)
    if body is None or not body.strip():
        return None
    if form == "tag" or (form == "any" and (ANSWER_OPEN in body or ANSWER_CLOSE in body)):
        content = tagged(body)
        return (boxed(content) or hashes(content) or content or None) if content else None
    if form == "boxed" or (form == "any" and re.search(r"\\(?:boxed|fbox)(?![A-Za-z])", body)):
        return boxed(body) or None
    if form == "hashes" or (form == "any" and "####" in body):
        return hashes(body)
    return body.strip()


def lenient_region(text: str, *, opened: bool = False) -> str:
    """Where a lenient reader looks: behind the thoughts, or in all of it where they never end."""
    body = after_thinking(text, opened=opened)
    if body is None or not body.strip():
        body = text
    if ANSWER_OPEN in body:
        inside = body.rpartition(ANSWER_OPEN)[2].partition(ANSWER_CLOSE)[0]
        return inside if inside.strip() else body
    return body


def cued(text: str) -> str | None:
    """What follows the last "answer is" or "answer:", up to the end of the clause.

    >>> cued("The answer is 3.5 apples. I think."), cued("Final answer: x + 1"), cued("4")
    ('3.5 apples', 'x + 1', None)
    """
    found = _CUE.findall(text)
    return found[-1].strip("* \t") or None if found else None


def last_inline(text: str) -> str | None:
    """The last formula between dollars or LaTeX's brackets.

    >>> last_inline("$a$ or $x + 1$."), last_inline("none")
    ('x + 1', None)
    """
    found = _INLINE.findall(text)
    return next(part for part in found[-1] if part).strip() if found else None
