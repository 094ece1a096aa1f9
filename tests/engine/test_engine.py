"""The engine as users meet it: text in and out, streams, asyncio, scores, embeddings, adapters,
weights, files.
"""

from __future__ import annotations

import asyncio
import gc
import re
import threading
import weakref
from typing import Any

import numpy as np
import pytest

import etude
from etude.engine.engine import Engine
from etude.records import EtudeError, Grammar, Message, Request, SamplingParams
from tests.engine.tiny import GREEDY, PROMPT, open_tiny
from tests.model.tiny_models import FIXTURES, NAMES

# ── text ──


def test_the_package_offers_it() -> None:
    assert etude.Engine is Engine
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        _ = etude.Motor


def test_a_real_model_knows_paris(chatting: Engine) -> None:
    [[completion]] = chatting.generate(["The capital of France is"], temperature=0.0, max_tokens=4)
    assert "Paris" in completion.text
    assert completion.finish == "length" and len(completion.token_ids) == 4
    assert "".join(piece.text for piece in chatting.stream("The capital of France is", GREEDY)).startswith(
        completion.text
    )


def test_a_conversation(chatting: Engine) -> None:
    messages = [Message("user", "Answer with one word: the capital of France is?")]
    [[completion]] = chatting.generate([messages], temperature=0.0, max_tokens=30)
    assert "Paris" in completion.text and completion.finish == "eos"
    assert completion.token_ids[-1] in chatting.tokenizer.eog_ids
    assert "<|im_end|>" not in completion.text
    rendered = chatting.chat.render(messages)
    assert chatting.generate([rendered], temperature=0.0, max_tokens=30)[0][0].text == completion.text


def test_a_base_model_completes(tiny: Engine) -> None:
    assert tiny.chat is None
    with pytest.raises(EtudeError, match="base model without a chat template"):
        tiny.generate([[Message("user", "hi")]])


def test_groups_and_their_seed(tiny: Engine) -> None:
    groups = tiny.generate(["a", "b"], n=3, max_tokens=8)
    assert [len(group) for group in groups] == [3, 3]
    assert len({completion.token_ids for completion in groups[0]}) > 1
    assert groups[0][0].seed == groups[0][1].seed != groups[1][0].seed
    again = tiny.generate(["a"], n=3, max_tokens=8, seed=groups[0][0].seed)
    assert again[0] == groups[0]


def test_options_are_checked(tiny: Engine) -> None:
    with pytest.raises(
        EtudeError, match="'temprature' is no option of a request; did you mean 'temperature'"
    ):
        tiny.generate(["a"], temprature=1)
    with pytest.raises(EtudeError, match=r"write \[prompt\]"):
        tiny.generate("a")
    with pytest.raises(EtudeError, match=r"write \[prompt\]"):
        tiny.generate([3, 4, 5])
    with pytest.raises(EtudeError, match="the prompt has 400 tokens, the context holds 256"):
        tiny.generate([[5] * 400])
    with pytest.raises(EtudeError, match="not both"):
        tiny.generate([[5, Message("user", "a")]])
    assert not tiny._core.has_work, "what was refused left nothing behind"


def test_one_bad_prompt_refuses_all(tiny: Engine) -> None:
    with pytest.raises(EtudeError, match="token id 999"):
        tiny.generate([[5], [999]])
    assert tiny.step() == []


def test_stop_strings(chatting: Engine) -> None:
    [[whole]] = chatting.generate(["The capital of France is"], temperature=0.0, max_tokens=40)
    stop = whole.text[12:17]
    options = {"temperature": 0.0, "max_tokens": 40, "stop": (stop, "never this")}
    [[cut]] = chatting.generate(["The capital of France is"], **options)
    assert cut.finish == "stop" and cut.text == whole.text[: whole.text.index(stop)]
    assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids, "ids hold what was drawn, text what counts"
    pieces = list(chatting.stream("The capital of France is", **options))
    assert "".join(piece.text for piece in pieces) == cut.text and pieces[-1].event.finish == "stop"


def test_streams_of_several_completions(tiny: Engine) -> None:
    texts = ["", "", ""]
    ids: list[list[int]] = [[], [], []]
    for text, event in tiny.stream(PROMPT, n=3, max_tokens=9, seed=4):
        texts[event.index] += text
        ids[event.index] += event.token_ids
    [completions] = tiny.generate([PROMPT], n=3, max_tokens=9, seed=4)
    assert texts == [completion.text for completion in completions]
    assert [tuple(item) for item in ids] == [completion.token_ids for completion in completions]


def test_leaving_a_stream_ends_its_request(tiny: Engine) -> None:
    for piece in tiny.stream(PROMPT, max_tokens=None, ignore_eos=True):
        if piece.text:
            break
    tiny.step()
    assert not tiny._core.has_work and not tiny._driver._inboxes


def test_one_native_call_per_step(tiny: Engine) -> None:
    calls = []
    decoder = tiny._core._decoder

    class Counting:
        def step(self, **given: Any) -> Any:
            calls.append(len(given["first_token"]) - 1)
            return decoder.step(**given)

    tiny._core._decoder = Counting()
    for number in range(5):
        params = SamplingParams(max_tokens=6, seed=number, ignore_eos=True)
        tiny.submit(Request(PROMPT[: 10 + number], params, n=4))
    ended = 0
    for steps in range(1, 7):
        ended += sum(event.finish is not None for event in tiny.step())
        assert len(calls) == steps, "a step is one call, whatever it holds"
    assert ended == 20 and calls == [5, 20, 20, 20, 20, 20]
    assert tiny.step() == [] and len(calls) == 6, "a step without work is none"


# ── asyncio and threads ──


