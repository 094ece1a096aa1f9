"""What changes in a living engine: shifted contexts, weights, adapters, prompt caches from files."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest

from etude.engine.engine import Engine
from etude.model.checkpoint import HFFolder, config_of
from etude.model.lora import LoraWeights, LowRank
from etude.model.names import Place
from etude.records import (
    EtudeError,
    Event,
    FinishedEvent,
    Mirostat,
    Penalties,
    Request,
    SamplingParams,
    Xtc,
)
from tests.engine.test_weights import tensors_of
from tests.engine.tiny import GREEDY, PROMPT, open_tiny
from tests.model.tiny_models import FIXTURES, write_twin

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
                        done[event.request_id] = event.completion
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


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_weights_from_files(name: str, tmp_path: Path) -> None:
    """Of a folder and of its GGUF twin: as if the model had been loaded from them."""
    folder = FIXTURES / name
    with HFFolder.open(folder) as source:
        write_twin(tmp_path / "twin.gguf", source, config_of(source))
    with open_tiny(name) as engine:
        before = engine.generate([PROMPT], GREEDY)[0][0]
        changed = {key: values * np.float32(1.1) for key, values in tensors_of(name).items()}
        for at, path in enumerate((folder, tmp_path / "twin.gguf")):
            engine.load_weights(changed.items(), version=1)
            assert engine.generate([PROMPT], GREEDY)[0][0].raw_logprobs != before.raw_logprobs
            engine.load_weights_from(path, version=5 + at)
            again = engine.generate([PROMPT], GREEDY)[0][0]
            assert (again.token_ids, again.raw_logprobs) == (before.token_ids, before.raw_logprobs)
            assert engine.weights_version == again.weights_version == 5 + at


def test_weights_of_another_model_change_nothing(tiny: Engine, tmp_path: Path) -> None:
    before = tiny.generate([PROMPT], GREEDY)[0][0]
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    for path, message in (
        (FIXTURES / "qwen3", r"architecture is qwen3, of the running model llama"),
        (tmp_path / "broken.gguf", "broken.gguf"),
        (tmp_path, "config.json"),
        (tmp_path / "none", "none"),
    ):
        with pytest.raises(EtudeError, match=message):
            tiny.load_weights_from(path, version=9)
    assert tiny.weights_version == 0
    assert tiny.generate([PROMPT], GREEDY)[0][0].raw_logprobs == before.raw_logprobs


def test_a_folder_becomes_what_the_model_holds() -> None:
    with open_tiny(weight_type="q8_0") as engine:
        expected = engine.generate([PROMPT], GREEDY)[0][0]
        engine.load_weights_from(FIXTURES / "llama", version=1)
        again = engine.generate([PROMPT], GREEDY)[0][0]
        assert again.raw_logprobs == expected.raw_logprobs and engine.weight_types == ("Q8_0",)


def test_broken_weights_are_told(tiny: Engine) -> None:
    broken = {"model.norm.weight": np.full(32, np.nan, np.float32)}
    tiny.load_weights(broken.items(), version=1)
    with pytest.raises(EtudeError, match=r"the logits are NaN or infinite: the weights .* are broken"):
        tiny.generate([PROMPT], n=2, max_tokens=4)
    with pytest.raises(EtudeError, match="the logits are NaN"):
        list(tiny.stream(PROMPT, max_tokens=4))
    tiny.load_weights(tensors_of("llama").items(), version=2)
    assert tiny.generate([PROMPT], GREEDY)[0][0].finish == "length"


def test_weights_while_requests_run(tiny: Engine) -> None:
    tensors = list(tensors_of("llama").items())
    running = tiny.submit(Request(PROMPT, SamplingParams(max_tokens=20, seed=1)))
    first = [event for _ in range(5) for event in tiny.step()]
    with pytest.raises(EtudeError, match="1 requests are running: finish them first"):
        tiny.load_weights(tensors, version=1)
    with pytest.raises(EtudeError, match="running is 'wait'"):
        tiny.load_weights(tensors, version=1, running="wait")
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
    tiny.submit(Request(PROMPT, SamplingParams(ignore_eos=True)))
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


def test_completions_say_which_adapter_drew_them(tiny: Engine) -> None:
    """The version it was loaded with; without one, and without an adapter, that of the weights."""

    def versions() -> list[int]:
        names = ("plain", "trained", None)
        drawn = [tiny.generate([PROMPT], max_tokens=2, adapter=name)[0][0] for name in names]
        return [completion.weights_version for completion in drawn]

    tiny.load_adapter("plain", lora(0))
    tiny.load_adapter("trained", lora(0), version=7)
    assert versions() == [0, 7, 0]
    tiny.load_adapter("trained", lora(1), version=8)
    tiny.load_weights(tensors_of("llama").items(), version=3)
    assert versions() == [3, 8, 3]


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
    requests = [Request(PROMPT, SamplingParams(max_tokens=8, seed=2), n=2, **kind) for kind in kinds]
    alone = [tiny.generate([PROMPT], max_tokens=8, seed=2, n=2, **kind)[0] for kind in kinds]
    running = [tiny.submit(request) for request in requests]
    done = {}
    while len(done) < 10:
        for event in tiny.step():
            if event.finish:
                done[event.request_id, event.index] = event.completion
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


def test_a_cached_prompt_can_be_erased(tiny: Engine) -> None:
    prompt = list(range(5, 5 + 3 * tiny.page_tokens + 1))

    def n_cached() -> int:
        [[completion]] = tiny.generate([prompt], max_tokens=1)
        return completion.n_cached

    n_cached()
    assert n_cached() == 3 * tiny.page_tokens
    assert tiny.erase_cache(prompt) == 3 * tiny.page_tokens
    assert n_cached() == 0 and tiny.erase_cache([1]) == 0


def test_the_cache_can_be_given_back(tiny: Engine) -> None:
    """Its pages are empty then; nothing is found in them, and answers are the same. Not under a request."""
    prompt = list(range(5, 5 + 3 * tiny.page_tokens + 1))
    [[before]] = tiny.generate([prompt], max_tokens=8, seed=1)
    tiny.release_cache()
    [[after]] = tiny.generate([prompt], max_tokens=8, seed=1)
    assert after.n_cached == 0 and (after.token_ids, after.logprobs) == (before.token_ids, before.logprobs)
    events = tiny.stream(prompt, SamplingParams(max_tokens=64, ignore_eos=True))
    next(events)
    with pytest.raises(EtudeError, match="1 requests are running"):
        tiny.release_cache()
    assert isinstance(list(events)[-1].event, FinishedEvent)


def test_a_watched_prompt_tells_how_far_it_is(tiny: Engine) -> None:
    """First what was cached, before anything is computed; then each step."""
    width = tiny.page_tokens
    prompt = list(range(5, 5 + width + 3))
    for n_cached in (0, width):
        told: list[tuple[int, int]] = []
        ended = threading.Event()

        def arrived(event: Event | BaseException, ended: threading.Event = ended) -> None:
            if isinstance(event, FinishedEvent):
                ended.set()

        request = Request(tuple(prompt), SamplingParams(max_tokens=3, ignore_eos=True))
        tiny.watch(request, arrived, read=lambda n_cached, n_done, told=told: told.append((n_cached, n_done)))
        assert ended.wait(30)
        assert told[0] == (n_cached, n_cached) and told[-1] == (n_cached, len(prompt))
        assert [done for _, done in told] == sorted({done for _, done in told})


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7, top_k=5, top_p=0.9, seed=3, max_tokens=20, logprobs=4),
        SamplingParams(seed=3, max_tokens=20, logprobs=4, penalties=Penalties(repeat=1.5)),
        SamplingParams(seed=3, max_tokens=20, logprobs=4, mirostat=Mirostat(2, tau=2.0, eta=0.5)),
        SamplingParams(temperature=0, seed=3, max_tokens=6, logprobs=4),
        SamplingParams(seed=3, max_tokens=20, logprobs=300, xtc=Xtc(0.5, 0.05), ignore_eos=True),
    ],
)
def test_alternatives_of_the_distribution_sampled_from(tiny: Engine, params: SamplingParams) -> None:
    """The drawn token stands among them with the logprob that was reported; what was drawn is the same."""
    prompt = list(PROMPT[:10])
    [[plain]] = tiny.generate([prompt], params)
    [[shown, _]] = tiny.generate([prompt], params, n=2, sampled_top=True)
    assert shown.token_ids == plain.token_ids and shown.raw_logprobs == plain.raw_logprobs
    for token, logprob, top in zip(shown.token_ids, shown.logprobs, shown.top_logprobs, strict=True):
        values = [value for _, value in top]
        assert values == sorted(values, reverse=True) and sum(map(math.exp, values)) <= 1 + 1e-5
        if token in dict(top):
            assert dict(top)[token] == pytest.approx(logprob, abs=1e-6)
        else:
            assert logprob <= values[-1]
    if params.temperature == 0:
        assert shown.top_logprobs == tuple(((token, 0.0),) for token in shown.token_ids)


def test_more_alternatives_than_there_are_tokens_are_all(tiny: Engine) -> None:
    request = tiny.request(list(PROMPT[:4]), max_tokens=2, logprobs=10**6, prompt_logprobs=10**6)
    [[completion]] = tiny.generate([request.prompt_ids], request.params, prompt_logprobs=10**6)
    assert completion.prompt_top_logprobs is not None
    n_vocab = tiny.tokenizer.n_vocab
    assert {len(top) for top in completion.top_logprobs} == {n_vocab}
    assert {len(top) for top in completion.prompt_top_logprobs[1:]} == {n_vocab}
