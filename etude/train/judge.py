"""A trained reward model on the disk, and as a reward for PPO and GRPO.

    FOLDER/     the model as a Hugging Face folder, or the LoRA as PEFT's
      head.safetensors     weight (1, D) and bias (1) of the scalar head
      reward.json          how its scores are normalised, what it is told, what a LoRA stands beside

    reward = as_reward("runs/reward-model-001/final")
    reward(problem, ["Four.", "Five."])             [Score(0.8), Score(-1.1)]

A pair's loss leaves the scores' zero free, and their scale depends on the data: scores are brought to mean 0
and deviation 1 over the answers of the training data (InstructGPT, C.2, shifts to mean 0 likewise).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from etude.learner.batch import Sample
from etude.learner.local import ComputeSettings, LocalLearner
from etude.learner.lora import LoraSettings, add_lora, lora_weights, trained_pairs
from etude.learner.quantized import load_frozen
from etude.model.checkpoint import read_json
from etude.model.heads import ScalarHead
from etude.model.lora import read_lora
from etude.model.lora_write import save_peft_folder
from etude.model.names import Place, place_of_hf
from etude.model.safetensors import SafetensorsFile
from etude.model.safetensors_write import write_safetensors, write_text
from etude.model.save import MAX_SHARD_BYTES, f32_of, save_hf_folder
from etude.model.thinking import KNOWN_TAGS, split_thinking
from etude.model.transformer import Source, Transformer, load_transformer
from etude.records import EtudeError, Message, Problem, Score
from etude.rollout.prompts import TEXT, PromptWriter
from etude.train.answers import answer_ids, prompt_writer

FORMAT = 1
RECORD, HEAD = "reward.json", "head"
LIMIT = 5.0
"""Normalised scores are clipped there, so that one far out cannot lead a policy astray."""

GroupReward = Callable[[Problem, Sequence[str]], list[Score]]


@dataclass(frozen=True)
class RewardRecord:
    """What stands in reward.json. kind: as in `RewardModelSettings`. mean and std: of the raw scores that
    become 0 and 1. thoughts: whether it is told what a reasoning model thought. chat_template: as in
    `ModelSettings`. base: what a LoRA stands beside; None: the folder holds the whole model."""

    kind: str = "pairs"
    mean: float = 0.0
    std: float = 1.0
    thoughts: bool = True
    chat_template: str | None = None
    base: str | None = None

    def normalised(self, raw: float) -> float:
        """
        >>> RewardRecord(mean=2.0, std=0.5).normalised(3.0), RewardRecord().normalised(-99)
        (2.0, -5.0)
        """
        return max(-LIMIT, min(LIMIT, (raw - self.mean) / self.std))


@dataclass(frozen=True)
class RewardModel:
    """A reward model as it was saved. source: an open file or folder, for its tokenizer and settings."""

    transformer: Transformer
    head: ScalarHead
    source: Source
    record: RewardRecord


def score_moments(scores: Sequence[float]) -> tuple[float, float]:
    """(mean, std) for `RewardRecord`; a std of 0 is taken as 1.

    >>> score_moments([1.0, 3.0]), score_moments([2.0, 2.0])
    ((2.0, 1.0), (2.0, 1.0))
    """
    std = float(np.std(scores))
    return float(np.mean(scores)), std if std > 1e-8 else 1.0


def save_reward_model(
    folder: Path, learner: LocalLearner, source: Source, record: RewardRecord, *, dtype: str = "bf16"
) -> None:
    """Write model, head and record. dtype: of a whole model's weights; LoRA pairs and heads are f32."""
    if learner.head is None:
        raise EtudeError("this learner has no scalar head, so it is no reward model")
    if record.base is None:
        save_hf_folder(folder, source, learner.weights(), dtype)
    else:
        config = learner.transformer.config
        save_peft_folder(folder, config, lora_weights(learner.transformer), record.base)
    tensors = [(name, f32_of(value)) for name, value in learner.head.named_parameters()]
    write_safetensors(folder, HEAD, tensors, "f32", MAX_SHARD_BYTES)
    write_text(folder / RECORD, json.dumps({"format": FORMAT, **asdict(record)}, indent=1) + "\n")


