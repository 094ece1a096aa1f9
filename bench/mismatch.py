"""How far engine and learner are apart, and what sampling costs, for each type of the engine's matrices.

    python bench/mismatch.py [--model smollm2-135m] [--types f32,f16,bf16,q8_0]

A full fine-tune's engine holds the learner's weights in one of the types; a LoRA's holds the types of the
file, which both sides share. The numbers stand in docs/mismatch.md.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from contextlib import closing

import numpy as np

from etude.engine.engine import Engine
from etude.learner.batch import Sample
from etude.learner.local import ComputeSettings, LocalLearner
from etude.learner.lora import LoraSettings
from etude.learner.optimizer import AdamWSettings
from etude.recipes.assembly import engine_of, learner_of, prompts_of
from etude.records import Message, Problem, Rollout, SamplingParams, Score
from etude.rollout import collect, single_turn
from etude.train.agreement import mismatch_row
from etude.train.settings import ModelSettings, SamplingSettings

PROMPTS, ANSWERS = 8, 8
LENGTHS = (16, 64)
DTYPES = ("f32", "bf16")


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


def measure(
    engine: Engine, learners: Sequence[LocalLearner], model: ModelSettings, tokens: int
) -> tuple[float, list[float]]:
    """(seconds that the answers took, the better of two; mean k3 for each learner)"""
    env, seconds = single_turn(lambda problem, answer: Score(0.0)), []
    params = SamplingParams(max_tokens=tokens)
    adapter = learners[0].publish(engine, 1)
    for _ in range(2):
        start_s = time.perf_counter()
        rollouts = collect(
            engine,
            prompts_of(engine, model),
            problems(),
            env,
            n=ANSWERS,
            params=params,
            seed=0,
            adapter=adapter,
        )
        seconds.append(time.perf_counter() - start_s)
    samples = samples_of(rollouts)
    k3 = []
    for learner in learners:
        scores = [row["logprobs"] for row in learner.score(samples)]
        k3.append(mismatch_row(samples, scores)["mismatch/k3"])
    return min(seconds), k3


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="smollm2-135m", help="GGUF file, Hugging Face folder or a known name"
    )
    parser.add_argument("--types", default="f32,f16,bf16,q8_0", help="sampling.weight_type, one or several")
    args = parser.parse_args(argv)
    model = ModelSettings(name=args.model)
    print("| engine | tokens | k3, learner in f32 | in bf16 | sampling, s | weights to the engine, s |")
    print("|---|---|---|---|---|---|")
    for lora in (None, LoraSettings()):
        learners = [
            learner_of(model, ComputeSettings(dtype=dtype), AdamWSettings(), lora).learner for dtype in DTYPES
        ]
        for kind in args.types.split(",") if lora is None else ("file",):
            sampling = SamplingSettings(weight_type=None if kind == "file" else kind)
            with closing(
                engine_of(model, sampling, lora=lora is not None, sequences=PROMPTS * ANSWERS)
            ) as engine:
                learners[0].publish(engine, 1)
                start_s = time.perf_counter()
                learners[0].publish(engine, 2)
                publish_s = time.perf_counter() - start_s
                for tokens in LENGTHS:
                    sampling_s, k3 = measure(engine, learners, model, tokens)
                    name = kind if lora is None else "LoRA beside the file's types"
                    cells = [
                        name,
                        str(tokens),
                        *(f"{value:.1e}" for value in k3),
                        f"{sampling_s:.1f}",
                        f"{publish_s:.2f}",
                    ]
                    print("| " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
