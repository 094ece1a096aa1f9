"""`etude grpo`, and the same from Python: a model learns from a reward.

    from etude import grpo

    def reward(problem, answer):
        return float(problem.answer in answer)

    run = grpo(data="task:add?low=1&high=9", reward=reward)
    print(run.metrics()[-1]["reward/mean"])

What is trained, sampled and judged is put together here; the algorithm is train/grpo.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from etude.learner.local import ComputeSettings
from etude.learner.lora import LoraSettings
from etude.recipes.assembly import (
    Trained,
    check_rewards,
    engine_of,
    learner_of,
    order_of,
    problems_of,
    prompts_of,
    refuse_without_effect,
    save_final,
    settled,
)
from etude.recipes.judging import Judges, judges_of
from etude.recipes.probe import Probed, few, tried
from etude.records import EtudeError, Problem
from etude.rewards import AnyReward, Judge
from etude.rollout import PromptWriter, check_prompts, single_turn
from etude.runlog import RunReader
from etude.train import grpo as algorithm
from etude.train.grpo_settings import (
    LEARNING_RATE,
    LORA_LEARNING_RATE,
    GrpoSettings,
    Objective,
    check_effects,
    objective_of,
)
from etude.train.run import Job, Report, free_folder, opened
from etude.train.sampling import HeldOut, RolloutSource, SamplingEngine
from etude.train.settings import (
    DataSettings,
    EvalSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    SamplingSettings,
)

RewardNames = str | Mapping[str, float] | None


@dataclass(frozen=True)
class GrpoConfig:
    """Everything that a run is made of: a table each. reward: a name, or names with weights; None: what fits
    the problems, else math. lora None: the whole model is trained."""

    model: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings | None = None
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    data: DataSettings = field(default_factory=DataSettings)
    reward: RewardNames = None
    grpo: GrpoSettings = field(default_factory=GrpoSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    run: RunSettings = field(default_factory=RunSettings)


@dataclass(frozen=True)
class Given:
    """What a program hands over as it is, instead of by name."""

    problems: Sequence[Problem] | None = None
    held_out: Sequence[Problem] = ()
    reward: AnyReward | Judge | None = None


@dataclass(frozen=True)
class Task:
    """What is to be learnt: problems, those held out, judges, and what the objective makes of them."""

    problems: Sequence[Problem]
    held_out: Sequence[Problem]
    judges: Judges
    objective: Objective
    samples_per_prompt: int


def task_of(config: GrpoConfig, written: Mapping[str, str], given: Given) -> Task:
    """Everything that can be known without the model. EtudeError for what does not fit together."""
    objective = objective_of(config.grpo)
    samples = config.sampling.samples_per_prompt or objective.preset.samples_per_prompt
    check_effects(objective, written, samples)
    if given.problems is None:
        problems, held_out = problems_of(config.data, config.run.seed)
    else:
        problems, held_out = list(given.problems), list(given.held_out)
    if not held_out:
        why = "nothing is held out; set data.held_out or data.held_out_size"
        refuse_without_effect(written, ("eval",), why)
    refuse_without_effect(written, ("optimizer.head_learning_rate",), "GRPO has no scalar head")
    judges = judges_of(config.reward if given.reward is None else given.reward, problems, config.compute)
    return Task(problems, held_out[: config.eval.limit], judges, objective, samples)


@dataclass(frozen=True)
class Assembled:
    """Everything that a run works with."""

    task: Task
    trained: Trained
    source: RolloutSource
    held_out: HeldOut | None


@contextmanager
def assembled(config: GrpoConfig, job: Job, given: Given) -> Iterator[Assembled]:
    """Load model, engine and problems, and see that they fit together."""
    task = task_of(config, job.written, given)
    if config.data.check:
        check_rewards(task.problems, task.judges.reward, task.judges.full)
    trained = policy_of(config, task.objective)
    sequences = config.sampling.prompts_per_step * task.samples_per_prompt
    with (
        closing(trained.source),
        closing(
            engine_of(config.model, config.sampling, lora=config.lora is not None, sequences=sequences)
        ) as engine,
    ):
        prompts = prompts_of(engine, config.model)
        check_prompts(prompts, [*task.problems, *task.held_out], max_tokens=config.sampling.max_tokens)
        source = source_of(config, task, engine, prompts)
        held_out = held_out_of(config, task) if task.held_out else None
        yield Assembled(task, trained, source, held_out)


def steps(config: GrpoConfig, job: Job, given: Given = Given()) -> Iterator[Report]:
    """Train, step by step; the final model is written after the last one."""
    config, job = settled(config, job)
    with (
        assembled(config, job, given) as made,
        opened(
            job,
            config.run,
            "grpo",
            {"policy": made.trained.learner},
            saves_every_step=config.lora is not None,
            checkpoint_bytes=checkpoint_bytes(made, config),
            sampled_tokens=made.source.most_tokens,
        ) as run,
    ):
        policy, objective = made.trained.learner, made.task.objective
        for report in algorithm.train(policy, made.source, objective, run, made.held_out):
            yield report
            if report.stopped:
                return
        save_final(run, made.trained, config.model.name)


def checkpoint_bytes(made: Assembled, config: GrpoConfig) -> int:
    """Of a checkpoint, about: weights and two moments; and the reference, which is a copy of what is trained
    unless a LoRA's base stays it."""
    settings = made.task.objective.preset
    copied = settings.kl_coefficient > 0 and (config.lora is None or settings.reference_refresh > 0)
    return made.trained.checkpoint_bytes * (4 if copied else 3) // 3


