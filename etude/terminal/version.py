"""`etude version`: versions of this program and its parts, and which instructions its kernels use."""

from __future__ import annotations

import platform
from importlib.metadata import version

from etude.kernels import _native
from etude.terminal.options import Options

PARTS = ("numpy", "llguidance", "jinja2", "prompt_toolkit")


def run(options: Options) -> int:
    """The verb."""
    print(f"etude {version('etude')}")
    print(f"kernels {_native.isa()} on {platform.machine()}, {platform.system()}")
    parts = ", ".join(f"{part} {version(part)}" for part in PARTS)
    print(f"Python {platform.python_version()}, {parts}")
    return 0
