"""What TRL's trainers say: losses with their gradients, advantages and sampler corrections.

TRL has its maths inside methods of its trainers. They run here on a stand-in for the trainer and a stand-in
for the model that returns given log-probabilities. Runs with the Python of the training peers:
`python -m tests.peers.make_trl_fixtures --out FOLDER`. All in double precision.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from tests.peers.training_inputs import REWARD_WEIGHTS, as_json, batches, pairs

COMMAND = "python -m tests.peers --only trl --update"
MAX_TOKENS = 20


class Alone:
    """accelerate's Accelerator for one process: gathers and reduces what there is."""

    device = torch.device("cpu")
    num_processes, process_index, sync_gradients = 1, 0, True

    def gather(self, value: Any) -> Any:
        return value

    gather_for_metrics = gather

    def reduce(self, value: Any, reduction: str) -> Any:
        return value


def trainer(**settings: Any) -> SimpleNamespace:
    """The attributes that the methods below read; `settings` replace the neutral ones."""
    neutral = {
        "accelerator": Alone(), "model": SimpleNamespace(training=True), "aux_loss_enabled": False,
        "_metrics": {"train": defaultdict(list)}, "_total_train_tokens": 0, "_tp_size": 1,
        "precompute_ref_logps": True, "label_smoothing": 0.0, "_entropy_bonus_enabled": False,
        "current_gradient_accumulation_steps": 1, "top_entropy_quantile": 1.0, "use_vllm": False,
    }  # fmt: skip
    return SimpleNamespace(**{**neutral, **settings})


def graded(function: Callable[[Tensor], Tensor], values: Tensor) -> dict[str, Any]:
    """A value and its gradient."""
    leaf = values.clone().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return {"value": value.detach(), "gradient": gradient}


