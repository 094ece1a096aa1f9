"""What verl's `core_algos` and rollout corrections say: advantages, losses, KL, weights, and their gradients.

Runs with the Python of the training peers (tests/peers/training_requirements.txt):
`python -m tests.peers.make_verl_fixtures --out FOLDER`. All in double precision.
"""

from __future__ import annotations

import argparse
import gzip
import json
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.peers.training_inputs import REWARD_WEIGHTS, as_json, batches

warnings.simplefilter("ignore")
from verl.trainer.ppo import core_algos, rollout_corr_helper  # noqa: E402  warns when imported
from verl.utils.torch_functional import masked_whiten  # noqa: E402
from verl.workers.config import ActorConfig  # noqa: E402

MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
COMMAND = "python -m tests.peers --only verl --update"


def graded(function: Callable[[Tensor], Tensor], values_BT: Tensor) -> dict[str, Any]:
    """A value and its gradient."""
    leaf = values_BT.clone().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return {"value": value.detach(), "gradient": gradient}


def advantages(b: dict[str, Tensor]) -> dict[str, Any]:
    """Every estimator that we have too."""
    mask, group, terminal = b["mask_BT"].long(), b["group_B"].numpy(), torch.zeros_like(b["terminal_BT"])
    lengths = torch.tensor([int(row.nonzero().max()) for row in b["mask_BT"]])
    terminal[torch.arange(len(lengths)), lengths] = b["rewards_B"]
    made: dict[str, Any] = {}
    for lam, gamma in ((0.95, 1.0), (0.9, 0.8), (1.0, 1.0)):
        whitened, returns = core_algos.compute_gae_advantage_return(
            b["token_rewards_BT"], b["values_BT"], mask, gamma, lam
        )
        made[f"gae {gamma} {lam}"] = {"whitened": whitened, "returns": returns}
    call = {"token_level_rewards": terminal, "response_mask": mask, "index": group}
    made["grpo"] = core_algos.compute_grpo_outcome_advantage(**call)[0]
    made["grpo mean"] = core_algos.compute_grpo_outcome_advantage(**call, norm_adv_by_std_in_grpo=False)[0]
    made["grpo vectorized"] = core_algos.compute_grpo_vectorized_outcome_advantage(**call)[0]
    made["rloo"] = core_algos.compute_rloo_outcome_advantage(**call)[0]
    made["rloo vectorized"] = core_algos.compute_rloo_vectorized_outcome_advantage(**call)[0]
    made["passk"] = core_algos.compute_grpo_passk_outcome_advantage(
        **call, config={"norm_adv_by_std_in_grpo": False}
    )[0]
    made["reinforce++ baseline"] = core_algos.compute_reinforce_plus_plus_baseline_outcome_advantage(**call)[
        0
    ]
    config = argparse.Namespace(gamma=1.0)
    made["reinforce++"] = core_algos.compute_reinforce_plus_plus_outcome_advantage(
        b["token_rewards_BT"], mask, config=config
    )[0]
    made["gdpo"] = gdpo(b, call)
    made["whiten"] = masked_whiten(b["values_BT"], mask) * mask
    made["whiten keep mean"] = masked_whiten(b["values_BT"], mask, shift_mean=False) * mask
    return made


def gdpo(b: dict[str, Tensor], call: dict[str, Any]) -> Tensor:
    """As the trainer calls it: parts by name, placed at the last attended token (in float32)."""
    rows, columns = b["mask_BT"].shape
    attended = torch.zeros(rows, columns, dtype=torch.long)
    for row in range(rows):
        attended[row, : int(b["mask_BT"][row].nonzero().max()) + 1] = 1
    return core_algos.compute_gdpo_outcome_advantage(
        **call,
        config={"gdpo_reward_keys": ["a", "b"], "gdpo_reward_weights": REWARD_WEIGHTS},
        non_tensor_batch={"a": b["parts_BK"][:, 0].numpy(), "b": b["parts_BK"][:, 1].numpy()},
        batch={"prompts": torch.zeros(rows, 0), "attention_mask": attended},
    )[0]


def actor(**settings: Any) -> ActorConfig:
    return ActorConfig(strategy="fsdp", rollout_n=4, ppo_micro_batch_size_per_gpu=1, **settings)