def load_reward_model(folder: Path | str, device: torch.device | str = "cpu") -> RewardModel:
    """What `save_reward_model` wrote; also where PPO's critic starts. EtudeError if it is something else."""
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise EtudeError(
            f"{folder} is no reward model: it has no {RECORD} (`etude reward-model` makes one, in RUN/final)"
        )
    stored = read_json(folder / RECORD)
    if stored.pop("format", None) != FORMAT or stored.keys() != asdict(RewardRecord()).keys():
        raise EtudeError(f"{folder / RECORD} was written by another version; this one reads format {FORMAT}")
    record = RewardRecord(**stored)
    if record.base is None:
        transformer, source = load_transformer(folder, device=device)
    else:
        transformer, source = load_frozen(record.base, device)
        _put_adapter(transformer, folder)
    head = ScalarHead(transformer.config.d_model, device)
    with SafetensorsFile.open(folder / f"{HEAD}.safetensors") as file:
        for name, parameter in head.named_parameters():
            if name not in file.tensors or file.tensors[name].shape != tuple(parameter.shape):
                raise EtudeError(f"{folder}: head.safetensors does not fit the model")
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(np.array(file.array(name)[0])))
    return RewardModel(transformer, head, source, record)


def _put_adapter(transformer: Transformer, folder: Path) -> None:
    """A LoRA from a PEFT folder beside the matrices of a transformer."""
    config = transformer.config
    lora = read_lora(folder, config)
    rank = len(next(iter(lora.tensors.values())).a)
    slots = tuple(sorted({slot for slot, _ in lora.tensors}))
    add_lora(transformer, LoraSettings(rank, lora.scale * rank, slots))
    with torch.no_grad():
        for name, parameter in trained_pairs(transformer):
            module, _, half = name.removeprefix("base_model.model.").rpartition(".lora_")
            place = place_of_hf(config.architecture, f"{module}.weight")
            assert place is not None
            pair = lora.tensors[Place(*place)]
            parameter.copy_(torch.from_numpy(pair.a if half.startswith("A") else pair.b))


def as_reward(
    folder: Path | str, *, device: torch.device | str = "cpu", compute: ComputeSettings | None = None
) -> GroupReward:
    """A saved reward model as a reward of (problem, answers): normalised scores, the raw one as a part."""
    model = load_reward_model(folder, device)
    learner = LocalLearner(model.transformer, head=model.head, compute=compute)
    prompts = prompt_writer(model.source, model.record.chat_template)
    lock = threading.Lock()  # rewards are called from several threads; a forward uses all cores

    def reward(problem: Problem, answers: Sequence[str]) -> list[Score]:
        samples = [judged_sample(prompts, problem, answer, model.record.thoughts) for answer in answers]
        with lock:
            rows = learner.score(samples, ("scores",))
        raw = [float(row["scores"][0]) for row in rows]
        return [Score(model.record.normalised(value), {"raw": value}) for value in raw]

    return reward


def judged_sample(prompts: PromptWriter, problem: Problem, answer: str, thoughts: bool) -> Sample:
    """An answer as a reward model reads it: after its prompt, ended by the end token."""
    opening = prompts.opening(problem)
    if not thoughts:
        answer = without_thoughts(prompts, answer, opened=opening.opened)
    role = TEXT if problem.messages[0].role == TEXT else "assistant"
    ids = answer_ids(prompts, problem.messages, Message(role, answer), problem.id)
    return Sample(opening.ids, ids, (True,) * len(ids), group=0)


def without_thoughts(prompts: PromptWriter, answer: str, *, opened: bool = False) -> str:
    """What a reader sees of an answer. One that never stops thinking is empty."""
    tags = None if prompts.template is None else prompts.template.tags
    return split_thinking(answer, tags or KNOWN_TAGS[0], opened=opened).answer
