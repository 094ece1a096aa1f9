"""The flags of `etude view`: those of `etude serve` that have to do with pages."""

from __future__ import annotations

from etude.terminal import flags
from etude.terminal.options import Flag, Group, Verb
from etude.terminal.serving_verb import KEYS, LISTEN, PAGES

_LISTEN = ("host", "port", "api_prefix", "cors_origins", "cors_credentials")
_KEYS = ("api_key", "api_key_file")

VIEW = Verb(
    "view",
    "training runs in a browser: curves, rollouts, what the doctor says",
    "etude view [FOLDER] [flags]",
    (
        Group(
            "Pages",
            (
                Flag(("--open",), "open", "show it in the browser of this machine", default=False),
                *(flag for flag in PAGES.flags if flag.key == "data_dir"),
            ),
        ),
        Group(LISTEN.title, tuple(flag for flag in LISTEN.flags if flag.key in _LISTEN)),
        Group(KEYS.title, tuple(flag for flag in KEYS.flags if flag.key in _KEYS)),
        Group(
            "Chats with checkpoints",
            tuple(flag for flag in flags.MACHINE.flags if flag.key in ("threads", "ctx_size")),
        ),
    ),
    ("folder", "FOLDER"),
    (),
    """
FOLDER has the run folders (default: runs), or is one. They are only read; a run that is being trained is
shown live. No model is loaded, but any checkpoint can be talked with, and is then, as runs/NAME/STEP.

    etude view
    etude view runs --open --port 0
    etude view /data/runs --host 0.0.0.0 --api-key-file keys.txt
""",
)