def test_asyncio(tiny: Engine) -> None:
    expected = tiny.generate([PROMPT[:20], PROMPT[:30]], n=2, max_tokens=10, seed=3)

    async def stream() -> str:
        return "".join([piece.text async for piece in tiny.astream(PROMPT[:20], max_tokens=10, seed=3)])

    async def main() -> list[Any]:
        group = tiny.agenerate([PROMPT[:20], PROMPT[:30]], n=2, max_tokens=10, seed=3)
        return await asyncio.gather(group, stream(), stream())

    groups, one, two = asyncio.run(main())
    assert groups == expected
    assert one == two == expected[0][0].text


def test_cancelling_ends_the_requests(tiny: Engine) -> None:
    async def main() -> None:
        task = asyncio.create_task(tiny.agenerate([PROMPT], max_tokens=None, ignore_eos=True, n=2))
        await asyncio.sleep(0)  # it has begun; longer, and a tiny model may be done
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await tiny.agenerate([PROMPT], max_tokens=2)

    asyncio.run(main())
    for _ in range(500):
        if not tiny._driver._inboxes:
            break
        threading.Event().wait(0.01)
    assert not tiny._driver._inboxes and not tiny._core.has_work


def test_threads_and_plain_steps_at_once(tiny: Engine) -> None:
    expected = tiny.generate([PROMPT], n=4, max_tokens=20, seed=1)
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(tiny.generate([PROMPT], n=4, max_tokens=20, seed=1)))
        for _ in range(4)
    ]
    mine = tiny.submit(Request(PROMPT, SamplingParams(max_tokens=20, seed=1), n=4))
    for thread in threads:
        thread.start()
    done = {}
    while len(done) < 4:
        for event in tiny.step():
            assert event.request_id == mine
            if event.finish:
                done[event.index] = event.completion
    for thread in threads:
        thread.join(30)
    assert found == [expected] * 4
    assert [done[index] for index in range(4)] == expected[0]


def test_after_close(tiny: Engine) -> None:
    tiny.close()
    for use in (tiny.step, lambda: tiny.generate(["a"]), lambda: tiny.submit(Request((5,)))):
        with pytest.raises(RuntimeError, match="the engine is closed"):
            use()


def test_a_dropped_engine_is_gone_at_once() -> None:
    """Its memory does not wait for the garbage collector, so that the next model can have it."""
    gc.disable()
    try:
        engine = open_tiny()
        engine.generate(["a"], max_tokens=2)
        core = weakref.ref(engine._core)
        del engine
        assert core() is None
    finally:
        gc.enable()


# ── numbers ──


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_transformers(name: str) -> None:
    """log p of every prompt token, against the stored logits of transformers; every family, f32 path."""
    expected = np.load(FIXTURES / name / "expected.npz")
    ids, logits_TV = expected["ids_ST"][0].tolist(), expected["logits_TV"].astype(np.float64)
    logprobs_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
    with open_tiny(
        name, context=len(ids), weight_type="f32", cache_type_k="f32", cache_type_v="f32"
    ) as engine:
        scores = engine.score(ids)
        assert scores[0] is None
        error = [abs(scores[at + 1] - logprobs_TV[at, ids[at + 1]]) for at in range(len(ids) - 1)]
        assert max(error) <= 1e-4


def test_alternatives(tiny: Engine) -> None:
    [[completion]] = tiny.generate([PROMPT], temperature=0.0, max_tokens=4, logprobs=3, prompt_logprobs=2)
    for token, raw, tops in zip(
        completion.token_ids, completion.raw_logprobs, completion.top_logprobs, strict=True
    ):
        assert len(tops) == 3 and tops[0] == (token, raw)
        assert tops[0][1] >= tops[1][1] >= tops[2][1]
    assert completion.prompt_logprobs is not None and completion.prompt_top_logprobs is not None
    assert [len(tops) for tops in completion.prompt_top_logprobs] == [0] + [2] * (len(PROMPT) - 1)
    for score, tops in zip(completion.prompt_logprobs[1:], completion.prompt_top_logprobs[1:], strict=True):
        assert score is not None and score <= tops[0][1]


def test_embeddings(tiny: Engine) -> None:
    rows = tiny.embed(PROMPT, "none")
    assert rows.shape == (len(PROMPT), 32) and rows.dtype == np.float32
    assert np.array_equal(tiny.embed(PROMPT, "last"), rows[-1])
    assert np.allclose(tiny.embed(PROMPT), rows.mean(axis=0), atol=1e-6)
    with open_tiny(step_tokens=8) as other:
        assert np.array_equal(other.embed(PROMPT, "none"), rows)
        assert np.array_equal(other.embed(PROMPT), tiny.embed(PROMPT))
    with pytest.raises(EtudeError, match="pooling is 'max'; it must be 'mean', 'last' or 'none'"):
        tiny.embed(PROMPT, "max")


def test_a_grammar_holds_the_answer(chatting: Engine) -> None:
    [completions] = chatting.generate(
        ["Phone: "], n=3, max_tokens=20, grammar=Grammar("regex", "[0-9]{3}-[0-9]{4}")
    )
    assert all(re.fullmatch("[0-9]{3}-[0-9]{4}", completion.text) for completion in completions)
    with pytest.raises(EtudeError, match="no token is left to draw"):
        chatting.generate(["Phone: "], ignore_eos=True, max_tokens=20, grammar=Grammar("regex", "[0-9]"))


def test_description(tiny: Engine) -> None:
    text = tiny.describe()
    for part in (
        "llama: llama, F32",
        "64 pages of 32 tokens, f16/f16",
        "context: 256 of 64 tokens, more than",
        "steps: 512",
    ):
        assert part in text
    assert tiny.cache_bytes == 64 * 32 * 2 * 2 * 16 * 2 * 2
