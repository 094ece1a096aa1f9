"""`etude bench`: speed of prefill, decode and groups, with llama-bench's columns and fields.

Prefill and decode are never timed together (except by -pg): a prompt is computed until its first token is
there, and the clock of decode starts then. Prompts are random tokens, new ones for every run, so that
nothing is found in the cache; a group's prompts are computed beforehand, by themselves, and decode begins
from the cache. Sampling at temperature 1 over the whole vocabulary with logprobs is part of every step,
since that is what training needs.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TextIO

from etude.records import Event, Request, SamplingParams
from etude.terminal.bench_rows import PRINTERS, Printer, Row, Setting
from etude.terminal.inventory import take_inventory
from etude.terminal.loading import cpu_name, open_engine
from etude.terminal.model import model_path
from etude.terminal.options import Options, UsageError

SLACK_TOKENS = 64  # of a group: what the first sequences write while the last ones still begin


class Stepping(Protocol):
    """What is measured of an engine."""

    def submit(self, request: Request) -> int: ...

    def step(self) -> Sequence[Event]: ...

    def abort(self, request_id: int) -> None: ...


class StreamTest(NamedTuple):
    """One stream: n_prompt tokens read, then n_gen written, after `depth` tokens that are not timed."""

    n_prompt: int
    n_gen: int
    depth: int = 0

    @property
    def name(self) -> str:
        """As llama-bench calls it: pp512, tg128, pp512+tg128 @ d1024."""
        parts = [f"{kind}{n}" for kind, n in (("pp", self.n_prompt), ("tg", self.n_gen)) if n]
        return "+".join(parts) + (f" @ d{self.depth}" if self.depth else "")

    @property
    def context(self) -> int:
        """Tokens that the sequence needs room for."""
        return self.depth + max(self.n_prompt, 1) + self.n_gen + 1

    @property
    def cache_tokens(self) -> int:
        """Tokens that the cache needs room for."""
        return self.context

    def shortened(self) -> StreamTest:
        """The same work, less of it, to warm up."""
        return self._replace(n_gen=min(self.n_gen, 4), depth=min(self.depth, 64))


class GroupTest(NamedTuple):
    """n_sequences of n_gen tokens each, on one shared prompt or a prompt each."""

    n_prompt: int
    n_gen: int
    n_sequences: int
    shared: bool = False

    @property
    def name(self) -> str:
        """pl32 pps128+tg128: 32 sequences of 128 tokens on a shared prompt of 128."""
        return f"pl{self.n_sequences} pp{'s' if self.shared else ''}{self.n_prompt}+tg{self.n_gen}"

    @property
    def context(self) -> int:
        """Tokens that a sequence needs room for."""
        return self.n_prompt + self.n_gen + SLACK_TOKENS

    @property
    def n_prompt_tokens(self) -> int:
        """Of all its prompts."""
        return self.n_prompt * (1 if self.shared else self.n_sequences)

    @property
    def cache_tokens(self) -> int:
        """Tokens that the cache needs room for."""
        return self.n_prompt_tokens + self.n_sequences * (self.n_gen + SLACK_TOKENS)

    def shortened(self) -> GroupTest:
        """The same work, less of it, to warm up."""
        return self._replace(n_gen=min(self.n_gen, 2))


Test = StreamTest | GroupTest


class Sample(NamedTuple):
    """Nanoseconds of one run: reading its prompts, and writing."""

    reading_ns: int
    writing_ns: int


def run(options: Options) -> int:
    """The verb."""
    tests = planned(options)
    path = model_path(options)
    inventory = take_inventory(path)
    to_stdout = "json" if options["json"] == "-" else options["output"]
    printers: list[Printer] = [PRINTERS[to_stdout](sys.stdout)]
    file = None
    if options["json"] not in (None, "-"):
        file = _open(options)
        printers.append(PRINTERS["json"](file))
    for threads in options["threads"] or (None,):
        loaded = open_engine(
            options,
            path,
            threads=threads,
            context=max(test.context for test in tests),
            cache_tokens=max(test.cache_tokens for test in tests),
            sequences=max((test.n_sequences for test in tests if isinstance(test, GroupTest)), default=1),
        )
        with loaded as engine:
            setting = Setting(
                model_filename=str(path),
                model_type=inventory.description,
                model_size=inventory.tensor_bytes,
                model_n_params=inventory.n_parameters,
                n_threads=engine.threads,
                n_ubatch=engine.step_tokens,
                type_k=options["cache_type_k"],
                type_v=options["cache_type_v"],
                cpu_info=cpu_name(),
            )
            for row in measured(engine, engine.tokenizer.n_vocab, tests, options):
                for printer in printers:
                    printer.add(row.as_json(setting))
    for printer in printers:
        printer.end()
    if file:
        file.close()
    return 0


def planned(options: Options) -> list[Test]:
    """The tests of the command line: streams as llama-bench orders them, then groups."""
    pairs = [(n, 0) for n in options["n_prompt"] if n] + [(0, n) for n in options["n_gen"] if n]
    pairs += [_pair(options, text) for text in options["pg"]]
    tests: list[Test] = [StreamTest(pp, tg, depth) for depth in options["n_depth"] for pp, tg in pairs]
    if not options["npl"]:
        options.refuse_without_effect(
            ("npp", "ntg", "pps"), "no effect without -npl N, the sizes of the groups"
        )
    for n_prompt in options["npp"]:
        for n_gen in options["ntg"]:
            tests += [GroupTest(n_prompt, n_gen, n, options["pps"]) for n in options["npl"]]
    if not tests:
        raise UsageError("there is nothing to measure: give -p, -n, -pg or -npl")
    return tests


def _pair(options: Options, text: str) -> tuple[int, int]:
    """'512,128' -> (512, 128)."""
    parts = text.split(",")
    if len(parts) == 2 and all(part.isdecimal() and 0 < int(part) < 2**30 for part in parts):
        return int(parts[0]), int(parts[1])
    raise options.error("pg", f"got {text!r}, allowed are two numbers above 0, such as 512,128")


def measured(engine: Stepping, n_vocab: int, tests: Sequence[Test], options: Options) -> Iterator[Row]:
    """Each test's row, when it is done. A shorter run comes first and is not counted."""
    draw = random.Random(0)
    for test in tests:
        if options["progress"]:
            print(f"etude bench: {test.name}", file=sys.stderr, flush=True)
        if not options["no_warmup"]:
            run_once(engine, n_vocab, test.shortened(), draw)
        yield row_of(test, [run_once(engine, n_vocab, test, draw) for _ in range(options["repetitions"])])


