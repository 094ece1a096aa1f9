"""Requests in, events out: endings, prompt logprobs, weights, adapters, context shift; with the
fake decoder.
"""

from __future__ import annotations

import pytest

from etude.records import EtudeError, Grammar, Request, SamplingParams
from tests.engine.fake import FakeAdapter, alone, drain, expect, new_core, request, submit


def test_one_request():
    core = new_core()
    item = request(range(1, 11), max_tokens=20)
    (a,) = submit(core, item)
    expect(drain(core)[a, 0], item)


def test_one_native_call_per_step_and_prompt_in_chunks():
    core = new_core(n_pages=400, max_sequences=7, step_tokens=8)
    item = request([1 + i % 40 for i in range(100)], max_tokens=3)
    submit(core, item)
    steps = 0
    while core.has_work:
        core.step()
        steps += 1
        assert core._decoder.n_calls == steps
    assert steps == 13 + 2  # 100 tokens in chunks of 8, the first token comes with the last chunk
    assert core._decoder.most_tokens == 8


def test_abort():
    core = new_core(n_pages=40)
    ids = submit(core, request([1] * 10, n=40, max_tokens=50), request([2] * 10, max_tokens=5))
    for _ in range(3):
        core.step()
    core.abort(ids[0])
    core.abort(ids[0])
    core.abort(999)
    done = drain(core)
    aborted = [done[ids[0], index] for index in range(40)]
    assert {item.finish for item in aborted} == {"abort"}
    assert len(aborted[0].token_ids) == 3 and aborted[39].token_ids == ()
    assert done[ids[1], 0].finish == "length"


def test_stop_conditions():
    core = new_core()
    item = request([3, 4, 5], max_tokens=40)
    (a,) = submit(core, item)
    whole = drain(core)[a, 0]
    by_token = request([3, 4, 5], max_tokens=40, params={"stop_token_ids": (whole.token_ids[6],)})
    by_text = request([3, 4, 5], max_tokens=40, params={"stop": (whole.text[10:13], "no such text")})
    a, b = submit(core, by_token, by_text)
    done = drain(core)
    first = whole.token_ids.index(whole.token_ids[6])
    assert done[a, 0].token_ids == whole.token_ids[: first + 1]
    assert done[a, 0].finish == "stop" and done[a, 0].text == whole.text[:first]
    at = whole.text.index(whole.text[10:13])
    assert done[b, 0].token_ids == whole.token_ids[: at + 3]
    assert done[b, 0].finish == "stop" and done[b, 0].text == whole.text[:at]


def test_end_of_generation_token_and_ignore_eos():
    core = new_core(end_chance=30)
    ends = request([3, 4], max_tokens=60)
    goes_on = request([3, 4], max_tokens=60, params={"ignore_eos": True})
    a, b = submit(core, ends, goes_on)
    done = drain(core)
    expect(done[a, 0], ends, end_chance=30)
    assert done[a, 0].finish == "eos" and len(done[a, 0].text) == len(done[a, 0].token_ids) - 1
    expect(done[b, 0], goes_on, end_chance=30)
    assert done[b, 0].finish == "length" and 0 in done[b, 0].token_ids


def test_the_context_ends_a_completion():
    core = new_core(context=20)
    item = request(range(1, 11), max_tokens=None)
    (a,) = submit(core, item)
    expect(drain(core)[a, 0], item, context=20)


def test_prompt_logprobs_do_not_depend_on_chunks_or_hits():
    core = new_core(n_pages=200, max_sequences=4, step_tokens=10)
    prompt = [1 + i % 40 for i in range(50)]
    scored = Request(tuple(prompt), SamplingParams(max_tokens=3, seed=1), n=2, prompt_logprobs=2)
    (a,) = submit(core, scored)
    one = drain(core)
    (b,) = submit(new := new_core(n_pages=200), scored)
    two = drain(new)
    submit(core, request(prompt))
    drain(core)
    (c,) = submit(core, Request(tuple(prompt), SamplingParams(max_tokens=0), prompt_logprobs=2))
    three = drain(core)
    values = one[a, 0].prompt_logprobs
    assert values[0] is None and all(value < 0 for value in values[1:]) and len(values) == 50
    assert one[a, 1].prompt_logprobs == two[b, 0].prompt_logprobs == three[c, 0].prompt_logprobs == values
    assert one[a, 0].prompt_top_logprobs[0] == () and len(one[a, 0].prompt_top_logprobs[1]) == 2
    assert three[c, 0].token_ids == () and three[c, 0].finish == "length"
    assert one[a, 0].token_ids == two[b, 0].token_ids


