"""The engine as users meet it: text in and out, streams, asyncio, scores, embeddings, adapters,
weights, files.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import etude
from etude.engine.engine import Engine
from etude.model.lora import LoraWeights, LowRank
from etude.model.names import Place
from etude.records import EtudeError, Message, Request, SamplingParams
from tests.engine.test_weights import tensors_of
from tests.model.tiny_models import FIXTURES, NAMES

CONTEXT = 256


def open_tiny(name: str = "llama", **settings: Any) -> Engine:
    return Engine.load(FIXTURES / name, **({"context": CONTEXT, "cache_tokens": 8 * CONTEXT} | settings))


@pytest.fixture
def tiny() -> Iterator[Engine]:
    with open_tiny() as engine:
        yield engine


@pytest.fixture(scope="module")
def chatting(smollm2: Path) -> Iterator[Engine]:
    with Engine.load(smollm2, context=512, cache_tokens=2048) as engine:
        yield engine


PROMPT = tuple(range(3, 63))
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


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

    tiny._core._decoder = Counting()  # type: ignore[assignment]
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
        await asyncio.sleep(0.02)
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
                done[event.index] = event.completion  # type: ignore[attr-defined]
    for thread in threads:
        thread.join(30)
    assert found == [expected] * 4
    assert [done[index] for index in range(4)] == expected[0]


def test_after_close(tiny: Engine) -> None:
    tiny.close()
    for use in (tiny.step, lambda: tiny.generate(["a"]), lambda: tiny.submit(Request((5,)))):
        with pytest.raises(RuntimeError, match="the engine is closed"):
            use()


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
        tiny.embed(PROMPT, "max")  # type: ignore[arg-type]


# ── context shift ──


def test_a_shifted_context_goes_on() -> None:
    """Longer than the context, the same alone, in a group, and preempted in a cache that holds one
    and a half.
    """
    requests = [
        Request(PROMPT[:10], SamplingParams(max_tokens=150, seed=seed, ignore_eos=True)) for seed in range(3)
    ]
    results = []
    for settings in ({"cache_tokens": 640}, {"cache_tokens": 160}, {"threads": 1, "step_tokens": 8}):
        with open_tiny(context=64, context_shift=True, keep=4, **settings) as engine:
            running = [engine.submit(request) for request in requests]
            done = {}
            while len(done) < 3:
                for event in engine.step():
                    if event.finish:
                        done[event.request_id] = event.completion  # type: ignore[attr-defined]
            results.append([done[number] for number in running])
            if settings == {"cache_tokens": 160}:
                assert engine.counters.preemptions > 0
    assert [len(completion.token_ids) for completion in results[0]] == [150] * 3
    assert results[0] == results[1] == results[2]


def test_without_shift_the_context_ends_it() -> None:
    with open_tiny(context=64) as engine:
        [[completion]] = engine.generate([PROMPT[:10]], ignore_eos=True)
        assert completion.finish == "length" and len(completion.token_ids) == 54


# ── weights and adapters ──


def test_weights_change_in_place() -> None:
    tensors = tensors_of("gemma3")
    changed = {name: values * np.float32(1.1) for name, values in tensors.items()}
    with open_tiny("gemma3") as engine:
        before = engine.generate([PROMPT], GREEDY)[0][0]
        engine.load_weights(changed.items(), version=3)
        after = engine.generate([PROMPT], GREEDY)[0][0]
        assert engine.weights_version == after.weights_version == 3
        assert after.raw_logprobs != before.raw_logprobs
        engine.load_weights(iter(tensors.items()), version=4)
        again = engine.generate([PROMPT], GREEDY)[0][0]
        assert (again.token_ids, again.raw_logprobs) == (before.token_ids, before.raw_logprobs)


def test_weights_while_requests_run(tiny: Engine) -> None:
    tensors = list(tensors_of("llama").items())
    running = tiny.submit(Request(PROMPT, SamplingParams(max_tokens=20, seed=1)))
    first = [event for _ in range(5) for event in tiny.step()]
    with pytest.raises(EtudeError, match="1 requests are running: finish them first"):
        tiny.load_weights(tensors, version=1)
    with pytest.raises(EtudeError, match="running is 'wait'"):
        tiny.load_weights(tensors, version=1, running="wait")  # type: ignore[arg-type]
    tiny.load_weights(tensors, version=1, running="continue")
    ids = [token for event in first for token in event.token_ids]
    while True:
        events = tiny.step()
        ids += [token for event in events for token in event.token_ids]
        if events and events[-1].finish:
            break
    assert events[-1].request_id == running
    assert tuple(ids) == tiny.generate([PROMPT], max_tokens=20, seed=1)[0][0].token_ids, (
        "the weights are equal"
    )
    tiny.submit(Request(PROMPT))
    tiny.step()
    tiny.load_weights(tensors, version=2, running="abort")
    assert [event.finish for event in tiny.step()] == ["abort"]


def lora(seed: int, size: float = 0.3) -> LoraWeights:
    draw = np.random.default_rng(seed)

    def pair(n: int, k: int) -> LowRank:
        return LowRank(
            (draw.normal(size=(4, k)) * size).astype(np.float32),
            (draw.normal(size=(n, 4)) * size).astype(np.float32),
        )

    return LoraWeights(0.5, {Place("attn_q", 0): pair(64, 32), Place("ffn_down", 1): pair(32, 64)})


def test_an_adapter_is_the_merged_model(tiny: Engine) -> None:
    """W + scale * (alpha/rank) * B A, to rounding."""
    weights = lora(0)
    tiny.load_adapter("x", weights)
    scores = tiny.score(PROMPT, adapter="x", adapter_scale=0.7)
    tensors = tensors_of("llama")
    for (slot, layer), (a, b) in weights.tensors.items():
        name = {"attn_q": "self_attn.q_proj", "ffn_down": "mlp.down_proj"}[slot]
        tensors[f"model.layers.{layer}.{name}.weight"] += np.float32(0.7 * weights.scale) * (b @ a)
    base = tiny.score(PROMPT)
    tiny.load_weights(tensors.items(), version=1)
    merged = tiny.score(PROMPT)
    assert max(abs(one - two) for one, two in zip(scores[1:], merged[1:], strict=True)) < 1e-4
    assert max(abs(one - two) for one, two in zip(scores[1:], base[1:], strict=True)) > 1e-2


def test_adapters_side_by_side(tiny: Engine) -> None:
    """Requests with different adapters in one batch are what each is alone."""
    for name in ("x", "y"):
        tiny.load_adapter(name, lora(ord(name)))
    assert tiny.adapters == ("x", "y")
    kinds = [
        {},
        {"adapter": "x"},
        {"adapter": "y"},
        {"adapter": "x", "adapter_scale": 0.5},
        {"adapter": "x", "adapter_scale": 0.0},
    ]
    requests = [Request(PROMPT, SamplingParams(max_tokens=8, seed=2), n=2, **kind) for kind in kinds]  # type: ignore[arg-type]
    alone = [tiny.generate([PROMPT], max_tokens=8, seed=2, n=2, **kind)[0] for kind in kinds]
    running = [tiny.submit(request) for request in requests]
    done = {}
    while len(done) < 10:
        for event in tiny.step():
            if event.finish:
                done[event.request_id, event.index] = event.completion  # type: ignore[attr-defined]
    assert [[done[number, index] for index in range(2)] for number in running] == alone
    assert len({group[0].raw_logprobs for group in alone}) == 4
    assert alone[4] == alone[0], "scale 0 is the base model"
    tiny.unload_adapter("x")
    with pytest.raises(EtudeError, match="adapter 'x' is not loaded; loaded are: 'y'"):
        tiny.generate([PROMPT], adapter="x")
    with pytest.raises(EtudeError, match="adapter 'x' is not loaded"):
        tiny.unload_adapter("x")


# ── the prompt cache as a file ──


def test_a_prompt_cache_file(tmp_path: Path) -> None:
    path = tmp_path / "prompt.cache"
    prompt = tuple(3 + at % 90 for at in range(110))
    with open_tiny() as engine:
        assert engine.save_cache(path, prompt) == 96
        expected = engine.generate([prompt], GREEDY)[0]
    with open_tiny() as engine:
        assert engine.load_cache(path) == 96
        assert engine.generate([prompt], GREEDY)[0] != [] and engine.counters.reused_tokens == 96
        assert engine.load_cache(path) == 96
        found = engine.generate([prompt], GREEDY)[0]
        assert (found[0].token_ids, found[0].raw_logprobs) == (
            expected[0].token_ids,
            expected[0].raw_logprobs,
        )
        engine.load_weights(tensors_of("llama").items(), version=1)
        with pytest.raises(EtudeError, match="the weights were changed"):
            engine.save_cache(path, prompt)
    with open_tiny(context=64, cache_tokens=64) as engine:
        assert engine.load_cache(path) == 64, "as much as there is room for"


def test_prompt_caches_that_do_not_fit(tmp_path: Path, tiny: Engine) -> None:
    path = tmp_path / "prompt.cache"
    tiny.save_cache(path, PROMPT)
    for settings, message in (
        ({"cache_type_k": "f32"}, "another cache_type_k .f16, here f32"),
        ({"page_tokens": 64}, "another page_tokens .32, here 64"),
        ({"weight_type": "f16"}, "another model"),
    ):
        with open_tiny(**settings) as other, pytest.raises(EtudeError, match=message):
            other.load_cache(path)
    data = path.read_bytes()
    for broken in (
        b"",
        data[:7],
        data[:40],
        data[:-1],
        data + b"x",
        b"GGUF" + data[4:],
        data[:20] + b"}" + data[21:],
    ):
        path.write_bytes(broken)
        with pytest.raises(EtudeError, match=r"prompt cache|damaged"):
            tiny.load_cache(path)
    with pytest.raises(EtudeError, match="cannot be read"):
        tiny.load_cache(tmp_path / "absent")
    with pytest.raises(EtudeError, match="cannot be written"):
        tiny.save_cache(tmp_path / "absent" / "x", PROMPT)


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
