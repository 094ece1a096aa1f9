"""`etude tokenize`, `info` and `bench`: what is in a model file, and how fast it runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from etude.model.gguf_write import write_gguf
from etude.model.quants import GGMLType
from tests.command import assert_one_message, etude


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
