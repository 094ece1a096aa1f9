"""`etude eval`: answers to a set of problems, judged, with intervals."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etude.data import best_constant, check_problems, load_problems
from etude.engine.engine import Engine
from etude.evals import Evaluation, evaluate
from etude.model.chat import ChatTemplate
from etude.recipes.accuracy import fitting_reward, judges_for
from etude.records import EtudeError, Problem, Rollout, SamplingParams
from etude.rewards import Judge
from etude.rollout import PromptWriter, check_prompts, collect, single_turn
from etude.runlog import rollout_row
from etude.terminal.loading import open_engine
from etude.terminal.model import model_path
from etude.terminal.options import Options, UsageError

AT_ONCE = 64
"""Problems that are sampled together."""

CHECKED = 500
"""Problems whose gold answer is judged beforehand."""

ADAPTER = "policy"


def run(options: Options) -> int:
    """The verb."""
    if options["data"] is None:
        raise UsageError("there are no problems: give -d DATA")
    problems = load_problems(options["data"])[: options["limit"]]
    judge, strict, parts = judges_for(options["reward"] or fitting_reward(problems))
    if options["check"]:
        check_problems(problems[:CHECKED], strict).require()
    params = sampling(options)
    started_s = time.monotonic()
    with open_engine(options, model_path(options), sequences=options["samples"]) as engine:
        rollouts = sample(engine, problems, judge, params, options)
    found = evaluate(rollouts, parts)
    constant = best_constant(problems, strict) if parts else None
    report = {
        "data": options["data"],
        "reward": strict.name,
        "temperature": params.temperature,
        "seconds": time.monotonic() - started_s,
        "best_constant": constant,
        **found.as_json(),
    }
    if options["rollouts"]:
        by_id = {problem.id: problem for problem in problems}
        lines = (json.dumps(rollout_row(one, by_id[one.problem_id]), ensure_ascii=False) for one in rollouts)
        _write(options, "rollouts", "".join(f"{line}\n" for line in lines))
    if options["json"] not in (None, "-"):
        _write(options, "json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    sys.stdout.write(json.dumps(report) + "\n" if options["json"] == "-" else table(found, constant))
    return 0


def sampling(options: Options) -> SamplingParams:
    """Greedy for one sample; for several what R1 is evaluated with, temperature 0.6 and top-p 0.95."""
    several = options["samples"] > 1
    temperature = (0.6 if several else 0.0) if options["temp"] is None else options["temp"]
    if several and temperature == 0:
        raise options.error("temp", "several samples at temperature 0 are all the same")
    top_p = (0.95 if several else 1.0) if options["top_p"] is None else options["top_p"]
    if temperature == 0 and options.given("top_p"):
        raise options.error("top_p", "no effect at temperature 0")
    return SamplingParams(temperature, top_p=top_p, max_tokens=options["n_predict"])


def sample(
    engine: Engine, problems: Sequence[Problem], judge: Judge, params: SamplingParams, options: Options
) -> list[Rollout]:
    """All answers, some problems at a time; says on the error output how far it is."""
    if options["adapter"] is not None:
        if not Path(options["adapter"]).exists():
            raise EtudeError(f"no file or folder {options['adapter']!r} with a LoRA adapter")
        engine.load_adapter(ADAPTER, options["adapter"])
    prompts = PromptWriter(
        engine.tokenizer, template_of(options["chat_template"], engine.chat), context=engine.context
    )
    check_prompts(prompts, problems, max_tokens=options["n_predict"])
    rollouts: list[Rollout] = []
    for start in range(0, len(problems), AT_ONCE):
        rollouts += collect(
            engine,
            prompts,
            problems[start : start + AT_ONCE],
            single_turn(judge),
            n=options["samples"],
            params=params,
            seed=options["seed"],
            first_index=start,
            adapter=ADAPTER if options["adapter"] else None,
        )
        if sys.stderr.isatty():
            wanted = len(problems) * options["samples"]
            print(f"\r{len(rollouts)} of {wanted} answers", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return rollouts


def template_of(name: str | None, own: ChatTemplate | None) -> ChatTemplate | None:
    """The model's own template, a built-in one, or "none"."""
    if name is None:
        return own
    return None if name == "none" else ChatTemplate.builtin(name)


def table(found: Evaluation, constant: tuple[str, float] | None) -> str:
    """What a reader wants to know, in a few lines."""
    lines = [f"{found.n_problems} problems, {found.n_samples} answers"]
    for name, accuracy in found.accuracies.items():
        cells = [f"{name:<8} accuracy {accuracy}"]
        cells += [f"pass@{k} {100 * value.value:.1f} %" for k, value in found.pass_at[name].items() if k > 1]
        cells += [f"cons@{k} {100 * value.value:.1f} %" for k, value in found.cons_at[name].items()]
        lines.append("  ".join(cells))
    if constant is not None:
        lines.append(f"always {constant[0][:40]!r}: {100 * constant[1]:.1f} % (the best constant answer)")
    lines.append(f"{found.mean_tokens:.1f} tokens an answer, {100 * found.truncated:.1f} % cut off")
    if found.failures:
        lines.append(f"{found.failures} answers could not be judged and are left out")
    return "\n".join(lines) + "\n"


def _write(options: Options, key: str, text: str) -> None:
    path: Any = options[key]
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise options.error(key, f"cannot write {path!r}: {error.strerror}") from None
