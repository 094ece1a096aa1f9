"""A server for a trainer, in tests: folders of weights and adapters, requests that run beside others."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from etude.engine.engine import Engine
from etude.model.checkpoint import config_of, open_source
from etude.model.lora import LoraWeights, LowRank
from etude.model.lora_write import save_peft_folder
from etude.model.names import Place
from tests.serve.live import CONTEXT, Live, until
from tests.terminal.tiny import FF, LAYERS, WIDTH, write_tiny

KEY = {"X-Api-Key": "boss"}
TEXT = "/v1/completions"
FIXED = {"prompt": [100] * 40, "max_tokens": 12, "seed": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
         "min_p": 0.0, "logprobs": 0, "return_token_ids": True, "ignore_eos": True}  # fmt: skip
LONG = FIXED | {"max_tokens": 200}


def training_settings(folder: Path, tiny: Path) -> dict[str, Any]:
    """Settings of a server with two other weights of the tiny model, two adapters, and what is none."""
    weights, adapters = folder / "weights", folder / "adapters"
    weights.mkdir()
    adapters.mkdir()
    for seed in (1, 2):
        write_tiny(weights / f"step_{seed}.gguf", seed=seed)
        write_adapter(adapters / f"lora_{seed}", tiny, seed)
    (weights / "broken.gguf").write_bytes(b"GGUF" + bytes(200))
    (weights / "outside").symlink_to(folder)
    return {"admin_keys": ("boss",), "weights_folder": weights, "adapters_folder": adapters}


def write_adapter(folder: Path, tiny: Path, seed: int) -> None:
    """A PEFT folder whose adapter changes a lot."""
    draw = np.random.default_rng(seed)
    pair = LowRank(
        draw.normal(size=(4, WIDTH)).astype(np.float32), draw.normal(size=(FF, 4)).astype(np.float32)
    )
    pairs: dict[tuple[str, int], LowRank] = {Place("ffn_up", layer): pair for layer in range(LAYERS)}
    with open_source(tiny) as source:
        save_peft_folder(folder, config_of(source), LoraWeights(1.0, pairs))


def said(client: TestClient, path: str, body: Any, status: int = 200) -> Any:
    """The answer to an admin, or to anybody."""
    answer = client.post(path, json=body, headers=KEY)
    assert answer.status_code == status, answer.text
    return answer.json()


def expected(path: Path, adapter: Path | None = None, scale: float = 1.0) -> list[int]:
    """The answer to FIXED of an engine that was loaded from a file."""
    options: dict[str, Any] = {}
    with Engine.load(path, context=CONTEXT) as engine:
        if adapter is not None:
            engine.load_adapter("x", adapter)
            options = {"adapter": "x", "adapter_scale": scale}
        [[completion]] = engine.generate([[100] * 40], max_tokens=12, seed=1, ignore_eos=True, **options)
    return list(completion.token_ids)


class Asked:
    """A request to a live server, in a thread of its own."""

    def __init__(self, live: Live, path: str, body: Any, headers: dict[str, str] | None = None) -> None:
        self.answer: Any = None
        given = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(live.url + path, json.dumps(body).encode(), given, method="POST")
        self._thread = threading.Thread(target=self._run, args=(request,))
        self._thread.start()

    def _run(self, request: urllib.request.Request) -> None:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                self.answer = json.load(answer)
        except urllib.error.HTTPError as error:
            self.answer = json.load(error)

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> Any:
        """The answer."""
        self._thread.join(60)
        assert self.is_done
        return self.answer


def admin(live: Live, path: str, body: Any = None) -> Any:
    """The answer to an admin."""
    return Asked(live, path, body or {}, KEY).wait()


def running(live: Live, body: Any = LONG) -> Asked:
    """A request, when its first tokens have been written."""
    before = live.drawn
    asked = Asked(live, TEXT, body)
    until(lambda: live.drawn > before + 3)
    return asked


def slow_down(live: Live) -> None:
    """Steps of a few milliseconds: what runs does not end before it is looked at."""
    [model] = live.server.pool.all_loaded
    core = model.engine._core
    decoder = core._decoder

    class Slow:
        def step(self, **arguments: Any) -> Any:
            time.sleep(0.003)
            return decoder.step(**arguments)

    core._decoder = Slow()
