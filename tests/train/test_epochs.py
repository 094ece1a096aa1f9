"""Settings of a run on given texts: what can be set there is what a run can be given."""

from __future__ import annotations

from dataclasses import asdict, fields

from etude.train.epochs import TextRunSettings
from etude.train.settings import RunSettings

FOLLOWS = {"steps", "rollouts_every"}
"""From the batches; and there are no rollouts."""


def test_every_setting_of_a_run_but_those_that_follow_can_be_set() -> None:
    assert {one.name for one in fields(RunSettings)} - FOLLOWS == {
        one.name for one in fields(TextRunSettings)
    }


def test_every_setting_arrives() -> None:
    asked = TextRunSettings(
        seed=3, folder="f", name="n", checkpoint_every=2, keep_last=1, final="none", tracker="wandb"
    )
    run = asked.of_steps(7)
    assert run.steps == 7 and run.rollouts_every == 0
    assert asdict(asked).items() <= asdict(run).items()
