"""`etude ppo`: an actor learns from a reward, with a critic beside it. From Python:

    config = PpoConfig(data=DataSettings(train="task:add?low=1&high=9"), run=RunSettings(steps=40))
    run = ppo(config, reward=lambda problem, answer: float(problem.answer in answer))

What is trained, sampled and judged is put together here; the algorithm is train/ppo.py. The critic is a model
of its own: a copy of the actor's with a new head, or a reward model (RLHF: SFT → reward model → PPO). A
reward model whose scores are normalised makes a critic on the same scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from etude.learner.local import ComputeSettings, LocalLearner
from etude.learner.lora import LoraSettings, lora_weights, trained_pairs
from etude.learner.optimizer import AdamWSettings
from etude.learner.quantized import load_frozen
from etude.model.heads import ScalarHead
from etude.model.transformer import Transformer, load_transformer
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
from etude.recipes.grpo import Given, RewardNames
from etude.recipes.judging import Judges, judges_of
from etude.recipes.probe import Probed, few, tried
from etude.records import EtudeError, Problem
from etude.rewards import AnyReward, Judge
from etude.rollout import check_prompts, single_turn
from etude.runlog import RunReader
from etude.train import ppo as algorithm
from etude.train.judge import load_reward_model
from etude.train.ppo_settings import (
    CRITIC_FACTOR,
    HEAD_LEARNING_RATE,
    LEARNING_RATE,
    LORA_LEARNING_RATE,
    PpoSettings,
    check_effects,
)
from etude.train.run import Job, Report, free_folder, opened
from etude.train.sampling import HeldOut, RolloutSource
from etude.train.settings import (
    DataSettings,
    EvalSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    SamplingSettings,
)

SAMPLES_PER_PROMPT = 4
"""Where the settings name none. PPO compares an answer with what the critic expected, so that one would do;
several share the computation of their prompt."""

BY_NAME = Given()
"""Problems and reward as the config names them."""


@dataclass(frozen=True)
class PpoConfig:
    """Everything that a run is made of: a table each. reward: a name, or names with weights; None: what fits
    the problems, else math. lora None: whole models are trained, actor and critic. optimizer: of both;
    ppo.critic_learning_rate and optimizer.head_learning_rate (None: 1e-3 for a new head) are the critic's
    own."""

    model: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings | None = None
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    data: DataSettings = field(default_factory=DataSettings)
    reward: RewardNames = None
    ppo: PpoSettings = field(default_factory=PpoSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    run: RunSettings = field(default_factory=RunSettings)


@dataclass(frozen=True)
class Assembled:
    """Everything that a run works with."""

    actor: Trained
    critic: Trained
    source: RolloutSource
    held_out: HeldOut | None


@contextmanager
def assembled(config: PpoConfig, job: Job, given: Given) -> Iterator[Assembled]:
    """Load models, engine and problems, and see that they fit together."""
    check_effects(config.ppo, job.written)
    if given.problems is None:
        problems, held_out = problems_of(config.data, config.run.seed)
    else:
        problems, held_out = list(given.problems), list(given.held_out)
    if not held_out:
        why = "nothing is held out; set data.held_out or data.held_out_size"
        refuse_without_effect(job.written, ("eval",), why)
    judges = judges_of(config.reward if given.reward is None else given.reward, problems, config.compute)
    if config.data.check:
        check_rewards(problems, judges.reward, judges.full)
    actor, critic = actor_of(config), critic_of(config)
    check_vocabularies(actor, critic)
    sampling = config.sampling
    samples = sampling.samples_per_prompt or SAMPLES_PER_PROMPT
    sequences = sampling.prompts_per_step * samples
    with (
        closing(actor.source),
        closing(critic.source),
        closing(
            engine_of(config.model, sampling, lora=actor.lora is not None, sequences=sequences)
        ) as engine,
    ):
        prompts = prompts_of(engine, config.model)
        check_prompts(prompts, [*problems, *held_out], max_tokens=sampling.max_tokens)
        source = RolloutSource(
            engine=engine,
            prompts=prompts,
            problems=problems,
            order=order_of(problems, config.data, config.run.seed).span,
            env=single_turn(judges.reward),
            params=sampling.params(),
            prompts_per_step=sampling.prompts_per_step,
            samples_per_prompt=samples,
            seed=config.run.seed,
            counted_parts=judges.counted,
        )
        yield Assembled(actor, critic, source, held_out_of(config, judges, held_out))


def steps(config: PpoConfig, job: Job, given: Given = BY_NAME) -> Iterator[Report]:
    """Train, step by step; the final model, the actor, is written after the last one."""
    config, job = settled(config, job)
    with (
        assembled(config, job, given) as made,
        opened(
            job,
            config.run,
            "ppo",
            {"actor": made.actor.learner, "critic": made.critic.learner},
            saves_every_step=made.actor.lora is not None and made.critic.lora is not None,
            checkpoint_bytes=checkpoint_bytes(config, made.actor, made.critic),
            sampled_tokens=made.source.most_tokens,
        ) as run,
    ):
        actor, critic = made.actor.learner, made.critic.learner
        for report in algorithm.train(actor, critic, made.source, config.ppo, run, made.held_out):
            yield report
            if report.stopped:
                return
        save_final(run, made.actor, config.model.name)


def probe(config: PpoConfig, job: Job, given: Given = BY_NAME) -> str:
    """What a step will take, tried for a few seconds; nothing stays."""
    with assembled(config, job, given) as made:
        actor, critic = Probed(made.actor.learner, checked=True), Probed(made.critic.learner)
        some, share = few(made.held_out)
        found = tried(
            config.run,
            [actor, critic],
            lambda run: algorithm.train(actor, critic, made.source, config.ppo, run, some),
            eval_share=share,
        )
    return found.text(config.run.steps, config.eval.every)


def checkpoint_bytes(config: PpoConfig, actor: Trained, critic: Trained) -> int:
    """Of a checkpoint, about: weights and two moments of both; and the reference, a copy of a whole actor."""
    copied = config.ppo.kl_coefficient > 0 and actor.lora is None
    return actor.checkpoint_bytes * (4 if copied else 3) // 3 + critic.checkpoint_bytes


def held_out_of(config: PpoConfig, judges: Judges, problems: Sequence[Problem]) -> HeldOut | None:
    """What is evaluated on, if anything is."""
    if not problems:
        return None
    return HeldOut(
        problems=problems[: config.eval.limit],
        env=single_turn(judges.accuracy),
        params=config.eval.params(config.sampling),
        samples=config.eval.samples,
        parts=judges.parts,
        every=config.eval.every,
        seed=config.run.seed,
    )


def updates_of(config: PpoConfig) -> int:
    """Optimizer steps of a run, for the schedules."""
    return config.run.steps * config.ppo.minibatches * config.ppo.epochs


def actor_of(config: PpoConfig) -> Trained:
    """The policy."""
    default_rate = LEARNING_RATE if config.lora is None else LORA_LEARNING_RATE
    optimizer = replace(config.optimizer, head_learning_rate=None).adamw(default_rate, updates_of(config))
    return learner_of(
        config.model, config.compute, optimizer, config.lora, temperature=config.sampling.temperature
    )


def critic_of(config: PpoConfig) -> Trained:
    """The actor's model with a head of zeros, or a reward model. EtudeError as `load_reward_model`."""
    if config.ppo.critic is not None:
        return _critic_from_reward_model(config, config.ppo.critic)
    load = load_transformer if config.lora is None else load_frozen
    transformer, source = load(config.model.name, device=config.model.device)
    head = ScalarHead(transformer.config.d_model, config.model.device)
    optimizer = critic_optimizer(config, lora=config.lora is not None, new_head=True)
    learner = LocalLearner(transformer, optimizer, compute=config.compute, lora=config.lora, head=head)
    return Trained(learner, source, config.lora)


