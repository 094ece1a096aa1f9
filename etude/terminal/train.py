"""`etude grpo`, and every other verb that trains: settings in, a run folder out.

Each verb is a row of TRAININGS: the record that its config file fills, and what runs it. Here is what they
have in common: reading the config, resuming, the dry run, the live view, and stopping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etude.terminal.options import UsageError, Verb
from etude.train.run import Job, Report

FLAGS: Mapping[str, bool] = {"resume": True, "dry-run": False}
"""Words of the verbs that are no settings → whether a value follows."""


@dataclass(frozen=True)
class Training:
    """A verb. config: its record of tables. steps: trains, step by step."""

    config: type
    steps: Callable[[Any, Job], Iterator[Report]]
    example: str = ""


TRAININGS: Mapping[str, Training] = {}


def main(verb: Verb, argv: Sequence[str]) -> int:
    """The verb; returns 0. EtudeError and UsageError for what the user can mend."""
    if verb.name not in TRAININGS:
        raise UsageError(f"etude {verb.name} is being built")
    return 0
