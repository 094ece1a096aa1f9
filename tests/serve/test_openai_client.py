"""The `openai` package against a server behind a socket: as its users write it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.serve.live import CONTEXT, app_of, live_of

KEY = "a key"


@pytest.fixture(scope="module")
def client(tiny: Path) -> Iterator[openai.OpenAI]:
    with live_of(app_of(tiny, api_keys=(KEY,), max_queue=8)) as live:
        with openai.OpenAI(api_key=KEY, base_url=f"{live.url}/v1", max_retries=0) as client:
            yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("small").id == "tiny"


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": "hi"}], max_completion_tokens=5, n=2, seed=1,
        logprobs=True, top_logprobs=2,
    )  # fmt: skip
    assert len(answer.choices) == 2 and answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content is not None
    assert len(answer.choices[0].logprobs.content) == 5
    assert answer.usage is not None and answer.usage.completion_tokens == 10


def test_chat_streamed(client: openai.OpenAI) -> None:
    fields = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "seed": 1}
    whole = client.chat.completions.create(**fields)
    chunks = list(
        client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 9 and not chunks[-1].choices


def test_completions_and_embeddings(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=3, logprobs=1, echo=True)
    assert [choice.text[0] for choice in answer.choices] == ["a", "b"]
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.token_logprobs is not None
    assert len(answer.choices[0].logprobs.token_logprobs) == 4
    vectors = client.embeddings.create(model="tiny", input=["a", "b"])  # it asks for base64
    assert len(vectors.data) == 2 and len(vectors.data[0].embedding) == 32


def test_errors_are_those_that_clients_know(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="x", messages=[{"role": "user", "content": "x" * 3 * CONTEXT}])
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="x", prompt="a", n=9)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_stream_that_is_left(client: openai.OpenAI) -> None:
    fields = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}
    for _ in range(20):  # more than the queue takes, were they not ended
        with client.chat.completions.create(**fields, stream=True) as stream:
            next(iter(stream))
