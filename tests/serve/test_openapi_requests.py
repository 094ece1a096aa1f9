"""What the document promises: requests that are valid by it are answered, and nothing sent is a 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serve.live import app_of
from tests.serve.schema_bodies import Bodies

N_VALID = 8
NEEDS_MORE = (
    "best_of", "continue_final_message", "current", "dimensions", "echo", "format", "grammar", "json_schema",
    "lora", "n", "n_cmpl", "prompt", "prompt_logprobs",
    "response_format", "tool_choice", "tools", "top_logprobs",
)  # fmt: skip
"""Properties whose schema does not say all that they need, such as another one, or a text that is GBNF."""
REFUSED = (
    "allowed_token_ids", "bad_words", "content_parts", "conversation", "features", "logits_processors",
    "min_tokens", "multimodal_data", "previous_response_id", "store", "structured_outputs", "suffix",
    "truncate_prompt_tokens", "truncation",
)  # fmt: skip
"""Properties that are known so that asking for what is not there is a 400, and not passed over."""
ALWAYS = ("content", "input", "text")
TEXTS = {"type": "text"}
OTHER_STATUS = {"/infill": 501}
"""What this model cannot do."""
STATE = ("/pause", "/update_weights", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/lora-adapters")
"""Routes that change the server, or need a file."""


@pytest.fixture(scope="module")
def client(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    runs = tmp_path_factory.mktemp("runs")
    app = app_of(tiny, shows_metrics=True, changes_props=True, admin_keys=("k",), runs_folder=runs)
    headers = {"Authorization": "Bearer k"}
    with TestClient(app, "http://localhost", raise_server_exceptions=False, headers=headers) as client:
        yield client


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and schema of what is read."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "requestBody" in operation and path not in STATE:
                yield path, method, operation["requestBody"]["content"]["application/json"]["schema"]


def test_valid_requests_are_answered(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path, method, schema in operations(document):
        drawn = Bodies(document, without=NEEDS_MORE + REFUSED, always=ALWAYS, texts=TEXTS)
        for _ in range(0 if "{" in path else N_VALID):
            body = drawn.valid(schema)
            answer = client.request(method, path, json=body)
            expected = OTHER_STATUS.get(path, 200)
            assert answer.status_code in (expected, 201), (path, answer.text, body)


def test_nothing_is_a_5xx(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path, method, schema in operations(document):
        for body in Bodies(document, seed=1).wrong(schema):
            answer = client.request(method, path, json=body)
            assert answer.status_code < 500 or answer.status_code == 501, (path, answer.text, body)


def test_what_is_only_read_is_there(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    paths = [path for path, methods in document["paths"].items() if "get" in methods and "{" not in path]
    assert len(paths) > 5
    for path in set(paths) - {"/api/runs-diff"}:  # of two runs
        answer = client.get(path)
        assert answer.status_code == 200, (path, answer.text)
