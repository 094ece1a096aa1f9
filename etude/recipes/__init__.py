"""Trainings as one call: a model, data and a reward by name, put together with an algorithm."""
