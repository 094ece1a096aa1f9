"""What runs when, and on which pages: sharing, preemption, fairness, priorities.

The decoder (fake.py) notices any wrong page; every completion must equal what it is alone.
"""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.fake import FakeAdapter, alone, check_pages, drain, expect, new_core, request, submit


def test_group_shares_its_prompt():
    """100 prompt tokens are computed once; each completion adds its own tokens."""
    core = new_core(n_pages=400)
    item = request([1 + i % 40 for i in range(102)], n=32, max_tokens=5)
    (a,) = submit(core, item)
    done = drain(core)
    for index in range(32):
        expect(done[a, index], item, index)
    assert core.counters.computed_tokens == 102 + 32 * 4
    assert core._decoder.store.n_copies == 31  # the last page is partial: all but one copy it


def test_n_beyond_the_cache_runs_in_waves():
    core = new_core(n_pages=20)
    item = request(range(1, 30), n=50, max_tokens=9)
    (a,) = submit(core, item)
    done = drain(core)
    assert len(done) == 50
    for index in range(50):
        expect(done[a, index], item, index)


def test_n_beyond_max_sequences():
    core = new_core(n_pages=200, max_sequences=4, step_tokens=16)
    item = request(range(1, 30), n=13, max_tokens=9)
    (a,) = submit(core, item)
    done = drain(core)
    for index in range(13):
        expect(done[a, index], item, index)
    assert core._decoder.widest <= 4


def test_preemption_changes_nothing():
    core = new_core(n_pages=16)
    items = [request([9 + i] * 20, max_tokens=40, seed=i) for i in range(4)]
    ids = submit(core, *items)
    done = drain(core)
    for a, item in zip(ids, items, strict=True):
        expect(done[a, 0], item)
    assert core.counters.preemptions > 0


def test_a_request_that_fills_the_cache_alone_runs_beside_others():
    core = new_core(n_pages=16)  # 64 tokens
    big = request(range(1, 41), max_tokens=24, seed=1)
    small = [request([i], max_tokens=30, seed=i) for i in range(1, 8)]
    ids = submit(core, *small[:4], big, *small[4:])
    done = drain(core)
    for a, item in zip(ids, [*small[:4], big, *small[4:]], strict=True):
        expect(done[a, 0], item)


def test_prefix_hit_equals_miss():
    core = new_core()
    first = request(range(1, 20), max_tokens=6)
    second = request([*range(1, 20), 30, 31], max_tokens=6, seed=8)
    (a,) = submit(core, first)
    expect(drain(core)[a, 0], first)
    before = core.counters.computed_tokens
    (b,) = submit(core, second)
    expect(drain(core)[b, 0], second)
    assert core.counters.reused_tokens == 16
    assert core.counters.computed_tokens - before == 21 - 16 + 5


def test_the_last_token_of_a_prompt_is_always_computed():
    """Its row is what the first token is drawn from, also when all pages of the prompt are cached."""
    core = new_core()
    item = request(range(1, 17), max_tokens=3)
    for _ in range(2):
        (a,) = submit(core, item)
        expect(drain(core)[a, 0], item)
    assert core.counters.reused_tokens == 12


def test_groups_that_fork_in_the_same_step_share_the_room():
    """Two prompts of two pages and 24 pages: 20 are left, less one for each that runs; a fork needs two."""
    core = new_core(n_pages=24)
    submit(core, *[request([p] * 5, n=8, max_tokens=2, seed=p) for p in (1, 2)])
    core.step()
    assert len(core.scheduler.running) == 2 + (20 - 2) // 2
    drain(core)


def test_groups_that_fork_in_the_same_step_share_the_places():
    core = new_core(n_pages=100, max_sequences=9, step_tokens=64)
    submit(core, *[request([p] * 5, n=8, max_tokens=2, seed=p) for p in (1, 2)])
    core.step()
    assert len(core.scheduler.running) == 9
    drain(core)
    assert core._decoder.widest == 9


