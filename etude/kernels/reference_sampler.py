"""The sampler chain in numpy: the spec of sampler.cpp and chain.cpp, written for reading.

llama.cpp's samplers with its names, order and arithmetic (src/llama-sampler.cpp). Each takes the tokens
in play and returns what is left: `logits_V` in float64 with -inf for a token that is out. Where llama.cpp
leaves equal tokens to an unstable sort, the smaller id is preferred here. Where it computes 0 * log 0 =
NaN (typ_p after a sampler that sets logits to -inf), 0 is meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
DEFAULT_STEPS = (
    "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature",
)  # fmt: skip
OFF: Mapping[str, Any] = {
    "temperature": 1.0, "dynamic_range": 0.0, "dynamic_exponent": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
    "typical_p": 1.0, "top_n_sigma": -1.0, "min_keep": 0, "xtc_probability": 0.0, "xtc_threshold": 0.1,
    "repeat_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "penalty_last_n": 64,
    "dry_multiplier": 0.0, "dry_base": 1.75, "dry_allowed_length": 2, "dry_last_n": -1, "dry_breakers": (),
    "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "logit_bias": (),
}  # fmt: skip
"""Every setting of the native Sampler, with the value that switches it off."""


@dataclass(frozen=True)
class Play:
    """Tokens in play. size: how many llama.cpp counts; tokens that became impossible in place count too."""

    logits_V: F64
    size: int

    def probabilities(self) -> F64:
        """softmax, (V,); 0 for tokens that are out."""
        weights_V: F64 = np.exp(self.logits_V - self.logits_V.max())
        probabilities_V: F64 = weights_V / weights_V.sum()
        return probabilities_V

    def log_probabilities(self) -> F64:
        """log softmax, (V,); -inf for tokens that are out."""
        shifted_V: F64 = self.logits_V - self.logits_V.max()
        return shifted_V - float(np.log(np.exp(shifted_V).sum()))

    def entropy(self) -> float:
        """Of the distribution, nats."""
        p = self.probabilities()
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    def ranked(self) -> NDArray[np.int64]:
        """Ids in play: likeliest first, then smallest id."""
        order = np.lexsort((np.arange(self.logits_V.size), -self.logits_V))
        return order[np.isfinite(self.logits_V[order])]

    def keep(self, ids: NDArray[np.int64], size: int) -> Play:
        left_V = np.full_like(self.logits_V, -np.inf)
        left_V[ids] = self.logits_V[ids]
        return Play(left_V, min(size, self.size))


def _as_float32(p_V: F64) -> F64:
    return p_V.astype(np.float32).astype(np.float64)  # llama.cpp compares float32 probabilities


def top_k(play: Play, k: int) -> Play:
    """The k most likely tokens; k <= 0: all."""
    return play.keep(play.ranked()[:k], k) if k > 0 else play


def top_p(play: Play, p: float, min_keep: int) -> Play:
    """The most likely tokens until they hold probability p (arXiv:1904.09751)."""
    if p >= 1:
        return play
    ids = play.ranked()
    mass = np.cumsum(_as_float32(play.probabilities())[ids])
    kept = max(int(np.searchsorted(mass, p)) + 1, min_keep)
    return play.keep(ids[:kept], kept)


def min_p(play: Play, p: float, min_keep: int) -> Play:
    """Tokens at least p times as likely as the most likely one (arXiv:2407.01082)."""
    if p <= 0:
        return play
    ids = play.ranked()
    kept = max(int((play.logits_V[ids] >= play.logits_V.max() + np.log(p)).sum()), min_keep)
    return play.keep(ids[:kept], kept)


def typical_p(play: Play, p: float, min_keep: int) -> Play:
    """Tokens whose surprise is closest to the entropy, until they hold more than p (arXiv:2202.00666)."""
    if p >= 1:
        return play
    ids = np.flatnonzero(np.isfinite(play.logits_V))
    distance = np.abs(-play.log_probabilities()[ids] - play.entropy()).astype(np.float32)
    order = np.lexsort((ids, distance))
    mass = np.cumsum(_as_float32(play.probabilities())[ids[order]])
    kept = max(int(np.searchsorted(mass, p, side="right")) + 1, min_keep)
    return play.keep(ids[order[:kept]], kept)


def top_n_sigma(play: Play, n: float) -> Play:
    """Logits within n standard deviations of the largest (arXiv:2411.07641)."""
    if n <= 0 or play.size <= 1:
        return play
    finite = play.logits_V[np.isfinite(play.logits_V)]
    return play.keep(np.flatnonzero(play.logits_V >= finite.max() - n * finite.std()), play.size)


def xtc(play: Play, threshold: float, min_keep: int) -> Play:
    """Drop the tokens of probability >= threshold except the least likely of them."""
    ids = play.ranked()
    above = int((play.probabilities()[ids] >= threshold).sum())
    if play.size < 2 or above < 2 or play.size - (above - 1) < min_keep:
        return play
    return play.keep(ids[above - 1 :], play.size - (above - 1))


def temperature(play: Play, t: float) -> Play:
    """Divide the logits by t; t = 0: only the most likely token."""
    if t > 0:
        return replace(play, logits_V=play.logits_V / t)
    return play.keep(play.ranked()[:1], play.size)


def dynamic_temperature(play: Play, t: float, spread: float, exponent: float) -> Play:
    """Temperature between t - spread and t + spread, by (entropy / log size) ** exponent."""
    if spread <= 0:
        return temperature(play, t)
    if play.size <= 1:
        return play
    least, most = max(0.0, t - spread), t + spread
    return temperature(play, least + (most - least) * (play.entropy() / np.log(play.size)) ** exponent)


def edit(play: Play, changes: Mapping[int, float]) -> Play:
    """Replace the logits of tokens in play."""
    logits_V = play.logits_V.copy()
    for token_id, logit in changes.items():
        if np.isfinite(logits_V[token_id]):
            logits_V[token_id] = logit
    return replace(play, logits_V=logits_V)


def penalties(play: Play, history: Sequence[int], settings: Mapping[str, Any]) -> Play:
    """Repeat penalty divides positive logits and multiplies others; frequency and presence subtract."""
    last_n, repeat = settings["penalty_last_n"], settings["repeat_penalty"]
    window = list(history) if last_n < 0 else list(history)[len(history) - min(last_n, len(history)) :]
    changes = {}
    for token_id, count in Counter(window).items():
        logit = float(play.logits_V[token_id])
        logit = logit * repeat if logit <= 0 else logit / repeat
        changes[token_id] = logit - count * settings["frequency_penalty"] - settings["presence_penalty"]
    return edit(play, changes)


def dry_limit(latest: Sequence[int], breakers: Sequence[Sequence[int]]) -> int:
    """Longest match that does not cross a sequence breaker. `latest`: most recent token first."""
    for i, token_id in enumerate(latest):
        lengths = [
            len(breaker) - 1
            for breaker in breakers
            if breaker[0] == token_id
            and len(breaker) - 1 <= i
            and list(breaker[1:]) == [latest[i - 1 - j] for j in range(len(breaker) - 1)]
        ]
        if lengths:
            return i - max(lengths)
    return len(latest)


def dry(play: Play, history: Sequence[int], settings: Mapping[str, Any]) -> Play:
    """A token that would lengthen a repetition of n tokens loses multiplier * base ** (n - allowed)."""
    last_n, allowed = settings["dry_last_n"], settings["dry_allowed_length"]
    latest = list(history)[::-1][: None if last_n < 0 else last_n]
    limit = dry_limit(latest, settings["dry_breakers"])
    if settings["dry_multiplier"] == 0 or len(latest) <= allowed or limit < allowed:
        return play
    longest: dict[int, int] = {}
    for k in range(1, len(latest)):
        n = 0
        while k + n < len(latest) and latest[n] == latest[k + n]:
            n += 1
        n = min(n, limit)
        if n >= allowed:
            longest[latest[k - 1]] = max(n, longest.get(latest[k - 1], 0))
    single = {breaker[0] for breaker in settings["dry_breakers"] if len(breaker) == 1}
    base = settings["dry_base"]
    most = int(88.7228391 / np.log(base)) if base > 1.000001 else 10**9  # base ** most still fits in float32
    changes = {
        token_id: float(play.logits_V[token_id]) - settings["dry_multiplier"] * base ** min(n - allowed, most)
        for token_id, n in longest.items()
        if token_id not in single
    }
    return edit(play, changes)


def mirostat1(play: Play, mu: float) -> Play:
    """Truncation of algorithm 1 of arXiv:2007.14966; mu: maximal surprise in bits."""
    top = play.logits_V[play.ranked()[:100]]
    if top.size < 2:
        return top_k(play, 1)
    t = np.log(np.arange(2, top.size + 1) / np.arange(1, top.size))
    s = float((t * (top[:-1] - top[1:])).sum() / (t * t).sum())
    epsilon, n_vocab = s - 1, play.logits_V.size
    with np.errstate(divide="ignore", over="ignore"):
        k = (np.float64(epsilon) * 2**mu / (1 - np.float64(n_vocab) ** -epsilon)) ** (np.float64(1) / s)
    return top_k(play, int(np.clip(k, 1, play.size)))


def mirostat2(play: Play, mu: float) -> Play:
    """Algorithm 2: tokens with a surprise of at most mu bits, or the most likely one."""
    ids = play.ranked()
    kept = int((-np.log2(play.probabilities()[ids]) <= mu).sum())
    return play.keep(ids[: max(kept, 1)], max(kept, 1))


def sampled_distribution(
    logits_V: NDArray[np.float32],
    settings: Mapping[str, Any],
    *,
    steps: Sequence[str] = DEFAULT_STEPS,
    history: Sequence[int] = (),
    allowed_V: NDArray[np.bool_] | None = None,
    chance: float = 0.0,
) -> F64:
    """Probabilities (V,) the token is drawn from: mask, bias, then the chain.

    settings: as in OFF, others keep the value there. chance: the uniform number that xtc compares with its
    probability. Mirostat is in its first step (mu = 2 tau) and replaces the chain but for the temperature.
    """
    s = {**OFF, **settings}
    play = Play(logits_V.astype(np.float64), logits_V.size)
    if allowed_V is not None:
        play = replace(play, logits_V=np.where(allowed_V, play.logits_V, -np.inf))
    play = edit(play, {i: float(play.logits_V[i]) + bias for i, bias in s["logit_bias"]})
    applies: dict[str, Callable[[Play], Play]] = {
        "penalties": lambda play: penalties(play, history, s),
        "dry": lambda play: dry(play, history, s),
        "top_n_sigma": lambda play: top_n_sigma(play, s["top_n_sigma"]),
        "top_k": lambda play: top_k(play, s["top_k"]),
        "typ_p": lambda play: typical_p(play, s["typical_p"], s["min_keep"]),
        "top_p": lambda play: top_p(play, s["top_p"], s["min_keep"]),
        "min_p": lambda play: min_p(play, s["min_p"], s["min_keep"]),
        "xtc": lambda play: (
            xtc(play, s["xtc_threshold"], s["min_keep"]) if chance < s["xtc_probability"] else play
        ),
        "temperature": lambda play: dynamic_temperature(
            play, s["temperature"], s["dynamic_range"], s["dynamic_exponent"]
        ),
        "mirostat1": lambda play: mirostat1(play, 2 * s["mirostat_tau"]),
        "mirostat2": lambda play: mirostat2(play, 2 * s["mirostat_tau"]),
    }
    for step in ("temperature", f"mirostat{s['mirostat']}") if s["mirostat"] else steps:
        play = applies[step](play)
    return play.probabilities()
