"""Programs of our own, compiled against llama.cpp's static libraries: for what none of its own gives."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LlamaInputs:
    """`sources`, `build`: llama.cpp's folders; `version`: what its programs say; `out`: folder to fill."""

    sources: Path
    build: Path
    version: str
    out: Path


def read_llama_inputs(doc: str) -> LlamaInputs:
    """Parse the command line that the makers with a program of their own share."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--llama-sources", type=Path, required=True, help="llama.cpp's source folder")
    parser.add_argument("--llama-build", type=Path, required=True, help="its build folder, static libraries")
    parser.add_argument("--llama-version", required=True, help="what `llama-cli --version` says")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the outputs")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    return LlamaInputs(args.llama_sources, args.llama_build, args.llama_version, args.out)


def compile_program(inputs: LlamaInputs, source: str, out: Path) -> Path:
    """Compile tests/peers/SOURCE to `out`; CalledProcessError if that fails."""
    libraries = [
        inputs.build / "src" / "libllama.a", inputs.build / "ggml" / "src" / "libggml.a",
        inputs.build / "ggml" / "src" / "libggml-cpu.a", inputs.build / "ggml" / "src" / "libggml-base.a",
    ]  # fmt: skip
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    command = [compiler, "-std=c++17", "-O2", f"-I{inputs.sources / 'include'}"]
    command += [f"-I{inputs.sources / 'ggml' / 'include'}", str(Path(__file__).parent / source)]
    command += [*map(str, libraries), "-fopenmp", "-lpthread", "-ldl", "-o", str(out)]
    subprocess.run(command, check=True)
    return out
