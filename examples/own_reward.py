"""A model learns to shout: GRPO with data and a reward of one's own.     python examples/own_reward.py

The reward is any function of a problem and an answer, the data any list of problems.
"""

from etude import Message, grpo
from etude.records import Problem
from etude.train.settings import RunSettings, SamplingSettings

TOPICS = "cats dogs rain trees books trains bread stars whales mountains music chess rivers bees".split()
PROBLEMS = [Problem(topic, (Message("user", f"Say something about {topic}."),)) for topic in TOPICS]


def loud(problem: Problem, answer: str) -> float:
    """The share of capitals among the letters."""
    letters = [character for character in answer if character.isalpha()]
    return sum(letter.isupper() for letter in letters) / max(1, len(letters))


run = grpo(
    data=PROBLEMS,
    reward=loud,
    sampling=SamplingSettings(prompts_per_step=4, max_tokens=24),
    run=RunSettings(steps=30),
    on_step=lambda report: print(
        f"{report.step:3} {report.row['reward/mean']:.2f} {report.rollouts[0].text!r}"
    ),
)
print(f"etude runs {run.folder}")
