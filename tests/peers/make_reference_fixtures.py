"""llama.cpp's ids with each pre-tokenizer, the prompts of its built-in chat templates, and models' templates.

Runs tests/peers/llama_reference.cpp and writes pretokenizers.json.gz (`texts`, `ids` by pre-tokenizer) and
builtin_chats.json.gz (`chats`, `prompts` by template), and copies the templates of models, as llama.cpp's
sources have them in models/templates, into chat_templates.json.gz (`templates` by name). Every pre-tokenizer
works with the merges of GPT-2 (llama.cpp's models/ggml-vocab-gpt-2.gguf), which shows in the ids where words
end.
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
TEMPLATES = (
    "ByteDance-Seed-OSS", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "deepseek-ai-DeepSeek-V3.1",
    "GLM-4.6", "google-gemma-2-2b-it", "HuggingFaceTB-SmolLM3-3B", "ibm-granite-granite-4.0",
    "LFM2.5-8B-A1B", "llama-cpp-deepseek-r1", "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct", "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Ministral-3-14B-Reasoning-2512", "mistralai-Mistral-Nemo-Instruct-2407",
    "Mistral-Small-3.2-24B-Instruct-2506", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "Qwen-QwQ-32B", "Qwen3-Coder", "Qwen3.5-4B",
    "unsloth-mistral-Devstral-Small-2507",
)  # fmt: skip
"""Of the families that the engine runs, and a few whose form of calls it does not read."""


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


def store_templates(inputs: LlamaInputs) -> None:
    """Write chat_templates.json.gz."""
    folder = inputs.sources / "models" / "templates"
    templates = {name: (folder / f"{name}.jinja").read_text(encoding="utf-8") for name in TEMPLATES}
    write(inputs, "chat_templates", "cp models/templates/NAME.jinja", {"templates": templates})


def main() -> None:
    inputs = read_llama_inputs(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        program = compile_program(inputs, "llama_reference.cpp", Path(folder) / "llama_reference")
        store_ids(inputs, str(program))
        store_chats(inputs, str(program))
    store_templates(inputs)


if __name__ == "__main__":
    main()