def test_a_conversation_finds_its_own_answer():
    """The second turn begins with the first turn's prompt and answer: all full pages of both are there."""
    core = new_core()
    first = request(range(1, 11), max_tokens=15)
    (a,) = submit(core, first)
    answer = drain(core)[a, 0].token_ids
    second = request([*range(1, 11), *answer, 4, 4], max_tokens=3)
    (b,) = submit(core, second)
    expect(drain(core)[b, 0], second)
    assert core.counters.reused_tokens == 24  # 10 + 15 - 1 tokens were computed: six full pages


def test_prefix_of_a_busy_request_is_shared():
    core = new_core()
    first = request(range(1, 20), max_tokens=30)
    (a,) = submit(core, first)
    core.step()
    core.step()
    second = request([*range(1, 18), 40], max_tokens=5)
    (b,) = submit(core, second)
    core.step()
    assert core.counters.reused_tokens == 16
    done = drain(core)
    expect(done[a, 0], first)
    expect(done[b, 0], second)


def test_same_prompt_at_the_same_time_is_computed_once():
    core = new_core(n_pages=200)
    items = [request(range(1, 42), max_tokens=4, seed=i) for i in range(10)]
    ids = submit(core, *items)
    done = drain(core)
    for a, item in zip(ids, items, strict=True):
        expect(done[a, 0], item)
    assert core.counters.computed_tokens == 41 + 9 * 1 + 10 * 3


def test_equal_completions_share_their_pages():
    """Two completions that draw the same tokens hold the same pages: equal tokens have equal bits."""
    core = new_core()
    items = [request(range(1, 10), max_tokens=20, seed=3) for _ in range(2)]
    submit(core, *items)
    for _ in range(16):
        core.step()
    one, two = core.scheduler.running
    assert one.ids[:15] == two.ids[:15]
    assert min(one.n_stored, two.n_stored) >= 5
    assert one.pages()[:5] == two.pages()[:5]
    drain(core)


def test_long_prompt_does_not_stop_short_ones():
    """A short request beside one of 2000 tokens ends long before it; the long one gets half of each step."""
    core = new_core(n_pages=600, max_sequences=16, step_tokens=64)
    long = request([1 + i % 45 for i in range(2000)], max_tokens=2)
    (a,) = submit(core, long)
    core.step()
    (b,) = submit(core, request([3] * 30, max_tokens=10, seed=1))
    ended = {}
    step = 0
    while core.has_work:
        step += 1
        for event in core.step():
            if event.finish:
                ended[event.request_id] = step
    assert ended[b] <= 12
    assert ended[a] <= 2000 / 32 + 12


def test_a_large_group_does_not_keep_others_waiting():
    """Of 200 completions 4 run at once; a request that comes later starts when the next place is free."""
    core = new_core(n_pages=200, max_sequences=4, step_tokens=16)
    submit(core, request([5, 6, 7], n=200, max_tokens=10))
    core.step()
    (b,) = submit(core, request([8, 9], max_tokens=3))
    ended = []
    while b not in ended:
        ended += [event.request_id for event in core.step() if event.finish]
    assert len(ended) <= 5
    assert len(drain(core)) + len(ended) == 201


def test_running_completions_get_a_token_in_every_step():
    core = new_core(n_pages=600, max_sequences=16, step_tokens=64)
    (a,) = submit(core, request([5, 6], max_tokens=30))
    core.step()
    submit(core, request([1 + i % 45 for i in range(1500)], max_tokens=2))
    for _ in range(20):
        assert any(event.request_id == a for event in core.step())
    drain(core)