def test_hidden_rows():
    core = new_core(n_pages=200, max_sequences=4, step_tokens=10)
    prompt = tuple(1 + i % 40 for i in range(33))
    rows = {}
    for kind in ("all", "last", "all"):
        core.add(core.prepare(Request(prompt), hidden=kind))
        while core.has_work:
            for event in core.step():
                rows.setdefault(kind, []).append(event.hidden)
    assert rows["all"][0].shape == (33, 1) and rows["last"][0].shape == (1, 1)
    assert (rows["all"][0] == rows["all"][1]).all() and (rows["all"][0][-1:] == rows["last"][0]).all()


def test_a_grammar_that_gives_up_ends_only_its_completion():
    core = new_core()
    held = [request([3, 4], max_tokens=9, grammar=Grammar("regex", str(n))) for n in (5, 100)]
    ids = submit(core, *held, free := request([5, 6], max_tokens=9))
    errors, done = {}, {}
    while core.has_work:
        for event in core.step():
            if event.finish:
                errors[event.request_id], done[event.request_id] = event.error, event.completion
    assert errors == {ids[0]: "the grammar is too complex", ids[1]: None, ids[2]: None}
    assert done[ids[0]].finish == "abort" and len(done[ids[0]].token_ids) == 5
    expect(done[ids[1]], held[1])
    expect(done[ids[2]], free)


def test_seed_is_fresh_and_reported():
    core = new_core()
    a, b = submit(core, *[Request((1, 2), SamplingParams(max_tokens=5)) for _ in range(2)])
    done = drain(core)
    assert done[a, 0].seed != done[b, 0].seed
    again = request([1, 2], max_tokens=5, seed=done[a, 0].seed)
    (c,) = submit(core, again)
    assert drain(core)[c, 0].token_ids == done[a, 0].token_ids


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Request(()), "no tokens"),
        (Request((1, 50)), "token id 50 in prompt: the model's ids are 0 to 49"),
        (Request((1,), SamplingParams(stop_token_ids=(-1,))), "token id -1 in stop_token_ids"),
        (Request((1,), n=0), "n is 0; it must be at least 1"),
        (Request((1,), SamplingParams(max_tokens=-1)), "max_tokens is -1"),
        (Request((1,), SamplingParams(seed=2**64)), "seed"),
        (Request((1,), adapter="x"), "adapter 'x' is not loaded; loaded are: none"),
        (Request((1,) * 256), "the prompt has 256 tokens, the context holds 256 .*64 cache pages of 4"),
    ],
)
def test_what_cannot_run_is_refused(bad, message):
    with pytest.raises(EtudeError, match=message):
        new_core().prepare(bad)


def test_adapters_do_not_share_pages():
    core = new_core(n_pages=200)
    core.add_adapter("a", FakeAdapter(1))
    core.add_adapter("b", FakeAdapter(2))
    prompt = range(1, 20)
    items = [
        request(prompt),
        request(prompt, adapter="a"),
        request(prompt, adapter="b"),
        request(prompt, adapter="a", adapter_scale=0.5),
    ]
    for _ in range(2):
        ids = submit(core, *items)
        done = drain(core)
        for a, item, number in zip(ids, items, (0, 1, 2, 1), strict=True):
            expect(done[a, 0], item, adapter=number)
    assert core.counters.reused_tokens == 4 * 16
    core.add_adapter("a", FakeAdapter(3))
    (a,) = submit(core, items[1])
    expect(drain(core)[a, 0], items[1], adapter=3)
    core.remove_adapter("a")
    with pytest.raises(EtudeError, match="'a' is not loaded; loaded are: 'b'"):
        core.prepare(items[1])


def set_weights(core, number, running="refuse"):
    def apply():
        core._decoder.weights = number

    core.change_weights(apply, number, running)


