"""What every maker of stored outputs is given: both real models, the peer's programs, a folder to fill."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

MODELS = ("smollm2", "gemma3")


@dataclass(frozen=True)
class Inputs:
    """`models`: name → GGUF file; `llama_bin`: folder of llama.cpp's programs; `out`: folder to fill."""

    models: dict[str, Path]
    out: Path
    llama_bin: Path

    def program(self, name: str) -> str:
        """Path of one of llama.cpp's programs; FileNotFoundError says which one is missing."""
        path = self.llama_bin / name
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: build llama.cpp first (python -m tests.peers builds it)"
            )
        return str(path)


def read_inputs(doc: str) -> Inputs:
    """Parse the command line that all makers share."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name in MODELS:
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"GGUF file of {name}")
    parser.add_argument("--llama-bin", type=Path, default=Path(), help="folder of llama.cpp's programs")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the outputs")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    return Inputs({name: getattr(args, name) for name in MODELS}, args.out, args.llama_bin)


def llama_cpp_version(programs: Path) -> str:
    """The `version:` line of a llama.cpp program, such as "0.6.0 (build 11434, commit …)"."""
    command = [str(programs / "llama-perplexity"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = (done.stdout + done.stderr).splitlines()
    return next(line for line in lines if line.startswith("version:")).removeprefix("version:").strip()


def file_sha256(path: Path) -> str:
    """Hex digest of a file, to say which model an output belongs to."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
