"""A byte-level tokenizer with a few merges and two ends of generation, for grammars."""

from __future__ import annotations

from functools import cached_property

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

MERGES = [
    ("h", "e"), ("l", "l"), ("t", "r"), ("tr", "u"), ("tru", "e"), ('"', ":"), ('"', ","), ("Ġ", "{"),
    ("Ġ", '"'), ("a", "b"), ("ab", "b"), ("(", "("), (")", ")"), ("1", "2"), ("}", "}"), ("{", '"'),
    ("Ċ", "Ġ"), ("a", "("),
]  # fmt: skip


class ByteTokenizer:
    """What grammar.py needs of a tokenizer, and encode and decode."""

    def __init__(self) -> None:
        vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for left, right in MERGES:
            vocabulary.setdefault(left + right, len(vocabulary))
        self._tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._tokenizer.decoder = decoders.ByteLevel()
        self._tokenizer.add_special_tokens(["<end>", "<turn>", "<other>"])
        self.n_vocab = self._tokenizer.get_vocab_size()
        self.eog_ids = frozenset({self.n_vocab - 3, self.n_vocab - 2})

    def encode(self, text: str) -> list[int]:
        return [int(i) for i in self._tokenizer.encode(text, add_special_tokens=False).ids]

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode([i for i in ids if i not in self.eog_ids]))

    def to_json(self) -> str:
        return str(self._tokenizer.to_str())

    @cached_property
    def n_words(self) -> int:
        return (self.n_vocab + 31) // 32