def _critic_from_reward_model(config: PpoConfig, folder: str) -> Trained:
    """V begins as the score of what there is so far, in units of the normalised scores. A reward model that
    is a LoRA goes on as that LoRA."""
    model = load_reward_model(folder, config.model.device)
    own = lora_of(model.transformer)
    lora = own or config.lora
    pairs = {name: value.detach().clone() for name, value in trained_pairs(model.transformer)}
    learner = LocalLearner(
        model.transformer,
        critic_optimizer(config, lora=lora is not None, new_head=False),
        compute=config.compute,
        lora=lora,
        head=model.head,
    )
    with torch.no_grad():
        model.head.weight.div_(model.record.std)
        model.head.bias.sub_(model.record.mean).div_(model.record.std)
        for name, parameter in trained_pairs(model.transformer):
            if name in pairs:
                parameter.copy_(pairs[name])
    return Trained(learner, model.source, lora)


def lora_of(transformer: Transformer) -> LoraSettings | None:
    """The settings of the LoRA that is beside a model already; None if there is none."""
    weights = lora_weights(transformer)
    if not weights.tensors:
        return None
    rank = len(next(iter(weights.tensors.values())).a)
    return LoraSettings(rank, weights.scale * rank, tuple(sorted({slot for slot, _ in weights.tensors})))


def critic_optimizer(config: PpoConfig, *, lora: bool, new_head: bool) -> AdamWSettings:
    """The actor's, with a learning rate of its own, and one for a head that begins with zeros."""
    actor_rate = config.optimizer.learning_rate
    if actor_rate is None or lora != (config.lora is not None):
        actor_rate = LORA_LEARNING_RATE if lora else LEARNING_RATE
    rate = config.ppo.critic_learning_rate or CRITIC_FACTOR * actor_rate
    head_rate = config.optimizer.head_learning_rate
    if head_rate is None and new_head:
        head_rate = HEAD_LEARNING_RATE
    return replace(config.optimizer, learning_rate=rate, head_learning_rate=head_rate).adamw(
        rate, updates_of(config)
    )


def check_vocabularies(actor: Trained, critic: Trained) -> None:
    """EtudeError if the critic does not read the actor's tokens."""
    sizes = [trained.learner.transformer.config.n_vocab for trained in (actor, critic)]
    if sizes[0] != sizes[1]:
        raise EtudeError(
            f"ppo.critic has a vocabulary of {sizes[1]} tokens, the actor one of {sizes[0]}: take a reward "
            "model that was trained from the same family of models"
        )


def ppo(
    config: PpoConfig,
    reward: AnyReward | Judge | None = None,
    given: Given = BY_NAME,
    *,
    on_step: Callable[[Report], None] | None = None,
    resume: str | Path | None = None,
) -> RunReader:
    """Train, and give the finished run. reward: a function, in place of the config's names; given: problems,
    likewise. on_step: called after each step. resume: folder of a run to go on with; the rest as it was."""
    if reward is not None:
        given = replace(given, reward=reward)
    record = asdict(config)
    if given.reward is not None:
        record["reward"] = f"a function of the program: {getattr(given.reward, '__name__', 'reward')}"
    if given.problems is not None:
        record["data"]["train"] = f"{len(given.problems)} problems of the program"
    folder = free_folder(config.run, "ppo") if resume is None else Path(resume)
    for report in steps(config, Job(folder, record, resume=resume is not None), given):
        if on_step is not None:
            on_step(report)
    return RunReader(folder)