def losses(b: dict[str, Tensor]) -> dict[str, Any]:
    """Policy losses with each aggregation, value loss, aggregations of the loss itself; with gradients."""
    mask = b["mask_BT"].double()
    spread = b["advantages_B"][:, None] * mask
    kinds = {
        "ppo": (core_algos.compute_policy_loss_vanilla, {"clip_ratio": 0.2, "clip_ratio_c": 1e9}),
        "higher": (
            core_algos.compute_policy_loss_vanilla,
            {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 1e9},
        ),
        "dual": (core_algos.compute_policy_loss_vanilla, {"clip_ratio": 0.2, "clip_ratio_c": 3.0}),
        "gspo": (core_algos.compute_policy_loss_gspo, {"clip_ratio_low": 0.03, "clip_ratio_high": 0.04}),
        "cispo": (core_algos.compute_policy_loss_cispo, {"clip_ratio_low": 1.0, "clip_ratio_high": 4.0}),
    }
    made: dict[str, Any] = {}
    for kind, (function, settings) in kinds.items():
        for mode in MODES:

            def loss(logprobs_BT: Tensor, function=function, settings=settings, mode=mode) -> Tensor:
                return function(b["old_BT"], logprobs_BT, spread, mask, mode, actor(**settings))[0]

            made[f"{kind} {mode}"] = graded(loss, b["logprobs_BT"])
    weights_BT = rollout_corr_helper.compute_rollout_correction_weights(
        b["old_BT"] - b["sampler_BT"], mask, rollout_is="token", rollout_is_threshold=2.0
    )[0]
    made["ppo with weights"] = graded(
        lambda x: core_algos.compute_policy_loss_vanilla(
            b["old_BT"], x, spread, mask, "token-mean", actor(clip_ratio=0.2), weights_BT
        )[0],
        b["logprobs_BT"],
    )
    made["value"] = graded(
        lambda x: core_algos.compute_value_loss(x, b["returns_BT"], b["old_values_BT"], mask, 0.2)[0],
        b["values_BT"],
    )
    for mode in MODES:
        made[f"aggregate {mode}"] = graded(
            lambda x, mode=mode: core_algos.agg_loss(x, mask, mode), b["values_BT"]
        )
    return made


def corrections(b: dict[str, Tensor]) -> dict[str, Any]:
    """Weights of the learner against the sampler, and the raw mismatch."""
    mask, gap = b["mask_BT"].double(), b["old_BT"] - b["sampler_BT"]
    made: dict[str, Any] = {}
    for name, level, threshold in (
        ("tis", "token", 2.0),
        ("icepop", "token", "0.5_2.0"),
        ("sequence-tis", "sequence", 2.0),
    ):
        made[name], metrics = rollout_corr_helper.compute_rollout_correction_weights(
            gap, mask, rollout_is=level, rollout_is_threshold=threshold
        )
    _, untouched = rollout_corr_helper.compute_rollout_correction_weights(
        gap, mask, rollout_is="token", rollout_is_threshold=1e30
    )
    made["effective samples"] = untouched["rollout_is_eff_sample_size"]
    made["mean ratio"] = untouched["rollout_is_mean"]
    metrics = rollout_corr_helper.compute_offpolicy_metrics(b["old_BT"], b["sampler_BT"], b["mask_BT"])
    made["k3"], made["kl"] = metrics["k3_kl"], metrics["kl"]
    return made


def kl(b: dict[str, Tensor]) -> dict[str, Any]:
    """k1, k2, k3 of the policy and the reference, with gradients."""
    return {
        kind: graded(lambda x, kind=kind: core_algos.kl_penalty(x, b["reference_BT"], kind), b["logprobs_BT"])
        for kind in ("k1", "k2", "k3")
    }


def controller() -> list[float]:
    """β after each of a few measured KLs, 64 answers each."""
    control, betas = core_algos.AdaptiveKLController(0.15, 6.0, 10_000), []
    for measured in (0.0, 3.0, 6.0, 6.5, 30.0, 5.9):
        control.update(measured, 64)
        betas.append(control.value)
    return betas


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.set_default_dtype(torch.float64)
    cases = {}
    for name, arrays in batches().items():
        b = {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}
        outputs = {
            "advantages": advantages(b),
            "losses": losses(b),
            "corrections": corrections(b),
            "kl": kl(b),
        }
        cases[name] = {"inputs": arrays, "outputs": outputs}
    stored = {
        "peer": "verl",
        "version": version("verl"),
        "torch": torch.__version__.split("+")[0],
        "command": COMMAND,
        "cases": cases,
        "controller": controller(),
    }
    (out / "training_verl.json.gz").write_bytes(gzip.compress(json.dumps(as_json(stored)).encode(), mtime=0))


if __name__ == "__main__":
    main()
