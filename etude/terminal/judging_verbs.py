"""The verbs that look at how good a model is: `eval` and `runs`, with their flags."""

from __future__ import annotations

from etude.terminal import flags
from etude.terminal.options import Flag, Group, Verb, filled, integer, real

_DATA = Group(
    "Problems and judges",
    (
        Flag(("-d", "--data"), "data", "problems: a file, folder, task:NAME, reasoning_gym:NAME or "
             "owner/name", filled, "NAME"),
        Flag(("-r", "--reward"), "reward", "what judges an answer: math, choice, text, file.py:name … "
             "(default: what fits the data, else math)", filled, "NAME"),
        Flag(("--limit",), "limit", "only the first N problems", integer(1)),
        Flag(("--check",), "check", "see first that gold answers score 1 and empty ones 0", default=True,
             off=("--no-check",)),
    ),
)  # fmt: skip
_SAMPLES = Group(
    "Samples",
    (
        Flag(("--samples",), "samples", "answers for each problem", integer(1, 4096), default=1),
        Flag(("-n", "--predict"), "n_predict", "most tokens of an answer", integer(1, 2**20), default=256),
        Flag(("--temp", "--temperature"), "temp", "temperature (default: 0 for one sample, else 0.6)",
             real(0)),
        Flag(("--top-p",), "top_p", "only the most likely tokens that sum up to N (default: 1 for one "
             "sample, else 0.95)", real(0, 1)),
        Flag(("-s", "--seed"), "seed", "seed of the random numbers", integer(0, 2**31 - 1), default=0),
        Flag(("--chat-template",), "chat_template", "name of a built-in template, or none for plain text",
             filled, "NAME"),
        Flag(("--adapter",), "adapter", "LoRA adapter: GGUF file or PEFT folder", filled, "FILE"),
    ),
)  # fmt: skip
_MACHINE = Group("Machine and memory", tuple(flag for flag in flags.MACHINE.flags if flag.key != "warmup"))
_OUT = Group(
    "What is written",
    (
        Flag(("--json",), "json", "write the report there ('-': to the standard output instead of the table)",
             filled, "FILE|-"),
        Flag(("--rollouts",), "rollouts", "write every answer there, a JSON object a line", filled, "FILE"),
    ),
)  # fmt: skip

EVAL = Verb(
    "eval",
    "how good a model is on a set of problems",
    "etude eval [MODEL] -d DATA [flags]",
    (flags.MODEL, _DATA, _SAMPLES, _OUT, _MACHINE),
    ("model", "MODEL"),
    (),
    """
Accuracy with 95 % intervals, strict (the answer stands where it was asked for) and lenient (wherever it can
be found), beside the best answer that is always the same; with several samples also pass@k and cons@k.

    etude eval -d 'task:add?held_out=true&size=300'
    etude eval model.gguf -d test.jsonl -r math --samples 8 --json report.json
    etude eval -d data.jsonl -r my_rewards.py:polite --rollouts answers.jsonl
""",
)

RUNS = Verb(
    "runs",
    "what training runs there are, and how one is doing",
    "etude runs [RUN] [flags]",
    (
        Group(
            "Runs",
            (
                Flag(("--folder",), "folder", "where the runs are", filled, "FOLDER", "runs"),
                Flag(("--step",), "step", "show what was sampled in this step", integer(0)),
                Flag(("--samples",), "samples", "how much of it", integer(1), default=3),
            ),
        ),
    ),
    ("run", "RUN"),
    (),
    """
RUN is a run folder, or its name in the folder of the runs. It may be running.

    etude runs
    etude runs add-grpo
    etude runs add-grpo --step 40 --samples 8
""",
)
