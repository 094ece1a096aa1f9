"""`etude info MODEL`: metadata, tensors, memory at a context length. Also of models that cannot be run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from etude.records import EtudeError
from etude.terminal.inventory import Inventory, blocks, bytes_by_type, short_number, take_inventory
from etude.terminal.model import model_path
from etude.terminal.options import Options

_LONG_TEXT = 90
_FEW = 6


def run(options: Options) -> int:
    """The verb."""
    path = model_path(options)
    inventory = take_inventory(path)
    if options["template"]:
        if inventory.template is None:
            raise EtudeError(f"{path} has no chat template: it is a base model")
        sys.stdout.write(inventory.template.rstrip("\n") + "\n")
    elif options["json"]:
        print(json.dumps(as_json(inventory, options), indent=2))
    else:
        for line in report(inventory, options):
            print(line)
    return 0


def memory(inventory: Inventory, options: Options) -> dict[str, int]:
    """context, weights and cache in bytes; without the cache where the file does not tell its shape."""
    context = options["ctx_size"] or inventory.context_length or 0
    sizes = {"context": context, "weights_bytes": inventory.tensor_bytes}
    if inventory.attention and context:
        types = options["cache_type_k"], options["cache_type_v"]
        sizes["cache_bytes"] = inventory.attention.cache_bytes(context, *types)
    return sizes


def as_json(inventory: Inventory, options: Options) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "path": str(inventory.path),
        "format": inventory.format,
        "architecture": inventory.architecture,
        "runs": inventory.config is not None,
        "obstacle": inventory.obstacle or None,
        "description": inventory.description,
        "n_parameters": inventory.n_parameters,
        "context_length": inventory.context_length,
        "memory": memory(inventory, options),
        "chat_template": inventory.template,
        "metadata": {key: _plain(value) for key, value in inventory.metadata.items()},
        "tensors": [
            {"name": t.name, "shape": list(t.shape), "type": t.type, "size_bytes": t.size_bytes}
            for t in inventory.tensors
        ],
    }


def report(inventory: Inventory, options: Options) -> Iterator[str]:
    """The lines for people."""
    yield from _overview(inventory, options)
    yield ""
    yield f"metadata ({len(inventory.metadata)} entries)"
    for key, value in inventory.metadata.items():
        yield f"  {key:<44} {_shown(value, full=options['metadata'])}"
    yield ""
    yield f"tensors ({len(inventory.tensors)}; shapes are rows x inputs)"
    rows = [(t.name, t, 1) for t in inventory.tensors] if options["tensors"] else blocks(inventory.tensors)
    width = max((len(name) for name, _, _ in rows), default=0)
    for name, tensor, count in rows:
        shape = " x ".join(str(extent) for extent in tensor.shape)
        times = f"  x {count}" if count > 1 else ""
        yield f"  {name:<{width}}  {shape:>16}  {tensor.type:<6} {size(tensor.size_bytes):>10}{times}"


def _overview(inventory: Inventory, options: Options) -> Iterator[str]:
    types = sorted(bytes_by_type(inventory.tensors).items(), key=lambda item: -item[1])
    total = inventory.tensor_bytes or 1
    bits = 8 * total / (inventory.n_parameters or 1)
    yield str(inventory.path)
    yield f"  format        {inventory.format}"
    yield f"  model         {inventory.description}" + _named(inventory)
    yield f"  runs here     {'yes' if inventory.config else 'no: ' + inventory.obstacle}"
    yield f"  parameters    {inventory.n_parameters:,} ({short_number(inventory.n_parameters)})"
    yield f"  tensors       {size(total)}, {bits:.2f} bits a parameter: " + ", ".join(
        f"{name} {100 * part / total:.0f} %" for name, part in types
    )
    yield f"  context       {inventory.context_length or 'unknown'}"
    yield f"  chat template {_template(inventory)}"
    yield f"  memory        {_memory(inventory, options)}"


def _named(inventory: Inventory) -> str:
    name = inventory.metadata.get("general.name")
    return f' ("{_shown(name)}")' if isinstance(name, str) else ""


def _template(inventory: Inventory) -> str:
    if inventory.template is None:
        return "none: a base model, it completes text"
    return f"yes, {len(inventory.template)} characters (--template shows it)"


def _memory(inventory: Inventory, options: Options) -> str:
    sizes = memory(inventory, options)
    if "cache_bytes" not in sizes:
        return (
            f"{size(sizes['weights_bytes'])} of weights; the file does not say what a token of context needs"
        )
    types = f"{options['cache_type_k']} keys, {options['cache_type_v']} values"
    total = sizes["weights_bytes"] + sizes["cache_bytes"]
    parts = f"{size(sizes['weights_bytes'])} of weights + {size(sizes['cache_bytes'])} of cache"
    return f"{size(total)} at a context of {sizes['context']}: {parts} ({types})"


def size(n_bytes: int) -> str:
    """Bytes for people, in powers of 1024 as llama.cpp prints them.

    >>> size(98362432)
    '93.81 MiB'
    """
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.2f} {unit}"
    return f"{n_bytes} B"


def _shown(value: Any, *, full: bool = False) -> str:
    """One line: long texts and arrays are cut, control characters are spelled out."""
    if isinstance(value, list | np.ndarray):
        few = value if full else value[:_FEW]
        items = ", ".join(_shown(_plain(item), full=full) for item in few)
        return f"[{items}{', …' if len(few) < len(value) else ''}] ({len(value)})"
    if not isinstance(value, str):
        return f"{value:g}" if isinstance(value, float) else str(value)
    text = value if full or len(value) <= _LONG_TEXT else f"{value[:_LONG_TEXT]}… ({len(value)} characters)"
    return text if text.isprintable() else repr(text)[1:-1]


def _plain(value: Any) -> Any:
    """numpy values as JSON takes them."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value
