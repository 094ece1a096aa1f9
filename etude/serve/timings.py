"""How long what took, in llama.cpp's words: its `timings` and `prompt_progress` objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Reading:
    """How far a prompt has been read. n_done: tokens that are in the cache now, n_cached of them from before;
    begun_s: when its turn came; at_s: when this was so."""

    n_total: int
    n_cached: int = 0
    n_done: int = 0
    begun_s: float = 0.0
    at_s: float = 0.0

    def take(self, n_cached: int, n_done: int, now_s: float) -> None:
        """What the engine says. A prompt that lost its place begins again: nobody needs to hear of it."""
        if not self.begun_s:
            self.begun_s = now_s
        self.n_cached, self.n_done, self.at_s = n_cached, max(self.n_done, n_done), now_s

    @property
    def ms(self) -> float:
        """Time since it was begun; 0 before the first step."""
        return 1e3 * (self.at_s - self.begun_s)

    def progress(self) -> dict[str, Any]:
        """llama.cpp's prompt_progress."""
        return {
            "total": self.n_total,
            "cache": self.n_cached,
            "processed": self.n_done,
            "time_ms": int(self.ms),
        }

    def timings(self) -> dict[str, Any]:
        """The timings of an answer that has not begun."""
        return timings_of(self.n_cached, self.n_done - self.n_cached, self.ms, 0, 0, 0.0)


def timings_of(
    n_cached: int, n_read: int, read_ms: float, n_predicted: int, n_steps: int, predicted_ms: float
) -> dict[str, Any]:
    """The timings object. n_steps: of the predicted tokens, those that took a step of their own."""
    read = _rate("prompt", n_read, n_read, read_ms)
    return {"cache_n": n_cached} | read | _rate("predicted", n_predicted, n_steps, predicted_ms)


def _rate(name: str, n: int, n_timed: int, ms: float) -> dict[str, Any]:
    return {
        f"{name}_n": n,
        f"{name}_ms": ms,
        f"{name}_per_token_ms": ms / n_timed if n_timed else 0.0,
        f"{name}_per_second": 1e3 * n_timed / ms if n_timed and ms > 0 else 0.0,
    }
