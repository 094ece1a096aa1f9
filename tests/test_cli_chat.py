"""`etude chat` with its questions out of a pipe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.command import assert_one_message, etude
from tests.terminal.tiny import write_tiny


def test_a_piped_chat_gives_answers_alone(tiny: Path) -> None:
    argv = ["chat", tiny, "-n", "8", "-s", "3", "--regex", "[a-z]{8}"]
    done = etude(*argv, stdin="hi\nmore\n/tokens\n")
    assert done.returncode == 0 and re.fullmatch(r"([a-z]{1,8}\n){2}", done.stdout), done
    assert "2 turns" in done.stderr
    single = etude(*argv, "-p", "hi", "-st", stdin="never read\n")
    assert single.stdout == done.stdout.splitlines()[0] + "\n"


def test_a_piped_chat_with_a_message_that_fails(tiny: Path) -> None:
    done = etude("chat", tiny, "-c", "64", "-n", "4", stdin="x" * 200 + "\nhi\n")
    assert done.returncode == 1 and "the context holds 64" in done.stderr and done.stdout.count("\n") >= 1
    done = etude(
        "chat", tiny, "-c", "64", "-n", "40", "--context-shift", "--ignore-eos", stdin="one\ntwo\nthree\n"
    )
    assert done.returncode == 0 and "forgotten" in done.stderr


def test_a_transcript(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.txt"
    done = etude("chat", tiny, "-n", "4", "--regex", "[a-z]{4}", "-o", path, stdin="hi\n")
    assert path.read_text() == f"User:\nhi\n\nAssistant:\n{done.stdout}\n"
    assert_one_message(etude("chat", tiny, "-o", "/nowhere/at/all", stdin="hi\n"), 2, "-o: cannot write")


def test_a_base_model_says_so(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "base.gguf", template=None)
    done = etude("chat", path, "-n", "4", stdin="Once\n")
    assert done.returncode == 0 and "no chat template" in done.stderr and done.stdout
    assert_one_message(etude("chat", path, "-sys", "S", stdin="hi\n"), 2, "-sys: this is a base model")
    assert_one_message(etude("generate", path, "-cnv", "-p", "hi"), 2, "-cnv: this is a base model")
    done = etude(
        "generate", path, "--chat-template", "chatml", "-sys", "S", "-p", "hi", "-n", "4", "--verbose-prompt"
    )
    assert done.returncode == 0 and "<|im_start|>" in done.stderr


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--keep", "5"], ["--keep: no effect without --context-shift"]),
        (["-rea", "off"], ["-rea: ", "enable_thinking"]),
        (["--chat-template-kwargs", "[]"], ["--chat-template-kwargs: got '[]'"]),
        (["--chat-template", "chatmul"], ["chatmul", "chatml"]),
        (["-no-cnv", "-sys", "S"], ["-sys: no effect with -no-cnv"]),
        (["--reasoning-budget", "5", "--reasoning-format", "none"], ["--reasoning-budget: no effect"]),
        (["--reasoning-budget-message", "x"], ["--reasoning-budget-message: no effect"]),
        (["--lora", "/nowhere/at/all"], ["'/nowhere/at/all'", "LoRA"]),
        (["--lora-scaled", "x"], ["--lora-scaled: got 'x'"]),
        (["--lora", "a,b"], ["one adapter"]),
        (["-C", "xyz"], ["-C: got 'xyz'"]),
        (["-Cr", "3-1"], ["-Cr: got '3-1'"]),
        (["-t", "1", "-tb", "2"], ["-tb: got 2"]),
        (["-sys", "a", "-sysf", "b"], ["-sysf: given already with -sys"]),
        (["-f", "/nowhere/at/all"], ["cannot read"]),
        (["--yarn-beta-fast", "3"], ["yarn"]),
        (["--grammar", "root ::= ("], ["grammar"]),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_the_model(tiny: Path, argv: list[str], parts: list[str]) -> None:
    done = etude("chat", tiny, *argv, stdin="hi\n")
    assert done.returncode in (1, 2) and not done.stdout and "Traceback" not in done.stderr
    assert all(part in done.stderr for part in parts), done.stderr