def probe(config: GrpoConfig, job: Job, given: Given = Given()) -> str:
    """What a step will take, tried for a few seconds; nothing stays."""
    with assembled(config, job, given) as made:
        policy, objective = Probed(made.trained.learner, checked=True), made.task.objective
        some, share = few(made.held_out)
        found = tried(
            config.run,
            [policy],
            lambda run: algorithm.train(policy, made.source, objective, run, some),
            eval_share=share,
        )
    return found.text(config.run.steps, config.eval.every)


def policy_of(config: GrpoConfig, objective: Objective) -> Trained:
    """The learner, with the schedule of the run's updates."""
    default_rate = LEARNING_RATE if config.lora is None else LORA_LEARNING_RATE
    optimizer = config.optimizer.adamw(default_rate, config.run.steps * objective.updates)
    return learner_of(
        config.model, config.compute, optimizer, config.lora, temperature=config.sampling.temperature
    )


def source_of(config: GrpoConfig, task: Task, engine: SamplingEngine, prompts: PromptWriter) -> RolloutSource:
    return RolloutSource(
        engine=engine,
        prompts=prompts,
        problems=task.problems,
        order=order_of(task.problems, config.data, config.run.seed).span,
        env=single_turn(task.judges.reward),
        params=config.sampling.params(),
        prompts_per_step=config.sampling.prompts_per_step,
        samples_per_prompt=task.samples_per_prompt,
        seed=config.run.seed,
        counted_parts=task.judges.counted,
    )


def held_out_of(config: GrpoConfig, task: Task) -> HeldOut:
    return HeldOut(
        problems=task.held_out,
        env=single_turn(task.judges.accuracy),
        params=config.eval.params(config.sampling),
        samples=config.eval.samples,
        parts=task.judges.parts,
        every=config.eval.every,
        seed=config.run.seed,
    )


def grpo(
    model: str | Path | ModelSettings | None = None,
    data: str | DataSettings | Sequence[Problem] | None = None,
    reward: RewardNames | AnyReward | Judge = None,
    *,
    held_out: Sequence[Problem] = (),
    on_step: Callable[[Report], None] | None = None,
    resume: str | Path | None = None,
    **tables: Any,
) -> RunReader:
    """Train, and give the finished run.

    data: a name, settings, or problems (with `held_out`). reward: a name, names with weights, or a function
    (problem, answer) -> float or Score, also of a whole group or async.
    on_step: called after each step. resume: folder of a run to go on with; everything else must be as it was.
    tables: the others of GrpoConfig, such as run=RunSettings(steps=60), lora=LoraSettings().
    """
    known = {one.name for one in fields(GrpoConfig)}
    for name in tables:
        if name not in known:
            raise EtudeError(f"grpo has no settings {name!r}; there are {', '.join(sorted(known))}")
    if model is not None:
        tables["model"] = model if isinstance(model, ModelSettings) else ModelSettings(str(model))
    problems: Sequence[Problem] | None = None
    if isinstance(data, str | DataSettings):
        tables["data"] = DataSettings(train=data) if isinstance(data, str) else data
    elif data is not None:
        problems = data
    function: AnyReward | Judge | None = None
    if reward is None or isinstance(reward, str | Mapping):
        tables["reward"] = reward
    else:
        function = reward
    config = GrpoConfig(**tables)
    given = Given(problems, held_out, function)
    folder = free_folder(config.run, "grpo") if resume is None else Path(resume)
    job = Job(folder, recorded(config, given), resume=resume is not None)
    for report in steps(config, job, given):
        if on_step is not None:
            on_step(report)
    return RunReader(folder)


def recorded(config: GrpoConfig, given: Given) -> dict[str, Any]:
    """The settings for config.toml; what has no name of its own is noted as it is called in the program."""
    record = asdict(config)
    if given.reward is not None:
        record["reward"] = f"a function of the program: {getattr(given.reward, '__name__', 'reward')}"
    if given.problems is not None:
        record["data"]["train"] = f"{len(given.problems)} problems of the program"
    return record