GRPO_KINDS: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "luspo": {"loss_type": "luspo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.5},
    "gspo": {"loss_type": "grpo", "level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
    "delta": {"loss_type": "grpo", "delta": 1.5},
    "delta below": {"loss_type": "grpo", "epsilon_low": 0.9, "epsilon_high": 3.0, "delta": 1.5},
    "k3": {"loss_type": "grpo", "beta": 0.1},
    "unbiased": {"loss_type": "grpo", "beta": 0.1, "unbiased": True},
    "off-policy mask": {"loss_type": "grpo", "threshold": 0.05},
}


def grpo(b: dict[str, Tensor], kind: dict[str, Any]) -> dict[str, Any]:
    """GRPOTrainer._compute_loss as it is."""
    mask = b["mask_BT"].double()

    def loss(logprobs_BT: Tensor) -> Tensor:
        stub = trainer(
            loss_type=kind["loss_type"],
            importance_sampling_level=kind.get("level", "token"),
            epsilon_low=kind.get("epsilon_low", 0.2),
            epsilon_high=kind.get("epsilon_high", 0.2),
            beta=kind.get("beta", 0.0),
            off_policy_mask_threshold=kind.get("threshold"),
            get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
            args=SimpleNamespace(
                delta=kind.get("delta"),
                use_bias_correction_kl=kind.get("unbiased", False),
                steps_per_generation=1,
            ),
            max_completion_length=MAX_TOKENS,
            _get_per_token_logps_and_entropies=lambda *a, **k: (logprobs_BT, torch.zeros_like(mask), None),
        )
        nothing = torch.zeros(len(mask), 0, dtype=torch.long)
        inputs = {
            "prompt_ids": nothing, "prompt_mask": nothing, "completion_ids": mask.long(),
            "completion_mask": mask, "advantages": b["advantages_B"], "old_per_token_logps": b["old_BT"],
            "sampling_per_token_logps": b["sampler_BT"], "ref_per_token_logps": b["reference_BT"],
            "num_items_in_batch": mask.sum(),
        }  # fmt: skip
        return GRPOTrainer._compute_loss(stub, None, inputs)

    return graded(loss, b["logprobs_BT"])


def rollout(b: dict[str, Tensor], cls: type, **settings: Any) -> dict[str, Tensor]:
    """_generate_and_score_completions of GRPO or RLOO with given tokens, rewards and log-probabilities."""
    mask = b["mask_BT"]
    lengths = [int(length) for length in mask.sum(dim=1)]
    ids = [[1] * length for length in lengths]
    sampler = [row[:length].tolist() for row, length in zip(b["sampler_BT"], lengths, strict=True)]
    answers = ["!"] * len(ids)
    generated = ([[1]] * len(ids), ids, answers)
    if cls is GRPOTrainer:
        generated = ([[1]] * len(ids), ids, None, answers, sampler, {}, None, [])
    neutral = {
        "model": SimpleNamespace(training=True, is_gradient_checkpointing=False), "ref_model": "reference",
        "_generate": lambda prompts: generated, "_calculate_rewards": lambda *a: b["parts_BK"].clone(),
        "_get_per_token_logps_and_entropies": lambda model, *a, **k: (
            torch.where(mask, b["reference_BT" if model == "reference" else "old_BT"], 0.0), None, None
        ),
        "_tokenizer": SimpleNamespace(pad_token_id=0), "pad_to_multiple_of": None,
        "reward_weights": torch.tensor(REWARD_WEIGHTS), "reward_func_names": ["a", "b"],
        "reward_funcs": [None, None], "num_generations": 4, "num_generations_eval": 4, "num_iterations": 1,
        "reward_clip_range": None, "normalize_advantages": False, "beta": 0.0, "scale_rewards": "group",
        "multi_objective_aggregation": "sum_then_normalize", "mask_truncated_completions": False,
        "environment_factories": None, "environments": None, "tools": None, "log_multimodal": False,
        "vllm_importance_sampling_correction": False, "vllm_importance_sampling_clip_min": None,
        "vllm_importance_sampling_clip_max": None, "_pending_extra_logs": {}, "_pending_metrics": {},
        "_logs": defaultdict(list, rewards=defaultdict(list), extra=defaultdict(list)),
        "args": SimpleNamespace(
            per_device_train_batch_size=8, per_device_eval_batch_size=8, steps_per_generation=1,
            gradient_checkpointing_kwargs=None, gradient_accumulation_steps=1,
        ),
    }  # fmt: skip
    return cls._generate_and_score_completions(
        trainer(**{**neutral, **settings}), [{"prompt": "?"}] * len(ids)
    )


def advantages(b: dict[str, Tensor]) -> dict[str, Any]:
    scales = {name: rollout(b, GRPOTrainer, scale_rewards=name) for name in ("group", "batch", "none")}
    made: dict[str, Any] = {name: out["advantages"] for name, out in scales.items()}
    made["gdpo"] = rollout(b, GRPOTrainer, multi_objective_aggregation="normalize_then_sum")["advantages"]
    made["rloo"] = rollout(b, RLOOTrainer)["advantages"]
    made["rloo kl"] = rollout(b, RLOOTrainer, beta=0.1)["advantages"]
    return made


def corrections(b: dict[str, Tensor]) -> dict[str, Any]:
    """The four modes, clipped to [0.5, 2]; the learner's logprobs are `old_BT`."""
    made = {}
    for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        out = rollout(
            b,
            GRPOTrainer,
            use_vllm=True,
            vllm_importance_sampling_correction=True,
            vllm_importance_sampling_mode=mode,
            vllm_importance_sampling_clip_min=0.5 if mode.endswith("mask") else None,
            vllm_importance_sampling_clip_max=2.0,
        )
        made[mode] = out["importance_sampling_ratio"]
    return made


def outputs_of(logprobs_BT: Tensor, mask: Tensor) -> SimpleNamespace:
    """What TRL's fused head returns for a batch whose first token is a prompt."""
    zeros = torch.zeros_like(mask)
    return SimpleNamespace(
        log_probs=torch.where(mask > 0, logprobs_BT, 0.0),
        entropy=zeros,
        mean_logits=zeros,
        is_top1=zeros.bool(),
    )


def with_prompt(mask: Tensor) -> Tensor:
    """One token of a prompt before each answer."""
    return torch.cat([torch.zeros(len(mask), 1), mask], dim=1).long()


def dpo(p: dict[str, Tensor], **settings: Any) -> dict[str, Any]:
    mask = p["mask_BT"].double()
    reference = (p["reference_BT"] * mask).sum(1).chunk(2)
    whole = with_prompt(mask)

    def loss(logprobs_BT: Tensor) -> Tensor:
        stub = trainer(
            ld_alpha=None, f_divergence_type="reverse_kl", loss_weights=[1.0], use_weighting=False, beta=0.1,
            **settings,
        )  # fmt: skip
        inputs = {
            "input_ids": whole, "attention_mask": torch.ones_like(whole), "completion_mask": whole,
            "ref_chosen_logps": reference[0], "ref_rejected_logps": reference[1],
        }  # fmt: skip
        return DPOTrainer._compute_loss(stub, lambda **k: outputs_of(logprobs_BT, mask), inputs, False)

    return graded(loss, p["logprobs_BT"])


def smoothed(p: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Label smoothing: TRL's `sigmoid` ignores it, but AOT of a single pair is the same formula."""
    made = []
    for pair in range(4):
        rows = torch.tensor([pair, pair + 4])
        single = {name: p[name][rows] for name in ("mask_BT", "logprobs_BT", "reference_BT")}
        made.append(dpo(single, loss_types=["aot"], label_smoothing=0.1))
    return made


def kto(p: dict[str, Tensor]) -> dict[str, Any]:
    """The reference point comes from the same answers, moved by one prompt."""
    mask = p["mask_BT"].double()
    sums, reference = ((p[name] * mask).sum(1) for name in ("logprobs_BT", "reference_BT"))
    whole = with_prompt(mask)

    def loss(logprobs_BT: Tensor) -> Tensor:
        stub = trainer(
            calculate_KL=True, beta=0.1, loss_type="kto", desirable_weight=1.0, undesirable_weight=1.3,
            _compute_kl_logps=lambda model, batch: sums.roll(1),
        )  # fmt: skip
        inputs = {
            "input_ids": whole, "attention_mask": torch.ones_like(whole), "completion_mask": whole,
            "label": p["desirable_B"], "ref_logps": reference, "ref_KL_logps": reference.roll(1),
        }  # fmt: skip
        return KTOTrainer._compute_loss(stub, lambda **k: outputs_of(logprobs_BT, mask), inputs, False)

    return graded(loss, p["logprobs_BT"])


def preference(p: dict[str, Tensor]) -> dict[str, Any]:
    """Reward model, DPO, IPO, KTO, ORPO's odds ratio term, SimPO."""
    mask = p["mask_BT"].double()

    def reward(scores_B: Tensor, eta: float | None, margin: bool) -> Tensor:
        stub = trainer(args=SimpleNamespace(center_rewards_coefficient=eta))
        inputs = {"attention_mask": mask, **({"margin": p["margin_P"]} if margin else {})}
        return RewardTrainer.compute_loss(stub, lambda **k: SimpleNamespace(logits=scores_B[:, None]), inputs)

    def means(logprobs_BT: Tensor) -> tuple[Tensor, Tensor]:
        chosen, rejected = ((logprobs_BT * mask).sum(1) / mask.sum(1)).chunk(2)
        return chosen, rejected

    simpo = trainer(alpha=0.0, loss_type="simpo", simpo_gamma=0.5, beta=2.0)
    odds = trainer(beta=0.1)
    return {
        "bradley-terry": graded(lambda x: reward(x, None, False), p["scores_B"]),
        "bradley-terry margin centred": graded(lambda x: reward(x, 0.01, True), p["scores_B"]),
        "dpo": dpo(p, loss_types=["sigmoid"]),
        "dpo smoothed": smoothed(p),
        "ipo": dpo(p, loss_types=["ipo"]),
        "kto": kto(p),
        "orpo odds": graded(lambda x: ORPOTrainer.odds_ratio_loss(odds, *means(x))[0], p["logprobs_BT"]),
        "simpo": graded(lambda x: CPOTrainer.cpo_loss(simpo, *means(x))[0], p["logprobs_BT"]),
    }


def tensors(arrays: dict[str, Any]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.set_default_dtype(torch.float64)
    cases = {}
    for name in ("near", "far"):
        b = tensors(batches()[name])
        outputs = {
            "losses": {kind: grpo(b, settings) for kind, settings in GRPO_KINDS.items()},
            "advantages": advantages(b),
            "corrections": corrections(b),
        }
        cases[name] = {"inputs": batches()[name], "outputs": outputs}
    stored = {
        "peer": "trl",
        "version": version("trl"),
        "torch": torch.__version__.split("+")[0],
        "command": COMMAND,
        "max_tokens": MAX_TOKENS,
        "cases": cases,
        "pairs": {"inputs": pairs(), "outputs": preference(tensors(pairs()))},
    }
    (out / "training_trl.json.gz").write_bytes(gzip.compress(json.dumps(as_json(stored)).encode(), mtime=0))


if __name__ == "__main__":
    main()
