"""Builds the Python environment of the training peers, verl and TRL, outside the repository."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.peers.environment import run_logged

REQUIREMENTS = Path(__file__).parent / "training_requirements.txt"


def training_python(folder: Path) -> Path:
    """The Python with verl and TRL; built if the requirements changed since it was."""
    home = folder / "training_venv"
    python, stamp = home / "bin" / "python", home / "requirements.txt"
    if python.exists() and stamp.exists() and stamp.read_text() == REQUIREMENTS.read_text():
        return python
    print(f"peers: installing verl, TRL and torch into {home}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "training_venv.log"
    run_logged([sys.executable, "-m", "venv", "--clear", str(home)], log, "Python environment")
    install = [str(python), "-m", "pip", "install", "--no-deps", "-r", str(REQUIREMENTS)]
    run_logged(install, log, "verl and TRL")
    for stray in home.glob("lib/python*/site-packages/tests"):
        shutil.rmtree(stray)  # verl's wheel brings a package `tests`, which would hide ours
    shutil.copy(REQUIREMENTS, stamp)
    return python
