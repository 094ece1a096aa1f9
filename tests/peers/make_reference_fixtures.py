"""llama.cpp's ids with each pre-tokenizer, and the prompts of its built-in chat templates.

Runs tests/peers/llama_reference.cpp and writes pretokenizers.json.gz (`texts`, `ids` by pre-tokenizer) and
builtin_chats.json.gz (`chats`, `prompts` by template). Every pre-tokenizer works with the merges of GPT-2
(llama.cpp's models/ggml-vocab-gpt-2.gguf), which shows in the ids where words end.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from etude.model.chat import ChatTemplate
from etude.model.pretokenizers import supported_names
from tests.peers.hard_texts import hard_texts
from tests.peers.llama_programs import LlamaInputs, compile_program, read_llama_inputs

CHATS = (
    [("user", "Hello")],
    [("system", "Be brief."), ("user", " Hello \n")],
    [("user", "Hello"), ("assistant", " Hi \n"), ("user", "Bye")],
    [("system", " Sys\n"), ("user", "a\n\nb"), ("assistant", "é"), ("user", ""), ("assistant", "<|im_end|>")],
    [("assistant", "I begin."), ("user", "Then I."), ("system", "A late rule."), ("user", "Go on.")],
)


def framed(texts: Iterable[str]) -> bytes:
    """Texts as the program reads them."""
    encoded = [text.encode() for text in texts]
    return b"".join(b"%d\n%s\n" % (len(text), text) for text in encoded)


def run(program: str, arguments: list[str], texts: Iterable[str]) -> str:
    done = subprocess.run([program, *arguments], input=framed(texts), capture_output=True, check=True)
    return done.stdout.decode()


def write(inputs: LlamaInputs, name: str, command: str, content: dict[str, Any]) -> None:
    record = {"peers": {"llama.cpp": inputs.version}, "command": command, **content}
    data = json.dumps(record, separators=(",", ":")).encode()
    (inputs.out / f"{name}.json.gz").write_bytes(gzip.compress(data, mtime=0))


def store_ids(inputs: LlamaInputs, program: str) -> None:
    """Write pretokenizers.json.gz."""
    vocabulary, texts, ids = inputs.sources / "models" / "ggml-vocab-gpt-2.gguf", hard_texts()[::2], {}
    for name in supported_names():
        lines = run(program, ["ids", str(vocabulary), name], texts).splitlines()
        ids[name] = [[int(word) for word in line.split()] for line in lines]
    command = "llama_reference ids ggml-vocab-gpt-2.gguf PRE"
    write(inputs, "pretokenizers", command, {"texts": texts, "ids": ids})


def store_chats(inputs: LlamaInputs, program: str) -> None:
    """Write builtin_chats.json.gz."""
    prompts = {
        name: [
            [run(program, ["chat", name, flag], [part for turn in chat for part in turn]) for flag in "01"]
            for chat in CHATS
        ]
        for name in ChatTemplate.names()
        if name != "r1-zero"
    }
    command = "llama_reference chat NAME 0|1"
    write(inputs, "builtin_chats", command, {"chats": CHATS, "prompts": prompts})


def main() -> None:
    inputs = read_llama_inputs(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        program = compile_program(inputs, "llama_reference.cpp", Path(folder) / "llama_reference")
        store_ids(inputs, str(program))
        store_chats(inputs, str(program))


if __name__ == "__main__":
    main()
