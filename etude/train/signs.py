"""The signs of trouble: a rule each, over the rows of a run's metrics; where a number becomes a sign.

A rule is a pure function of the rows so far and the thresholds, and says what it sees at the last row and
what to change; None: nothing. Rules whose numbers a run does not have are silent. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, variance
from typing import Any, NamedTuple

Row = Mapping[str, Any]
History = Sequence[Row]

WINDOW = 5
"""Rows whose mean is the start of a run, or how it is now."""

LONG_WINDOW = 10
"""Rows whose mean shows a slow change through the noise of single steps."""

LOOK_BACK = 20
"""Steps that a jump is compared with."""

NEARLY_ALL = 0.9
"""Answers cut off, of which one need not wait whether they become fewer."""

MISMATCH_HEALTHY = 1e-4
"""k3 below which no growth is a sign: what bf16 on both sides may have."""


@dataclass(frozen=True)
class Thresholds:
    """Where a number becomes a sign. Shares are of 1; mismatch_k3 and effective_samples are Tinker's and
    verl's limits.

    steps_in_a_row: how long most signs must last. gain: what counts as a gain of form, or as a loss or a gain
    of reward, as a share of its range. content_share: of the gain of form, by which content must have grown
    too.
    """

    steps_in_a_row: int = 3
    flat_groups: float = 0.7  # share of groups without a difference, for WINDOW steps
    gain: float = 0.1
    content_share: float = 0.25
    accuracy_drop: float = 0.05  # of held-out accuracy below its best
    length_correlation: float = 0.5
    entropy_low: float = 0.2  # × the start's
    entropy_high: float = 2.0  # × the start's, and half a nat more
    repetition: float = 0.3
    length_bias: float = 1.3  # growth of wrong answers ÷ growth of right ones
    truncated: float = 0.2  # and not falling, or NEARLY_ALL
    kl_per_token: float = 0.1
    kl_jump: float = 5.0  # × the median of LOOK_BACK steps
    gradient_jump: float = 10.0  # × the median of LOOK_BACK steps
    mismatch_k3: float = 0.01
    mismatch_growth: float = 10.0  # × the start's, and above MISMATCH_HEALTHY
    effective_samples: float = 0.3
    collapsed_groups: float = 0.3
    failed_verdicts: float = 0.05
    explained_variance: float = -0.5


class Seen(NamedTuple):
    """What a rule sees, and what to change."""

    seen: str
    advice: str


Rule = Callable[[History, Thresholds], Seen | None]


# ── is there anything to learn from ──


def zero_reward(history: History, t: Thresholds) -> Seen | None:
    """Every reward of the last steps is 0."""
    means, spreads = numbers(history, "reward/mean"), numbers(history, "reward/std")
    if not (lasts(means, t.steps_in_a_row, lambda x: x == 0) and lasts(spreads, 1, lambda x: x == 0)):
        return None
    return Seen(
        f"Every reward of the last {t.steps_in_a_row} steps is 0.",
        "Read the examples. A right answer among them: the reward does not find it (`etude eval` with the "
        "same reward shows how it parses). Answers that go on after the answer, or stop at once: the "
        "template or the end token is wrong. All of them wrong: the task is too hard for this model.",
    )


def too_hard(history: History, t: Thresholds) -> Seen | None:
    """Hardly any group has a difference, because its answers are as bad as they come."""
    return None if zero_reward(history, t) else _flat(history, t, solved=False)


def too_easy(history: History, t: Thresholds) -> Seen | None:
    """The same, because they are as good as they come."""
    return None if zero_reward(history, t) else _flat(history, t, solved=True)


def _flat(history: History, t: Thresholds, *, solved: bool) -> Seen | None:
    flat = numbers(history, "groups/flat")
    if not lasts(flat, LONG_WINDOW if solved else WINDOW, lambda share: share > t.flat_groups):
        return None  # that a task is solved does no harm, and may be chance
    level, low, high = fmean(numbers(history, "groups/flat_reward")[-WINDOW:]), *reward_range(history)
    good = level > 0 if high == low else level > (low + high) / 2
    if good != solved:
        return None
    what = (
        f"{percent(fmean(flat[-WINDOW:]))} of the groups have no signal: all their answers got the same "
        f"reward ({level:.2g}). The task is too {'easy' if solved else 'hard'}."
    )
    if solved:
        return Seen(what, "Stop here, or take harder problems; dynamic sampling leaves solved ones out.")
    return Seen(
        what,
        "Take easier problems (look for a pass@8 of 0.2 to 0.8), give partial credit, first fine-tune on "
        "some right answers (`etude sft`), sample more per prompt, or use dynamic sampling (preset dapo).",
    )


def broken_verifier(history: History, t: Thresholds) -> Seen | None:
    """Answers that could not be judged."""
    failed = numbers(history, "reward/failed")
    if not lasts(failed, 1, lambda share: share > t.failed_verdicts):
        return None
    return Seen(
        f"The verifier broke on {percent(failed[-1])} of the answers; they are left out of training.",
        "The examples say why. Mend the reward function, or give it more time.",
    )


def collapsed_rewards(history: History, t: Thresholds) -> Seen | None:
    """Different merits, one total: the parts of the reward hide each other."""
    shares = numbers(history, "reward/collapsed")
    if not lasts(shares, WINDOW, lambda share: share > t.collapsed_groups):
        return None
    return Seen(
        f"In {percent(fmean(shares[-WINDOW:]))} of the groups, answers that differ in the parts of their "
        "reward get the same total, for example right without format and format without right.",
        "Normalise each part before they are summed (advantage gdpo), or weigh the parts differently.",
    )


# ── is it learning what was meant ──


def format_only(history: History, t: Thresholds) -> Seen | None:
    """Form was learnt, content was not."""
    parts = {key for row in history[-WINDOW:] for key in row if key.startswith("reward/part/")}
    forms = {key for key in parts if "format" in key}
    contents = {key for key in parts - forms if key.count("/") == 2}
    pairs = [
        ("eval/accuracy/strict", ["eval/accuracy/lenient"], 1),
        ("reward/part/strict", ["reward/part/lenient"], WINDOW),
        *((form, sorted(contents), WINDOW) for form in sorted(forms)),
    ]
    for form, others, window in pairs:
        formal = gain(numbers(history, form), window)
        gains = [gain(numbers(history, other), window) for other in others]
        known = [value for value in gains if value is not None]
        if formal is None or not known or formal < t.gain:
            continue
        if max(known) <= t.content_share * formal:
            return Seen(
                f"The gain is format: {form} rose by {formal:.2f}, {' and '.join(others)} by at most "
                f"{max(known):.2f}.",
                "Report it as such. To gain more than form, start from answers in the right form (a short "
                "`etude sft`) and reward what is right, not how it looks.",
            )
    return None


def reward_hacking(history: History, t: Thresholds) -> Seen | None:
    """The reward rises while held-out accuracy falls."""
    evals = [at for at, row in enumerate(history) if _is_number(row.get("eval/accuracy"))]
    if len(evals) < 2:
        return None
    now = evals[-1]
    best = max(evals[:-1], key=lambda at: float(history[at]["eval/accuracy"]))
    accuracy, peak = (float(history[at]["eval/accuracy"]) for at in (now, best))
    highest = float(history[now].get("eval/accuracy/high", accuracy))
    if accuracy > peak - t.accuracy_drop or highest >= peak:
        return None
    rewards = [numbers(history[max(0, at - WINDOW + 1) : at + 1], "reward/mean") for at in (best, now)]
    then, after = rewards[0] or numbers(history, "reward/mean")[:WINDOW], rewards[1]
    if not then or not after or fmean(after) <= fmean(then):
        return None
    return Seen(
        f"The reward rose ({fmean(then):.3g} → {fmean(after):.3g}) while held-out accuracy fell "
        f"({peak:.3g} → {accuracy:.3g}): the model has found a way around the task.",
        f"Go back to the best checkpoint (step {history[best].get('step', best)}) and stop there. With a "
        "reward model: use it for the last quarter of the run only, and with a larger KL coefficient.",
    )


def length_hacking(history: History, t: Thresholds) -> Seen | None:
    """A reward model pays for length. (Its scores have a part "raw"; a rule may well ask for length.)"""
    keys = history[-1] if history else {}
    learned = any(key.startswith("reward/part/") and key.endswith("raw") for key in keys)
    follows = numbers(history, "reward/length_correlation")
    if not learned or not lasts(follows, WINDOW, lambda r: r > t.length_correlation):
        return None
    return Seen(
        f"The reward model pays for length: the correlation of reward and tokens is {follows[-1]:.2f}.",
        "Train it on pairs of equal length, take off a price per token, or stop early.",
    )


def length_bias(history: History, t: Thresholds) -> Seen | None:
    """Wrong answers grow faster than right ones."""
    wrong, right = growth(numbers(history, "tokens/wrong")), growth(numbers(history, "tokens/right"))
    if wrong is None or right is None or wrong < t.length_bias or wrong < t.length_bias * right:
        return None
    return Seen(
        f"Wrong answers have grown {wrong:.1f}-fold, right ones {right:.1f}-fold: length dilutes blame.",
        "Do not divide the loss by an answer's own length (aggregation token-mean, or preset dr-grpo); "
        "punish length softly (overlong_buffer).",
    )


def truncation(history: History, t: Thresholds) -> Seen | None:
    """Answers do not fit: nearly all of them, or many and it gets no better. (Many at first, and fewer from
    step to step, is how a model learns to stop.)"""
    shares = numbers(history, "truncated")
    if not lasts(shares, t.steps_in_a_row, lambda share: share > t.truncated):
        return None
    before, now = shares[-2 * WINDOW : -WINDOW], shares[-WINDOW:]
    stays = len(before) == WINDOW and fmean(now) > 0.8 * fmean(before)
    if not stays and not lasts(shares, t.steps_in_a_row, lambda share: share > NEARLY_ALL):
        return None
    what = f"{percent(shares[-1])} of the answers are cut off at the limit."
    if numbers(history[-1:], "truncated/masked"):
        return Seen(
            what,
            "They are left out of the loss, so nothing teaches the model to stop: set "
            "grpo.mask_truncated_after = 1, or allow more tokens.",
        )
    return Seen(
        what,
        "Allow more tokens, ask for shorter answers, or punish length softly (overlong shaping, preset "
        "dapo). If the examples go on after the answer, the model does not know its end token.",
    )


# ── is the policy still sane ──


def entropy_collapse(history: History, t: Thresholds) -> Seen | None:
    """Hardly a choice is left, and it was given away for nothing, or too early.

    Reward is bought with entropy (R = -a e^H + b, arXiv:2505.22617): low entropy beside a risen reward is how
    success looks. Even that the best of a group gets worse (pass@G falls) is then no harm: a group is one
    answer eight times, and its best is its mean.
    """
    entropy = numbers(history, "entropy")
    start = first(entropy)
    if start is None or not lasts(entropy, t.steps_in_a_row, lambda h: h < t.entropy_low * start):
        return None
    harm = _harm_of_low_entropy(history, t)
    if harm is None:
        return None
    return Seen(
        f"Entropy has collapsed ({start:.2g} → {entropy[-1]:.2g} nats a token), and {harm}.",
        "Go back to a checkpoint from before; clip higher (0.28), lower the learning rate, sample at "
        "temperature 1, take fresh problems, or add a KL coefficient with a refreshed reference.",
    )


def _harm_of_low_entropy(history: History, t: Thresholds) -> str | None:
    """What is wrong with the rewards: they fall, they are low and cannot rise, or they never rose."""
    rewards, (low, high) = numbers(history, "reward/mean"), reward_range(history)
    least = t.gain * (high - low)
    if has_fallen(rewards, least):
        return "the reward falls"
    flat = numbers(history, "groups/flat")
    now = fmean(rewards[-WINDOW:]) if rewards else 0.0
    if lasts(flat, WINDOW, lambda share: share > t.flat_groups) and now < (low + high) / 2:
        return "all answers of a group are alike and bad"
    rise = gain(rewards, WINDOW)
    held_out = gain(numbers(history, "eval/accuracy"), 1)
    if rise is None or now > high - least or (held_out is not None and held_out > t.gain):
        return None
    then = now - rise
    return f"the reward has not risen ({then:.2g} → {now:.2g})" if rise < t.gain * (high - then) else None


def entropy_explosion(history: History, t: Thresholds) -> Seen | None:
    """The policy drifts towards noise."""
    entropy = numbers(history, "entropy")
    start = first(entropy)
    if start is None:
        return None
    limit = max(t.entropy_high * start, start + 0.5)
    if not lasts(entropy, t.steps_in_a_row, lambda h: h > limit):
        return None
    return Seen(
        f"Entropy has exploded ({start:.2g} → {entropy[-1]:.2g} nats a token): answers turn into noise.",
        "Lower the learning rate, add a KL coefficient of 0.01, or bound punished tokens (clip dual).",
    )


def repeats(history: History, t: Thresholds) -> Seen | None:
    """Answers say the same again and again."""
    shares = numbers(history, "repetition")
    if not lasts(shares, t.steps_in_a_row, lambda share: share > t.repetition):
        return None
    return Seen(
        f"{percent(shares[-1])} of what answers say (in runs of 4 tokens) they have said before.",
        "Lower the learning rate, start from a short `etude sft` on clean answers, or limit the length.",
    )


def kl_spike(history: History, t: Thresholds) -> Seen | None:
    """The policy leaps away from its reference."""
    kl = numbers(history, "kl")
    usual = median(kl[-LOOK_BACK - 1 : -1]) if len(kl) > 1 else math.inf
    if not kl or kl[-1] <= t.kl_per_token or kl[-1] <= t.kl_jump * usual:
        return None
    return Seen(
        f"The KL to the reference leapt to {kl[-1]:.2g} nats a token (usually {usual:.2g}).",
        "Halve the learning rate and go on from the last checkpoint; a KL coefficient holds the policy back.",
    )


def gradient_spike(history: History, t: Thresholds) -> Seen | None:
    """A gradient far beyond the usual, or none that is a number."""
    skipped = numbers(history[-1:], "skipped")
    if skipped and skipped[-1] > 0:
        return Seen(
            "The gradient was not finite; the step was skipped.",
            "Once is harmless. If it comes back, lower the learning rate or compute in f32.",
        )
    norms = [norm for norm in numbers(history, "grad_norm") if norm > 0]
    before = norms[-LOOK_BACK - 1 : -1]
    if len(before) < WINDOW or norms[-1] <= t.gradient_jump * median(before):
        return None
    return Seen(
        f"The gradient's norm leapt to {norms[-1]:.2g} (usually {median(before):.2g}).",
        "Clipping has bounded this step. If it comes back, halve the learning rate, or go on from the last "
        "checkpoint.",
    )


def critic_fails(history: History, t: Thresholds) -> Seen | None:
    """PPO's critic is worse than a constant."""
    explained = numbers(history, "explained_variance")[2 * WINDOW :]  # it may take some steps to begin
    if not lasts(explained, WINDOW, lambda share: share < t.explained_variance):
        return None
    return Seen(
        f"The critic is worse than a constant: it explains {percent(explained[-1])} of the variance.",
        "Raise the critic's learning rate or its epochs, start it from the reward model, or lower the clip "
        "of its values if it overshoots. `etude grpo` needs no critic.",
    )


