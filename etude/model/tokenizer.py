"""Text ↔ token ids, from a GGUF file's metadata or a Hugging Face folder.

Two kinds: byte-level BPE (`gpt2`: SmolLM2, Llama 3, Qwen, DeepSeek, Mistral's tekken) and SentencePiece BPE
(`llama`: Llama 2, Gemma 3, Phi-3). Ids equal llama.cpp's. The merging is done here and not by the
`tokenizers` package since a start must be quick: that package takes 3 s to build Gemma's 262k tokens (1.4 s
from a stored file), two dictionaries take 0.2 s; and since words repeat, a memo of words makes up for the
slower language.

    tokenizer = Tokenizer.from_metadata(file.metadata)
    tokenizer.decode(tokenizer.encode("Hello"))
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from etude.model.fields import Fields
from etude.model.merging import merge
from etude.model.pretokenizers import PreTokenizer, pretokenizer
from etude.model.rendered import RenderedPrompt
from etude.model.tokenizer_json import metadata_from_folder, tokenizer_json
from etude.model.vocabulary import BYTE_CHARS, SPACE, Vocabulary, numbers
from etude.records import EtudeError

MEMO_WORDS = 1 << 16
MEMO_WORD_LENGTH = 64


class Tokenizer:
    """Encodes and decodes; see the module. Safe to share between threads.

    bos_id, eos_id: None if the model has none. eog_ids: tokens that end a generation. fim_ids: those for
    filling in, as far as there are any: fim_pre, fim_suf, fim_mid, fim_pad, fim_rep, fim_sep. add_bos,
    add_eos: whether `encode` puts them around a text.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self._vocabulary = vocabulary = Vocabulary.from_metadata(metadata)
        self.n_vocab = len(vocabulary.texts)
        self.fim_ids = vocabulary.fim_ids
        self.bos_id, self.eos_id, self.eog_ids = vocabulary.bos_id, vocabulary.eos_id, vocabulary.eog_ids
        kind = _SentencePiece if vocabulary.model == "llama" else _ByteLevel
        self._encoder: _SentencePiece | _ByteLevel = kind(metadata, vocabulary)
        self.add_bos = _adds(metadata, "bos", self.bos_id, default=self._encoder.add_bos)
        self.add_eos = _adds(metadata, "eos", self.eos_id, default=False)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """From `GGUFFile.metadata`. EtudeError for a kind of tokenizer that is not supported."""
        return cls(metadata)

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """From a folder with tokenizer.json (and tokenizer_config.json, config.json)."""
        return cls(metadata_from_folder(Path(path)))

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The ids of a text. parse_special: `<|im_end|>` in it becomes that token, else it stays text.

        Half a surrogate pair, which has no UTF-8 form, is read as U+FFFD.
        """
        vocabulary = self._vocabulary
        specials = vocabulary.all_parsed if parse_special else vocabulary.always_parsed
        ids = self._encode_fragments(specials.partition(_valid(text)))
        return self._with_bos(self._with_eos(ids)) if add_special else ids

    def encode_rendered(self, prompt: RenderedPrompt) -> list[int]:
        """The ids of what `ChatTemplate.render` gave. Its special tokens parse; those in messages are text.

        Begins with BOS exactly once where the model wants it, whether or not the template wrote it.
        """
        if not isinstance(prompt, RenderedPrompt):
            raise EtudeError(
                "encode_rendered needs the prompt as ChatTemplate.render gave it; for other text use encode"
            )
        specials = self._vocabulary.all_parsed
        texts = self._vocabulary.texts
        hidden = [texts[i] for i in specials.occurring(prompt) if self._vocabulary.is_special(i)]
        text, literal = prompt.locate(hidden)
        ids = self._encode_fragments(specials.partition(_valid(text), literal))
        return ids if ids and ids[0] == self.bos_id else self._with_bos(ids)

    def decode(self, ids: Iterable[int], *, special: bool = False, continuation: bool = False) -> str:
        """The text of ids; bytes that are not UTF-8 as U+FFFD. special: show control tokens.

        SentencePiece models put a space before a text, which is taken away again, unless the ids are the
        `continuation` of others.
        """
        stream = self.stream(special=special, continuation=continuation)
        return "".join(map(stream.push, ids)) + stream.flush()

    def stream(self, special: bool = False, *, continuation: bool = True) -> TextStream:
        """Decodes ids one by one. By default they continue a prompt, so that a leading space is kept."""
        strip = self._encoder.add_space_prefix and not continuation
        return TextStream(self._shown_bytes if not special else self.token_bytes, strip)

    def token_bytes(self, token_id: int) -> bytes:
        """What the token stands for; a control token's own text; nothing for an id without a token.

        (The last layer of some models has more rows than their tokenizer has tokens.)
        """
        return self._vocabulary.token_bytes(token_id) if 0 <= token_id < self.n_vocab else b""

    def token_text(self, token_id: int) -> str:
        """`token_bytes` for people: bytes that are not UTF-8 as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def is_control(self, token_id: int) -> bool:
        """Whether the token is part of the protocol, not of the text: hidden by `decode`."""
        return 0 <= token_id < self.n_vocab and self._vocabulary.is_special(token_id)

    def to_json(self) -> str:
        """The tokenizer in the format of Hugging Face's tokenizer.json."""
        return tokenizer_json(self.metadata, self._vocabulary, add_bos=self.add_bos, add_eos=self.add_eos)

    def _shown_bytes(self, token_id: int) -> bytes:
        return b"" if self.is_control(token_id) else self.token_bytes(token_id)

    def _encode_fragments(self, fragments: list[str | int]) -> list[int]:
        ids: list[int] = []
        after_token = True  # the start of a text counts as one
        for fragment in fragments:
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                self._encoder.encode(fragment, after_token, ids)
            after_token = isinstance(fragment, int)
        return ids

    def _with_bos(self, ids: list[int]) -> list[int]:
        return [self.bos_id, *ids] if self.add_bos and self.bos_id is not None else ids

    def _with_eos(self, ids: list[int]) -> list[int]:
        return [*ids, self.eos_id] if self.add_eos and self.eos_id is not None else ids


