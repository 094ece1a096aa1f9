"""Makes tests/data/tokenizer/{pretokenizers,builtin_chats}.json.gz anew out of llama.cpp.

    python -m tests.model.make_llama_references PROGRAM VOCABULARY VERSION

PROGRAM: tests/data/tokenizer/llama_reference.cpp, built. VOCABULARY: llama.cpp's
models/ggml-vocab-gpt-2.gguf; its merges are used with every pre-tokenizer, which shows in the ids where words
end. VERSION: that of llama.cpp.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from etude.model.chat import ChatTemplate
from etude.model.pretokenizers import supported_names
from tests.model.packed_vocabularies import FOLDER
from tests.peers.hard_texts import hard_texts

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


def write(name: str, version: str, command: str, content: dict[str, Any]) -> None:
    record = {"peers": {"llama.cpp": version}, "command": command, **content}
    data = json.dumps(record, separators=(",", ":")).encode()
    (FOLDER / f"{name}.json.gz").write_bytes(gzip.compress(data, mtime=0))


def main(program: str, vocabulary: str, version: str) -> None:
    texts = hard_texts()[::2]
    ids = {}
    for name in supported_names():
        lines = run(program, ["ids", vocabulary, name], texts).splitlines()
        ids[name] = [[int(word) for word in line.split()] for line in lines]
    write(
        "pretokenizers",
        version,
        "llama_reference ids ggml-vocab-gpt-2.gguf PRE",
        {"texts": texts, "ids": ids},
    )
    prompts = {
        name: [
            [run(program, ["chat", name, flag], [part for turn in chat for part in turn]) for flag in "01"]
            for chat in CHATS
        ]
        for name in ChatTemplate.names()
        if name != "r1-zero"
    }
    write("builtin_chats", version, "llama_reference chat NAME 0|1", {"chats": CHATS, "prompts": prompts})


if __name__ == "__main__":
    main(*sys.argv[1:])
