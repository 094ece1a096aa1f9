"""The tokens of a model: texts, kinds, bytes, and where special tokens occur in a text.

Follows llama.cpp (src/llama-vocab.cpp, build 11434), so that ids, end-of-generation tokens and decoded bytes
are the same; left out are its repairs for families that Etude does not run (gpt-oss, Gemma 4, PLaMo).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from etude.records import EtudeError

SPACE = "▁"
"""What SentencePiece writes for a space."""

EOG_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip
"""Texts of tokens that end a generation wherever they are in a vocabulary."""

FIM_TEXTS = {  # fill-in-the-middle tokens by text; the first three kinds do not end a generation
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
                "<|code_prefix|>", "<|prefix|>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
                "<|code_suffix|>", "<|suffix|>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
                "<|code_middle|>", "<|middle|>"),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip

STRIP_RIGHT_KEY = "tokenizer.etude.strip_right_token_ids"
"""Ids of tokens that swallow the whitespace after them: Etude's own key, since GGUF has none."""

_BYTE_SPACE = b" \t\n\v\f\r".decode()


class Kind(IntEnum):
    """`tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Texts and kinds by id. A control or unknown token is `special`; a user-defined one always parses."""

    model: Literal["gpt2", "llama"]
    texts: Sequence[str]
    kinds: Sequence[int]
    ids: Mapping[str, int]
    bos_id: int | None
    eos_id: int | None
    unknown_id: int | None
    eog_ids: frozenset[int]
    strip_right: frozenset[int] = frozenset()  # tokens that swallow the whitespace after them (Phi-3)
    fim_ids: Mapping[str, int] = field(default_factory=dict)  # by the kinds of FIM_TEXTS

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Vocabulary:
        """From a GGUF file's metadata. EtudeError if the model or the lists are not usable."""
        model = _model(metadata)
        texts = _texts(metadata)
        kinds = _kinds(metadata, texts)
        ids = dict(zip(texts, range(len(texts)), strict=True))
        defaults = (1, 2, 0) if model == "llama" else (None, None, None)
        bos, eos, unknown = (
            _token_id(metadata, key, len(texts), default)
            for key, default in zip(("bos", "eos", "unknown"), defaults, strict=True)
        )
        middle = _fill_in_the_middle(metadata, ids)
        for token_id in (*middle.values(), *(ids[text] for text in EOG_TEXTS if text in ids)):
            kinds[token_id] = Kind.CONTROL  # whatever the file says: some say that <|im_end|> is text
        eog_ids = _end_of_generation(metadata, ids, eos, middle)
        given = {kind: _token_id(metadata, kind, len(texts), middle.get(kind)) for kind in FIM_TEXTS}
        fim_ids = {kind: token_id for kind, token_id in given.items() if token_id is not None}
        strip_right = _strip_right(metadata, ids, kinds)
        return cls(model, texts, kinds, ids, bos, eos, unknown, eog_ids, strip_right, fim_ids)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is hidden in text and parses only when asked for."""
        return self.kinds[token_id] in (Kind.CONTROL, Kind.UNKNOWN)

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text; for a special token its own text; nothing for an unused one."""
        text, kind = self.texts[token_id], self.kinds[token_id]
        if kind in (Kind.UNUSED, Kind.UNDEFINED):
            return b""
        if kind == Kind.BYTE:
            return bytes([int(text[3:5], 16)])
        if self.model == "llama" and not self.is_special(token_id):
            text = text.replace(SPACE, " ")
        elif self.model == "gpt2" and kind == Kind.NORMAL:
            return b"".join(CHAR_BYTES.get(char) or _raw(char) for char in text)
        return _raw(text)

    @cached_property
    def always_parsed(self) -> SpecialTexts:
        return SpecialTexts(self, special=False)

    @cached_property
    def all_parsed(self) -> SpecialTexts:
        return SpecialTexts(self, special=True)


