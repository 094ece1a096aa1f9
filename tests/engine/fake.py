"""A decoder without a model: every token's result is a hash of all cells that it sees through its page table.

A cell is what a real cache holds of a position (keys and values): here a 64-bit number made of the token, its
position, the adapter, the weights and all cells before it. So any wrong page, position, order or stale
content changes what is drawn. Writing a page that somebody else can see, or that is in the prefix tree, fails
at once. `alone` computes what one completion must be, without pages.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from etude.engine.cache import PageCache
from etude.engine.core import EngineCore, Limits, Parts, seed_after_shift
from etude.records import EtudeError, FinishedEvent, Grammar, Request, SamplingParams

N_VOCAB = 50
EOG = 0
MASK = 2**64 - 1


def mix(*values: int) -> int:
    """splitmix64 over a tuple."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = (state ^ (int(value) & MASK)) * 0xBF58476D1CE4E5B9 & MASK
        state ^= state >> 27
        state = state * 0x94D049BB133111EB & MASK
        state ^= state >> 31
    return state


def cell_of(token: int, position: int, adapter: int, weights: int, seen: np.ndarray) -> int:
    """What position `position` leaves in the cache, having seen the cells (position,) before it."""
    factors = np.arange(1, 2 * len(seen) + 1, 2, dtype=np.uint64)
    return mix(token, position, adapter, weights, int(np.sum(seen * factors, dtype=np.uint64)))


def draw_of(cell: int, seed: int, index: int, end_chance: int) -> tuple[int, float]:
    """The next token after a cell, and its logprob. end_chance: percent."""
    drawn = mix(cell, seed, index)
    token = EOG if drawn % 100 < end_chance else 1 + drawn // 100 % (N_VOCAB - 1)
    return token, -float(drawn >> 40) / 2**20


class FakeSampler:
    def __init__(self, seed: int, index: int) -> None:
        self.seed, self.index = seed, index


class FakeAdapter:
    def __init__(self, number: int) -> None:
        self.number = number


