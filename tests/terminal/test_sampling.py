"""Flags -> SamplingParams, and errors for flags that would change nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from etude.engine.sampling import check_params
from etude.records import (
    DEFAULT_SAMPLERS,
    Dry,
    DynamicTemperature,
    Grammar,
    Mirostat,
    Penalties,
    SamplingParams,
    Xtc,
)
from etude.terminal.options import UsageError, parse
from etude.terminal.sampling import grammar, sampling_params
from etude.terminal.verbs import VERBS


def params(*argv: str) -> SamplingParams:
    return sampling_params(parse(VERBS["chat"], argv, {}))


def form(*argv: str) -> Grammar | None:
    return grammar(parse(VERBS["chat"], argv, {}))


def test_defaults() -> None:
    assert params() == SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)
    assert params().samplers == DEFAULT_SAMPLERS


def test_everything_arrives() -> None:
    assert params(
        *"--temp 0.5 --top-k 1 --top-p 0.5 --min-p 0.1 --typical 0.9 --top-nsigma 2".split(),
        *"--repeat-penalty 1.1 --repeat-last-n -1 --presence-penalty 0.2 --frequency-penalty 0.3".split(),
        *"--dry-multiplier 0.8 --dry-base 2".split(),
        *"--dry-allowed-length 3 --dry-penalty-last-n 100 --xtc-probability 0.5 --xtc-threshold 0.2".split(),
        *"--dynatemp-range 0.4 --dynatemp-exp 2 -l 5+1.5 -l 7-inf --ignore-eos -n 9 -s 42 -r A -r B".split(),
    ) == SamplingParams(
        temperature=0.5, top_k=1, top_p=0.5, min_p=0.1, typical_p=0.9, top_n_sigma=2.0,
        penalties=Penalties(repeat=1.1, frequency=0.3, presence=0.2, last_n=-1),
        dry=Dry(multiplier=0.8, base=2.0, allowed_length=3, last_n=100),
        xtc=Xtc(0.5, 0.2), dynamic_temperature=DynamicTemperature(0.4, 2.0),
        logit_bias={5: 1.5, 7: -math.inf}, ignore_eos=True, max_tokens=9, seed=42, stop=("A", "B"),
    )  # fmt: skip


def test_sequence_breakers() -> None:
    dry = params("--dry-multiplier", "1", "--dry-sequence-breaker", "x", "--dry-sequence-breaker", "y").dry
    assert dry and dry.sequence_breakers == ("x", "y")
    dry = params("--dry-multiplier", "1", "--dry-sequence-breaker", "none").dry
    assert dry and dry.sequence_breakers == ()
    dry = params("--dry-multiplier", "1").dry
    assert dry and dry.sequence_breakers == ("\n", ":", '"', "*")


def test_mirostat() -> None:
    chain = params("--mirostat", "2", "--mirostat-ent", "4", "--mirostat-lr", "0.2", "--temp", "0.7")
    assert chain == SamplingParams(temperature=0.7, mirostat=Mirostat(2, 4.0, 0.2))
    assert params().mirostat is None


@pytest.mark.parametrize(
    "argv",
    [
        ["--samplers", "top_k;temperature"],
        ["--samplers", "top-k;temp"],
        ["--samplers", "TopK; temperature;"],
        ["--sampling-seq", "kt"],
        ["--sampler-seq", "kt"],
    ],
)
def test_the_chain(argv: list[str]) -> None:
    """What is left out is off, whatever its default."""
    assert params(*argv) == SamplingParams(temperature=0.8, top_k=40, samplers=("top_k", "temperature"))


def test_every_setting_passes_the_engines_own_checks() -> None:
    for argv in ("", "--mirostat 1", "--samplers min_p", "--sampler-seq kt", "--temp 0", "--samplers dry"):
        check_params(params(*argv.split()), 100, frozenset({2}))


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--xtc-threshold", "0.2"], ["--xtc-threshold", "--xtc-probability"]),
        (["--dry-base", "2"], ["--dry-base", "--dry-multiplier"]),
        (["--dynatemp-exp", "2"], ["--dynatemp-exp", "--dynatemp-range"]),
        (["--mirostat-lr", "0.2"], ["--mirostat-lr", "--mirostat 1 or 2"]),
        (["--repeat-last-n", "5"], ["--repeat-last-n", "--repeat-penalty"]),
        (["--mirostat", "2", "--top-p", "0.5"], ["--top-p", "--mirostat"]),
        (["--mirostat", "1", "--samplers", "top_k"], ["--samplers", "--mirostat"]),
        (["--samplers", "top_k", "--top-p", "0.5"], ["--top-p", "without top_p"]),
        (["--samplers", "top_k", "--temp", "0.5"], ["--temp", "without temperature"]),
        (["--samplers", "top_k;top_k"], ["--samplers", "twice"]),
        (["--samplers", "top_q"], ["--samplers", "'top_q'", "did you mean top_"]),
        (["--samplers", "infill"], ["--samplers", "no sampler infill"]),
        (["--sampler-seq", "kz"], ["--sampler-seq", "'z'"]),
        (["--sampler-seq", "k", "--samplers", "top_k"], ["--sampler-seq", "--samplers"]),
        (["-l", "x+1"], ["--logit-bias", "'x+1'"]),
        (["-l", "5"], ["--logit-bias", "15043+1"]),
        (["-l", "5+inf"], ["--logit-bias", "+inf"]),
    ],
)
def test_what_would_have_no_effect_is_an_error(argv: list[str], parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        params(*argv)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_forms(tmp_path: Path) -> None:
    (tmp_path / "g").write_text('root ::= "a"')
    (tmp_path / "s").write_text("{}")
    assert form() is None
    assert form("--grammar", "root ::= [a]") == Grammar("gbnf", "root ::= [a]")
    assert form("--grammar-file", str(tmp_path / "g")) == Grammar("gbnf", 'root ::= "a"')
    assert form("-j", "{}") == form("-jf", str(tmp_path / "s")) == Grammar("json_schema", "{}")
    assert form("--regex", "a+") == Grammar("regex", "a+")
    assert form("--lark-file", str(tmp_path / "g")) == Grammar("lark", 'root ::= "a"')
    with pytest.raises(UsageError, match="--regex: an answer has one form, and -j gave"):
        form("--regex", "a", "-j", "{}")
    with pytest.raises(UsageError, match="-jf: cannot read '/nowhere/at/all': No such file"):
        form("-jf", "/nowhere/at/all")
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        form("--grammar-file", str(tmp_path / "b"))
