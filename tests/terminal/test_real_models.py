"""The terminal with the two real models: an answer, a conversation out of the cache, a base model."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

from etude.cli import main
from etude.terminal.chat import new_session, talk
from etude.terminal.loading import open_model
from etude.terminal.options import parse
from etude.terminal.prompt import PlainReader
from etude.terminal.screen import Screen
from etude.terminal.verbs import VERBS


def test_a_conversation_comes_out_of_the_cache(smollm2: Path) -> None:
    """Every prompt begins with the last prompt and the ids that were sampled; whole pages of it are found."""
    argv = ["-m", str(smollm2), "-c", "1024", "-n", "48", "-s", "1", "--temp", "0.5"]
    options = parse(VERBS["chat"], argv, {})
    out = io.StringIO()
    with open_model(options) as loaded:
        session = new_session(options, loaded, Screen(out, io.StringIO()))
        first_prompt, n_reused = (), []
        for question in ("What is the capital of France?", "And of Italy?", "Which is larger?"):
            before = session.conversation.turns[-1].answer if session.conversation.turns else None
            answer = session.ask(question)
            assert answer and answer.finish in ("eos", "length") and session.last
            n_reused.append(session.last.n_reused)
            if before:
                known = (*first_prompt, *before.ids)
                prompt = session.conversation.prompt_ids()
                assert prompt[: len(known)] == known or before.finish == "length"
                assert (
                    n_reused[-1] >= (len(known) - 1) // loaded.engine.page_tokens * loaded.engine.page_tokens
                )
            first_prompt = session.conversation.prompt_ids()
    assert n_reused[0] == 0 and n_reused[2] > n_reused[1] > 0
    assert out.getvalue().count("\n") >= 3


def test_regen_with_a_seed_is_a_plan(smollm2: Path) -> None:
    """The same typing gives the same conversation; another answer is another one."""

    def typed() -> list[str]:
        options = parse(VERBS["chat"], ["-m", str(smollm2), "-c", "512", "-n", "16", "-s", "3"], {})
        with open_model(options) as loaded:
            session = new_session(options, loaded, Screen(io.StringIO(), io.StringIO()))
            texts = []
            for line in ("Name an animal.", "/regen"):
                talk(session, PlainReader(io.StringIO(line + "\n")))
                answer = session.conversation.turns[-1].answer
                texts.append(answer.text if answer else "")
            return texts

    first = typed()
    assert first == typed() and first[0] != first[1]


def test_a_base_model_completes(gemma3: Path) -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        code = main(
            [
                "generate",
                "-m",
                str(gemma3),
                "-c",
                "256",
                "-p",
                "The capital of France is",
                "-n",
                "8",
                "--json",
            ]
        )
    record = json.loads(out.getvalue())
    assert code == 0 and record["text"] == record["answer"] and len(record["token_ids"]) <= 8
    assert record["prompt_ids"][0] == 2  # BOS


def test_info_and_tokenize(smollm2: Path, gemma3: Path) -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        main(["info", str(smollm2), "-c", "8192"])
        main(["info", str(gemma3), "--json"])
        main(["tokenize", str(gemma3), "-p", "Hello  world", "--ids"])
    text = out.getvalue()
    assert "134,515,008 (135M)" in text and "180.00 MiB of cache" in text and "llama 135M Q4_1" in text
    assert '"description": "gemma3 268M Q4_K - Medium"' in text and '"chat_template": null' in text
    assert text.splitlines()[-1] == "[2, 9259, 138, 12392]"
