"""Finds llama.cpp's best setting for each kind of work: by single steps from its defaults, or all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from llama_cpp import Group, LlamaCpp, Setting, all_settings, best_setting, neighbours

SWEEP_GROUP = Group(32, 128, 16)


@dataclass(frozen=True)
class Winner:
    """The best setting of one kind of work ("prefill", "stream", "groups"), and all speeds tried."""

    setting: Setting
    speeds: dict[Setting, float]


def climb(
    start: Setting, measure: Callable[[Setting], float], cores: int, for_groups: bool
) -> dict[Setting, float]:
    """Try every single change of the best so far, until none is better; the speeds of all tried."""
    speeds = {start: measure(start)}
    while True:
        best = best_setting(speeds)
        untried = [setting for setting in neighbours(best, cores, for_groups) if setting not in speeds]
        if not untried:
            return speeds
        speeds |= {setting: measure(setting) for setting in untried}
        if best_setting(speeds) == best:
            return speeds


def confirmed(
    speeds: dict[Setting, float], measure: Callable[[Setting], float], n_best: int = 3
) -> dict[Setting, float]:
    """The best few once more, with the better of both runs: one disturbed run must not decide."""
    best = sorted(speeds, key=lambda setting: -speeds[setting])[:n_best]
    return speeds | {setting: max(speeds[setting], measure(setting)) for setting in best}


def near(known: Setting, cores: int) -> list[Setting]:
    """What to try on a file when the best setting on another file is known."""
    changed = [replace(known, flash=not known.flash), replace(known, repack=not known.repack)]
    return list(dict.fromkeys([known, *changed, Setting(cores)]))


def sweep(
    peer: LlamaCpp, model: Path, size: str, group: Group = SWEEP_GROUP, known: dict[str, Winner] | None = None
) -> dict[str, Winner]:
    """The winners for prefill, stream and groups on this file. "quick" tries flash attention only.

    known: winners on another file; then only these, the defaults, and the switches that depend on the file
    (flash attention, repacked weights) the other way are tried.
    """
    measures: dict[str, Callable[[Setting], float]] = {
        "prefill": lambda setting: peer.single(model, setting, 256, 0)["prefill"],
        "stream": lambda setting: peer.single(model, setting, 0, 32)["stream"],
        "groups": lambda setting: peer.groups(model, setting, [group])[group],
    }
    winners = {}
    for work, measure in measures.items():
        for_groups = work == "groups"
        if known and size == "default":
            speeds = {setting: measure(setting) for setting in near(known[work].setting, peer.cores)}
        elif size == "default":
            speeds = climb(Setting(peer.cores), measure, peer.cores, for_groups)
        else:
            both = [Setting(peer.cores), Setting(peer.cores, flash=False)]
            tried = both if size == "quick" else all_settings(peer.cores, for_groups)
            speeds = {setting: measure(setting) for setting in tried}
        if size != "quick":
            speeds = confirmed(speeds, measure)
        winners[work] = Winner(best_setting(speeds), speeds)
    return winners
