"""How text is cut into words before byte-level BPE, by the file's `tokenizer.ggml.pre`.

Each name stands for patterns that are applied in turn: a pattern cuts every piece into its matches and what
lies between them. The patterns and their quirks are llama.cpp's (src/llama-vocab.cpp, src/unicode.cpp, build
11434), since ids must be equal; for instance, `tekken` cannot tell capital from small letters beyond ASCII.
`\\p{X}` classes work on collapsed text (see unicode_classes), so that Python's own `re` does the matching.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from etude.model.unicode_classes import ASCII_CLASSES, LETTER, STAND_INS, collapse, collapse_spaces
from etude.records import EtudeError

_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_LINES_AND_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CJK = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_CJK = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LETTERS = (  # the alphabets with case, spelt out in the tokenizer of DeepSeek LLM
    r"A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    r"\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    r"\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    r"\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    r"\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    r"\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102"
    r"\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    r"\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    r"\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    r"\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    r"\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    r"\U0001e900-\U0001e943"
)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _LINES_AND_SPACES
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_QWEN35 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
    + _LINES_AND_SPACES
)
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[A-Z{LETTER}]*[a-z{LETTER}]+|[^\r\n\p{{L}}\p{{N}}]?[A-Z{LETTER}]+[a-z{LETTER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _LINES_AND_SPACES
)
_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _LINES_AND_SPACES
)


@dataclass(frozen=True)
class PreTokenizer:
    """The patterns, and what llama.cpp derives from the name.

    ignore_merges: a word that is a token is taken whole. add_bos: unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False

    def split(self, text: str) -> list[str]:
        """The words of `text`, in order; joined they are the text.

        >>> PRETOKENIZERS["smollm"].split("In 2024 it's so")
        ['In', ' ', '2', '0', '2', '4', ' it', "'s", ' so']
        """
        pieces = [text]
        for pattern in self.patterns:
            pieces = _split_pieces(pieces, pattern)
        return pieces


def _split_pieces(pieces: list[str], pattern: str) -> list[str]:
    """Every piece cut into the matches of the pattern and what lies between them."""
    compiled = compile_pattern(pattern)
    view = collapse if r"\p{" in pattern else collapse_spaces
    result: list[str] = []
    for piece in pieces:
        seen = view(piece)
        end = 0
        for match in compiled.finditer(seen):
            start = match.start()
            if start > end:
                result.append(piece[end:start])
            end = match.end()
            result.append(piece[start:end])
        if end < len(piece):
            result.append(piece[end:])
    return result


@cache
def compile_pattern(pattern: str) -> re.Pattern[str]:
    r"""A pattern with \p{L}, \p{N}, \p{P}, \p{M}, \p{S}, \s and \S made to match collapsed text.

    Python's own \s would match the separators U+001C to U+001F too.
    """
    result, inside, position = "", False, 0
    while position < len(pattern):
        size, part = 1, pattern[position]
        if part == "\\":
            size = pattern.index("}", position) + 1 - position if pattern[position + 1] == "p" else 2
            part = _escape(pattern[position : position + size], inside)
        elif part in "[]":
            inside = part == "["
        result += part
        position += size
    return re.compile(result)


def _escape(escape: str, inside: bool) -> str:
    """An escape of the patterns as part of (`inside`) or instead of a bracket expression."""
    if escape.startswith(r"\p"):
        letter = escape[3]
        members = ASCII_CLASSES[letter] + STAND_INS[letter]
    elif escape in (r"\s", r"\S"):
        members = r"\t-\r "
    else:
        return escape
    if inside:
        return members
    return f"[^{members}]" if escape == r"\S" else f"[{members}]"


_DIGITS_THEN_GPT2 = PreTokenizer((r"\p{N}", _GPT2))
_PLAIN_GPT2 = PreTokenizer((_GPT2,))
_LIKE_LLAMA3 = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_LIKE_QWEN2 = PreTokenizer((_QWEN2,))

PRETOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "midm-2.0", "pixtral"), _LIKE_LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), PreTokenizer((_LLAMA3,))),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "kormo", "stablelm2"), _LIKE_QWEN2),
    "qwen35": PreTokenizer((_QWEN35,)),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")),
    "deepseek-v3": PreTokenizer((r"\p{N}{1,3}", _CJK, _DEEPSEEK_V3)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"), _DIGITS_THEN_GPT2
    ),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "a.x-4.0", "exaone4"), _PLAIN_GPT2),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
}
"""By `tokenizer.ggml.pre`; "default" also where the file has none."""


_HUB_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_HUB_GPT2 = _GPT2 + r"|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HUB_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _LINES_AND_SPACES
)

HUB_PATTERNS: dict[str, tuple[str, ...]] = {
    "smollm": (r"\p{N}", _HUB_GPT2),
    "gpt-2": (_HUB_GPT2,),
    "llama-bpe": (_LLAMA3.replace(_CONTRACTIONS, _HUB_CONTRACTIONS),),
    "qwen2": (_QWEN2.replace(_CONTRACTIONS, _HUB_CONTRACTIONS),),
    "qwen35": (_QWEN35.replace(_CONTRACTIONS, _HUB_CONTRACTIONS),),
    "deepseek-v3": PRETOKENIZERS["deepseek-v3"].patterns,
    "tekken": (_HUB_TEKKEN,),
}
"""The patterns as models' own tokenizer.json files have them: how those files are recognised."""


def pretokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer of that name. EtudeError if there is none."""
    if name not in PRETOKENIZERS:
        known = ", ".join(supported_names())
        raise EtudeError(f"pre-tokenizer {name!r} is not supported (tokenizer.ggml.pre). Supported: {known}")
    return PRETOKENIZERS[name]


def supported_names() -> Sequence[str]:
    return sorted(PRETOKENIZERS)
