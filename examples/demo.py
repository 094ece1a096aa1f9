"""`make demo`: a small model learns a task by GRPO in minutes, and shows what it has learnt.

First `etude grpo examples/demo.toml`, a training like any other: Ctrl-C stops it, and the same command goes
on with it. Then what it did: accuracy before and after, on problems whose numbers never occur in training,
beside the best answer that is always the same; answers side by side; the curve as a picture; the model as a
GGUF file, which is asked a question.

Settings can be changed as for `etude grpo`:  python examples/demo.py --run.steps 20 --run.name short
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from etude.cli import main as etude
from etude.data import best_constant, load_problems
from etude.evals import Interval
from etude.recipes.assembly import MODEL_FILE, engine_of, prompts_of
from etude.recipes.grpo import GrpoConfig
from etude.recipes.judging import fitting_reward, judges_for
from etude.records import EtudeError, Problem, Rollout
from etude.rollout import collect, single_turn
from etude.runlog import RunReader
from etude.runlog.curve import Curve, curve_svg
from etude.terminal.config import read_config
from etude.terminal.options import UsageError
from etude.terminal.runs import sparkline
from etude.terminal.screen import VISIBLE
from etude.terminal.train import FLAGS

CONFIG = Path(__file__).with_name("demo.toml")
PICTURE = "curve.svg"
PARTS = ("strict", "lenient")
SHOWN = 4
"""Held-out problems whose answers are shown: the first ones, whatever they are."""
PHASES = ("sampling", "update", "publish", "eval")


def main(argv: Sequence[str]) -> int:
    """0: it has learnt; 1: it has not, or something went wrong; 130: stopped by Ctrl-C."""
    try:
        config = read_config(GrpoConfig, [str(CONFIG), *argv], FLAGS).config
        folder = Path(config.run.folder) / str(config.run.name)
        code = train(folder, argv)
        return code or show(RunReader(folder))
    except (EtudeError, UsageError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def train(folder: Path, argv: Sequence[str]) -> int:
    """A new run, or the rest of one; nothing if it is finished. Returns the exit code."""
    if not (folder / "run.json").exists():
        words = ["grpo", str(CONFIG), *argv]
    elif RunReader(folder).state == "finished":
        print(f"{folder} is finished; remove it to train anew. What it has learnt:")
        return 0
    elif argv:
        raise EtudeError(f"{folder} is there and not finished: go on without other settings, or remove it")
    else:
        words = ["grpo", "--resume", str(folder)]
    print(f"$ etude {' '.join(words)}", flush=True)
    code = etude(words)
    if code == 0 and RunReader(folder).state != "finished":
        print("the same command goes on with it", file=sys.stderr)
        return 128 + signal.SIGINT
    return code


def show(run: RunReader) -> int:
    """What a finished run has learnt; 1 if the intervals before and after touch."""
    config = read_config(GrpoConfig, [str(run.folder / "config.toml")], {}).config
    problems = load_problems(config.data.held_out or "")[: config.eval.limit]
    rows = run.metrics()
    levels = without_learning(problems)
    print(f"\n{summary(rows)}\n")
    print(accuracies(rows[0], rows[-1], len(problems), levels))
    picture = run.folder / PICTURE
    picture.write_text(picture_of(rows, levels), encoding="utf-8")
    print(f"\n{terminal_curves(rows)}\nas a picture: {picture}\n")
    model = run.folder / "final" / MODEL_FILE
    shown = problems[:SHOWN]
    before, after = (answers(config, name, shown) for name in (config.model.name, str(model)))
    print(side_by_side(shown, before, after))
    print(f"the model: {model} (llama.cpp opens it too)")
    question = problems[SHOWN % len(problems)].messages[-1].content
    print(f'\n$ etude chat -m {model} --temp 0 -st -p "{question}"', flush=True)
    code = etude(["chat", "-m", str(model), "--temp", "0", "-st", "-n", "32", "-p", question])
    learnt = has_learnt(rows, max(levels.values()))
    print("\n" + verdict(learnt))
    return code or int(not learnt)


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many steps, how long, and what the time went into."""
    steps = [row for row in rows if row["step"] > 0]
    total_s = sum(row["seconds/step"] for row in steps)
    phases = {name: sum(row.get(f"seconds/{name}", 0.0) for row in steps) / len(steps) for name in PHASES}
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases.items())
    return (
        f"{len(steps)} steps in {total_s / 60:.1f} min, {total_s / len(steps):.1f} s a step ({parts}); "
        f"{steps[-1]['memory_bytes'] / 1e9:.1f} GB of memory"
    )