class SpecialTexts:
    """Finds the texts of user-defined and, if `special`, of control and unknown tokens."""

    def __init__(self, vocabulary: Vocabulary, special: bool) -> None:
        self._vocabulary = vocabulary
        wanted = [Kind.USER_DEFINED, Kind.CONTROL, Kind.UNKNOWN] if special else [Kind.USER_DEFINED]
        self._by_start: dict[str, dict[str, int]] = {}  # first two characters -> text -> id
        for token_id in np.flatnonzero(np.isin(vocabulary.kinds, wanted)).tolist():
            text = vocabulary.texts[token_id]
            self._by_start.setdefault(text[:2], {})[text] = token_id
        self._lengths = {
            start: sorted({len(text) for text in texts}) for start, texts in self._by_start.items()
        }

    def occurring(self, text: str) -> list[int]:
        """Ids of the tokens whose text occurs, in the order in which they parse: longest (in bytes) first."""
        found: dict[int, int] = {}
        for start, texts in self._by_start.items():
            position = text.find(start)
            while position >= 0:
                for length in self._lengths[start]:
                    token_id = texts.get(text[position : position + length])
                    if token_id is not None:
                        found[token_id] = -len(_raw(self._vocabulary.texts[token_id]))
                position = text.find(start, position + 1)
        return sorted(found, key=lambda token_id: (found[token_id], token_id))

    def partition(self, text: str, literal: frozenset[int] = frozenset()) -> list[str | int]:
        """`text` cut into token ids and the text between them.

        The longest token is looked for first, everywhere, then the next: that is llama.cpp's order, and
        matters where tokens overlap. `literal`: positions that no special token may contain (see
        rendered.py).
        """
        fragments: list[tuple[int, int] | int] = [(0, len(text))] if text else []
        for token_id in self.occurring(text):
            blocked = literal if self._vocabulary.is_special(token_id) else frozenset[int]()
            fragments = [
                part
                for fragment in fragments
                for part in (
                    [fragment] if isinstance(fragment, int) else self._cut(text, fragment, token_id, blocked)
                )
            ]
        return [part if isinstance(part, int) else text[part[0] : part[1]] for part in fragments]

    def _cut(
        self, text: str, span: tuple[int, int], token_id: int, literal: frozenset[int]
    ) -> list[tuple[int, int] | int]:
        """One fragment cut at every occurrence of one token."""
        start, end = span
        special = self._vocabulary.texts[token_id]
        parts: list[tuple[int, int] | int] = []
        position = text.find(special, start, end)
        while position >= 0:
            stop = position + len(special)
            if not literal.isdisjoint(range(position + 1, stop + 1)):
                position = text.find(special, position + 1, end)
                continue
            if position > start:
                parts.append((start, position))
            parts.append(token_id)
            start = stop
            if token_id in self._vocabulary.strip_right:
                while start < end and text[start] in _BYTE_SPACE:
                    start += 1
            position = text.find(special, start, end)
        return [*parts, (start, end)] if start < end else parts


def _model(metadata: Mapping[str, Any]) -> Literal["gpt2", "llama"]:
    model = metadata.get("tokenizer.ggml.model")
    if model == "gpt2" or model == "llama":
        return "gpt2" if model == "gpt2" else "llama"
    if model is None:
        raise EtudeError(
            "the file has no tokenizer (tokenizer.ggml.model): convert the model with its vocabulary"
        )
    raise EtudeError(
        f"tokenizer {model!r} is not supported (tokenizer.ggml.model). "
        "Supported: gpt2 (byte-level BPE), llama (SentencePiece BPE)"
    )


def _texts(metadata: Mapping[str, Any]) -> list[str]:
    texts = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(texts, list) or not texts or not isinstance(texts[0], str):
        raise EtudeError("the file has no list of tokens (tokenizer.ggml.tokens)")
    if "" in texts:
        texts = [text or f"[EMPTY_{index}]" for index, text in enumerate(texts)]
    return texts


