"""Reading command lines: llama.cpp's names, variables and values, and an error for everything else."""

from __future__ import annotations

import pytest

from etude.terminal import refused
from etude.terminal.options import Flag, Group, HelpWanted, Options, UsageError, Verb, parse
from etude.terminal.verbs import VERBS

CHAT = VERBS["chat"]
GENERATE = VERBS["generate"]


def chat(*argv: str, **environ: str) -> Options:
    return parse(CHAT, argv, environ)


def error_of(*argv: str, verb: Verb = CHAT, **environ: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(verb, argv, environ)
    return str(caught.value)


def test_defaults_are_llama_cpps() -> None:
    options = chat()
    expected = {
        "temp": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "typical": 1.0, "top_n_sigma": -1.0,
        "repeat_penalty": 1.0, "repeat_last_n": 64, "dry_multiplier": 0.0, "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_penalty_last_n": 64, "xtc_probability": 0.0, "xtc_threshold": 0.1, "mirostat": 0,
        "mirostat_ent": 5.0,
        "mirostat_lr": 0.1, "predict": -1, "ctx_size": None, "keep": 0, "context_shift": False, "seed": -1,
        "sampler_seq": "edskypmxt",
        "samplers": "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature",
    }  # fmt: skip
    assert {key: options[key] for key in expected} == expected
    assert not options.written


def test_what_a_llama_cpp_user_writes() -> None:
    options = chat("--model", "FILE", "-t", "2", "--context-shifted", "-n", "512")
    assert (options["model"], options["threads"], options["context_shift"], options["predict"]) == (
        "FILE",
        2,
        True,
        512,
    )
    options = chat(
        "-m", "FILE", "--ctx_size", "4096", "-ctk", "q8_0", "-ctv", "q8_0", "--temp", "0", "-sys", "- a -"
    )
    assert (options["ctx_size"], options["cache_type_k"], options["temp"], options["system_prompt"]) == (
        4096,
        "q8_0",
        0,
        "- a -",
    )


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [
        (["-p", "-x is a flag?"], "prompt", "-x is a flag?"),
        (["-p", "--temp"], "prompt", "--temp"),
        (["--temp=0.5"], "temp", 0.5),
        (["--top_k", "5"], "top_k", 5),
        (["-n", "-2"], "predict", -2),
        (["-n", "5", "-n", "6"], "predict", 6),
        (["-r", "A", "-r", "B"], "reverse_prompt", ("A", "B")),
        (["--color"], "color", True),
        (["--color", "off"], "color", False),
        (["--color", "auto"], "color", None),
        (["--color", "--temp", "1"], "color", True),
        (["--no-context-shift"], "context_shift", False),
        (["--context-shift=off"], "context_shift", False),
        (["model.gguf"], "model", "model.gguf"),
        (["--", "-odd-name.gguf"], "model", "-odd-name.gguf"),
        (["-rea", "off"], "reasoning", False),
        (["-no-cnv"], "conversation", False),
        (["--no-escape"], "escape", False),
        (["-s", "4294967295"], "seed", 4294967295),
        (["--top-nsigma", "-1"], "top_n_sigma", -1.0),
    ],
)  # fmt: skip
def test_values(argv: list[str], key: str, value: object) -> None:
    assert chat(*argv)[key] == value


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["-t", "0"], ["-t", "'0'", "from 1"]),
        (["-t", "two"], ["-t", "'two'"]),
        (["-n", "-5"], ["-n", "'-5'", "-1", "-2"]),
        (["-n", "1.5"], ["-n", "'1.5'"]),
        (["--temp", "-1"], ["--temp", "from 0"]),
        (["--temp", "nan"], ["--temp", "'nan'"]),
        (["--temp", "inf"], ["--temp", "'inf'"]),
        (["--top-p", "2"], ["--top-p", "0 to 1"]),
        (["--min-p", "-0.1"], ["--min-p"]),
        (["-c", "-1"], ["-c"]),
        (["-c", "99999999999999999999"], ["-c"]),
        (["-ctk", "q4_0"], ["-ctk", "f16", "q8_0"]),
        (["-ctk", "q8"], ["did you mean q8_0?"]),
        (["--rope-scaling", "ntk"], ["--rope-scaling", "yarn"]),
        (["--rope-scale", "0"], ["--rope-scale", "above 0"]),
        (["-t"], ["-t", "a value is missing"]),
        (["--tmep", "1"], ["--tmep", "did you mean --temp?"]),
        (["--ngl", "9"], ["--ngl", "did you mean -ngl?"]),
        (["--context-shift=maybe"], ["--context-shift", "on or off"]),
        (["a.gguf", "b.gguf"], ["'b.gguf'", "'a.gguf'"]),
        (["-m", "a.gguf", "b.gguf"], ["'b.gguf'", "-m"]),
        (["a.gguf", "-m", "b.gguf"], ["-m", "'a.gguf'"]),
        (["-m", ""], ["-m", "''"]),
    ],
)  # fmt: skip
def test_wrong_values_say_what_is_allowed(argv: list[str], parts: list[str]) -> None:
    text = error_of(*argv)
    assert all(part in text for part in parts), text
    assert "\n" not in text


