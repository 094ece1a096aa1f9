"""Makes every stored output of a peer anew and compares it with the stored one: `python -m tests.peers`.

Builds what is missing outside the repository (see environment.py; half an hour the first time, minutes
after), and fails where a peer cannot be had: a missing peer must not look like an equal one. `--update`
replaces the stored outputs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from etude.model.pull import resolve
from etude.records import EtudeError
from tests.peers.comparison import compare_folders
from tests.peers.environment import LlamaCpp, PeerMissing, llama_cpp, peers_folder, peers_python
from tests.peers.inputs import llama_cpp_version
from tests.peers.training_environment import training_python

REPOSITORY = Path(__file__).parents[2]
STORED = REPOSITORY / "tests" / "data" / "peers"
MAKERS = ("families", "tokenizer", "perplexity", "logits", "sampling", "reference", "saved", "verl", "trl")
COMPILED = ("sampling", "reference")
"""Makers with a program of their own and of this package, but without transformers: this Python runs them."""
TRAINING = ("verl", "trl")
MODELS = {"smollm2": "smollm2-135m", "gemma3": "gemma3-270m"}
FILES = {  # what each maker writes, below the folder of stored outputs
    "families": ("families",),
    "tokenizer": ("tokenizer_*.json.gz",),
    "perplexity": ("perplexity.json", "perplexity_*.npz"),
    "logits": ("logits.json", "logits_*.npz"),
    "sampling": ("sampling.json.gz",),
    "reference": ("pretokenizers.json.gz", "builtin_chats.json.gz", "chat_templates.json.gz"),
    "saved": ("saved.json",),
    "verl": ("training_verl.json.gz",),
    "trl": ("training_trl.json.gz",),
}


def command_of(maker: str, out: Path, python: Path, llama: LlamaCpp) -> list[str]:
    """How to run one maker."""
    module = f"tests.peers.make_{'family' if maker == 'families' else maker}_fixtures"
    if maker == "families":
        return [str(python), "-m", module, "--out", str(out / "families")]
    if maker in TRAINING:
        return [str(training_python(peers_folder())), "-m", module, "--out", str(out)]
    if maker in COMPILED:
        command = [sys.executable, "-m", module, "--out", str(out), "--llama-sources", str(llama.sources)]
        version = llama_cpp_version(llama.programs)
        return [*command, "--llama-build", str(llama.build), "--llama-version", version]
    command = [str(python), "-m", module, "--out", str(out), "--llama-bin", str(llama.programs)]
    for name, model in MODELS.items():
        command += [f"--{name}", str(resolve(model, download=True))]
    return command


def make(maker: str, out: Path, python: Path, llama: LlamaCpp) -> None:
    """Run one maker; PeerMissing where it fails."""
    print(f"peers: making {maker}", flush=True)
    command = command_of(maker, out, python, llama)
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != 0:
        raise PeerMissing(f"{maker}: the peer failed:\n{done.stderr[-3000:]}")


def compare_whole_text() -> list[str]:
    """Our perplexity of the whole text against the stored one of llama.cpp, which `make test` samples."""
    command = [sys.executable, "-m", "tests.model.perplexity"]
    return [] if subprocess.run(command, cwd=REPOSITORY).returncode == 0 else ["perplexity of the whole text"]


def copy_outputs(source: Path, target: Path, makers: list[str]) -> None:
    """Copy what these makers write."""
    for pattern in (pattern for maker in makers for pattern in FILES[maker]):
        for path in source.glob(pattern):
            destination = target / path.name
            if path.is_dir():
                shutil.rmtree(destination, ignore_errors=True)
                shutil.copytree(path, destination)
            else:
                shutil.copy(path, destination)


def check(makers: list[str], update: bool) -> list[str]:
    """Make the outputs of these makers and compare or replace the stored ones; the differences."""
    folder = peers_folder()
    python = peers_python(folder)
    llama = llama_cpp(folder, python)
    with tempfile.TemporaryDirectory() as scratch:
        made, stored = Path(scratch) / "made", Path(scratch) / "stored"
        made.mkdir()
        stored.mkdir()
        for maker in makers:
            make(maker, made, python, llama)
        if update:
            copy_outputs(made, STORED, makers)
            return []
        copy_outputs(STORED, stored, makers)
        return compare_folders(stored, made) + (compare_whole_text() if "perplexity" in makers else [])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=MAKERS, action="append", help="one kind of outputs (repeatable)")
    parser.add_argument("--update", action="store_true", help="replace the stored outputs")
    parser.add_argument("--build", action="store_true", help="only build the peers, and say where they are")
    args = parser.parse_args()
    try:
        if args.build:
            print(llama_cpp(peers_folder(), peers_python(peers_folder())).programs)
            return 0
        problems = check(args.only or list(MAKERS), args.update)
    except (PeerMissing, EtudeError) as error:
        print(f"peers: MISSING: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"peers: DIFFERS: {problem}", file=sys.stderr)
    done = "replaced" if args.update else "made anew"
    print(f"peers: {len(args.only or MAKERS)} kinds of outputs {done}, {len(problems)} differences")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