class TextStream:
    """Ids in, text out as soon as it is certain: never half a character."""

    def __init__(self, token_bytes: Callable[[int], bytes], strip_space: bool) -> None:
        self._token_bytes = token_bytes
        self._strip_space = strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes; bytes that cannot become one as U+FFFD."""
        added = self._token_bytes(token_id)
        if self._strip_space and added:
            added = added.removeprefix(b" ")
            self._strip_space = False
        return self._decoder.decode(added)

    def flush(self) -> str:
        """What is left at the end: U+FFFD if the last character is not complete."""
        return self._decoder.decode(b"", final=True)


class _ByteLevel:
    """GPT-2's way: words by regular expressions, each byte as a printable character, merges from a list."""

    add_space_prefix = False

    def __init__(self, metadata: Mapping[str, Any], vocabulary: Vocabulary) -> None:
        merges = metadata.get("tokenizer.ggml.merges")
        if not isinstance(merges, list):
            raise EtudeError("the file has no merges (tokenizer.ggml.merges): convert the model again")
        self._splitter: PreTokenizer = pretokenizer(
            Fields(metadata, "the tokenizer").text("tokenizer.ggml.pre", "default")
        )
        self.add_bos = self._splitter.add_bos
        self._ids = vocabulary.ids
        count = len(merges)
        self._ranks = dict(
            zip(reversed(merges), range(count - 1, -1, -1), strict=True)
        )  # the first of equals stays
        self._memo: dict[str, list[int]] = {}

    def encode(self, text: str, after_token: bool, ids: list[int]) -> None:
        """Append the ids of a text without special tokens to `ids`."""
        memo = self._memo
        for word in self._splitter.split(text):
            found = memo.get(word)
            if found is None:
                found = _remember(memo, word, self._encode_word(word))
            ids += found

    def _encode_word(self, word: str) -> list[int]:
        mapped = word.encode("utf-8").decode("latin-1").translate(_BYTE_TABLE)
        if self._splitter.ignore_merges and mapped in self._ids:
            return [self._ids[mapped]]
        ids: list[int] = []
        for symbol in merge(list(mapped), self._ranks, " "):
            if symbol in self._ids:
                ids.append(self._ids[symbol])
            else:  # no token for a byte, or for what was merged: like llama.cpp, keep what is ASCII
                ids.extend(self._ids[char] for char in symbol if char.isascii() and char in self._ids)
        return ids


