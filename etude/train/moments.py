"""Running mean and spread of a reward model's scores, so that they reach PPO on one scale."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Of all scores so far: how many, their mean, and the sum of squared distances from it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """Sample standard deviation; 0 before the second score."""
        return (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 else 0.0


def updated(moments: Moments, scores_S: Tensor) -> Moments:
    """With these scores too. Two sets joined as by Chan, Golub and LeVeque (1979): no cancellation."""
    if not len(scores_S):
        return moments
    scores_S = scores_S.double()
    count, mean = len(scores_S), float(scores_S.mean())
    total, gap = moments.count + count, mean - moments.mean
    squares = float(((scores_S - mean) ** 2).sum()) + gap * gap * moments.count * count / total
    return Moments(total, moments.mean + gap * count / total, moments.squares + squares)


def standardised(scores_S: Tensor, moments: Moments, *, clip: float = 5.0) -> Tensor:
    """clip((score - mean) / std, ±clip); the spread is taken as 1 while there is none."""
    return ((scores_S - moments.mean) / (moments.std or 1.0)).clamp(-clip, clip)