def test_priority_goes_first_and_displaces():
    core = new_core(n_pages=16)
    low = request([1] * 20, max_tokens=40, seed=1)
    (a,) = submit(core, low)
    for _ in range(10):
        core.step()
    high = request([2] * 40, max_tokens=20, seed=2, priority=5)
    (b,) = submit(core, high)
    order, done = [], {}
    while core.has_work:
        for event in core.step():
            if event.finish:
                order.append(event.request_id)
                done[event.request_id] = event.completion
        check_pages(core)
    assert order == [b, a]
    expect(done[a], low)
    expect(done[b], high)


def test_waiting_requests_start_by_priority_then_arrival():
    core = new_core(n_pages=400, max_sequences=1, step_tokens=8)
    ids = submit(core, *[request([4 + p], max_tokens=2, priority=p) for p in (0, -3, 7, 0, 7)])
    order = [event.request_id for _ in range(20) for event in core.step() if event.finish]
    assert order == [ids[2], ids[4], ids[0], ids[3], ids[1]]


# ── anything at all ──

PROMPTS = st.tuples(st.integers(0, 3), st.integers(0, 30), st.lists(st.integers(1, 49), max_size=6)).map(
    lambda parts: [1 + parts[0] + i % 7 for i in range(parts[1])] + parts[2] + [9]
)
REQUESTS = st.builds(
    request,
    PROMPTS,
    n=st.integers(1, 7),
    max_tokens=st.one_of(st.none(), st.integers(0, 40)),
    seed=st.integers(0, 2),
    priority=st.integers(-1, 1),
    prompt_logprobs=st.sampled_from([None, None, 0]),
    adapter=st.sampled_from([None, None, "a"]),
)
ACTIONS = st.one_of(
    st.tuples(st.just("submit"), REQUESTS),
    st.tuples(st.just("step"), st.integers(1, 9)),
    st.tuples(st.just("abort"), st.integers(0, 20)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    actions=st.lists(ACTIONS, max_size=25),
    n_pages=st.integers(16, 40),
    page_tokens=st.sampled_from([2, 4, 8]),
    max_sequences=st.integers(1, 12),
    spare_tokens=st.integers(1, 20),
    end_chance=st.sampled_from([0, 10]),
    keep=st.sampled_from([None, None, 0, 5, -1]),
)
def test_any_mix_gives_what_each_gives_alone(
    actions, n_pages, page_tokens, max_sequences, spare_tokens, end_chance, keep
):
    context = n_pages * page_tokens if keep is None else n_pages // 2 * page_tokens
    core = new_core(
        n_pages,
        page_tokens,
        end_chance,
        context=context,
        shift_keep=keep,
        max_sequences=max_sequences,
        step_tokens=max_sequences + spare_tokens,
    )
    core.add_adapter("a", FakeAdapter(4))
    items, aborted, done = {}, set(), {}

    def run(n_steps):
        for _ in range(n_steps):
            for event in core.step():
                if event.finish:
                    done[event.request_id, event.index] = event.completion
            check_pages(core)

    for kind, value in actions:
        if kind == "step":
            run(value)
        elif kind == "abort":
            core.abort(value)
            aborted.add(value)
        elif len(value.prompt_ids) < context and (keep is None or value.params.max_tokens is not None):
            reader = core.prepare(value)
            core.add(reader)
            items[reader.group.id] = value
            aborted.discard(reader.group.id)
    for _ in range(20000):
        if not core.has_work:
            break
        run(1)
    assert not core.has_work
    assert core._decoder.widest <= max_sequences
    assert all(count <= 1 for count in core.cache.references)
    for request_id, item in items.items():
        for index in range(item.n):
            result = done[request_id, index]
            adapter = 4 if item.adapter else 0
            ids, logprobs, finish = alone(
                item, index, end_chance=end_chance, adapter=adapter, context=context, shift_keep=keep
            )
            if request_id in aborted and result.finish == "abort":
                assert list(result.token_ids) == ids[: len(result.token_ids)]
                continue
            assert (list(result.token_ids), list(result.logprobs), result.finish) == (ids, logprobs, finish)
