"""Flags of the model -> its path, and a loaded engine."""

from __future__ import annotations

from pathlib import Path

from etude.model.pull import resolve
from etude.model.source import DEFAULT_MODEL
from etude.terminal.options import Options
from etude.terminal.pull import fetch


def model_path(options: Options) -> Path:
    """Where the model of the command line lies; fetched first, unless --offline."""
    name = model_name(options)
    return resolve(name) if options["offline"] else fetch(name)


def model_name(options: Options) -> str:
    """What the user calls the model: a path, or a name that `etude pull` knows."""
    repository, file = options.values.get("hf_repo"), options.values.get("hf_file")
    if repository is None:
        if file is not None:
            raise options.error("hf_file", "no effect without -hf USER/REPO")
        return str(options["model"] or DEFAULT_MODEL)
    if options["model"] is not None:
        raise options.error("hf_repo", f"the model was given already with {options.written['model']}")
    if file is not None:
        return f"hf:{repository.partition(':')[0]}:{file}"
    return f"hf:{repository}"