class FakeStore:
    """Contents of the pages: cells (n_pages, page_tokens)."""

    def __init__(self, n_pages: int, page_tokens: int) -> None:
        self.cells = np.zeros((n_pages, page_tokens), np.uint64)
        self.n_copies = 0
        self.n_exports = 0

    def copy_page(self, src: int, dst: int) -> None:
        assert src != dst
        self.cells[dst] = self.cells[src]
        self.n_copies += 1

    def export_page(self, page: int) -> bytes:
        self.n_exports += 1
        return self.cells[page].tobytes()

    def import_page(self, page: int, data: bytes) -> None:
        self.cells[page] = np.frombuffer(data, np.uint64)

    def shift(self, src: np.ndarray, dst: np.ndarray, length: int, keep: int, discard: int) -> None:
        width = self.cells.shape[1]
        assert not set(dst[keep // width :].tolist()) & set(src.tolist())
        assert dst[: keep // width].tolist() == src[: keep // width].tolist()
        cells = self.cells[src].reshape(-1)[:length]
        cells = shift_cells(cells, keep, discard)
        for at in range(keep // width * width, len(cells)):
            self.cells[dst[at // width], at % width] = cells[at]


def shift_cells(cells: np.ndarray, keep: int, discard: int) -> np.ndarray:
    """Cells after a context shift; rotating keys changes them."""
    moved = [mix(cell, discard) for cell in cells[keep + discard :].tolist()]
    return np.concatenate([cells[:keep], np.array(moved, np.uint64)])


class FakeDecoder:
    """`_native.Decoder`, with the checks that the native one cannot make. `weights` is what
    load_weights changes.
    """

    def __init__(self, store: FakeStore, cache: PageCache, end_chance: int) -> None:
        self.store, self.cache, self.end_chance = store, cache, end_chance
        self.weights = 0
        self.n_calls = 0
        self.widest = 0
        self.most_tokens = 0

    def step(self, **given) -> SimpleNamespace:
        self.n_calls += 1
        tokens, bounds = given["token_ids"], given["first_token"]
        n_sequences = len(bounds) - 1
        self.widest, self.most_tokens = max(self.widest, n_sequences), max(self.most_tokens, len(tokens))
        for name in (
            "token_ids",
            "first_token",
            "first_position",
            "pages",
            "first_page",
            "rows",
            "targets",
            "n_top",
        ):
            assert given[name].dtype == np.int32 and given[name].ndim == 1, name
        assert np.all(np.diff(given["rows"]) >= 0)
        assert len(given["samplers"]) == len(given["masks"]) == len(given["rows"]) == len(given["n_top"])
        self._check_pages(given)
        cells = np.zeros(len(tokens), np.uint64)
        for s in range(n_sequences):
            table = given["pages"][given["first_page"][s] : given["first_page"][s + 1]]
            adapter = given["adapters"][s] if given["adapters"] else None
            number = 0 if adapter is None else mix(adapter.number, int(given["adapter_scales"][s] * 1000))
            self._run(
                tokens, cells, range(bounds[s], bounds[s + 1]), int(given["first_position"][s]), table, number
            )
        return self._output(given, cells)

    def _run(self, tokens, cells, span, first, table, number) -> None:
        width = self.store.cells.shape[1]
        for position, at in enumerate(span, first):
            seen = self.store.cells[table].reshape(-1)[:position]
            cells[at] = cell_of(int(tokens[at]), position, number, self.weights, seen)
            self.store.cells[table[position // width], position % width] = cells[at]

    def _check_pages(self, given) -> None:
        """Each page is written by one sequence, which alone can see it."""
        width, written = self.cache.page_tokens, set()
        for s, first in enumerate(given["first_position"].tolist()):
            table = given["pages"][given["first_page"][s] : given["first_page"][s + 1]].tolist()
            n_new = int(given["first_token"][s + 1] - given["first_token"][s])
            assert n_new > 0
            assert len(table) == -(-(first + n_new) // width), "as many pages as tokens need"
            assert len(set(table)) == len(table), "a page twice in one table"
            for page in table[first // width :]:
                assert self.cache.references[page] == 1, f"page {page} is written while shared"
                assert page not in written
                written.add(page)

    def _output(self, given, cells) -> SimpleNamespace:
        rows = given["rows"].tolist()
        ids, logprobs = [], []
        for row, sampler, target in zip(rows, given["samplers"], given["targets"].tolist(), strict=True):
            if sampler is None:
                ids.append(target)
                logprobs.append(score_of(int(cells[row]), target))
            else:
                token, logprob = draw_of(int(cells[row]), sampler.seed, sampler.index, self.end_chance)
                ids.append(token)
                logprobs.append(logprob)
        n_top = int(max(given["n_top"], default=0))
        floats = np.array(logprobs, np.float32)
        return SimpleNamespace(
            token_ids=np.array(ids, np.int32),
            logprobs=floats,
            raw_logprobs=floats - np.float32(1),
            entropies=floats * 2,
            top_ids=np.tile(np.arange(n_top, dtype=np.int32), (len(rows), 1)),
            top_logprobs=np.tile(-np.arange(n_top, dtype=np.float32), (len(rows), 1)),
            logits=None,
            hidden=(cells[rows] % 1000).astype(np.float32)[:, None] if given["want_hidden"] else None,
        )


def score_of(cell: int, target: int) -> float:
    """ "logprob" of a known token after a cell."""
    return -float(mix(cell, target) >> 40) / 2**20


class FakeMatcher:
    """A grammar that gives up after as many tokens as its source says."""

    def __init__(self, grammar: Grammar) -> None:
        self.left = int(grammar.source)

    def mask(self) -> np.ndarray:
        if self.left <= 0:
            raise EtudeError("the grammar is too complex")
        return np.full(N_VOCAB // 32 + 1, 2**32 - 1, np.uint32)

    def accept(self, token_id: int) -> None:
        self.left -= 1


class FakeStream:
    """Token 7 is "h"; every token is one letter."""

    def push(self, token_id: int) -> str:
        return chr(ord("a") + token_id % 26)

    def flush(self) -> str:
        return ""


def new_core(
    n_pages: int = 64,
    page_tokens: int = 4,
    end_chance: int = 0,
    context: int | None = None,
    **limits,
) -> EngineCore:
    """A core on a fake decoder, which it has as `_decoder`."""
    store = FakeStore(n_pages, page_tokens)
    cache = PageCache(n_pages, page_tokens, store.copy_page)
    decoder = FakeDecoder(store, cache, end_chance)
    parts = Parts(
        new_sampler=lambda params, seed, index, prompt: FakeSampler(seed, index),
        new_matcher=FakeMatcher,
        new_stream=FakeStream,
        n_vocab=N_VOCAB,
        d_model=1,
        eog_ids=frozenset([EOG]),
    )
    return EngineCore(decoder, store, cache, parts, Limits(context or n_pages * page_tokens, **limits))


def alone(
    request: Request,
    index: int = 0,
    *,
    end_chance: int = 0,
    adapter: int = 0,
    weights: int = 0,
    context: int = 10**6,
    shift_keep: int | None = None,
) -> tuple[list[int], list[float], str]:
    """(token ids, logprobs, finish) of one completion by itself, without pages."""
    number = mix(adapter, int(request.adapter_scale * 1000)) if adapter else 0
    params: SamplingParams = request.params
    n_prompt = len(request.prompt_ids)
    limit = 10**6 if params.max_tokens is None else params.max_tokens
    if shift_keep is None:
        limit = min(limit, context - n_prompt)
    keep = n_prompt if shift_keep in (None, -1) else min(shift_keep, n_prompt)
    cells = np.zeros(0, np.uint64)
    ids: list[int] = []
    logprobs: list[float] = []
    n_discarded = 0
    for token in request.prompt_ids:
        cells = np.append(cells, np.uint64(cell_of(token, len(cells), number, weights, cells)))
    while len(ids) < limit:
        seed = seed_after_shift(params.seed, n_discarded)
        token, logprob = draw_of(int(cells[-1]), seed, index, end_chance)
        ids.append(token)
        logprobs.append(float(np.float32(logprob)))
        if token == EOG and not params.ignore_eos:
            return ids, logprobs, "eos"
        if token in params.stop_token_ids:
            return ids, logprobs, "stop"
        if len(cells) + 1 >= context and len(ids) < limit:
            kept = min(keep, context - 4)
            discard = (len(cells) - kept) // 2
            n_discarded += discard
            cells = shift_cells(cells, kept, discard)
        cells = np.append(cells, np.uint64(cell_of(token, len(cells), number, weights, cells)))
    return ids, logprobs, "length"


def check_pages(core: EngineCore) -> None:
    """Every reference is somebody's, and nothing is lost."""
    cache, scheduler = core.cache, core.scheduler
    counts = [0] * cache.n_pages
    for sequence in scheduler.running:
        for page in sequence.pages():
            counts[page] += 1
        assert sequence.n_computed <= sequence.n_pages * cache.page_tokens
        for at in range(sequence.n_stored):
            assert cache._node_of[int(sequence.table[at])] is not None, "its stored pages are in the tree"
    for sequence in scheduler.waiting:
        assert sequence.n_pages == 0
    in_tree = {node.page: node for node in cache.tree.nodes()}
    for page, node in in_tree.items():
        counts[page] += 1
        assert cache._node_of[page] is node
    assert counts == cache.references
    assert sorted(cache._free) == [page for page, count in enumerate(counts) if count == 0]
    assert cache.n_idle == sum(counts[page] == 1 for page in in_tree)
    offered = {entry[2].page for entry in cache._evictable if cache._is_current(entry)}
    assert offered == {page for page, node in in_tree.items() if counts[page] == 1 and not node.children}
    held = [page for page in in_tree if counts[page] > 1]
    for page in held:
        parent = in_tree[page].parent
        assert parent.page < 0 or counts[parent.page] > 1, "who holds a page holds those before it"


def request(prompt, n=1, max_tokens=8, seed=5, **kwargs) -> Request:
    params = SamplingParams(max_tokens=max_tokens, seed=seed, **kwargs.pop("params", {}))
    return Request(tuple(prompt), params, n=n, **kwargs)


def submit(core, *requests) -> list[int]:
    readers = [core.prepare(item) for item in requests]
    for reader in readers:
        core.add(reader)
    return [reader.group.id for reader in readers]


def drain(core, max_steps=3000) -> dict:
    """Run until nothing is left; {(request id, index): completion}. Events must add up to completions."""
    done, seen = {}, {}
    for _ in range(max_steps):
        if not core.has_work:
            break
        for event in core.step():
            key = (event.request_id, event.index)
            seen.setdefault(key, []).extend(event.token_ids)
            if isinstance(event, FinishedEvent):
                assert key not in done
                done[key] = event.completion
        check_pages(core)
    assert not core.has_work, "work is left: the scheduler stalls"
    for key, completion in done.items():
        assert completion.token_ids[len(completion.token_ids) - len(seen[key]) :] == tuple(seen[key])
    assert not core.scheduler.running and not core.scheduler.waiting
    assert all(count <= 1 for count in core.cache.references), "a page is still held"
    return done


def expect(core_result, item, index=0, **kwargs) -> None:
    ids, logprobs, finish = alone(item, index, **kwargs)
    assert core_result.token_ids == tuple(ids)
    assert core_result.logprobs == tuple(logprobs)
    assert core_result.finish == finish
