"""What trainings are made of: model, learner, engine, problems, from their settings.

Settings that exclude each other are refused here, before anything large is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from etude.data import Order, check_problems, load_problems, split, without
from etude.engine.engine import Engine
from etude.learner.local import AUTO, ComputeSettings, LocalLearner
from etude.learner.lora import LoraSettings, lora_weights
from etude.learner.optimizer import AdamWSettings
from etude.learner.quantized import load_frozen
from etude.model.chat import ChatTemplate
from etude.model.checkpoint import HFFolder
from etude.model.gguf import GGUFFile
from etude.model.heads import ScalarHead
from etude.model.lora_write import save_gguf_adapter, save_peft_folder
from etude.model.save import save_gguf, save_hf_folder
from etude.model.transformer import load_transformer
from etude.records import EtudeError, Problem
from etude.rollout import PromptWriter
from etude.runlog import RunReader
from etude.train.run import Job, Run
from etude.train.settings import DataSettings, ModelSettings, SamplingSettings

Source = GGUFFile | HFFolder

FULL_WEIGHT_TYPE = "f32"
"""In what the engine holds the matrices of a model that is trained whole: the learner's own numbers. See
docs/mismatch.md."""
CHECKED = 500
"""Problems whose gold answer is judged before training."""
PROMPT_TOKENS = 512
"""What a prompt is taken to need at most when the engine's cache is sized."""
MODEL_FILE, ADAPTER_FILE, FOLDER_DTYPE = "model.gguf", "adapter.gguf", "bf16"


class Computed(Protocol):
    """The settings of a run that computes with a model."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def model(self) -> ModelSettings: ...

    @property
    def compute(self) -> ComputeSettings: ...


Config = TypeVar("Config", bound=Computed)


def settled(config: Config, job: Job) -> tuple[Config, Job]:
    """Both with the dtype of the products as it stays for the whole run: what the user wrote; for "auto" what
    a resumed run has in its config.toml, else what is measured now, which goes into that file."""
    compute = config.compute
    if job.resume:
        stored = RunReader(job.folder).config.get("compute", {}).get("dtype", compute.dtype)
        compute = replace(compute, dtype=stored) if compute.dtype == AUTO else compute
    compute = compute.measured(config.model.device)
    record = {**job.config, "compute": {**job.config.get("compute", {}), "dtype": compute.dtype}}
    return replace(config, compute=compute), replace(job, config=record)


@dataclass(frozen=True)
class Trained:
    """A learner and the file that its model comes from, which stays open."""

    learner: LocalLearner
    source: Source
    lora: LoraSettings | None

    @property
    def checkpoint_bytes(self) -> int:
        """About: weights and two moments in f32."""
        return 12 * sum(tensor.numel() for _, tensor in self.learner.weights())


def learner_of(
    model: ModelSettings,
    compute: ComputeSettings,
    optimizer: AdamWSettings,
    lora: LoraSettings | None,
    *,
    head: ScalarHead | None = None,
    temperature: float = 1.0,
) -> Trained:
    """The model to train: whole, in f32; or with a LoRA beside a base that stays as it is in its file."""
    load = load_transformer if lora is None else load_frozen
    transformer, source = load(model.name, device=model.device)
    learner = LocalLearner(
        transformer, optimizer, compute=compute, lora=lora, head=head, temperature=temperature
    )
    return Trained(learner, source, lora)


def engine_of(model: ModelSettings, sampling: SamplingSettings, *, lora: bool, sequences: int) -> Engine:
    """The engine that samples from the same file. sequences: completions at once."""
    weight_type = sampling.weight_type or (None if lora else FULL_WEIGHT_TYPE)
    cache_type = "f32" if weight_type == "f32" else "f16"  # f32 is there to be exact
    tokens = sequences * (sampling.max_tokens + 32) + sampling.prompts_per_step * PROMPT_TOKENS
    return Engine.load(
        model.name,
        threads=sampling.threads,
        weight_type=weight_type,
        cache_type_k=cache_type,
        cache_type_v=cache_type,
        cache_tokens=-(-tokens // 32) * 32,
        step_tokens=max(512, 2 * sequences),
        max_sequences=sequences if sequences > 256 else None,
    )


def prompts_of(engine: Engine, model: ModelSettings) -> PromptWriter:
    """How problems become prompts: by the model's own chat template, a built-in one, or as plain text."""
    template = engine.chat
    if model.chat_template is not None:
        template = None if model.chat_template == "none" else ChatTemplate.builtin(model.chat_template)
    return PromptWriter(engine.tokenizer, template, context=engine.context)


def problems_of(data: DataSettings, seed: int) -> tuple[list[Problem], list[Problem]]:
    """(to train on, held out), with no question on both sides."""
    if not data.train:
        raise EtudeError(
            "data.train is missing: name a file, a folder, task:NAME or reasoning_gym:NAME, such as "
            '--data.train "task:add?low=1&high=9"'
        )
    training = load_problems(data.train)[: data.limit]
    if data.held_out is not None:
        held_out = load_problems(data.held_out)
        training = without(training, held_out)
        if not training:
            raise EtudeError(f"all problems of {data.train} are also in {data.held_out}: nothing is left")
        return training, held_out
    if data.held_out_size:
        return split(training, data.held_out_size, seed=seed)
    return training, []


def order_of(problems: Sequence[Problem], data: DataSettings, seed: int) -> Order:
    return Order(len(problems), seed, shuffled=data.shuffle)


def refuse_without_effect(written: Mapping[str, str], names: Sequence[str], why: str) -> None:
    """EtudeError for the first of the settings (or settings of these tables) that the user wrote."""
    for name, where in written.items():
        if any(name == one or name.startswith(f"{one}.") for one in names):
            raise EtudeError(f"{where}: {name} has no effect: {why}")


def check_rewards(problems: Sequence[Problem], judge: object, full: float | None) -> str:
    """What the gold and the empty answers score; EtudeError if that shows a broken reward."""
    if full is None or all(problem.answer is None for problem in problems):
        return "rewards were not checked: the problems have no gold answers"
    check = check_problems(problems[:CHECKED], judge, full=full)  # type: ignore[arg-type]  # judge_of checked it
    check.require()
    return check.text()


def save_final(run: Run, trained: Trained, base: str) -> Path | None:
    """The trained model into final/, as the run's settings say; None for none."""
    kind = run.settings.final
    if kind == "none":
        return None
    learner, source = trained.learner, trained.source
    with run.writer.final() as draft:
        if trained.lora is not None:
            weights, config = lora_weights(learner.transformer), learner.transformer.config
            if kind == "gguf":
                save_gguf_adapter(draft / ADAPTER_FILE, config, weights)
            else:
                save_peft_folder(draft, config, weights, base)
        elif kind == "gguf":
            save_gguf(draft / MODEL_FILE, source, learner.weights(), "f16")
        else:
            save_hf_folder(draft, source, learner.weights(), FOLDER_DTYPE)
    return run.folder / "final"
