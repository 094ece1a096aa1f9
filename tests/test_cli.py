"""The program as a user meets it: help, wrong usage, files that are no model, exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from etude.terminal.verbs import VERBS
from tests.command import assert_one_message, environment, etude, process

READERS = ("chat", "generate", "bench", "info", "tokenize")


# ── help ──


def test_help_lists_every_verb() -> None:
    done = etude("--help")
    assert done.returncode == 0 and not done.stderr
    assert all(re.search(rf"^    {verb} ", done.stdout, re.MULTILINE) for verb in VERBS)
    assert etude().stdout == done.stdout and etude().returncode == 2
    assert etude("help", "chat").stdout == etude("chat", "-h").stdout


@pytest.mark.parametrize("name", [name for name in VERBS if name != "pull"])
def test_help_of_a_verb_shows_each_flag_once(name: str) -> None:
    done = etude(name, "--help")
    assert done.returncode == 0 and not done.stderr
    for flag in VERBS[name].flags():
        names = ", ".join(flag.names + flag.off)
        assert len(re.findall(rf"^  {re.escape(names)}( |$)", done.stdout, re.MULTILINE)) == 1, names
        assert not flag.env or f"[{flag.env}]" in done.stdout.replace("\n", " ")
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_help_and_errors_import_nothing_heavy() -> None:
    """Which keeps them quick; no time is measured here."""
    for argv in (["--help"], ["chat", "--help"], ["chat", "-t", "0"]):
        code = f"import sys; from etude.cli import main; main({argv}); print(*sys.modules, file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
        loaded = set(done.stderr.split())
        assert "etude.terminal.options" in loaded
        assert not loaded & {
            "numpy",
            "torch",
            "tokenizers",
            "jinja2",
            "rich",
            "prompt_toolkit",
            "etude.engine",
        }


def test_version() -> None:
    done = etude("version")
    assert done.returncode == 0 and re.match(r"etude \d+\.\d+", done.stdout)
    assert etude("--version").stdout == done.stdout


# ── wrong usage ──


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["caht"], ["caht", "did you mean chat?", "`etude --help`"]),
        (["--hlep"], ["--hlep", "no such flag"]),
        (["chat", "-t", "0"], ["etude chat: -t: got '0'", "`etude chat --help`"]),
        (["chat", "-n", "-5"], ["-n: got '-5'"]),
        (["generate", "--temp", "-1"], ["--temp: got '-1'"]),
        (["generate", "--top-p", "2"], ["--top-p: got '2'"]),
        (["chat", "-ngl", "99"], ["-ngl: there is no GPU build"]),
        (["chat", "--mlock"], ["--mlock: "]),
        (["chat", "--contxt-shift"], ["did you mean --context-shift?"]),
        (["bench", "-p", "x"], ["-p: got 'x'"]),
        (["bench", "-p", "0", "-n", "0"], ["nothing to measure"]),
        (["bench", "-pg", "5"], ["-pg: got '5'"]),
        (["bench", "-pps"], ["-pps: no effect without -npl"]),
        (["generate"], ["there is no text"]),
        (["generate", "-p", "a", "-f", "b"], ["-f: the text was given already with -p"]),
        (["generate", "-f", "/nowhere/at/all"], ["cannot read '/nowhere/at/all'"]),
        (["generate", "-p", "a", "--logprobs", "3"], ["--logprobs: no effect without --json"]),
        (["chat", "-hff", "x.gguf"], ["-hff: no effect without -hf"]),
        (["version", "now"], ["'now'"]),
    ],
)  # fmt: skip
def test_wrong_usage(argv: list[str], parts: list[str]) -> None:
    assert_one_message(etude(*argv), 2, *parts)


def test_variables_are_read_and_named() -> None:
    done = etude("chat", env=environment(LLAMA_ARG_THREADS="0"))
    assert_one_message(done, 2, "LLAMA_ARG_THREADS in the environment: got '0'")


# ── files that are no model ──


@pytest.mark.parametrize("verb", READERS)
def test_a_missing_file(verb: str, tmp_path: Path) -> None:
    assert_one_message(etude(verb, "-m", tmp_path / "none.gguf", *text_for(verb)), 1, "none.gguf")
    assert_one_message(etude(verb, "-m", "smolm2-135m", *text_for(verb)), 1, "smolm2-135m", "smollm2-135m")


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("ten.gguf", b"GGUF\x03\0\0\0\0\0"),
        ("picture.gguf", b"\x89PNG\r\n\x1a\n" + bytes(5000)),
        ("text.txt", b"Once upon a time there was a text.\n" * 99),
        ("empty.gguf", b""),
    ],
)
def test_a_file_that_is_no_model(verb: str, name: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert_one_message(etude(verb, "-m", path, *text_for(verb)), 1, name)


@pytest.mark.parametrize("verb", READERS)
def test_a_folder_that_is_no_model(verb: str, tmp_path: Path) -> None:
    assert_one_message(etude(verb, "-m", tmp_path, *text_for(verb)), 1, str(tmp_path))


def test_a_truncated_model(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.gguf"
    path.write_bytes(tiny.read_bytes()[:-5000])
    for verb in READERS:
        assert_one_message(etude(verb, "-m", path, *text_for(verb)), 1, "half.gguf")


def text_for(verb: str) -> list[str]:
    return ["-p", "hi"] if verb in ("generate", "tokenize", "chat") else []


# ── exit codes ──


def test_exit_codes_and_outputs_of_a_process(tiny: Path) -> None:
    for argv, code in (["version"], 0), (["chat", "-t", "0"], 2), (["info", "/nowhere/at/all"], 1):
        with process(*argv) as running:
            out, err = running.communicate(timeout=60)
            assert (running.returncode, bool(out), bool(err)) == (code, code == 0, code != 0)
    with process("generate", tiny, "-p", "hi", "-n", "3", "--regex", "abc") as running:
        assert running.communicate(timeout=60) == (b"abc", b"") and running.returncode == 0
