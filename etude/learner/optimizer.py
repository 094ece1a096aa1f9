"""AdamW with clipping by the global norm, and schedules of the learning rate.

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g²,  x -= lr (m̂ / (√v̂ + eps) + decay x)     arXiv:1711.05101

torch's fused kernel does a step in one pass over memory; here are the parts that decide: which parameters
decay, what a gradient that is not finite does (nothing: the step is skipped and counted), the rate of each
step. The kernel is called without `torch.optim`, which would load the compiler: a second or two at the start
of each training, and 70 MB.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from etude.records import EtudeError


@dataclass(frozen=True)
class Schedule:
    """A factor on the learning rate for each step, from step 0.

    Linear warm-up over warmup_steps (1/n, 2/n … n/n of the rate), then constant, or falling to final_fraction
    of the rate: linear, or along half a cosine. total_steps counts the warm-up; at step total_steps and
    later the factor is final_fraction.
    """

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    total_steps: int | None = None
    final_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "linear", "cosine"):
            raise EtudeError(f"schedule is {self.kind!r}; it must be constant, linear or cosine")
        if self.warmup_steps < 0:
            raise EtudeError(f"warmup_steps is {self.warmup_steps}; it must be at least 0")
        if self.kind == "constant":
            if self.total_steps is not None or self.final_fraction is not None:
                raise EtudeError(
                    "total_steps and final_fraction have no effect on a constant schedule: leave them out, "
                    "or write schedule linear or cosine"
                )
        elif self.total_steps is None or self.total_steps <= self.warmup_steps:
            raise EtudeError(
                f"a {self.kind} schedule falls until total_steps, which is {self.total_steps}: give a number "
                f"of steps larger than warmup_steps ({self.warmup_steps})"
            )
        if self.final_fraction is not None and not 0 <= self.final_fraction <= 1:
            raise EtudeError(f"final_fraction is {self.final_fraction}; it must be from 0 to 1")

    def factor(self, step: int) -> float:
        """
        >>> [Schedule("linear", warmup_steps=2, total_steps=4).factor(step) for step in range(5)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        assert self.total_steps is not None
        progress = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        fall = progress if self.kind == "linear" else (1 - math.cos(math.pi * progress)) / 2
        final = self.final_fraction or 0.0
        return 1.0 - (1.0 - final) * fall


@dataclass(frozen=True)
class AdamWSettings:
    """max_grad_norm: the global norm that gradients are scaled down to; None: never. weight_decay: of
    matrices; norms, biases and heads have none. head_learning_rate: of a scalar head; None: as the rest."""

    learning_rate: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    schedule: Schedule = field(default_factory=Schedule)
    head_learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise EtudeError(f"{name} is {value}; it must be a number of at least 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise EtudeError(f"betas are {self.betas}; each must be at least 0 and below 1")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise EtudeError(
                f"max_grad_norm is {self.max_grad_norm}; it must be above 0, or None for no limit"
            )

    def as_json(self) -> dict[str, Any]:
        """Plain values, as they come back from JSON."""
        return asdict(self) | {"betas": list(self.betas)}


class Stepped(NamedTuple):
    """What one step did. skipped: the gradient was not finite, and nothing was changed."""

    grad_norm: float
    learning_rate: float
    skipped: bool


class AdamW:
    """The optimizer of one learner. `step_index` counts the steps that were tried, skipped ones included."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], settings: AdamWSettings, head: Iterable[str] = ()
    ) -> None:
        """parameters: what is trained, by name. head: names of those that take head_learning_rate."""
        self.settings = settings
        self.step_index = 0
        self.n_skipped = 0
        self._parameters = dict(parameters)
        heads = set(head)
        if settings.head_learning_rate is not None and not heads:
            raise EtudeError("head_learning_rate has no effect: this learner has no scalar head")
        self._groups = list(self._grouped(heads))
        self._moments: dict[str, _Moments] = {}

    def _grouped(self, heads: set[str]) -> Iterable[_Group]:
        settings = self.settings
        rate = settings.learning_rate
        head_rate = rate if settings.head_learning_rate is None else settings.head_learning_rate
        named = self._parameters.items()
        matrices = [name for name, value in named if value.dim() > 1 and name not in heads]
        vectors = [name for name, value in named if value.dim() <= 1 and name not in heads]
        for names, group_rate, decay in (
            (matrices, rate, settings.weight_decay),
            (vectors, rate, 0.0),
            ([name for name, _ in named if name in heads], head_rate, 0.0),
        ):
            if names:
                yield _Group(names, group_rate, decay)

    def clear(self) -> None:
        """Gradients to zero, in place: their memory stays."""
        gradients = self._gradients()
        if gradients:
            torch._foreach_zero_(gradients)

    def step(self) -> Stepped:
        """Clip and step; a gradient with NaN or infinity changes nothing but the count."""
        factor = self.settings.schedule.factor(self.step_index)
        self.step_index += 1
        rate = self.settings.learning_rate * factor
        norm = float(torch.nn.utils.get_total_norm(self._gradients()))
        if not math.isfinite(norm):
            self.n_skipped += 1
            return Stepped(norm, rate, True)
        limit = self.settings.max_grad_norm
        if limit is not None and norm > limit:
            torch._foreach_mul_(self._gradients(), limit / norm)
        for group in self._groups:
            self._step(group, group.learning_rate * factor)
        # the fused kernel does not count as a change in place, by which copies in bf16 know that they are old
        torch.autograd.graph.increment_version(list(self._parameters.values()))
        return Stepped(norm, rate, False)

    @torch.no_grad()
    def _step(self, group: _Group, rate: float) -> None:
        names, parameters, gradients = list[str](), list[Tensor](), list[Tensor]()
        for name in group.names:
            parameter = self._parameters[name]
            if parameter.grad is None:
                continue
            names.append(name)
            parameters.append(parameter)
            gradients.append(parameter.grad)
            if name not in self._moments:
                n_steps = torch.zeros((), dtype=torch.float32, device=parameter.device)
                means, squares = torch.zeros_like(parameter), torch.zeros_like(parameter)
                self._moments[name] = _Moments(n_steps, means, squares)
        if not names:
            return
        moments = [self._moments[name] for name in names]
        n_steps_each = [each.step for each in moments]
        torch._foreach_add_(n_steps_each, 1)
        torch._fused_adamw_(
            parameters,
            gradients,
            [each.exp_avg for each in moments],
            [each.exp_avg_sq for each in moments],
            [],
            n_steps_each,
            lr=rate,
            beta1=self.settings.betas[0],
            beta2=self.settings.betas[1],
            weight_decay=group.weight_decay,
            eps=self.settings.eps,
            amsgrad=False,
            maximize=False,
        )

    def idle(self) -> Stepped:
        """A step of the run in which there was nothing to learn from: the schedule goes on, weights stay."""
        factor = self.settings.schedule.factor(self.step_index)
        self.step_index += 1
        return Stepped(0.0, self.settings.learning_rate * factor, False)

    def state(self) -> dict[str, Tensor]:
        """By "exp_avg/NAME", "exp_avg_sq/NAME" and "step/NAME"; empty before the first step."""
        return {
            f"{kind}/{name}": value
            for name in self._parameters  # the order of a file, whichever was stepped first
            if name in self._moments
            for kind, value in self._moments[name]._asdict().items()
        }

    def load_state(self, state: Mapping[str, Tensor], *, step_index: int, n_skipped: int) -> None:
        """Take what `state` gave; the tensors are copied."""
        self._moments.clear()
        for name, parameter in self._parameters.items():
            if f"step/{name}" in state:
                self._moments[name] = _Moments(
                    state[f"step/{name}"].to(parameter.device, copy=True).reshape(()),
                    state[f"exp_avg/{name}"].to(parameter.device, copy=True),
                    state[f"exp_avg_sq/{name}"].to(parameter.device, copy=True),
                )
        self.step_index = step_index
        self.n_skipped = n_skipped

    def _gradients(self) -> list[Tensor]:
        return [value.grad for value in self._parameters.values() if value.grad is not None]


class _Moments(NamedTuple):
    """Of one parameter; `step`, how often it was changed, is a number in f32, as the kernel takes it."""

    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class _Group(NamedTuple):
    """Parameters by name that decay alike and learn at one rate."""

    names: list[str]
    learning_rate: float
    weight_decay: float
