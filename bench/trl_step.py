"""TRL's side of grpo_vs_trl.py: GRPOTrainer with Hugging Face's generate, held before each step until told to
go on. Runs in an environment with trl, peft and CPU torch.

    PYTHON bench/trl_step.py SETTINGS          (JSON of step_task.StepSettings; started by grpo_vs_trl.py)

The settings that make its loss ours (`small`: the advantage is the reward less its group's mean, the loss a
mean over all tokens of the step): scale_rewards="none", loss_type="dapo", beta=0, epsilon 0.2 and 0.28, which
an on-policy update never meets. One update for each batch of answers: num_iterations=1, and as many
accumulation steps as the batch has parts, so TRL needs no second pass for old log-probabilities. Its other
settings are at their fastest: no gradient checkpointing, nothing saved. Sampling is what TRL calls
generate-and-score, which tokenises, generates and calls the reward; training is the rest of the step.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.metadata import version
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}

import torch  # the environment comes first
from datasets import load_dataset
from peft import LoraConfig
from step_task import StepSettings, reward_of
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from workers import Channel

PACKAGES = ("trl", "transformers", "torch", "peft", "accelerate")


class TimedTrainer(GRPOTrainer):
    """GRPOTrainer that remembers how long sampling took and how many tokens there were."""

    sampled: dict[str, Any]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        start_s = time.perf_counter()
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self.sampled = {
            "sampling_s": time.perf_counter() - start_s,
            "tokens": int(batch["completion_mask"].sum()),
            "prompt_tokens": int(batch["prompt_mask"].sum()),
        }
        return batch


class OneStepAtATime(TrainerCallback):
    """Waits before each step; the loop between two steps counts as part of the first."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.trainer: TimedTrainer | None = None
        self.begun = False

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        assert self.trainer is not None
        if self.begun:
            self.channel.say(**self.trainer.sampled)
        else:
            self.begun = True
            self.channel.say(versions={name: version(name) for name in PACKAGES})


def reward(completions: list[list[dict[str, str]]], **kwargs: object) -> list[float]:
    return [reward_of(messages[0]["content"]) for messages in completions]


def config_of(settings: StepSettings) -> GRPOConfig:
    samples = settings.prompts * settings.samples
    return GRPOConfig(
        output_dir=settings.folder,
        use_cpu=True,
        max_steps=10_000,
        per_device_train_batch_size=settings.batch,
        gradient_accumulation_steps=samples // settings.batch,
        num_generations=settings.samples,
        num_iterations=1,
        max_completion_length=settings.max_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        loss_type="dapo",
        scale_rewards="none",
        epsilon=0.2,
        epsilon_high=0.28,
        shuffle_dataset=False,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=settings.dtype == "bf16",
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
    )


def main() -> None:
    settings = StepSettings.from_json(sys.argv[1])
    channel = Channel()
    torch.set_num_threads(settings.threads)
    dtype = torch.bfloat16 if settings.dtype == "pure-bf16" else torch.float32
    holder = OneStepAtATime(channel)
    trainer = TimedTrainer(
        model=AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype),
        processing_class=AutoTokenizer.from_pretrained(settings.model),
        reward_funcs=[reward],
        args=config_of(settings),
        train_dataset=load_dataset(
            "json", data_files=settings.questions, split="train", cache_dir=f"{settings.folder}/cache"
        ),
        callbacks=[holder],
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if settings.lora else None,
    )
    holder.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    main()
