"""Any checkpoint of a run as a model of the server: `runs/NAME/STEP`, also `…/last`, `…/best`, `…/final`.

    client.chat.completions.create(model="runs/largest-s0/40", …)

They are not in the list of models, and are loaded when they are asked for, as others are. A checkpoint holds
f32 tensors under the trainer's names: the whole model's weights, or a LoRA's pairs beside the base that the
run's config names. Read without torch, and given to a new engine of the base.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.engine.engine import Engine
from etude.model.chat import ChatTemplate
from etude.model.checkpoint import read_json
from etude.model.lora import LoraWeights, LowRank
from etude.model.names import Place, place_of_hf
from etude.model.pull import resolve
from etude.model.safetensors import SafetensorsFile
from etude.records import EtudeError
from etude.runlog import RunReader
from etude.serve.errors import ApiError
from etude.serve.models import Adapter, Finder, ModelSpec
from etude.serve.run_store import RunStore, settings_of
from etude.serve.run_tokens import file_inside

PREFIX = "runs/"
LEARNERS = ("policy", "actor")
"""Folders of a checkpoint with what talks; a critic does not."""
RECORD, TENSORS, WEIGHT = "learner.json", "learner.safetensors", "weight/"
NO_TALKERS = ("reward-model",)
"""Verbs whose models judge instead."""
FULL_WEIGHT_TYPE = "f16"
"""What matrices of a whole model are sampled in where its run does not say (recipes/assembly.py)."""
PAIR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def finder_of(folder: Path | None) -> Finder | None:
    """Finds the models of the runs of a folder; None without one."""
    return None if folder is None else partial(model_of, RunStore(folder))


def model_of(store: RunStore, name: str) -> ModelSpec | None:
    """The model that a name means; None if it is none of this kind. ApiError 404 for what is not there."""
    if not name.startswith(PREFIX) or name.count("/") != 2:
        return None
    _, run, which = name.split("/")
    reader = store.reader(run)
    try:
        return _final(reader, name) if which == "final" else _checkpoint(reader, name, which)
    except EtudeError as error:
        raise _missing(f"{name} cannot be loaded: {error}") from error


def names_of(reader: RunReader) -> dict[str, str]:
    """What can be talked with, by its name behind the run's: steps, and "final"."""
    if reader.info.algorithm in NO_TALKERS:
        return {}
    found = [str(one.step) for one in reader.checkpoints() if _learner(one.folder) is not None]
    if _final_file(reader) is not None:
        found.append("final")
    return {which: f"{PREFIX}{reader.folder.name}/{which}" for which in found}


def _missing(text: str) -> ApiError:
    return ApiError(404, text, param="model", code="model_not_found")


# ── checkpoints ──


def _checkpoint(reader: RunReader, name: str, which: str) -> ModelSpec:
    checkpoints = {one.step: one for one in reader.checkpoints()}
    best = reader.best()
    if which == "last":
        chosen = checkpoints[max(checkpoints)] if checkpoints else None
    elif which == "best":
        chosen = best
    else:
        chosen = checkpoints.get(int(which)) if re.fullmatch("[0-9]{1,12}", which) else None
    if chosen is None:
        steps = ", ".join(map(str, checkpoints)) or "none"
        raise _missing(f"{reader.folder.name} has no checkpoint {which!r}; there are: {steps}")
    folder = _learner(chosen.folder)
    if folder is None or reader.info.algorithm in NO_TALKERS or not file_inside(folder, reader.folder):
        raise _missing(f"checkpoint {chosen.step} of {reader.folder.name} holds nothing that can talk")
    record = read_json(folder / RECORD)
    prepare = partial(_give, folder / TENSORS, record, chosen.step, name)
    return _spec(reader, name, prepare=prepare, weight_type=_weight_type(reader, record))


def _learner(checkpoint: Path) -> Path | None:
    for name in LEARNERS:
        if (checkpoint / name / RECORD).is_file() and (checkpoint / name / TENSORS).is_file():
            return checkpoint / name
    return None


def _weight_type(reader: RunReader, record: Mapping[str, Any]) -> str | None:
    """What the run's engine sampled in: its rollouts are answers of just this model."""
    sampling = settings_of(reader).get("sampling")
    said = sampling.get("weight_type") if isinstance(sampling, Mapping) else None
    return said or (None if record.get("lora") else FULL_WEIGHT_TYPE)


def _give(path: Path, record: Mapping[str, Any], step: int, name: str, engine: Engine) -> Adapter | None:
    """A checkpoint's weights to an engine of its base; the adapter to answer with, if it is one."""
    with SafetensorsFile.open(path) as file:
        tensors = {
            key.removeprefix(WEIGHT): np.array(file.array(key)[0])
            for key in file.tensors
            if key.startswith(WEIGHT)
        }
    lora = record.get("lora")
    if lora is None:
        engine.load_weights(tensors.items(), step)
        return None
    engine.load_adapter(name, _pairs(tensors, engine.config.architecture, lora), step)
    return Adapter(name, path)


def _pairs(
    tensors: Mapping[str, NDArray[np.float32]], architecture: str, lora: Mapping[str, Any]
) -> LoraWeights:
    """y += alpha / rank · B (A x), under PEFT's names."""
    halves: dict[Place, dict[str, NDArray[np.float32]]] = {}
    for name, values in tensors.items():
        match = PAIR.fullmatch(name)
        place = place_of_hf(architecture, f"{match[1]}.weight") if match else None
        if match is None or place is None:
            raise EtudeError(f"the checkpoint's tensor {name!r} is none of a LoRA")
        halves.setdefault(place, {})[match[2]] = values
    pairs: dict[tuple[str, int], LowRank] = {
        place: LowRank(half["A"], half["B"]) for place, half in halves.items()
    }
    return LoraWeights(float(lora["alpha"]) / float(lora["rank"]), pairs)


# ── the finished model ──


def _final_file(reader: RunReader) -> Path | None:
    """What `final/` is loaded by: a file, or the folder itself."""
    final = reader.folder / "final"
    for name in ("model.gguf", "adapter.gguf"):
        if (final / name).is_file():
            return final / name
    whole = any((final / name).is_file() for name in ("config.json", "adapter_config.json"))
    return final if whole else None


def _final(reader: RunReader, name: str) -> ModelSpec:
    path = _final_file(reader)
    if path is None or reader.info.algorithm in NO_TALKERS or not file_inside(path, reader.folder):
        raise _missing(f"{reader.folder.name} has no finished model that can talk")
    if path.name == "adapter.gguf" or (path / "adapter_config.json").is_file():
        return _spec(reader, name, prepare=partial(_give_adapter, path, name))
    return _spec(reader, name, path=path)


def _give_adapter(path: Path, name: str, engine: Engine) -> Adapter:
    engine.load_adapter(name, path)
    return Adapter(name, path)


def _spec(reader: RunReader, name: str, *, path: Path | None = None, **options: Any) -> ModelSpec:
    """path None: the base, which the config names."""
    model = settings_of(reader).get("model")
    settings: Mapping[str, Any] = model if isinstance(model, Mapping) else {"name": model}
    template = settings.get("chat_template")
    if isinstance(template, str) and template != "none":
        options["template"] = ChatTemplate.builtin(template)
    if path is None:
        base = settings.get("name")
        if not isinstance(base, str):
            raise EtudeError("its config does not say which model it is of")
        path = resolve(base)
    return ModelSpec(name, path, **options)
