"""Files and generators → problems, conversations to learn from, preference pairs."""

from etude.data.check import Check, best_constant, check_problems
from etude.data.examples import (
    Example,
    Labelled,
    Preference,
    example_from,
    read_examples,
    read_labelled,
    read_preferences,
)
from etude.data.pairs import corrupted_pairs
from etude.data.problems import read_problems
from etude.data.sources import load_examples, load_labelled, load_preferences, load_problems
from etude.data.split import Order, split, without
from etude.data.tasks import TASKS, task_problems

__all__ = [
    "TASKS",
    "Check",
    "Example",
    "Labelled",
    "Order",
    "Preference",
    "best_constant",
    "check_problems",
    "corrupted_pairs",
    "example_from",
    "load_examples",
    "load_labelled",
    "load_preferences",
    "load_problems",
    "read_examples",
    "read_labelled",
    "read_preferences",
    "read_problems",
    "split",
    "task_problems",
    "without",
]
