"""`etude merge BASE ADAPTER -o OUT`: a model with a LoRA adapter in its weights, one tensor at a time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from etude.model.checkpoint import config_of, open_source
from etude.model.hf_tensors import hf_tensors
from etude.model.lora import read_lora
from etude.model.lora_write import merged
from etude.model.save import GGUF_TYPES, save_gguf, save_hf_folder
from etude.records import EtudeError
from etude.terminal.pull import fetch

FOLDER_TYPES = ("f32", "f16", "bf16")


def main(argv: Sequence[str]) -> int:
    """The verb. Returns the exit status of argparse, or 0; what cannot be done is an EtudeError."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    out = Path(arguments.out)
    is_gguf = out.suffix == ".gguf"
    if not is_gguf and arguments.type not in FOLDER_TYPES:
        raise EtudeError(
            f"--type {arguments.type}: a Hugging Face folder can hold {', '.join(FOLDER_TYPES)}; for "
            f"{arguments.type} name a GGUF file, such as -o {out.name}.gguf"
        )
    if is_gguf and out.is_dir():
        raise EtudeError(f"-o {out}: this is a folder; give the name of a file")
    adapter = Path(arguments.adapter)
    if not adapter.exists():
        raise EtudeError(f"no file or folder {str(adapter)!r} with a LoRA adapter")
    path = fetch(arguments.base)
    for read in (path, adapter):
        if out.exists() and out.samefile(read):
            raise EtudeError(f"-o {out}: the result would replace what it is made of; give another name")
    with open_source(path) as source:
        config = config_of(source)
        tensors = merged(hf_tensors(source, config), config, read_lora(adapter, config))
        if is_gguf:
            save_gguf(out, source, tensors, arguments.type)
        else:
            save_hf_folder(out, source, tensors, arguments.type)
    print(f"merged {adapter} into {path}", file=sys.stderr)
    print(out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="etude merge",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write a model with a LoRA adapter in its weights. Prints the path of the result.",
        epilog="""A quantised base is dequantised first; the result is what base and adapter are together.

    etude merge smollm2-135m runs/math/final -o math.gguf --type q8_0
    etude merge base-folder adapter.gguf -o merged-folder --type bf16""",
    )
    parser.add_argument(
        "base", metavar="BASE", help="GGUF file, Hugging Face folder, or a name for `etude pull`"
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="PEFT folder or GGUF adapter")
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        metavar="OUT",
        help="a .gguf file; any other name is a Hugging Face folder",
    )
    parser.add_argument(
        "--type",
        default="f16",
        choices=tuple(GGUF_TYPES),
        help="of the matrices (default: f16; q8_0: GGUF only)",
    )
    return parser