def _kinds(metadata: Mapping[str, Any], texts: Sequence[str]) -> list[int]:
    if metadata.get("tokenizer.ggml.token_type") is None:
        return [Kind.NORMAL] * len(texts)
    kinds = numbers(metadata, "token_type", len(texts))
    for index in np.flatnonzero(kinds == Kind.BYTE).tolist():
        if not re.fullmatch("<0x[0-9A-Fa-f]{2}>", texts[index]):
            raise EtudeError(f"byte token {texts[index]!r} (id {index}) is not of the form <0x0A>")
    return [int(kind) for kind in kinds.tolist()]


def numbers(metadata: Mapping[str, Any], key: str, n_vocab: int) -> NDArray[Any]:
    """The numbers of all tokens under `tokenizer.ggml.KEY`. EtudeError if there is not one for each."""
    values = np.asarray(metadata.get(f"tokenizer.ggml.{key}", ()))
    if values.dtype.kind not in "iuf" or values.ndim != 1 or len(values) < n_vocab:
        raise EtudeError(
            f"tokenizer.ggml.{key} has {values.size} entries for {n_vocab} tokens, or they are no numbers: "
            "convert the model again"
        )
    return values[:n_vocab]


def _token_id(metadata: Mapping[str, Any], key: str, n_vocab: int, default: int | None = None) -> int | None:
    """The id under `tokenizer.ggml.KEY_token_id`, or the default; None where neither is in range."""
    value = metadata.get(f"tokenizer.ggml.{key}_token_id")
    value = default if value is None else value
    return value if isinstance(value, int) and 0 <= value < n_vocab else None


def _fill_in_the_middle(metadata: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, int]:
    """The fill-in-the-middle tokens that have to be recognised by their text, by kind."""
    return {
        kind: next(ids[text] for text in texts if text in ids)
        for kind, texts in FIM_TEXTS.items()
        if _token_id(metadata, kind, len(ids)) is None and any(text in ids for text in texts)
    }


def _end_of_generation(
    metadata: Mapping[str, Any], ids: Mapping[str, int], eos: int | None, middle: Mapping[str, int]
) -> frozenset[int]:
    """eos, eot and eom, the fill-in-the-middle tokens that cannot be in an answer, and EOG_TEXTS."""
    result = {eos, *(_token_id(metadata, key, len(ids)) for key in ("eot", "eom"))}
    result.update(
        _token_id(metadata, kind, len(ids), middle.get(kind)) for kind in ("fim_pad", "fim_rep", "fim_sep")
    )
    result.update(ids[text] for text in EOG_TEXTS if text in ids)
    return frozenset(token_id for token_id in result if token_id is not None)


def _strip_right(metadata: Mapping[str, Any], ids: Mapping[str, int], kinds: Iterable[int]) -> frozenset[int]:
    """Phi-3's tokens swallow the whitespace after them; a GGUF file does not say so, its name must."""
    if STRIP_RIGHT_KEY in metadata:
        given = np.asarray(metadata[STRIP_RIGHT_KEY])
        if given.ndim != 1 or given.dtype.kind not in "iu":
            raise EtudeError(f"{STRIP_RIGHT_KEY} is no list of token ids: convert the model again")
        return frozenset(given.tolist())
    name = str(metadata.get("general.name", "")).lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    parsed = (Kind.CONTROL, Kind.USER_DEFINED, Kind.UNKNOWN)
    kept = {ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
    return frozenset(index for index, kind in enumerate(kinds) if kind in parsed and index not in kept)


def _raw(text: str) -> bytes:
    """The bytes that the file has for a text (see GGUFFile.metadata)."""
    return text.encode("utf-8", "surrogateescape")


def _byte_chars() -> list[str]:
    """GPT-2's printable character for each byte: itself, or one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


BYTE_CHARS = _byte_chars()
"""The character that byte-level BPE writes for each byte."""

CHAR_BYTES = {char: bytes([byte]) for byte, char in enumerate(BYTE_CHARS)}
