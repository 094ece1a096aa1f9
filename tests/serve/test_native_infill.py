"""/infill: the prompt is llama.cpp's, and models that cannot fill in say so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from etude.model.tokenizer import Tokenizer
from etude.serve.native_infill import infill_ids
from etude.serve.types_native import InfillExtra, InfillRequest
from tests.serve.live import client_of
from tests.terminal.tiny import write_tiny

KINDS = {"fim_pre": 3, "fim_suf": 4, "fim_mid": 5, "fim_rep": 6, "fim_sep": 7}
PRE, SUF, MID, REP, SEP = KINDS.values()


@pytest.fixture(scope="module")
def filling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    extra = {f"tokenizer.ggml.{kind}_token_id": token for kind, token in KINDS.items()}
    path = write_tiny(tmp_path_factory.mktemp("fim") / "fim.gguf", extra=extra)
    with client_of(path) as client:
        client.get("/props")  # it is loaded by that
        yield client


def tokenizer_of(client: TestClient) -> Tokenizer:
    return client.app.state.server.pool.all_loaded[0].engine.tokenizer


def ids(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()]


HEAD = [REP, *ids("myproject\n")]
NAMED = [SEP, *ids("filename\n")]


def test_the_prompt(filling: TestClient) -> None:
    tokenizer = tokenizer_of(filling)
    asked = InfillRequest(input_prefix="ab", input_suffix="yz")
    tail = [PRE, *ids("ab"), SUF, *ids("yz"), MID]
    assert list(infill_ids(asked, tokenizer, 4096, 0)) == [*HEAD, *NAMED, *tail]
    begun = asked.model_copy(update={"prompt": "c", "input_extra": [InfillExtra(text="x", filename="f")]})
    files = [*HEAD, SEP, *ids("f\nx"), *NAMED]
    tail = [PRE, *ids("abc"), SUF, *ids("yz"), MID]
    assert list(infill_ids(begun, tokenizer, 4096, 0)) == [*files, *tail]


def test_what_does_not_fit_is_left_out(filling: TestClient) -> None:
    """The end of the prefix and the beginning of the suffix stay, three parts to one; of other files the
    last."""
    tokenizer = tokenizer_of(filling)
    asked = InfillRequest(input_prefix="a" * 90 + "b" * 10, input_suffix="y" * 10 + "z" * 90, prompt="c")
    found = infill_ids(asked, tokenizer, 100, 0)
    prefix, suffix = ids("a" * 65 + "b" * 10), ids("y" * 10 + "z" * 12)
    assert list(found) == [PRE, *prefix, *ids("c"), SUF, *suffix, MID]
    assert len(found) <= 104
    brief = InfillRequest(input_prefix="a", input_suffix="b")
    assert list(infill_ids(brief, tokenizer, 2048 + 4, 0))[:5] == [*ids("ame\n"), PRE]


def test_an_answer(filling: TestClient) -> None:
    asked = {"input_prefix": "ab", "input_suffix": "yz", "n_predict": 2, "ignore_eos": True}
    answer = filling.post("/infill", json=asked).json()
    assert answer["stop"] and answer["tokens_predicted"] == 2 and answer["tokens_evaluated"] == 7


def test_a_model_that_cannot_fill_in(client: TestClient) -> None:
    answer = client.post("/infill", json={"input_prefix": "a", "input_suffix": "b"})
    assert answer.status_code == 501
    assert answer.json()["error"]["message"] == (
        "Infill is not supported by this model: prefix token is missing. suffix token is missing. "
        "middle token is missing. "
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"input_prefix": "a"},
        {"input_suffix": "a"},
        {"input_prefix": "a", "input_suffix": "b", "prompt": 5},
        {"input_prefix": "a", "input_suffix": "b", "input_extra": [{"filename": "x"}]},
        {"input_prefix": "a", "input_suffix": "b", "input_extra": [{"filename": 1, "text": "x"}]},
    ],
)
def test_refusals(filling: TestClient, fields: Any) -> None:
    answer = filling.post("/infill", json=fields)
    assert answer.status_code == answer.json()["error"]["code"] == 400