# ── do engine and learner agree ──


def mismatch(history: History, t: Thresholds) -> Seen | None:
    """The engine samples from another distribution than the learner trains: so far that it harms, or ever
    farther. (A single step says little: its mean may hang on one token out of a hundred.)"""
    gaps, effective = numbers(history, "mismatch/k3"), numbers(history, "mismatch/effective_samples")
    start = first(gaps)
    far = lasts(gaps, t.steps_in_a_row, lambda gap: gap > t.mismatch_k3)
    few = lasts(effective, t.steps_in_a_row, lambda share: share < t.effective_samples)
    now = median(gaps[-WINDOW:]) if gaps else math.nan
    grown = start is not None and now > max(t.mismatch_growth * start, MISMATCH_HEALTHY)
    if not far and not few and not grown:
        return None
    shares = f", {percent(effective[-1])} effective samples" if few else ""
    what = f"Engine and learner disagree: k3 {now:.2g} nats a token{shares}"
    if far and median(gaps[:WINDOW]) > t.mismatch_k3:
        return Seen(
            f"{what}.",
            "It was so from the start: other weights or another adapter, a temperature or truncation that "
            "only one of them applies, or a coarsely quantised engine. Sample from the weights that are "
            "trained; correct the rest with TIS.",
        )
    return Seen(
        f"{what}, at first {median(gaps[:WINDOW]) if gaps else math.nan:.2g}.",
        "The engine's weights are stale (were they published after the step?), or a re-quantised sampler no "
        "longer follows small updates. Sample in f32 (sampling.weight_type), or train a LoRA beside the "
        "quantised model; TIS bounds the damage.",
    )


