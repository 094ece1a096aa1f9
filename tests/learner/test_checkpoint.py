"""Saved and restored is uninterrupted, bit for bit; a failed save leaves the last; others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.learner import checkpoint
from etude.learner.learner import Denominators
from etude.learner.local import LocalLearner
from etude.learner.lora import LoraSettings
from etude.learner.optimizer import AdamWSettings, Schedule
from etude.records import EtudeError
from tests.learner.tiny import every_loss, learner_of, samples_of

SETTINGS = AdamWSettings(
    learning_rate=0.01, weight_decay=0.01, schedule=Schedule("cosine", warmup_steps=2, total_steps=8)
)
LORA = LoraSettings(rank=4, alpha=8)


def learner(**options: Any) -> LocalLearner:
    return learner_of(**{"optimizer": SETTINGS, "head": True, **options})


def train(
    who: LocalLearner, steps: int, first: int = 0, outputs: tuple[str, ...] = ("logprobs", "values")
) -> None:
    for step in range(first, first + steps):
        samples = samples_of(seed=step)
        who.update(samples, every_loss, outputs=outputs, denominators=Denominators.of(samples))


def bits(who: LocalLearner) -> dict[str, torch.Tensor]:
    assert who.head is not None
    return dict(who.weights()) | {
        f"head.{name}": value.detach() for name, value in who.head.named_parameters()
    }


@pytest.mark.parametrize("options", [{}, {"lora": LORA}, {"dtype": "bf16"}], ids=["full", "lora", "bf16"])
def test_restored_is_uninterrupted(tmp_path: Path, options: dict[str, Any]) -> None:
    one, other = learner(**options), learner(**options)
    train(one, 2)
    one.save(tmp_path / "state")
    train(other, 1, first=9)  # whatever it did before is forgotten
    other.restore(tmp_path / "state")
    assert other.steps == 2
    train(one, 3, first=2)
    train(other, 3, first=2)
    expected = bits(one)
    assert all(torch.equal(value, expected[name]) for name, value in bits(other).items())


def test_before_the_first_step(tmp_path: Path) -> None:
    one, other = learner(), learner()
    one.save(tmp_path / "state")
    train(other, 1, first=5)
    other.restore(tmp_path / "state")
    train(one, 2)
    train(other, 2)
    expected = bits(one)
    assert all(torch.equal(value, expected[name]) for name, value in bits(other).items())


@pytest.mark.parametrize("options", [{}, {"lora": LORA}], ids=["full", "lora"])
def test_the_reference_is_part_of_it(tmp_path: Path, options: dict[str, Any]) -> None:
    one, other = learner(**options), learner(**options)
    train(one, 1)
    one.refresh_reference()
    train(one, 1, first=1)
    one.save(tmp_path / "state")
    other.restore(tmp_path / "state")
    outputs = ("logprobs", "reference_kl")
    train(one, 2, 2, outputs)
    train(other, 2, 2, outputs)
    expected = bits(one)
    assert all(torch.equal(value, expected[name]) for name, value in bits(other).items())


def test_the_random_state_is_part_of_it(tmp_path: Path) -> None:
    one = learner()
    one.save(tmp_path / "state")
    drawn = torch.rand(3)
    torch.rand(5)
    learner().restore(tmp_path / "state")
    assert torch.equal(torch.rand(3), drawn)


def test_saving_again_replaces(tmp_path: Path) -> None:
    one, other = learner(), learner()
    one.save(tmp_path / "state")
    train(one, 1)
    one.save(tmp_path / "state")
    other.restore(tmp_path / "state")
    assert other.steps == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == [
        checkpoint.RECORD,
        checkpoint.TENSORS,
    ]


def test_a_save_that_fails_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = learner(), learner()
    train(one, 1)
    one.save(tmp_path / "state")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(EtudeError, match="No space"):
        one.save(tmp_path / "state")
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]
    other.restore(tmp_path / "state")
    assert other.steps == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "llama_tied"}, r"its model\.digest is"),
        ({"name": "qwen3"}, r"its model\.architecture is 'llama', here it is 'qwen3'"),
        ({"lora": LORA}, "its lora.* is None"),
        (
            {"optimizer": AdamWSettings(learning_rate=0.02)},
            r"its optimizer\.learning_rate is 0\.01, here it is 0\.02",
        ),
        ({"head": False}, r"model\.digest"),
        ({"dtype": "bf16"}, "its dtype is 'f32'"),
        ({"temperature": 0.5}, "its temperature is 1.0"),
    ],
)
def test_another_model_or_other_settings(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    learner().save(tmp_path / "state")
    with pytest.raises(EtudeError, match=message):
        learner(**options).restore(tmp_path / "state")


def test_a_lora_of_another_base(tmp_path: Path) -> None:
    """The same shapes and another base: the pairs alone would not tell."""
    one, other = learner(lora=LORA), learner_of(optimizer=SETTINGS, head=True)
    one.save(tmp_path / "state")
    with torch.no_grad():
        other.transformer.final_norm.weight[0] += 1
    moved = LocalLearner(other.transformer, SETTINGS, compute=other.compute, lora=LORA, head=other.head)
    with pytest.raises(EtudeError, match=r"model\.base"):
        moved.restore(tmp_path / "state")


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    one = learner()
    with pytest.raises(EtudeError, match="cannot be read"):
        one.restore(tmp_path / "nothing")
    one.save(tmp_path / "state")
    record = json.loads((tmp_path / "state" / checkpoint.RECORD).read_text())
    (tmp_path / "state" / checkpoint.RECORD).write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(EtudeError, match="format 99"):
        one.restore(tmp_path / "state")
    (tmp_path / "state" / checkpoint.RECORD).write_text(json.dumps(record))
    tensors = tmp_path / "state" / checkpoint.TENSORS
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(EtudeError, match="truncated"):
        one.restore(tmp_path / "state")


def test_tensors_are_plain_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    one = learner()
    train(one, 1)
    one.save(tmp_path / "state")
    stored = safetensors.load_file(tmp_path / "state" / checkpoint.TENSORS)
    for name, value in bits(one).items():
        assert np.array_equal(stored[f"weight/{name}"], value.numpy())
