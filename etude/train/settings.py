"""Settings that algorithms share, a frozen record for each part of a run; a config file has a table of each.

    [model]      ModelSettings          [lora]      learner.lora.LoraSettings       [run]   RunSettings
    [compute]    learner.local.ComputeSettings      [optimizer] OptimizerSettings   [eval]  EvalSettings
    [data]       DataSettings           [sampling]  SamplingSettings

None stands for a value that depends on something else, said at its name. Records check what they can see
alone; what one setting means for another is checked where both are known, before anything is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from etude.learner.optimizer import AdamWSettings, Schedule
from etude.records import EtudeError, SamplingParams

WEIGHT_TYPES = ("f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class ModelSettings:
    """What is trained. name: GGUF file, Hugging Face folder, or a name that `etude pull` knows.

    chat_template: name of a built-in one, "none" for plain text; None: the model's own. device: where the
    learner computes.
    """

    name: str = "smollm2-135m"
    chat_template: str | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW. learning_rate None: the algorithm's own default, which differs for LoRA.

    schedule: constant after warmup_steps, or falling to final_fraction (None: 0) at the end of the run,
    linear or along half a cosine. max_grad_norm 0: gradients are not clipped. head_learning_rate: of a scalar
    head.
    """

    learning_rate: float | None = None
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    final_fraction: float | None = None
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    head_learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.max_grad_norm < 0:
            raise EtudeError(f"max_grad_norm is {self.max_grad_norm}; it must be at least 0 (0: no limit)")
        if self.schedule == "constant" and self.final_fraction is not None:
            raise EtudeError(
                "optimizer.final_fraction has no effect on a constant schedule: leave it out, or write "
                "optimizer.schedule linear or cosine"
            )

    def adamw(self, default_rate: float, updates: int) -> AdamWSettings:
        """For a run of that many optimizer steps."""
        falling = self.schedule != "constant"
        return AdamWSettings(
            learning_rate=default_rate if self.learning_rate is None else self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm or None,
            schedule=Schedule(
                self.schedule, self.warmup_steps, updates if falling else None, self.final_fraction
            ),
            head_learning_rate=self.head_learning_rate,
        )


@dataclass(frozen=True)
class DataSettings:
    """What is learnt from. train: a file, a folder, task:NAME, reasoning_gym:NAME or owner/name.

    held_out: what is evaluated on, likewise; or held_out_size: so many of `train` are set apart. limit: only
    the first of train. check: see before training that gold answers score full marks and empty ones nothing.
    """

    train: str = ""
    held_out: str | None = None
    held_out_size: int = 0
    limit: int | None = None
    shuffle: bool = True
    check: bool = True

    def __post_init__(self) -> None:
        if self.held_out is not None and self.held_out_size:
            raise EtudeError("data.held_out_size has no effect beside data.held_out: leave one of them out")
        if self.held_out_size < 0 or (self.limit is not None and self.limit < 1):
            raise EtudeError("data.held_out_size must be at least 0, and data.limit at least 1")


@dataclass(frozen=True)
class SamplingSettings:
    """How rollouts are drawn: plain sampling at a temperature, by which the learner divides its logits too.

    (top-k, top-p and the like would sample from another distribution than the one that is trained.)
    max_tokens: of an answer. stop: texts that end one. weight_type: what the engine holds the matrices in;
    None: f16 for a full fine-tune, and for LoRA the types of the model's file. q8_0 samples about twice as
    fast as f16; what it rounds off is corrected by weights and logged (docs/mismatch.md). threads None: every
    core.
    """

    prompts_per_step: int = 8
    samples_per_prompt: int | None = None
    max_tokens: int = 64
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    weight_type: Literal["f32", "f16", "bf16", "q8_0"] | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("prompts_per_step", "samples_per_prompt", "max_tokens", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EtudeError(f"sampling.{name} is {value}; it must be at least 1")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise EtudeError(
                f"sampling.temperature is {self.temperature}; rollouts need one above 0 (1: the model's own)"
            )

    def params(self) -> SamplingParams:
        return SamplingParams(temperature=self.temperature, max_tokens=self.max_tokens, stop=self.stop)


@dataclass(frozen=True)
class EvalSettings:
    """Held-out accuracy at step 0, every so many steps, and at the end. every 0: only at 0 and the end.

    samples: answers for each problem; temperature 0: greedy. max_tokens None: as in training. limit: only the
    first problems.
    """

    every: int = 10
    samples: int = 1
    temperature: float = 0.0
    max_tokens: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.samples > 1 and self.temperature == 0:
            raise EtudeError(
                f"eval.samples is {self.samples}, but at eval.temperature 0 all would be the same"
            )
        for name, least in (
            ("every", 0),
            ("samples", 1),
            ("temperature", 0),
            ("max_tokens", 1),
            ("limit", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise EtudeError(f"eval.{name} is {value}; it must be at least {least}")

    def params(self, sampling: SamplingSettings) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature,
            max_tokens=self.max_tokens or sampling.max_tokens,
            stop=sampling.stop,
        )


@dataclass(frozen=True)
class RunSettings:
    """How long, and where it is written. name None: the verb with the next free number. seed: of everything
    that is drawn.

    checkpoint_every None: every step for LoRA, else as often as saving costs at most a twentieth of the time.
    keep_last: checkpoints that stay, beside the best. rollouts_every: steps between those whose samples are
    stored; 0: none. final: what the finished model is written as (LoRA: folder is PEFT's, gguf an adapter).
    tracker: where the numbers of each step are copied to, beside metrics.jsonl (docs/trackers.md).
    """

    steps: int = 100
    seed: int = 0
    folder: str = "runs"
    name: str | None = None
    checkpoint_every: int | None = None
    keep_last: int = 2
    rollouts_every: int = 1
    final: Literal["folder", "gguf", "none"] = "folder"
    tracker: Literal["tensorboard", "trackio", "wandb"] | None = None

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("checkpoint_every", 1), ("keep_last", 1), ("rollouts_every", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise EtudeError(f"run.{name} is {value}; it must be at least {least}")