# ── the environment ──


def test_a_flag_beats_its_variable() -> None:
    assert chat(LLAMA_ARG_THREADS="3")["threads"] == 3
    assert chat("-t", "2", LLAMA_ARG_THREADS="3")["threads"] == 2
    assert chat(LLAMA_ARG_CONTEXT_SHIFT="1")["context_shift"] is True
    assert chat(LLAMA_ARG_NO_CONTEXT_SHIFT="")["context_shift"] is False
    assert chat(LLAMA_ARG_THINK_BUDGET="64")["reasoning_budget"] == 64
    assert chat(LLAMA_ARG_THREADS="")["threads"] is None
    assert chat("other.gguf", LLAMA_ARG_MODEL="mine.gguf")["model"] == "other.gguf"


def test_an_error_in_a_variable_names_it() -> None:
    assert "LLAMA_ARG_THREADS" in error_of(LLAMA_ARG_THREADS="0")
    assert "LLAMA_ARG_CONTEXT_SHIFT" in error_of(LLAMA_ARG_CONTEXT_SHIFT="perhaps")
    assert "LLAMA_ARG_N_GPU_LAYERS=99" in error_of(LLAMA_ARG_N_GPU_LAYERS="99")
    assert "LLAMA_ARG_SPEC_DRAFT_N_MAX=3" in error_of(LLAMA_ARG_SPEC_DRAFT_N_MAX="3")
    assert chat(LLAMA_ARG_N_GPU_LAYERS="0").written == {}


def test_a_variable_of_another_verb_is_left_alone() -> None:
    assert parse(VERBS["info"], [], {"LLAMA_ARG_THREADS": "0"}).written == {}


# ── what cannot be served ──


def test_each_refused_flag_says_why() -> None:
    for verb, refusals in ((CHAT, refused.CHAT), (VERBS["bench"], refused.BENCH)):
        for refusal in refusals:
            for pattern in refusal.names:
                name = pattern.replace("*", "something")
                if "" in refusal.harmless:
                    parse(verb, [name], {})
                else:
                    text = error_of(name, verb=verb)
                    assert text.startswith(f"{name}: ") and len(text) > len(name) + 20, text


@pytest.mark.parametrize(
    "argv",
    [["-ngl", "0"], ["-fa", "on"], ["--repack"], ["--jinja"], ["-fa=on", "-ngl", "auto"][1:], ["-np", "1"]],
)
def test_what_happens_anyway_is_accepted(argv: list[str]) -> None:
    assert chat(*argv, "-t", "2")["threads"] == 2


def test_no_name_is_served_and_refused() -> None:
    for verb in VERBS.values():
        served = [name for flag in verb.flags() for name in flag.names + flag.off]
        refused = [name for refusal in verb.refusals for name in refusal.names]
        assert len(served) == len(set(served)), verb.name
        assert len(refused) == len(set(refused)), verb.name
        assert not set(served) & set(refused), verb.name


def test_keys_are_unique_per_verb() -> None:
    for verb in VERBS.values():
        keys = [flag.key for flag in verb.flags()]
        assert len(keys) == len(set(keys)), verb.name


def test_help_is_wanted_only_as_a_flag() -> None:
    for word in ("-h", "--help", "--usage"):
        with pytest.raises(HelpWanted):
            chat("-t", "2", word)
    assert chat("-p", "--help")["prompt"] == "--help"


# ── chat's /set ──


def test_a_setting_is_read_anew() -> None:
    options = chat("--temp", "1")
    changed = options.changed(options.flag_named("top_k"), "/set top_k", "7")
    assert (changed["top_k"], changed["temp"], options["top_k"]) == (7, 1.0, 40)
    assert options.flag_named("--top-k").key == "top_k"
    with pytest.raises(UsageError, match="did you mean top-k"):
        options.flag_named("topk")
    with pytest.raises(UsageError, match="/set temp: got 'hot'"):
        options.changed(options.flag_named("temp"), "/set temp", "hot")


def test_a_switch_takes_words() -> None:
    flag = Flag(("--on-fire",), "fire", "", default=False, off=("--no-fire",))
    verb = Verb("try", "", "", (Group("", (flag,)),))
    assert parse(verb, ["--on-fire=false"], {})["fire"] is False
    assert parse(verb, ["--no-fire=false"], {})["fire"] is True
    options = parse(verb, [], {})
    assert options.changed(flag, "/set on-fire", "on")["fire"] is True
