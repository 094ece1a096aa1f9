"""`etude serve` as a process: where it listens, what it refuses, how it ends."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from etude.engine.engine import Engine
from etude.serve.models import ModelPool, ModelSpec
from etude.serve.settings import ServeSettings
from etude.terminal.options import UsageError, parse
from etude.terminal.serve import defaults_of, listeners, serve, settings_of, specs_of
from etude.terminal.verbs import VERBS
from tests.command import assert_one_message, environment, etude
from tests.serve.live import load, until


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and its address."""
    command = [sys.executable, "-m", "etude", "serve", *arguments, "--port", "0", "-t", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stderr is not None
    try:
        said = ""
        while not (found := re.search(r"listening at (http://\S+)", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=60)


ENDLESS = {"prompt": "a", "max_tokens": 10**7, "ignore_eos": True, "stream": True}
"""With a context shift it ends when nobody wants it any more."""


def test_a_signal_lets_what_runs_finish(tiny: Path) -> None:
    with serving(str(tiny), "-a", "mine,other") as (process, url):
        with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as answer:
            assert json.load(answer)["data"][0]["aliases"] == ["mine", "other"]
        with post(f"{url}/v1/completions", ENDLESS | {"max_tokens": 400, "prompt": "b"}) as stream:
            stream.readline()
            process.send_signal(signal.SIGTERM)
            assert stream.read().endswith(b"data: [DONE]\n\n")
        assert process.wait(60) == 0
        with pytest.raises(OSError):
            urllib.request.urlopen(f"{url}/health", timeout=5)


def test_a_signal_ends_a_pause(tiny: Path) -> None:
    """What it had stopped finishes; nobody else could make it go on."""
    with serving(str(tiny), "--admin-key", "boss") as (process, url):
        with post(f"{url}/v1/completions", ENDLESS | {"max_tokens": 300, "prompt": "b"}) as stream:
            stream.readline()
            pause = urllib.request.Request(f"{url}/pause?mode=keep", b"", {"X-Api-Key": "boss"})
            assert json.load(urllib.request.urlopen(pause, timeout=60)) == {"status": "paused"}
            process.send_signal(signal.SIGTERM)
            assert stream.read().endswith(b"data: [DONE]\n\n")
        assert process.wait(60) == 0


def test_a_second_signal_ends_it_at_once(tiny: Path) -> None:
    with serving(str(tiny), "--context-shift", "-c", "64") as (process, url):
        with post(f"{url}/v1/completions", ENDLESS) as stream:
            stream.readline()
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None and "finishing what runs" in process.stderr.readline()
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0


def test_a_port_that_is_taken_and_a_model_that_is_not_there(tiny: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = etude("serve", str(tiny), "--port", str(other.getsockname()[1]))
    assert_one_message(done, 2, "--port", "cannot listen")
    assert_one_message(etude("serve", "no/such/model.gguf"), 1, "no/such/model.gguf")


def test_several_addresses_at_one_port(tiny: Path) -> None:
    options = options_of("--host", "127.0.0.1,127.0.0.2", "--port", "0")
    opened = listeners(options, settings_of(options))
    addresses = [each.getsockname() for each in opened]
    for each in opened:
        each.close()
    assert [host for host, _ in addresses] == ["127.0.0.1", "127.0.0.2"]
    assert addresses[0][1] == addresses[1][1] > 0
    options = options_of("--host", "127.0.0.1,no address", "--port", "0")
    with pytest.raises(UsageError, match="no address"):
        listeners(options, settings_of(options))


def options_of(*argv: str, **environ: str) -> Any:
    return parse(VERBS["serve"], argv, environ)


def test_flags_become_settings(tiny: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\n\ntwo\n")
    options = options_of("--api-key", "a, b", "--api-key-file", str(keys), "--api-prefix", "/x/")
    settings = settings_of(options)
    assert settings.api_keys == ("a", "b", "one", "two") and settings.prefix == "/x"
    assert settings.host == "127.0.0.1" and settings.cors_origins == ()
    assert settings_of(options_of(LLAMA_API_KEY="z", LLAMA_ARG_HOST="::1")).api_keys == ("z",)
    specs = specs_of(options_of(str(tiny), f"second={tiny}", "--alias", "first", "--offline"))
    assert [spec.name for spec in specs] == ["first", "second"] and specs[0].aliases == ()
    specs = specs_of(options_of("--models-dir", str(tiny.parent)))
    assert [spec.path for spec in specs] == [tiny]
    defaults = defaults_of(options_of("--temp", "0.5", "-n", "7", "--chat-template", "chatml", "-rea", "off"))
    assert defaults.params.temperature == 0.5 and defaults.params.max_tokens == 7
    assert defaults.template is not None and defaults.variables == {"enable_thinking": False}
    assert defaults_of(options_of()).params.top_k == 40


def test_admin_keys_and_folders(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    folder = ("--weights-dir", str(tmp_path), "--lora-dir", str(tmp_path))
    settings = settings_of(options_of("--admin-key", "boss", "--admin-key-file", str(keys), *folder))
    assert settings.admin_keys == ("boss", "one", "two") and settings.api_keys == ()
    assert settings.weights_folder == settings.adapters_folder == tmp_path
    assert settings_of(options_of(ETUDE_ADMIN_KEY_FILE=str(keys))).admin_keys == ("one", "two")
    for argv, said in (
        (folder, "--admin-key"),
        (("--admin-key", "a", "--weights-dir", "/nowhere"), "there is no folder"),
        (("--admin-key", "a,b", "--api-key", "b"), "API key too"),
    ):
        with pytest.raises(UsageError, match=said):
            settings_of(options_of(*argv))


@pytest.mark.parametrize(
    "argv",
    [
        ("--api-prefix", "x"), ("--slot-save-path", "/nowhere"), ("--keep", "3"), ("--ssl-key-file", "k"),
        ("-ngl", "99"), ("--port", "70000"), ("--lora-init-without-apply",), ("-md", "x"),
    ],
)  # fmt: skip
def test_flags_without_effect_are_refused(argv: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        options = options_of(*argv)
        settings_of(options)
        defaults_of(options)


def test_chat_does_not_load_the_server() -> None:
    code = "import sys, etude.terminal.chat, etude.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    loaded = set(done.stdout.split())
    assert "etude.engine.engine" in loaded
    assert not loaded & {"starlette", "uvicorn", "pydantic", "etude.serve"}


def test_who_asks_while_the_model_loads_is_told(tiny: Path) -> None:
    """/health is a 503 then; other requests wait."""
    loads, begun = threading.Event(), threading.Event()

    def slow(spec: ModelSpec) -> Engine:
        begun.set()
        assert loads.wait(30)
        return load(spec)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        loop = asyncio.new_event_loop()
        work = loop.create_task(
            serve(ServeSettings(), ModelPool([ModelSpec("tiny", tiny)], slow), [listening])
        )
        thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait([work])))
        thread.start()
        try:
            assert begun.wait(30)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{url}/health", timeout=30)
            assert refused.value.code == 503
            assert json.load(refused.value)["error"]["message"] == "Loading model"
            loads.set()
            with post(f"{url}/tokenize", {"content": "a"}) as answer:
                assert json.load(answer) == {"tokens": [100]}
            until(lambda: urllib.request.urlopen(f"{url}/health", timeout=30).status == 200)
        finally:
            loads.set()
            loop.call_soon_threadsafe(work.cancel)
            thread.join(30)
            rest = asyncio.all_tasks(loop)  # uvicorn's own, which nothing else would end
            for task in rest:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
            loop.close()
