"""How far engine and learner are apart, before and after steps of AdamW, and what sampling costs, for each
type of the engine's matrices.

    python bench/mismatch.py [--model smollm2-135m] [--types f32,f16,bf16,q8_0] [--dtype f32] [--steps 2]

A full fine-tune's engine holds the learner's weights in one of the types; a LoRA's holds the types of the
file, which both sides share. The steps go up for half of the answers and down for the other half, at a
learning rate of 1e-5. The numbers stand in docs/mismatch.md.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
from torch import Tensor

from etude.engine.engine import Engine
from etude.learner.batch import Batch, Sample
from etude.learner.learner import Denominators, Outputs
from etude.learner.local import ComputeSettings, LocalLearner
from etude.learner.lora import LoraSettings
from etude.learner.optimizer import AdamWSettings
from etude.recipes.assembly import engine_of, learner_of, prompts_of
from etude.records import Message, Problem, Rollout, SamplingParams, Score
from etude.rollout import collect, single_turn
from etude.train.agreement import mismatch_row
from etude.train.settings import ModelSettings, SamplingSettings

PROMPTS, ANSWERS = 8, 8
TOKENS = 64


def problems() -> list[Problem]:
    draw = random.Random(0)
    texts = [
        f"What is {draw.randint(10, 99)}+{draw.randint(10, 99)}? Think step by step, then give the answer."
        for _ in range(PROMPTS)
    ]
    return [
        Problem(messages=(Message(role="user", content=text),), answer=None, id=str(i))
        for i, text in enumerate(texts)
    ]


def samples_of(rollouts: Sequence[Rollout]) -> list[Sample]:
    samples = []
    for i, rollout in enumerate(rollouts):
        n = rollout.prompt_length
        samples.append(
            Sample(
                prompt_ids=rollout.token_ids[:n],
                completion_ids=rollout.token_ids[n:],
                mask=rollout.mask[n:],
                group=i // ANSWERS,
                columns={"sampler_logprobs": np.asarray(rollout.logprobs[n:], np.float32)},
            )
        )
    return samples


def loss(outputs: Outputs, batch: Batch, totals: Denominators) -> tuple[Tensor, Mapping[str, Tensor]]:
    """A policy gradient: every other answer shall become more likely, the others less."""
    signs_C = 1.0 - 2.0 * (batch.sequence_C % 2)
    return -(outputs["logprobs"] * signs_C).sum() / totals.tokens, {}


class Measured(NamedTuple):
    """k3: before the first step, after each. The times are the best."""

    k3: list[float]
    sampling_s: float
    publish_s: float


def measure(engine: Engine, learner: LocalLearner, model: ModelSettings, steps: int) -> Measured:
    env, params = single_turn(lambda problem, answer: Score(0.0)), SamplingParams(max_tokens=TOKENS)
    prompts, k3, sampling_s, publish_s = prompts_of(engine, model), [], [], []
    for step in range(steps + 1):
        publish_s.append(-time.perf_counter())
        adapter = learner.publish(engine, step)
        publish_s[-1] += time.perf_counter()
        sampling_s.append(-time.perf_counter())
        rollouts = collect(
            engine, prompts, problems(), env, n=ANSWERS, params=params, seed=step, adapter=adapter
        )
        sampling_s[-1] += time.perf_counter()
        samples = samples_of(rollouts)
        metrics = learner.update(samples, loss, denominators=Denominators.of(samples))
        scores = [row["logprobs"] for row in metrics.outputs]
        k3.append(mismatch_row(samples, scores)["mismatch/k3"])
    return Measured(k3, min(sampling_s), min(publish_s))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="smollm2-135m", help="GGUF file, Hugging Face folder or a known name"
    )
    parser.add_argument(
        "--types",
        default="f32,f16,bf16,q8_0,lora",
        help="sampling.weight_type, one or several; lora: a LoRA beside the file's own types",
    )
    parser.add_argument("--dtype", default="f32", choices=("f32", "bf16"), help="of the learner's products")
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args(argv)
    model = ModelSettings(name=args.model)
    steps = [f"after {step}" for step in range(args.steps + 1)]
    print("| " + " | ".join(["engine", *steps, "sampling, s", "weights to the engine, s"]) + " |")
    print("|---" * (len(steps) + 3) + "|")
    for kind in args.types.split(","):
        lora = LoraSettings() if kind == "lora" else None
        rate = 1e-5 if lora is None else 1e-4
        compute, adamw = ComputeSettings(dtype=args.dtype), AdamWSettings(learning_rate=rate)
        learner = learner_of(model, compute, adamw, lora).learner
        sampling = SamplingSettings(weight_type=None if kind == "lora" else kind)
        with closing(
            engine_of(model, sampling, lora=lora is not None, sequences=PROMPTS * ANSWERS)
        ) as engine:
            measured = measure(engine, learner, model, args.steps)
        numbers = [f"{value:.1e}" for value in measured.k3]
        cells = [kind, *numbers, f"{measured.sampling_s:.1f}", f"{measured.publish_s:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