def test_new_weights_find_nothing_of_the_old():
    core = new_core()
    item = request(range(1, 20))
    (a,) = submit(core, item)
    assert drain(core)[a, 0].weights_version == 0
    set_weights(core, 7)
    assert core.cache.n_available == core.cache.n_pages and core.cache.n_idle == 0
    (a,) = submit(core, item)
    result = drain(core)[a, 0]
    assert result.weights_version == 7
    expect(result, item, weights=7)


def test_new_weights_while_requests_run():
    core = new_core()
    item = request(range(1, 20), n=2, max_tokens=20)
    (a,) = submit(core, item)
    for _ in range(5):
        core.step()
    with pytest.raises(EtudeError, match="1 requests are running"):
        set_weights(core, 1)
    set_weights(core, 1, "continue")
    done = drain(core)
    for index in range(2):
        ids = done[a, index].token_ids
        assert (done[a, index].weights_version, done[a, index].new_weights) == (0, ((5, 1),))
        assert list(ids[:5]) == alone(item, index)[0][:5]
        rest = request([*range(1, 20), *ids[:5]], max_tokens=15)
        assert list(ids[5:]) == alone(rest, index, weights=1)[0]
    reused = core.counters.reused_tokens
    (a,) = submit(core, item)
    core.step()
    assert core.counters.reused_tokens == reused + 16  # of what was computed after the change
    set_weights(core, 2, "abort")
    assert {completion.finish for completion in drain(core).values()} == {"abort"}


def test_completions_say_where_new_weights_began():
    """Changes that wrote nothing leave no trace, nor do those before the first token or of an adapter that
    has a version of its own."""
    core = new_core(max_sequences=2)
    core.add_adapter("own", FakeAdapter(1), version=50)
    item = request(range(1, 20), n=3, max_tokens=8)
    (a, own) = submit(core, item, request([1], max_tokens=30, adapter="own"))
    for _ in range(3):
        core.step()
    for version in (1, 2):  # two of three have begun
        set_weights(core, version, "continue")
    for _ in range(2):
        core.step()
    set_weights(core, 3, "continue")
    done = drain(core)
    assert done[a, 0].new_weights[0] == (3, 2) and done[a, 0].weights_version == 0
    assert done[a, 0].new_weights[-1][1] == 3 and len(done[a, 0].new_weights) == 2
    assert (done[a, 2].weights_version, done[a, 2].new_weights) == (3, ())
    assert (done[own, 0].weights_version, done[own, 0].new_weights) == (50, ())


# ── context shift ──


@pytest.mark.parametrize("keep", [0, 3, 4, 9, -1])
def test_context_shift(keep):
    core = new_core(n_pages=13, context=32, shift_keep=keep)
    item = request(range(1, 11), max_tokens=100)
    (a,) = submit(core, item)
    expect(drain(core)[a, 0], item, context=32, shift_keep=keep)
    again = request(range(1, 11), max_tokens=4)
    (b,) = submit(core, again)
    expect(drain(core)[b, 0], again, context=32)


def test_shifted_pages_are_nobody_elses():
    """A prompt that equals what a shifted completion sees has other bits, and the other way round."""
    core = new_core(n_pages=40, context=32, shift_keep=4)
    item = request(range(1, 11), max_tokens=80)
    (a,) = submit(core, item)
    for _ in range(40):
        core.step()
    (shifted,) = core.scheduler.running
    assert shifted.shifted
    seen = request(shifted.tokens(0, shifted.n_total).tolist(), max_tokens=3)
    (b,) = submit(core, seen)
    done = {}
    while not done:
        done = {event.request_id: event.completion for event in core.step() if event.finish}
    expect(done[b], seen)
    core.scheduler.preempt(shifted)
    core.step()
    (c,) = submit(core, seen)
    done = drain(core)
    expect(done[a, 0], item, context=32, shift_keep=4)
    expect(done[c, 0], seen)


def test_shifted_completions_survive_preemption():
    core = new_core(n_pages=24, context=32, shift_keep=4)
    items = [request([1 + i] * 9, max_tokens=90, seed=i) for i in range(5)]
    ids = submit(core, *items)
    done = drain(core)
    for a, item in zip(ids, items, strict=True):
        expect(done[a, 0], item, context=32, shift_keep=4)
    assert core._decoder.store.n_exports > 0
