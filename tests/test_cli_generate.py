"""`etude generate`: only the completion on stdout, and what changes it."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import numpy as np

from etude.model.gguf_write import write_gguf
from etude.model.quants import GGMLType
from tests.command import assert_one_message, environment, etude, process
from tests.terminal.tiny import OPENING, write_tiny


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
