"""As test_killed.py with a real model, and more often: SmolLM2-135M learns sums by GRPO, is killed at
random milliseconds and inside its writes, goes on, and ends as the run that nobody touched, to the last bit.

    python -m tests.train.kill_smollm2 FOLDER [--kills 100] [--full 20]

LoRA is killed --kills times, the whole model --full times. Takes some 10 s a kill and 7 GB of disk.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.train.kills import ForkServer, killed_run

WORDS = [
    "grpo", "--model.name", "smollm2-135m", "--data.train", "task:largest?high=99&size=500",
    "--reward", "math?parse=lenient", "--data.held_out_size", "8",
    "--data.check", "false", "--sampling.prompts_per_step", "2", "--sampling.samples_per_prompt", "4",
    "--sampling.max_tokens", "12", "--sampling.threads", "1", "--compute.dtype", "f32", "--eval.every", "3",
]  # fmt: skip
SHAPES = {
    "lora": ["--lora.rank", "8", "--run.steps", "10"],
    "full": ["--run.steps", "4", "--run.checkpoint_every", "2", "--run.keep_last", "1"],
}
AIMED = ("checkpoint", "rollouts", "final")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--full", type=int, default=20)
    options = parser.parse_args()
    server = ForkServer()
    for shape, kills in (("lora", options.kills), ("full", options.full)):
        folder = options.folder / shape
        folder.mkdir(parents=True)
        # a fifth of them inside writes
        aimed = [AIMED[at % len(AIMED)] for at in range(kills // 5)]
        tally = killed_run(
            server,
            [*WORDS, *SHAPES[shape]],
            folder,
            at_random=kills - len(aimed),
            aimed=aimed,
        )
        print(f"{shape}: {tally}: every end equals that of the run that nobody touched", flush=True)
    server.close()


if __name__ == "__main__":
    main()
