"""AdamW against hand values and torch's own; schedules, clipping, gradients that are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from etude.learner.optimizer import AdamW, AdamWSettings, Schedule
from etude.records import EtudeError


def parameter(*values: float) -> nn.Parameter:
    result = nn.Parameter(torch.tensor(values))
    result.grad = torch.zeros_like(result)
    return result


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(), [1, 1, 1]),
        (Schedule(warmup_steps=4), [0.25, 0.5, 0.75, 1, 1, 1]),
        (Schedule("linear", total_steps=4), [1, 0.75, 0.5, 0.25, 0, 0]),
        (Schedule("linear", 1, 5, 0.5), [1, 1, 0.875, 0.75, 0.625, 0.5, 0.5]),
        (Schedule("cosine", total_steps=4), [1, 0.85355339, 0.5, 0.14644661, 0, 0]),
        (Schedule("cosine", 2, 6, 0.1), [0.5, 1, 1, 0.86819805, 0.55, 0.23180195, 0.1, 0.1]),
    ],
)
def test_schedules(schedule: Schedule, expected: list[float]) -> None:
    assert [schedule.factor(step) for step in range(len(expected))] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(kind="step"), "'step'; it must be constant, linear or cosine"),
        (dict(kind="constant", total_steps=5), "no effect on a constant"),
        (dict(kind="constant", final_fraction=0.1), "no effect on a constant"),
        (dict(kind="cosine"), "give a number of steps"),
        (dict(kind="linear", warmup_steps=5, total_steps=5), "larger than warmup_steps"),
        (dict(warmup_steps=-1), "at least 0"),
        (dict(kind="linear", total_steps=5, final_fraction=2.0), "from 0 to 1"),
    ],
)
def test_schedules_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(EtudeError, match=message):
        Schedule(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(learning_rate=-1.0), "learning_rate is -1.0"),
        (dict(learning_rate=math.nan), "learning_rate is nan"),
        (dict(betas=(0.9, 1.0)), "betas"),
        (dict(max_grad_norm=0.0), "max_grad_norm is 0.0"),
    ],
)
def test_settings_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(EtudeError, match=message):
        AdamWSettings(**arguments)


def test_the_first_step_moves_by_the_rate() -> None:
    """m̂ / √v̂ is the sign of the gradient at first."""
    weight = parameter(1.0, 2.0)
    optimizer = AdamW({"w": weight}, AdamWSettings(learning_rate=0.1, eps=0.0, max_grad_norm=None))
    weight.grad = torch.tensor([3.0, -5.0])
    stepped = optimizer.step()
    assert weight.tolist() == pytest.approx([0.9, 2.1])
    assert stepped.grad_norm == pytest.approx(math.sqrt(34))
    assert (stepped.learning_rate, stepped.skipped) == (0.1, False)


def test_steps_are_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = parameter(*torch.randn(5).tolist()), parameter(*[0.0] * 5)
    theirs.data.copy_(ours.data)
    matrix = nn.Parameter(torch.randn(3, 4))
    peer_matrix = nn.Parameter(matrix.detach().clone())
    settings = AdamWSettings(1e-2, (0.8, 0.95), 1e-6, 0.1, 1.0, Schedule("linear", 2, 6))
    optimizer = AdamW({"w": ours, "m": matrix}, settings)
    peer = torch.optim.AdamW(
        [dict(params=[peer_matrix], weight_decay=0.1), dict(params=[theirs], weight_decay=0.0)],
        lr=1e-2, betas=(0.8, 0.95), eps=1e-6, foreach=False,
    )  # fmt: skip
    for step in range(5):
        for mine, other in ((ours, theirs), (matrix, peer_matrix)):
            mine.grad = torch.randn_like(mine) * 3
            other.grad = mine.grad.clone()
        torch.nn.utils.clip_grad_norm_([theirs, peer_matrix], 1.0)
        for group in peer.param_groups:
            group["lr"] = 1e-2 * settings.schedule.factor(step)
        peer.step()
        optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(matrix, peer_matrix, rtol=1e-5, atol=1e-6)


def test_clipping_is_by_the_norm_of_all() -> None:
    """Gradients (3, 0) and (4) have norm 5; clipped to 1 they are (0.6, 0) and (0.8)."""
    first, second = parameter(0.0, 0.0), parameter(0.0)
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    optimizer = AdamW({"a": first, "b": second}, AdamWSettings(max_grad_norm=1.0))
    assert optimizer.step().grad_norm == pytest.approx(5.0)
    assert first.grad.tolist() == pytest.approx([0.6, 0.0])
    assert second.grad.tolist() == pytest.approx([0.8])
    first.grad, second.grad = torch.tensor([0.3, 0.0]), torch.tensor([0.4])
    optimizer.step()
    assert first.grad.tolist() == pytest.approx([0.3, 0.0])  # below the limit: left alone


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    weight = parameter(1.0, 2.0)
    optimizer = AdamW({"w": weight}, AdamWSettings(learning_rate=0.1))
    weight.grad = torch.tensor([1.0, 1.0])
    optimizer.step()
    before, state = weight.detach().clone(), {k: v.clone() for k, v in optimizer.state().items()}
    weight.grad = torch.tensor([1.0, bad])
    assert optimizer.step().skipped
    assert torch.equal(weight, before)
    assert all(torch.equal(value, state[name]) for name, value in optimizer.state().items())
    assert (optimizer.n_skipped, optimizer.step_index) == (1, 2)


def test_a_step_counts_as_a_change_in_place() -> None:
    """Copies of the weights in bf16 are made again when the version of a weight changes."""
    weight = parameter(1.0)
    optimizer = AdamW({"w": weight}, AdamWSettings(learning_rate=0.1))
    before = weight._version
    optimizer.step()
    assert weight._version > before


def test_an_idle_step_moves_the_schedule_and_nothing_else() -> None:
    weight = parameter(1.0)
    optimizer = AdamW(
        {"w": weight}, AdamWSettings(learning_rate=1.0, schedule=Schedule("linear", total_steps=4))
    )
    weight.grad = torch.tensor([1.0])
    optimizer.step()
    before = weight.item()
    assert optimizer.idle().learning_rate == 0.75
    assert weight.item() == before
    assert optimizer.step().learning_rate == 0.5


def test_only_matrices_decay() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), parameter(1.0)
    matrix.grad = torch.zeros(2, 2)
    AdamW({"m": matrix, "v": vector}, AdamWSettings(learning_rate=0.5, weight_decay=0.5)).step()
    assert (matrix[0, 0].item(), vector.item()) == (0.75, 1.0)


def test_a_head_has_its_own_rate() -> None:
    body, head = parameter(0.0), nn.Parameter(torch.zeros(1, 1))
    settings = AdamWSettings(learning_rate=0.1, head_learning_rate=0.4, schedule=Schedule(warmup_steps=2))
    optimizer = AdamW({"body": body, "head": head}, settings, head=["head"])
    body.grad, head.grad = torch.ones(1), torch.ones(1, 1)
    optimizer.step()
    assert (body.item(), head.item()) == pytest.approx((-0.05, -0.2))
    with pytest.raises(EtudeError, match="no scalar head"):
        AdamW({"body": body}, settings)


def test_state_goes_and_comes_back() -> None:
    first, second = parameter(1.0, 2.0), parameter(1.0, 2.0)
    settings = AdamWSettings(learning_rate=0.1)
    one, other = AdamW({"w": first}, settings), AdamW({"w": second}, settings)
    first.grad = torch.tensor([0.5, 0.1])
    one.step()
    other.load_state(one.state(), step_index=one.step_index, n_skipped=one.n_skipped)
    second.data.copy_(first.data)
    for grad in (torch.tensor([0.1, -0.7]), torch.tensor([-0.2, 0.3])):
        first.grad, second.grad = grad.clone(), grad.clone()
        one.step()
        other.step()
        assert torch.equal(first, second)
