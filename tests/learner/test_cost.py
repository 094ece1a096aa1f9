"""What sharing a prompt saves, counted in the operations of all products, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from etude.learner.batch import Sample, pack
from etude.learner.learner import Denominators
from tests.learner.tiny import learner_of, policy_loss, skipped


def group_of(size: int, prompt: int = 512, answer: int = 32) -> list[Sample]:
    return [
        Sample(
            prompt_ids=tuple(i % 128 for i in range(prompt)),
            completion_ids=tuple((index + i) % 128 for i in range(answer)),
            mask=(True,) * answer,
            group=0,
            columns={"advantages": 1.0, "weights": [1.0] * answer},
        )
        for index in range(size)
    ]


def flops(samples: list[Sample], checkpoint: bool = False) -> int:
    learner = learner_of(checkpoint=checkpoint)
    with FlopCounterMode(display=False) as counter:
        learner.update(samples, policy_loss, denominators=Denominators.of(samples))
    return int(counter.get_total_flops())


@pytest.mark.parametrize("checkpoint", [False, True])
def test_eight_answers_to_a_shared_prompt(checkpoint: bool) -> None:
    """G = 8 on a prompt of 512 tokens and answers of 32: at most 2.5 times the cost of G = 1."""
    assert flops(group_of(8), checkpoint) <= 2.5 * flops(group_of(1), checkpoint)


def test_the_count_counts() -> None:
    """Without sharing it would be eight times the cost: the bound above can fail."""
    apart = [
        Sample(s.prompt_ids, s.completion_ids, s.mask, index, s.columns)
        for index, s in enumerate(group_of(8))
    ]
    assert flops(apart) > 7.5 * flops(group_of(1))


def test_skipped_samples_are_no_operations() -> None:
    assert flops([skipped(sample) for sample in group_of(4)]) == 0


def test_the_device_is_honoured() -> None:
    [batch] = pack(group_of(2), max_tokens=4096, to_the_end=True, device="meta")
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    tensors += [*batch.columns.values(), batch.layout.token_ids_T, batch.layout.positions_T]
    assert len(tensors) == 11
    assert {tensor.device.type for tensor in tensors} == {"meta"}
