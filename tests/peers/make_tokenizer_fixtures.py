"""llama.cpp's token ids of the hard texts and of the perplexity text, for both real models.

Why llama.cpp and not the original tokenizers: the vocabulary and the pre-tokenizer's name come from the GGUF
file, and llama.cpp defines what that metadata means.

tokenizer_MODEL.json.gz: `texts`; `ids_plain` (specials are text) and `ids_special` (specials are parsed), one
list per text, without BOS; `ids_long`: count and sha256 of the little-endian int32 ids of tests/data/ppl.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np

from tests.peers.hard_texts import hard_texts
from tests.peers.inputs import file_sha256, llama_cpp_version, read_inputs
from tests.peers.llama_server import LlamaServer, llama_server

LONG_TEXT = Path(__file__).parents[1] / "data" / "ppl" / "alice.txt"


def tokenize(server: LlamaServer, text: str, parse_special: bool) -> list[int]:
    body = {"content": text, "add_special": False, "parse_special": parse_special}
    return [int(token) for token in server.post("/tokenize", body)["tokens"]]


def ids_digest(ids: list[int]) -> dict[str, object]:
    return {"n_ids": len(ids), "sha256": hashlib.sha256(np.array(ids, "<i4").tobytes()).hexdigest()}


def main() -> None:
    inputs = read_inputs(__doc__)
    texts = hard_texts()
    for name, model in inputs.models.items():
        with llama_server(inputs.program("llama-server"), model) as server:
            record = {
                "peers": {"llama.cpp": llama_cpp_version(inputs.llama_bin)},
                "command": 'llama-server -m MODEL; POST /tokenize {"content": TEXT, "add_special": false, '
                '"parse_special": false or true}',
                "model_sha256": file_sha256(model),
                "texts": texts,
                "ids_plain": [tokenize(server, text, False) for text in texts],
                "ids_special": [tokenize(server, text, True) for text in texts],
                "ids_long": ids_digest(tokenize(server, LONG_TEXT.read_text(), False)),
            }
        data = json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode()
        (inputs.out / f"tokenizer_{name}.json.gz").write_bytes(gzip.compress(data, mtime=0))
        print(name, len(texts), record["ids_long"])


if __name__ == "__main__":
    main()