def run_once(engine: Stepping, n_vocab: int, test: Test, draw: random.Random) -> Sample:
    """One run of a test, with prompts of its own."""
    if isinstance(test, StreamTest):
        depth = _random_ids(n_vocab, test.depth, draw)
        return run_stream(engine, test, depth, _random_ids(n_vocab, max(test.n_prompt, 1), draw))
    n_prompts = 1 if test.shared else test.n_sequences
    return run_group(engine, test, [_random_ids(n_vocab, test.n_prompt, draw) for _ in range(n_prompts)])


def run_stream(engine: Stepping, test: StreamTest, depth: tuple[int, ...], prompt: tuple[int, ...]) -> Sample:
    """Time one stream. Depth is computed first, and found in the cache again."""
    if depth:
        _step_until(engine, {(engine.submit(_request(depth, 1)), 0)})
    started_ns = time.perf_counter_ns()
    running = engine.submit(_request(depth + prompt, test.n_gen + 1))
    _step_until(engine, {(running, 0)})
    first_ns = time.perf_counter_ns()
    for _ in range(test.n_gen):
        engine.step()
    return Sample(first_ns - started_ns, time.perf_counter_ns() - first_ns)


def run_group(engine: Stepping, test: GroupTest, prompts: Sequence[tuple[int, ...]]) -> Sample:
    """Time a group: its prompts alone; then, out of the cache, steps in which all sequences write a token."""
    started_ns = time.perf_counter_ns()
    _step_until(engine, {(engine.submit(_request(prompt, 1)), 0) for prompt in prompts})
    reading_ns = time.perf_counter_ns() - started_ns
    n = test.n_sequences if test.shared else 1
    running = [engine.submit(_request(prompt, test.n_gen + SLACK_TOKENS, n=n)) for prompt in prompts]
    _step_until(engine, {(request, index) for request in running for index in range(n)})
    first_ns = time.perf_counter_ns()
    n_written = sum(len(event.token_ids) for _ in range(test.n_gen) for event in engine.step())
    writing_ns = time.perf_counter_ns() - first_ns
    assert n_written == test.n_sequences * test.n_gen, (
        f"{n_written} tokens written: the group did not run at once"
    )
    for request in running:
        engine.abort(request)
    engine.step()
    return Sample(reading_ns, writing_ns)


def row_of(test: Test, samples: Sequence[Sample]) -> Row:
    """The result of a test."""
    if isinstance(test, GroupTest):
        return _group_row(test, samples)
    if test.n_prompt and test.n_gen:
        times = tuple(sample.reading_ns + sample.writing_ns for sample in samples)
    else:
        times = tuple(sample.reading_ns if test.n_prompt else sample.writing_ns for sample in samples)
    return Row(test.name, test.n_prompt, test.n_gen, test.depth, test.n_prompt + test.n_gen, times)


def _group_row(test: GroupTest, samples: Sequence[Sample]) -> Row:
    """t/s of the row is that of writing; the fields of llama-batched-bench have both."""
    n_written = test.n_sequences * test.n_gen
    reading_s = sum(sample.reading_ns for sample in samples) / len(samples) / 1e9
    writing_s = sum(sample.writing_ns for sample in samples) / len(samples) / 1e9
    n_kv = test.n_prompt_tokens + n_written
    group = {
        "pp": test.n_prompt,
        "tg": test.n_gen,
        "pl": test.n_sequences,
        "is_pp_shared": int(test.shared),
        "n_kv": n_kv,
        "t_pp": reading_s,
        "speed_pp": test.n_prompt_tokens / reading_s,
        "t_tg": writing_s,
        "speed_tg": n_written / writing_s,
        "t": reading_s + writing_s,
        "speed": n_kv / (reading_s + writing_s),
    }
    times = tuple(sample.writing_ns for sample in samples)
    return Row(test.name, test.n_prompt, test.n_gen, 0, n_written, times, group)


def _random_ids(n_vocab: int, n_tokens: int, draw: random.Random) -> tuple[int, ...]:
    """Random tokens; they need not mean anything."""
    return tuple(draw.randrange(n_vocab) for _ in range(n_tokens))


def _request(prompt: tuple[int, ...], max_tokens: int, n: int = 1) -> Request:
    return Request(prompt, SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=0), n=n)


def _step_until(engine: Stepping, waiting: set[tuple[int, int]]) -> None:
    """Step until each of these completions has written something."""
    waiting = set(waiting)
    while waiting:
        waiting -= {(event.request_id, event.index) for event in engine.step() if event.token_ids}


def _open(options: Options) -> TextIO:
    try:
        return Path(options["json"]).open("w", encoding="utf-8")
    except OSError as error:
        raise options.error("json", f"cannot write {options['json']!r}: {error.strerror}") from None
