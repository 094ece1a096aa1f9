"""The clients count what a server said, and the rows turn seconds into ratios."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import pytest
import stream_clients
from serve_vs_llama import Found, rows_of

from tests.serve.live import app_of, live_of


def test_clients_count_what_they_get(tiny: Path) -> None:
    asked = argparse.Namespace(clients=3, requests=2, tokens=11, words=9, seed=4)
    with live_of(app_of(tiny)) as live:
        asked.port = live.port
        told = asyncio.run(stream_clients.measure(asked))
        assert told["tokens"] == 3 * 2 * 11 == live.drawn
        first_s = told["first_s"]
        assert isinstance(first_s, list) and len(first_s) == 6 and min(first_s) > 0
        asked.words = 10_000  # more than the context: an answer without tokens is no answer
        with pytest.raises(RuntimeError, match="no whole answer"):
            asyncio.run(stream_clients.measure(asked))


def test_prompts_begin_differently() -> None:
    prompts = [stream_clients.prompt_of(number, 80) for number in range(200)]
    assert len({prompt.split()[0] for prompt in prompts}) == 200
    assert {len(prompt.split()) for prompt in prompts} == {81}


def test_rows() -> None:
    fast, slow = Found(900.0, 0.5, 1.0), Found(300.0, 1.0, 0.8)
    rows = rows_of({(32, "ours"): [slow, fast], (32, "peer"): [Found(300.0, 1.0, 2.0)]})
    assert [(row.ours, row.peer, row.ratio, row.met) for row in rows] == [
        (900.0, 300.0, 3.0, True), (0.5, 1.0, 2.0, True), (0.8, 2.0, 2.5, True),
    ]  # fmt: skip
    missed = rows_of({(32, "ours"): [slow], (32, "peer"): [fast]})
    assert [row.met for row in missed] == [False, False, True]
