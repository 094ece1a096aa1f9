"""llama.cpp's test vocabularies (models/ggml-vocab-*.gguf, MIT), small enough to keep: 20 MB become 1.7 MB.

A token of byte-level BPE is what a merge makes, in the order of the merges; so the merges give the tokens.
Llama 3's merges come the other way about from the tokens: all pairs of tokens that make a token. The rest is
xz.

    python -m tests.model.packed_vocabularies FOLDER    packs FOLDER/ggml-vocab-NAME.gguf for each of NAMES
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path
from typing import Any

import numpy as np

from etude.model.gguf import GGUFFile

FOLDER = Path(__file__).parent.parent / "data" / "tokenizer"
NAMES = ("deepseek-llm", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2")
TOKENS, MERGES, SCORES, TYPES = (
    f"tokenizer.ggml.{key}" for key in ("tokens", "merges", "scores", "token_type")
)


def unpack(name: str) -> dict[str, Any]:
    """The metadata of the GGUF file, as GGUFFile gives it."""
    packed = json.loads(lzma.decompress((FOLDER / f"{name}.json.xz").read_bytes()))
    metadata: dict[str, Any] = packed["keys"]
    metadata[TYPES] = np.repeat(*np.array(packed["types"]).T).astype(np.int32)
    if packed["merges"] is not None:
        products = [merge.replace(" ", "") for merge in packed["merges"]]
        metadata |= {TOKENS: packed["before"] + products + packed["after"], MERGES: packed["merges"]}
    else:
        metadata[TOKENS] = packed["before"]
    if metadata["tokenizer.ggml.model"] == "gpt2" and MERGES not in metadata:
        metadata[MERGES] = all_merges(metadata[TOKENS], metadata[TYPES])
    if packed["scores"] is not None:
        metadata[SCORES] = np.array(packed["scores"], np.float32)
    return metadata


def pack(metadata: dict[str, Any]) -> dict[str, Any]:
    """What `unpack` needs to give that metadata back."""
    rest = dict(metadata)
    tokens, types, scores = rest.pop(TOKENS), rest.pop(TYPES), rest.pop(SCORES, None)
    merges: list[str] | None = rest.pop(MERGES, None)
    before, after = tokens, []
    if merges is not None and merges == all_merges(tokens, types):
        merges = None
    elif merges is not None:
        products = [merge.replace(" ", "") for merge in merges]
        start = tokens.index(products[0])
        before, after = tokens[:start], tokens[start + len(products) :]
        assert before + products + after == tokens
    changes = np.flatnonzero(np.diff(types, prepend=-1))
    runs = [
        [int(types[i]), int(n)] for i, n in zip(changes, np.diff(changes, append=len(types)), strict=True)
    ]
    small = {key: value for key, value in rest.items() if isinstance(value, str | int | float)}
    assert len(small) == len(rest), rest.keys() - small.keys()
    scores = None if scores is None else [float(score) for score in scores]
    return {
        "keys": small,
        "types": runs,
        "before": before,
        "merges": merges,
        "after": after,
        "scores": scores,
    }


def all_merges(tokens: list[str], types: Any) -> list[str]:
    """Every pair of tokens that makes a normal token, in the order of that token, then of the pair."""
    ids = {token: index for index, token in enumerate(tokens)}
    merges = []
    for token, kind in zip(tokens, types, strict=True):
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token) if kind == 1 else 1))
        pairs = sorted((ids[left], ids[right]) for left, right in cuts if left in ids and right in ids)
        merges += [f"{tokens[left]} {tokens[right]}" for left, right in pairs]
    return merges


def main(folder: Path) -> None:
    for name in NAMES:
        metadata = GGUFFile.open(folder / f"ggml-vocab-{name}.gguf").metadata
        text = json.dumps(pack(metadata), ensure_ascii=False, separators=(",", ":"))
        packed = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
        (FOLDER / f"{name}.json.xz").write_bytes(packed)
        again = unpack(name)
        assert again.keys() == metadata.keys()
        assert all(np.array_equal(again[key], metadata[key]) for key in metadata), name
        out = (folder / f"ggml-vocab-{name}.gguf.out").read_text(encoding="utf-8")
        (FOLDER / f"{name}.out").write_text(out, encoding="utf-8")
        print(name, len(packed))
    (FOLDER / "texts.inp").write_bytes((folder / f"ggml-vocab-{NAMES[0]}.gguf.inp").read_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