def ratio_off(history: History, t: Thresholds) -> Seen | None:
    """The first minibatch of a rollout must have ratio 1 exactly."""
    deviation = numbers(history, "ratio/first_deviation")
    if not deviation or deviation[-1] == 0:
        return None
    return Seen(
        f"The first ratio of a rollout is not 1 (off by {deviation[-1]:.2g}).",
        "Old logprobs come from other weights, another packing or another temperature than the update: "
        "clipping acts on noise. This is a fault of the program; please report it.",
    )


# ── what rules are made of ──


def numbers(history: History, name: str) -> list[float]:
    """A number over the rows that have it, finite."""
    return [float(row[name]) for row in history if _is_number(row.get(name))]


def lasts(values: Sequence[float], n: int, holds: Callable[[float], bool]) -> bool:
    """Whether there are n values, and it holds for the last n.

    >>> lasts([0, 9, 9], 2, lambda x: x > 1), lasts([9], 2, lambda x: x > 1)
    (True, False)
    """
    return len(values) >= n and all(holds(value) for value in values[-n:])


def first(values: Sequence[float]) -> float | None:
    """Where it began: the median of the first WINDOW; None while there are no later ones to compare."""
    return median(values[:WINDOW]) if len(values) > WINDOW else None


def gain(values: Sequence[float], window: int) -> float | None:
    """Mean of the last `window` less that of the first; None for too few to tell (3 windows)."""
    if len(values) < (2 if window == 1 else 3 * window):
        return None
    return fmean(values[-window:]) - fmean(values[:window])


def has_fallen(values: Sequence[float], least: float) -> bool:
    """Whether the mean of the last LONG_WINDOW is below the best one before by `least`, and by three times
    the standard error of such a difference.

    >>> has_fallen([0.5] * 10 + [0.2] * 10, 0.1), has_fallen([0.9, 0.1] * 5 + [0.1, 0.5] * 5, 0.1)
    (True, False)
    """
    now = values[-LONG_WINDOW:]
    ends = range(LONG_WINDOW, len(values) - LONG_WINDOW + 1)
    if not ends:
        return False
    best = max((values[end - LONG_WINDOW : end] for end in ends), key=fmean)
    error = math.sqrt((variance(best) + variance(now)) / LONG_WINDOW)
    return fmean(best) - fmean(now) > max(least, 3 * error)


def growth(values: Sequence[float]) -> float | None:
    """Mean of the last WINDOW over that of the first; None for too few to tell."""
    change = gain(values, WINDOW)
    return None if change is None else 1 + change / max(fmean(values[:WINDOW]), 1.0)


def reward_range(history: History) -> tuple[float, float]:
    """The smallest and the largest reward so far; (0, 0) without any."""
    return min(numbers(history, "reward/min"), default=0.0), max(numbers(history, "reward/max"), default=0.0)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
