"""RLHF from end to end: SFT → reward model → PPO against that reward model.

    python examples/rlhf.py                Ctrl-C stops it, and the same command goes on with it

1. SFT: a few demonstrations show SmolLM2-135M how an answer should look. What it says is still often wrong.
2. The SFT model answers questions, several times each. A labeller says which answers are better: in the real
   thing people, here a program that knows which number is the largest, so that labels are exact. It is asked
   for pairs only: nothing else of the rule reaches the reward model.
3. The reward model begins as the SFT model and learns from the pairs.
4. PPO: the SFT model is trained on the reward model's scores. The critic begins as the reward model, and KL
   to the SFT model is part of the reward. PPO never sees the rule.

Because the rule is known, it shows at the end what is otherwise hidden: whether a higher score of the reward
model means better answers. Nothing that is measured has a number in it that occurs in training.

Each stage is a command that could be typed; its settings are in examples/rlhf-*.toml.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby, product
from pathlib import Path
from random import Random
from typing import Any

from etude.cli import main as etude
from etude.data import load_problems
from etude.data.pairs import STYLES
from etude.evals import Interval, evaluate
from etude.recipes.assembly import engine_of, prompts_of
from etude.records import EtudeError, Problem, Rollout, SamplingParams
from etude.rewards import load_reward
from etude.rollout import collect, single_turn
from etude.runlog import RunReader
from etude.train.judge import as_reward
from etude.train.settings import ModelSettings, SamplingSettings

HERE = Path(__file__).parent
AT_ONCE = 64
"""Questions that are answered together."""


@dataclass(frozen=True)
class Plan:
    """Everything about a run. The numbers are those of questions; answers: to each, for the labeller. rule:
    what a labeller prefers. settings: of single verbs, beside those of their files."""

    folder: Path = Path("runs/rlhf")
    model: str = "smollm2-135m"
    task: str = "task:largest?high=299&instruction=false"
    rule: str = "math?parse=lenient"
    demonstrations: int = 256
    compared: int = 480
    answers: int = 4
    trained_on: int = 2000
    measured: int = 200
    max_tokens: int = 24
    settings: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def problems(self, size: int, seed: int, *, held_out: bool = False) -> list[Problem]:
        """Questions; other seeds give other ones, held_out such with other numbers."""
        return load_problems(self.source(size, seed, held_out=held_out))

    def source(self, size: int, seed: int, *, held_out: bool = False) -> str:
        return f"{self.task}&size={size}&seed={seed}" + "&held_out=true" * held_out


class Stopped(Exception):
    """A verb has not come to its end. code: what it returned, or that of Ctrl-C."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def main(argv: Sequence[str]) -> int:
    """argv: the folder, if it is another than runs/rlhf."""
    try:
        return rlhf(Plan(Path(argv[0])) if argv else Plan())
    except Stopped as stopped:
        return stopped.code
    except EtudeError as error:
        print(f"rlhf: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def rlhf(plan: Plan) -> int:
    """All stages, those that are there already excepted; 0 if PPO's answers are righter than those of SFT."""
    start = time.perf_counter()
    plan.folder.mkdir(parents=True, exist_ok=True)
    sft, judge, ppo = (plan.folder / name for name in ("sft", "reward-model", "ppo"))
    models = {"before": plan.model, "SFT": f"{sft}.gguf", "PPO": f"{ppo}.gguf"}
    # ── 1: SFT ──
    data = files(plan, "demonstrations", demonstrations)
    train(plan, "sft", sft, ["--model.name", plan.model, *data])
    merge(plan.model, sft, models["SFT"])
    # ── 2: answers, compared ──
    data = files(plan, "comparisons", comparisons)
    # ── 3: the reward model ──
    train(plan, "reward-model", judge, ["--model.name", models["SFT"], *data])
    # ── 4: PPO ──
    data = ["--data.train", plan.source(plan.trained_on, 3), "--data.check", "false"]
    data += ["--data.held_out", plan.source(plan.measured, 3, held_out=True)]
    reward = ["--reward", f"{judge}/final", "--ppo.critic", f"{judge}/final"]
    train(plan, "ppo", ppo, ["--model.name", models["SFT"], *reward, *data])
    merge(models["SFT"], ppo, models["PPO"])
    # ── what it has come to ──
    print(f"\n{texts_of_stages(sft, judge)}\n")
    measured = measure(plan, models, judge / "final")
    print(table(measured, plan.measured))
    print(f"\n{examples(measured)}\n{time.perf_counter() - start:.0f} s. The model: {models['PPO']}")
    learnt = measured["SFT"].right.high < measured["PPO"].right.low
    print("PPO's answers are right more often than those of SFT: the intervals "
          + ("do not touch." if learnt else "touch, so that this run has not shown it."))  # fmt: skip
    return int(not learnt)


# ── the stages ──


def train(plan: Plan, verb: str, folder: Path, words: Sequence[str]) -> None:
    """`etude VERB`: a new run, the rest of one, or nothing if it is finished."""
    if not (folder / "run.json").exists():
        config = str(HERE / f"rlhf-{'reward' if verb == 'reward-model' else verb}.toml")
        place = ["--run.folder", str(folder.parent), "--run.name", folder.name]
        words = [verb, config, *words, *place, *plan.settings.get(verb, ())]
    elif RunReader(folder).state == "finished":
        return
    else:
        words = [verb, "--resume", str(folder)]
    print(f"\n$ etude {' '.join(words)}", flush=True)
    code = etude(words)
    if code == 0 and RunReader(folder).state != "finished":
        print("the same command goes on with it", file=sys.stderr)
        code = 128 + signal.SIGINT
    if code:
        raise Stopped(code)


def merge(base: str, run: Path, merged: str) -> None:
    """The run's LoRA in the weights of its base: a model for the next stage."""
    if Path(merged).exists():
        return
    words = ["merge", base, str(run / "final"), "-o", merged]
    print(f"\n$ etude {' '.join(words)}", flush=True)
    if code := etude(words):
        raise Stopped(code)


def files(plan: Plan, name: str, made: Any) -> list[str]:
    """Settings that name two files of rows, to train on and held out; they are written unless they are there.
    made: (plan, held_out) → rows."""
    words: list[str] = []
    for setting, held_out in (("train", False), ("held_out", True)):
        path = plan.folder / f"{name}{'-held-out' * held_out}.jsonl"
        if not path.exists():
            rows = list(made(plan, held_out))
            if not rows:
                raise EtudeError(f"{path}: no question has both better and worse answers")
            draft = path.with_suffix(".part")
            draft.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            draft.replace(path)
            print(f"{path}: {len(rows)} rows", flush=True)
        words += [f"--data.{setting}", str(path)]
    return words


def demonstrations(plan: Plan, held_out: bool) -> Iterable[dict[str, str]]:
    """Right answers, each in one of several forms."""
    draw = Random(f"demonstrations {held_out}")
    for problem in plan.problems(plan.measured if held_out else plan.demonstrations, 1, held_out=held_out):
        text = draw.choice(STYLES).format(problem.answer)
        yield {"prompt": problem.messages[-1].content, "completion": text}


def comparisons(plan: Plan, held_out: bool) -> Iterable[dict[str, str]]:
    """Answers of the SFT model to the same question, a better and a worse one."""
    problems = plan.problems(plan.measured if held_out else plan.compared, 2, held_out=held_out)
    sampled = answers(plan, f"{plan.folder}/sft.gguf", problems, n=plan.answers, temperature=1.0)
    for problem, group in zip(problems, by_problem(sampled), strict=True):
        judged = {one.text.strip(): one.score.total > 0.5 for one in group if shown(one)}
        better, worse = ([text for text, good in judged.items() if text and good == side]
                         for side in (True, False))  # fmt: skip
        for chosen, rejected in product(better, worse):
            yield {"prompt": problem.messages[-1].content, "chosen": chosen, "rejected": rejected}


def shown(answer: Rollout) -> bool:
    """Whether a labeller sees it: not if it was cut off."""
    return answer.finish in ("eos", "stop")


def answers(
    plan: Plan, model: str, problems: Sequence[Problem], *, n: int, temperature: float
) -> list[Rollout]:
    """n answers of a model to each question, judged by the rule."""
    settings, sampling = ModelSettings(model), SamplingSettings(max_tokens=plan.max_tokens)
    params = SamplingParams(temperature=temperature, max_tokens=plan.max_tokens)
    env, found = single_turn(load_reward(plan.rule)), []
    with closing(engine_of(settings, sampling, lora=False, sequences=AT_ONCE * n)) as engine:
        prompts = prompts_of(engine, settings)
        for at in range(0, len(problems), AT_ONCE):
            some = problems[at : at + AT_ONCE]
            found += collect(engine, prompts, some, env, n=n, params=params, seed=0, first_index=at)
    return found


def by_problem(rollouts: Iterable[Rollout]) -> list[list[Rollout]]:
    return [list(group) for _, group in groupby(rollouts, key=lambda rollout: rollout.problem_id)]


# ── what came of it ──


@dataclass(frozen=True)
class Measured:
    """Of a model: how often it is right, by the rule; what the reward model thinks of it, in deviations from
    what it saw in training; how long its answers are."""

    right: Interval
    score: float
    n_tokens: float
    answers: list[Rollout]
    problems: list[Problem]


def measure(plan: Plan, models: Mapping[str, str], judge: Path) -> dict[str, Measured]:
    """The most likely answers of each model to the same questions."""
    problems, reward = plan.problems(plan.measured, 3, held_out=True), as_reward(judge)
    found = {}
    for name, model in models.items():
        rollouts = answers(plan, model, problems, n=1, temperature=0.0)
        evaluation = evaluate(rollouts)
        scores = [
            reward(problem, [one.text])[0].total for problem, one in zip(problems, rollouts, strict=True)
        ]
        found[name] = Measured(
            evaluation.accuracies["score"],
            sum(scores) / len(scores),
            evaluation.mean_tokens,
            rollouts,
            problems,
        )
    return found


def texts_of_stages(sft: Path, judge: Path) -> str:
    """What SFT and the reward model have learnt, on what was held out."""
    first, last = (RunReader(sft).metrics()[at] for at in (0, -1))
    rows = RunReader(judge).metrics()
    start, end = (Interval(row["eval/accuracy"], row["eval/accuracy/low"], row["eval/accuracy/high"])
                  for row in (rows[0], rows[-1]))  # fmt: skip
    return (
        f"SFT: held-out loss {first['eval/loss']:.3f} → {last['eval/loss']:.3f} nats a token\n"
        f"reward model: held-out pairs in the right order {start} → {end}\n"
        f"  (“the longer one”: {100 * rows[-1]['eval/longer_is_better']:.1f} %; "
        f"correlation of score and length {rows[-1]['eval/length_correlation']:+.2f})"
    )


def table(measured: Mapping[str, Measured], n: int) -> str:
    lines = [
        f"{n} held-out questions, none of whose numbers occurs in training, greedy answers",
        f"{'':<8}{'right, by the rule':<24}{'reward model':<14}tokens",
    ]
    for name, one in measured.items():
        lines.append(f"{name:<8}{one.right!s:<24}{one.score:<+14.2f}{one.n_tokens:.1f}")
    return "\n".join(lines)


def examples(measured: Mapping[str, Measured], n: int = 3) -> str:
    """The first questions, with all answers."""
    lines = []
    for at, problem in enumerate(next(iter(measured.values())).problems[:n]):
        lines.append(f"{problem.messages[-1].content}")
        lines += [f"  {name:<8}{' '.join(one.answers[at].text.split())}" for name, one in measured.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
