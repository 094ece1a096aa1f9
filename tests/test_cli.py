"""The program as a user meets it: its two outputs and its exit code."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from etude.cli import main
from etude.model.gguf_write import write_gguf
from etude.model.quants import GGMLType
from etude.terminal.verbs import VERBS
from tests.terminal.tiny import OPENING, write_tiny

READERS = ("chat", "generate", "bench", "info", "tokenize")


def environment(**more: str) -> dict[str, str]:
    """This one, without what could change a result."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("LLAMA_ARG_", "ETUDE_"))}
    return {**clean, "NO_COLOR": "1", **more}


@dataclass(frozen=True)
class Done:
    """What a command wrote, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def etude(*argv: str | Path, stdin: str = "", env: Mapping[str, str] | None = None) -> Done:
    """Run a command in this process: a new one takes seconds to start on a small machine."""
    out, err = io.StringIO(), io.StringIO()
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")),
        patch.dict(os.environ, environment() if env is None else env, clear=True),
    ):
        code = main([*map(str, argv)])
    return Done(code, out.getvalue(), err.getvalue())


def process(*argv: str | Path) -> subprocess.Popen[bytes]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "etude", *map(str, argv)]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf")


def assert_one_message(done: Done, code: int, *parts: str) -> None:
    """The exit code, nothing on stdout, and one message with all parts; never a traceback."""
    assert (done.returncode, done.stdout) == (code, ""), done
    assert "Traceback" not in done.stderr and done.stderr.startswith("etude"), done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr


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


# ── generate ──


def test_only_the_completion_on_stdout(tiny: Path) -> None:
    done = etude("generate", "-m", tiny, "-no-cnv", "-p", "ab", "-n", "20", "--temp", "0")
    again = etude("generate", tiny, "-no-cnv", "-p", "-", "-n", "20", "--temp", "0", stdin="ab\n")
    assert done.returncode == again.returncode == 0
    assert done.stdout and done.stdout == again.stdout and not done.stderr


def test_the_prompt_and_the_speed_when_asked(tiny: Path) -> None:
    bare = etude("generate", tiny, "-no-cnv", "-p", "a\\nb", "-n", "9", "--temp", "0")
    done = etude(
        "generate", tiny, "-no-cnv", "-p", "a\\nb", "-n", "9", "--temp", "0", "--display-prompt",
        "--show-timings", "--verbose-prompt",
    )  # fmt: skip
    assert done.stdout == "a\nb" + bare.stdout
    assert "prompt: 3 tokens" in done.stderr and "'\\n'" in done.stderr and "t/s" in done.stderr


def test_a_seed_gives_the_same_again_and_variables_count(tiny: Path) -> None:
    argv = ["generate", tiny, "-p", "hi", "--ignore-eos"]
    env = environment(LLAMA_ARG_N_PREDICT="30", LLAMA_ARG_TEMPERATURE="1.5")
    first = etude(*argv, "-s", "7", env=env)
    assert first.stdout and first.stdout == etude(*argv, "-n", "30", "--temp", "1.5", "-s", "7").stdout
    assert first.stdout != etude(*argv, "-n", "30", "--temp", "1.5", "-s", "8").stdout


def test_records_of_several_samples(tiny: Path) -> None:
    done = etude(
        "generate", tiny, "-p", "hi", "-n", "6", "--samples", "3", "--json", "--logprobs", "2", "-s", "1",
        "--temp", "1",
    )  # fmt: skip
    records = sorted(map(json.loads, done.stdout.splitlines()), key=lambda record: record["index"])
    assert [record["index"] for record in records] == [0, 1, 2] and not done.stderr
    for record in records:
        n_tokens = len(record["token_ids"])
        assert 1 <= n_tokens <= 6 and record["finish"] in ("eos", "length") and record["seed"] == 1
        for key in ("logprobs", "raw_logprobs", "entropies", "top_logprobs"):
            assert len(record[key]) == n_tokens, key
        assert all(len(top) == 2 and top[0][1] >= top[1][1] for top in record["top_logprobs"])
        assert record["text"] == record["thinking"] + record["answer"] or record["thinking"]
        assert record["prompt_ids"] == records[0]["prompt_ids"] and record["weights_version"] == 0
    assert set(records[0]) == {
        "index", "text", "answer", "thinking", "finish", "seed", "weights_version", "prompt_ids", "token_ids",
        "logprobs", "raw_logprobs", "entropies", "top_logprobs",
    }  # fmt: skip


def test_several_samples_as_text(tiny: Path) -> None:
    argv = [
        "generate",
        tiny,
        "-no-cnv",
        "-p",
        "ab",
        "-n",
        "4",
        "--samples",
        "3",
        "-s",
        "1",
        "--regex",
        "[a-z]{4}",
    ]
    done = etude(*argv)
    assert re.fullmatch(r"([a-z]{1,4}\n){3}", done.stdout), done
    assert etude(*argv, "-0").stdout == done.stdout.replace("\n", "\0")


def test_a_form(tiny: Path) -> None:
    done = etude("generate", tiny, "-p", "hi", "-j", '{"enum": ["red", "blue"]}')
    assert json.loads(done.stdout) in ("red", "blue"), done


def test_a_context_that_is_too_small(tiny: Path) -> None:
    done = etude("generate", tiny, "-no-cnv", "-p", "x" * 100, "-c", "64", "-n", "5")
    assert_one_message(done, 1, "100 tokens", "64")
    done = etude("generate", tiny, "-no-cnv", "-p", "x" * 50, "-c", "64", "--ignore-eos", "--json")
    assert len(json.loads(done.stdout)["token_ids"]) == 14
    argv = ["-c", "64", "--ignore-eos", "--context-shift", "-n", "100", "--json", "--keep", "8"]
    done = etude("generate", tiny, "-no-cnv", "-p", "x" * 50, *argv)
    assert len(json.loads(done.stdout)["token_ids"]) == 100, done


def test_a_prompt_cache(tiny: Path, tmp_path: Path) -> None:
    cache = tmp_path / "prompt.cache"
    argv = [
        "generate",
        tiny,
        "-no-cnv",
        "-p",
        "x" * 100,
        "-n",
        "9",
        "--temp",
        "0",
        "--prompt-cache",
        cache,
        "--show-timings",
    ]
    first = etude(*argv)
    assert cache.exists() and "reused" not in first.stderr
    before = cache.read_bytes()
    second = etude(*argv, "--prompt-cache-ro")
    assert second.stdout == first.stdout and "(96 reused)" in second.stderr
    assert cache.read_bytes() == before
    assert_one_message(etude("generate", tiny, "-p", "x", "--prompt-cache-ro"), 2, "--prompt-cache-ro")


def test_a_broken_pipe_is_silent(tiny: Path) -> None:
    with process("generate", tiny, "-p", "hi", "-n", "400", "--ignore-eos") as running:
        assert running.stdout and running.stderr
        running.stdout.read(5)
        running.stdout.close()
        assert running.stderr.read() == b"" and running.wait(60) == 141


def test_ctrl_c_ends_with_130(tiny: Path) -> None:
    with process("generate", tiny, "-p", "hi", "--ignore-eos", "--context-shift") as running:
        assert running.stdout and running.stderr
        running.stdout.read(5)
        running.send_signal(signal.SIGINT)
        running.stdout.read()
        assert running.wait(60) == 130 and running.stderr.read().strip() == b""


def test_exit_codes_and_outputs_of_a_process(tiny: Path) -> None:
    for argv, code in (["version"], 0), (["chat", "-t", "0"], 2), (["info", "/nowhere/at/all"], 1):
        with process(*argv) as running:
            out, err = running.communicate(timeout=60)
            assert (running.returncode, bool(out), bool(err)) == (code, code == 0, code != 0)
    with process("generate", tiny, "-p", "hi", "-n", "3", "--regex", "abc") as running:
        assert running.communicate(timeout=60) == (b"abc", b"") and running.returncode == 0


# ── chat, piped ──


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


# ── tokenize and info ──


def test_tokenize(tiny: Path) -> None:
    ids = json.loads(etude("tokenize", tiny, "-p", "hé", "--ids").stdout)
    assert len(ids) == 3
    record = json.loads(etude("tokenize", tiny, "--stdin", "--json", stdin="hé\n").stdout)
    assert record["ids"] == ids and record["n_tokens"] == 3
    assert etude("tokenize", tiny, "--decode", ",".join(map(str, ids))).stdout == "hé\n"
    assert etude("tokenize", tiny, "-p", "<|im_end|>", "--parse-special", "--ids").stdout == "[2]\n"
    assert len(json.loads(etude("tokenize", tiny, "-p", "<|im_end|>", "--ids").stdout)) == 10
    assert etude("tokenize", tiny, "-p", "a\\tb", "--show-count").stdout == "3\n"
    assert etude("tokenize", tiny, "-p", "a\\tb", "--no-escape", "--show-count").stdout == "4\n"
    assert re.search(r"-> 'h'$", etude("tokenize", tiny, "-p", "h").stdout, re.MULTILINE)
    assert_one_message(etude("tokenize", tiny, "--decode", "999"), 1, "999", "0 to 261")
    assert_one_message(etude("tokenize", tiny, "--decode", "9", "--ids"), 2, "--ids: no effect")


def test_info(tiny: Path) -> None:
    done = etude("info", tiny, "-c", "1024")
    assert done.returncode == 0 and not done.stderr
    for part in (
        "llama 27K all F32",
        "runs here     yes",
        "26,976",
        "blk.{0..1}.attn_q.weight",
        "context of 1024",
    ):
        assert part in done.stdout, done.stdout
    assert etude("info", tiny, "--template").stdout.startswith("{% for message")
    assert "blk.1.attn_q.weight" in etude("info", tiny, "--tensors").stdout
    record = json.loads(etude("info", tiny, "--json", "-ctk", "q8_0").stdout)
    assert record["memory"] == {
        "context": 512,
        "weights_bytes": 26_976 * 4,
        "cache_bytes": 2 * 512 * (16 + 4 + 32),
    }
    assert len(record["tensors"]) == 20 and record["runs"] is True


def test_info_of_what_cannot_run(tmp_path: Path) -> None:
    path = tmp_path / "exotic.gguf"
    metadata = {
        "general.architecture": "exotic", "exotic.block_count": 3, "exotic.context_length": 100,
        "exotic.embedding_length": 64, "exotic.attention.head_count": 4,
        "exotic.attention.head_count_kv": np.array([1, 2, 0], np.int32), "evil": "\x1b[2J\udc80",
    }  # fmt: skip
    write_gguf(path, metadata, [("a.weight", np.zeros((2, 32), np.float32), GGMLType.Q8_0)])
    done = etude("info", path)
    assert done.returncode == 0 and "runs here     no: " in done.stdout and "exotic" in done.stdout
    assert "context of 100: 68 B of weights + 18.75 KiB of cache" in done.stdout
    assert "\x1b" not in done.stdout
    assert json.loads(etude("info", path, "--json").stdout)["runs"] is False
    assert_one_message(etude("info", path, "--template"), 1, "no chat template")
    assert_one_message(etude("generate", path, "-p", "x"), 1, "exotic", "llama, qwen2, qwen3, gemma3")


def test_info_of_a_folder() -> None:
    folder = Path(__file__).parent / "data" / "peers" / "families" / "qwen3"
    done = etude("info", folder)
    assert done.returncode == 0 and "qwen3" in done.stdout and "model.layers.{0..1}" in done.stdout
    assert etude("tokenize", folder, "-p", "ab", "--ids").stdout == "[97, 98]\n"
    assert etude("generate", folder, "-p", "ab", "-n", "4", "-c", "32").returncode == 0


# ── bench ──


def test_bench(tiny: Path, tmp_path: Path) -> None:
    argv = ["bench", tiny, "-p", "16", "-n", "4", "-r", "2", "-t", "1"]
    done = etude(*argv, "--json", tmp_path / "rows.json", "-npl", "2,3", "-npp", "8", "-ntg", "4", "-pps")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 6 and lines[0].startswith("| model")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["test"] for row in rows] == ["pp16", "tg4", "pl2 pps8+tg4", "pl3 pps8+tg4"]
    assert all(row["avg_ts"] > 0 and len(row["samples_ns"]) == 2 and row["n_threads"] == 1 for row in rows)
    assert [row.get("pl") for row in rows] == [None, None, 2, 3] and rows[2]["speed_tg"] > 0
    piped = etude(*argv, "--json", "-", "-npl", "2", "-npp", "8", "-ntg", "4")
    assert [row["test"] for row in json.loads(piped.stdout)] == ["pp16", "tg4", "pl2 pp8+tg4"]


# ── thinking, adapters ──


def test_thinking_goes_to_the_error_output_and_a_budget_closes_it(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "thinker.gguf", template=OPENING)
    argv = ["generate", path, "-p", "hi", "-n", "40", "-s", "5", "--ignore-eos", "--reasoning-budget", "6"]
    done = etude(*argv, "--reasoning-budget-message", "Enough.")
    assert done.returncode == 0 and "Enough." in done.stderr and "Enough." not in done.stdout and done.stdout
    assert "think>" not in done.stdout + done.stderr
    whole = etude(
        "generate", path, "-p", "hi", "-n", "40", "-s", "5", "--ignore-eos", "--reasoning-format", "none"
    )
    assert len(whole.stdout) > 20 and not whole.stderr
    assert_one_message(etude(*argv, "-j", "{}"), 2, "--reasoning-budget: works without a grammar only")
    assert_one_message(etude(*argv, "--json"), 2, "--reasoning-budget: ")
    thinking = json.loads(
        etude("generate", path, "-p", "hi", "-n", "9", "-s", "5", "--ignore-eos", "--json").stdout
    )
    assert thinking["thinking"] and not thinking["answer"]


def test_an_adapter_and_its_scale(tiny: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    path = tmp_path / "adapter.gguf"
    halves = {"lora_a": (2, 32), "lora_b": (32, 2)}
    write_gguf(
        path,
        {
            "general.type": "adapter",
            "general.architecture": "llama",
            "adapter.type": "lora",
            "adapter.lora.alpha": 8.0,
        },
        [
            (f"blk.0.attn_output.weight.{half}", draw.normal(size=shape).astype(np.float32), GGMLType.F32)
            for half, shape in halves.items()
        ],
    )
    argv = ["generate", tiny, "-no-cnv", "-p", "abc", "-n", "12", "--temp", "0", "--ignore-eos"]
    bare, with_it = etude(*argv), etude(*argv, "--lora", path)
    assert with_it.returncode == 0 and with_it.stdout != bare.stdout
    assert etude(*argv, "--lora-scaled", f"{path}:0").stdout == bare.stdout
    assert etude(*argv, "--lora-scaled", f"{path}:1").stdout == with_it.stdout
    chat = etude("chat", tiny, "-n", "12", "--temp", "0", "--ignore-eos", "--lora", path, stdin="hi\n")
    assert chat.stdout != etude("chat", tiny, "-n", "12", "--temp", "0", "--ignore-eos", stdin="hi\n").stdout