class _SentencePiece:
    """SentencePiece's BPE: ▁ for spaces, merges ranked by their token's score, rare characters as bytes."""

    add_bos = True

    def __init__(self, metadata: Mapping[str, Any], vocabulary: Vocabulary) -> None:
        fields = Fields(metadata, "the tokenizer")
        self.add_space_prefix = fields.flag("tokenizer.ggml.add_space_prefix", True)
        self._ids = vocabulary.ids
        self._unknown_id = vocabulary.unknown_id
        costs = -numbers(metadata, "scores", len(vocabulary.texts)).astype(np.float32)
        self._ranks = dict(zip(vocabulary.texts, costs.tolist(), strict=True))
        self._words = _words_pattern(vocabulary.texts)
        self._memo: dict[str, list[int]] = {}

    def encode(self, text: str, after_token: bool, ids: list[int]) -> None:
        """Append the ids of a text without special tokens; at a start or after a token, of " " + text."""
        if self.add_space_prefix and after_token:
            text = " " + text
        memo = self._memo
        for word in self._words.findall(text.replace(" ", SPACE)):
            found = memo.get(word)
            if found is None:
                found = _remember(memo, word, self._encode_word(word))
            ids += found

    def _encode_word(self, word: str) -> list[int]:
        ids: list[int] = []
        for symbol in merge(list(word), self._ranks, ""):
            if symbol in self._ids:
                ids.append(self._ids[symbol])
            else:
                ids.extend(map(self._byte_id, symbol.encode("utf-8")))
        return ids

    def _byte_id(self, byte: int) -> int:
        as_text = bytes([byte]).decode("utf-8", "surrogateescape")
        token_id = self._ids.get(f"<0x{byte:02X}>", self._ids.get(as_text, self._unknown_id))
        if token_id is None:
            raise EtudeError(f"the vocabulary has no token for the byte 0x{byte:02X}, nor an unknown token")
        return token_id


_BYTE_TABLE = dict(enumerate(BYTE_CHARS))
_SURROGATES = re.compile("[\ud800-\udfff]")


def _remember(memo: dict[str, list[int]], word: str, ids: list[int]) -> list[int]:
    """Keep the ids of a word, unless it is too long to come again; when there are many, start anew."""
    if len(word) <= MEMO_WORD_LENGTH:
        if len(memo) >= MEMO_WORDS:
            memo.clear()
        memo[word] = ids
    return ids


def _words_pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Cuts text before a run of ▁ wherever no token reaches across, so that no merge is lost.

    Most vocabularies have no token with a ▁ after another character; Gemma's has `>▁</`, so that it is not
    cut between > and ▁.
    """
    inner = re.compile(f"{SPACE}(?<=([^{SPACE}\0]){SPACE})")  # a literal first: the search is quick
    crossing = set(inner.findall("\0".join(texts)))
    word = f"{SPACE}*[^{SPACE}]+|{SPACE}+"
    if crossing:
        members = "".join(map(re.escape, sorted(crossing)))
        word = f"{SPACE}*[^{SPACE}]+(?:(?<=[{members}]){SPACE}+[^{SPACE}]*)*|{SPACE}+"
    return re.compile(word)


def _adds(metadata: Mapping[str, Any], key: str, token_id: int | None, default: bool) -> bool:
    """Whether `encode` adds that token. EtudeError if the file asks for one that it does not have."""
    name = f"tokenizer.ggml.add_{key}_token"
    asked = Fields(metadata, "the tokenizer").flag(name, False)
    if asked and token_id is None:
        raise EtudeError(
            f"tokenizer.ggml.add_{key}_token is set, but there is no tokenizer.ggml.{key}_token_id"
        )
    return token_id is not None and (asked if metadata.get(name) is not None else default)


def _valid(text: str) -> str:
    """The text with U+FFFD for lone surrogates; the same length."""
    return _SURROGATES.sub("\ufffd", text)
