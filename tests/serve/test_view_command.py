"""`etude view` and the flags of `etude serve` that have to do with pages, as processes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from etude.runlog import RunInfo, RunWriter
from etude.terminal.options import UsageError, parse
from etude.terminal.serve import settings_of
from etude.terminal.verbs import VERBS
from etude.terminal.view import runs_of
from tests.command import assert_one_message, environment, etude


@contextmanager
def started(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The process, its address, what it has said."""
    command = [sys.executable, "-m", "etude", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stderr is not None
    try:
        said = ""
        while not (found := re.search(r"listening at (http://\S+)", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        yield process, found[1], said
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def ask(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    with RunWriter.create(tmp_path / "runs" / "one", {"run": {"seed": 3}}, RunInfo("grpo", 9)) as writer:
        writer.metrics(1, {"loss": 0.5})
    return tmp_path / "runs"


def test_runs_are_shown_and_a_signal_ends_it(runs: Path, tmp_path: Path) -> None:
    """Also while a page follows a run, whose stream has no end of its own."""
    with started("view", runs, "--data-dir", tmp_path / "data") as (process, url, said):
        assert f"kept in {tmp_path / 'data'}" in said
        assert [run["name"] for run in ask(f"{url}/api/runs")["runs"]] == ["one"]
        session = ask(f"{url}/api/session")
        assert (session["runs"], session["models"], session["kept"]) == (True, [], True)
        assert ask(f"{url}/v1/models")["data"] == []
        with urllib.request.urlopen(f"{url}/api/runs/one/events", timeout=60) as stream:
            assert stream.readline() == b"event: state\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def test_a_conversation_outlives_the_server(tiny: Path, tmp_path: Path) -> None:
    """A kill, and a new start, also by the other verb."""
    (tmp_path / "runs").mkdir()
    with started("serve", tiny, "-t", "1", "--data-dir", tmp_path, "--runs", tmp_path / "runs") as (
        process,
        url,
        _,
    ):
        made = ask(f"{url}/api/conversations", {"title": "kept"})
        body = {"role": "user", "parent": None, "content": "Are you there?"}
        ask(f"{url}/api/conversations/{made['id']}/messages", body)
        assert ask(f"{url}/api/session")["runs"] is True
        process.kill()
    with started("view", tmp_path / "runs", "--data-dir", tmp_path) as (_, url, _):
        kept = ask(f"{url}/api/conversations/{made['id']}")
        assert [message["content"] for message in kept["messages"]] == ["Are you there?"]


def test_what_cannot_be_shown(runs: Path, tmp_path: Path) -> None:
    assert_one_message(etude("view", tmp_path / "nothing"), 2, "no folder", "nothing")
    (tmp_path / "data").write_text("a file")
    assert_one_message(etude("view", runs, "--port", "0", "--data-dir", tmp_path / "data"), 1, "--data-dir")
    options = parse(VERBS["view"], [str(runs / "one")], {})
    assert runs_of(options) == (runs, "one")  # a run itself: the folder that it is in, opened at the run


def test_flags_of_the_pages(tmp_path: Path) -> None:
    def settings(*argv: str) -> Any:
        return settings_of(parse(VERBS["serve"], argv, {}))

    assert settings("--data-dir", str(tmp_path)).data_folder == tmp_path and settings().shows_pages
    assert settings("--runs", str(tmp_path)).runs_folder == tmp_path and settings().runs_folder is None
    quiet = settings("--no-ui")
    assert (quiet.shows_pages, quiet.data_folder) == (False, None)
    for argv, words in (
        (("--no-ui", "--data-dir", "x"), "no effect"), (("--runs", str(tmp_path / "none")), "no folder"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            settings(*argv)