def without_learning(problems: Sequence[Problem]) -> dict[str, float]:
    """What is right by chance: the best answer that is always the same; and where the answer is one of the
    things that the question names, one of those at random."""
    answer, right = best_constant(problems, judges_for(fitting_reward(problems))[1])
    levels = {f"always {answer!r}": right}
    named = [[str(operand) for operand in problem.columns.get("operands", ())] for problem in problems]
    if all(problem.answer in some for problem, some in zip(problems, named, strict=True)):
        levels["one of those named"] = sum(1 / len(some) for some in named) / len(named)
    return levels


def accuracies(first: Mapping[str, Any], last: Mapping[str, Any], n: int, levels: Mapping[str, float]) -> str:
    """The table: strict and lenient, before and after, with 95 % intervals."""
    lines = [
        f"accuracy on {n} held-out problems, none of whose numbers or words occurs in training",
        f"{'':<10}{'before':<24}after",
    ]
    for part in PARTS:
        before, after = (str(interval(row, part)) for row in (first, last))
        lines.append(f"{part:<10}{before:<24}{after}")
    lines += [f"without learning anything: {name}, {100 * value:.1f} %" for name, value in levels.items()]
    return "\n".join(lines)


def interval(row: Mapping[str, Any], part: str) -> Interval:
    name = f"eval/accuracy/{part}"
    return Interval(row[name], row[f"{name}/low"], row[f"{name}/high"])


def has_learnt(rows: Sequence[Mapping[str, Any]], chance: float) -> bool:
    """Whether accuracy is higher than before and than chance, strictly and leniently read, and no intervals
    touch."""
    return all(max(interval(rows[0], part).high, chance) < interval(rows[-1], part).low for part in PARTS)


def verdict(learnt: bool) -> str:
    if learnt:
        return "It has learnt: the intervals before and after do not touch, strict or lenient."
    return "The intervals before and after touch, or chance: this run has not shown that anything was learnt."


def picture_of(rows: Sequence[Mapping[str, Any]], levels: Mapping[str, float]) -> str:
    held_out = [Curve(f"eval/accuracy/{part}", f"held out, {part}") for part in reversed(PARTS)]
    return curve_svg(
        rows,
        [Curve("reward/mean", "training reward"), *held_out],
        title="GRPO: accuracy on held-out problems, 95 % intervals",
        levels=levels,
    )


def terminal_curves(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for name in ("reward/mean", *(f"eval/accuracy/{part}" for part in PARTS)):
        values = [float(row[name]) for row in rows if name in row]
        lines.append(f"{name:<22} {sparkline(values)}  {values[0]:.3f} → {values[-1]:.3f}")
    return "\n".join(lines)


def answers(config: GrpoConfig, model: str, problems: Sequence[Problem]) -> list[Rollout]:
    """The most likely answers of a model, sampled and judged as held-out ones are."""
    judge, _, _ = judges_for(fitting_reward(problems))
    settings = replace(config.model, name=model)
    with closing(engine_of(settings, config.sampling, lora=False, sequences=len(problems))) as engine:
        prompts, env = prompts_of(engine, settings), single_turn(judge)
        params = config.eval.params(config.sampling)
        return collect(engine, prompts, problems, env, n=1, params=params, seed=config.run.seed)


def side_by_side(problems: Sequence[Problem], before: Sequence[Rollout], after: Sequence[Rollout]) -> str:
    """Each question with both answers and how they are judged."""
    lines = []
    for problem, old, new in zip(problems, before, after, strict=True):
        lines += [f"{problem.messages[-1].content}  ({problem.answer})"]
        for name, rollout in (("before", old), ("after", new)):
            text = " ".join(rollout.text.translate(VISIBLE).split())
            lines.append(f"  {name:<7} {judged(rollout):<18} {text}")
        lines.append("")
    return "\n".join(lines)


def judged(rollout: Rollout) -> str:
    strict, lenient = (rollout.score.parts[part] for part in PARTS)
    return "right" if strict else "right, wordy" if lenient else "wrong"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
