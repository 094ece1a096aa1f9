"""What Etude saves, opened by others: transformers, PEFT and llama.cpp. Writes which of it is equal.

For every tiny family: a folder in shards, a GGUF file, the folder made of that GGUF file, an adapter in both
formats and the merged model. Of the real models: the folder made of the GGUF file (logits, token ids of hard
texts, chat template) and a new Q8_0 file.

saved.json: for each model and way, "equal" or what differs (llama_rope_yarn must, in llama.cpp, which does
not read YaRN's betas, see etude/model/rope.py). Logits may be LOGIT_TOLERANCE apart in
transformers (`float32_max_difference` says how far they are) and LOGPROB_TOLERANCE in llama.cpp, which
rounds its cache to f16.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

from etude.model.checkpoint import config_of, open_source
from etude.model.family import ModelConfig, slot_shape
from etude.model.hf_tensors import hf_tensors
from etude.model.lora import LoraWeights, LowRank
from etude.model.lora_write import merged, save_gguf_adapter, save_peft_folder
from etude.model.names import LAYER_MATRICES
from etude.model.save import save_gguf, save_hf_folder
from etude.records import EtudeError
from tests.peers.inputs import llama_cpp_version, read_inputs
from tests.peers.llama_server import llama_server
from tests.peers.peer_record import write_peer_record

STORED = Path(__file__).parents[1] / "data" / "peers"
LOGIT_TOLERANCE = 1e-4
LOGPROB_TOLERANCE = 0.02
REAL_TOLERANCE = 2.5e-4
"""transformers' own float32 is up to 2.1e-4 from float64 on these models (logits.json)."""
N_TOP = 20
LAST = 47
"""The row that llama.cpp is asked for: it wants room behind the prompt, in a context of 64."""
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a fjord? "},
    {"role": "assistant", "content": "An arm of the sea."},
    {"role": "user", "content": "Name one."},
]


class Findings:
    """By way of saving: "equal", or what differs; and the largest difference of a logit."""

    def __init__(self) -> None:
        self.ways: dict[str, str] = {}
        self.worst = 0.0

    def note(self, way: str, check: Callable[[], str]) -> None:
        """Run a check; whatever it raises is a finding too."""
        try:
            self.ways[way] = check() or "equal"
        except EtudeError as error:
            self.ways[way] = f"refused: {str(error).rpartition('/')[2][:100]}"
        except Exception as error:
            self.ways[way] = f"{type(error).__name__}: {str(error)[:300]}"

    def near(self, ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> str:
        difference = float(np.abs(ours - theirs).max())
        self.worst = max(self.worst, difference)
        return "" if difference <= tolerance else f"differs by up to {difference:.2e}"


def logits_in_transformers(folder: Path, ids_T: np.ndarray, adapter: Path | None = None) -> np.ndarray:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(ids_T)[None].long(), use_cache=False).logits[0].numpy()


def next_logprobs(program: str, model: Path, ids: list[int], *options: str) -> dict[int, float]:
    """llama.cpp's distribution after a prompt: the likeliest tokens with their log-probabilities."""
    with llama_server(program, model, *options) as server:
        body = {"prompt": ids, "n_predict": 1, "n_probs": N_TOP, "temperature": 1.0, "samplers": []}
        answer = server.post("/completion", body)
    return {entry["id"]: entry["logprob"] for entry in answer["completion_probabilities"][0]["top_logprobs"]}


def same_logprobs(logits_V: np.ndarray, theirs: dict[int, float]) -> str:
    shifted = logits_V.astype(np.float64) - logits_V.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    worst = max(abs(float(logprobs[token]) - logprob) for token, logprob in theirs.items())
    if len(theirs) != N_TOP:
        return f"{len(theirs)} logprobs"
    return "" if worst <= LOGPROB_TOLERANCE else f"logprobs differ by {worst:.1f}"


def adapter_for(config: ModelConfig) -> LoraWeights:
    """Random pairs on every matrix, of rank 4 and in the last layer of rank 2."""
    rng = np.random.default_rng(17)
    tensors: dict[tuple[str, int], LowRank] = {}
    for layer in range(config.n_layers):
        rank = 2 if layer == config.n_layers - 1 else 4
        for slot in LAYER_MATRICES:
            n, k = slot_shape(config, slot)
            a, b = rng.normal(size=(rank, k)) * 0.1, rng.normal(size=(n, rank)) * 0.1
            tensors[slot, layer] = LowRank(a.astype(np.float32), b.astype(np.float32))
    return LoraWeights(1.5, tensors)


def check_family(folder: Path, scratch: Path, program: str) -> dict[str, Any]:
    """Every way of saving one tiny model."""
    found = Findings()
    with np.load(folder / "expected.npz") as expected:
        ids_T, logits_TV = expected["ids_ST"][0], expected["logits_TV"]
    copy, file, back = scratch / "copy", scratch / "model.gguf", scratch / "back"
    peft_folder, adapter, whole = scratch / "peft", scratch / "adapter.gguf", scratch / "whole"
    with open_source(folder) as source:
        config = config_of(source)
        lora = adapter_for(config)

        def tensors() -> Any:
            return hf_tensors(source, config)

        def folder_opens() -> str:
            save_hf_folder(copy, source, tensors(), "f32", max_shard_bytes=60_000)
            return found.near(logits_in_transformers(copy, ids_T), logits_TV, LOGIT_TOLERANCE)

        def adapter_opens() -> str:
            save_peft_folder(peft_folder, config, lora, base=str(copy))
            save_hf_folder(whole, source, merged(tensors(), config, lora), "f32")
            beside = logits_in_transformers(copy, ids_T, peft_folder)
            changed = np.abs(beside - logits_TV).max() > 0.1
            same = found.near(beside, logits_in_transformers(whole, ids_T), LOGIT_TOLERANCE)
            return same if changed else "the adapter changes nothing"

        def gguf_opens() -> str:
            save_gguf(file, source, tensors(), "f32")
            return same_logprobs(logits_TV[LAST], next_logprobs(program, file, ids_T[: LAST + 1].tolist()))

        def adapter_opens_in_llama() -> str:
            save_gguf_adapter(adapter, config, lora)
            theirs = next_logprobs(program, file, ids_T[: LAST + 1].tolist(), "--lora", str(adapter))
            return same_logprobs(logits_in_transformers(whole, ids_T)[LAST], theirs)

        found.note("folder in transformers", folder_opens)
        found.note("adapter in PEFT = merged folder", adapter_opens)
        found.note("GGUF in llama.cpp", gguf_opens)
        if file.exists():
            found.note("GGUF adapter in llama.cpp = merged folder", adapter_opens_in_llama)
            found.note(
                "folder made of the GGUF", lambda: folder_from_gguf(found, file, back, ids_T, logits_TV)
            )
    return found.ways | {"float32_max_difference": found.worst}


def folder_from_gguf(
    found: Findings, file: Path, back: Path, ids_T: np.ndarray, logits_TV: np.ndarray
) -> str:
    with open_source(file) as source:
        save_hf_folder(back, source, hf_tensors(source, config_of(source)), "f32")
    text = "".join(chr(byte) for byte in range(32, 127))
    tokenizer = transformers.AutoTokenizer.from_pretrained(back)
    if tokenizer.encode(text, add_special_tokens=False) != [ord(char) for char in text]:
        return "token ids differ"
    return found.near(logits_in_transformers(back, ids_T), logits_TV, LOGIT_TOLERANCE)


def check_real_model(name: str, path: Path, scratch: Path, program: str) -> dict[str, Any]:
    """A folder made of a real GGUF file, and a Q8_0 file."""
    found = Findings()
    folder, file = scratch / name, scratch / f"{name}-q8_0.gguf"
    with np.load(STORED / f"logits_{name}.npz") as stored, open_source(path) as source:
        config = config_of(source)
        ids_T, rows, some = stored["ids_0"], stored["rows_0"], stored["some_ids"]
        expected = stored["logits_0"]
        top_ids, top_logits = stored["top_ids_0"][-1], stored["top_logits_0"][-1]

        def folder_opens() -> str:
            save_hf_folder(folder, source, hf_tensors(source, config), "f32")
            logits_TV = logits_in_transformers(folder, ids_T)
            return found.near(logits_TV[rows][:, some], expected, REAL_TOLERANCE)

        def q8_0_opens() -> str:
            save_gguf(file, source, hf_tensors(source, config), "q8_0")
            theirs = next_logprobs(program, file, ids_T.tolist())
            ours = dict(zip(top_ids.tolist(), top_logits.tolist(), strict=True))
            shared = [token for token in theirs if token in ours]
            shift = np.array([theirs[token] - ours[token] for token in shared])
            likely = max(theirs, key=lambda token: theirs[token]) == top_ids[0]
            return (
                "" if len(shared) > 15 and likely and shift.std() < 0.2 else f"shift {shift.std():.2f} nats"
            )

        found.note("folder made of the GGUF", folder_opens)
        found.note("token ids", lambda: same_ids(name, folder))
        found.note("chat template", lambda: same_template(folder, source.metadata))
        found.note("Q8_0 in llama.cpp", q8_0_opens)
    return found.ways | {"float32_max_difference": found.worst}


def same_ids(name: str, folder: Path) -> str:
    """transformers on our tokenizer.json against llama.cpp on the GGUF: ids of hard texts."""
    with gzip.open(STORED / f"tokenizer_{name}.json.gz") as file:
        stored = json.load(file)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    wrong = [
        text
        for text, ids in zip(stored["texts"], stored["ids_special"], strict=True)
        if "\0" not in text
        and tokenizer.encode(text, add_special_tokens=False) != _without_bos(ids, tokenizer)
    ]
    return "" if not wrong else f"{len(wrong)} of {len(stored['texts'])} texts, first {wrong[0]!r}"


def _without_bos(ids: list[int], tokenizer: Any) -> list[int]:
    return ids[1:] if ids and ids[0] == tokenizer.bos_token_id and tokenizer.add_bos_token else ids


def same_template(folder: Path, metadata: dict[str, Any]) -> str:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    template = metadata.get("tokenizer.chat_template")
    if template is None:
        return "" if tokenizer.chat_template is None else "a template came from nowhere"
    options = {"tokenize": False, "add_generation_prompt": True}
    with_ours = tokenizer.apply_chat_template(MESSAGES, **options)
    with_files = tokenizer.apply_chat_template(MESSAGES, chat_template=template, **options)
    return "" if with_ours == with_files and "Be brief." in with_ours else "the texts differ"


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    inputs = read_inputs(__doc__)
    program = inputs.program("llama-server")
    results: dict[str, Any] = {}
    for folder in sorted((STORED / "families").iterdir()):
        if folder.is_dir():
            with tempfile.TemporaryDirectory() as scratch:
                results[folder.name] = check_family(folder, Path(scratch), program)
                print(folder.name, results[folder.name], flush=True)
    for name, path in inputs.models.items():
        with tempfile.TemporaryDirectory() as scratch:
            results[f"real {name}"] = check_real_model(name, path, Path(scratch), program)
            print(name, results[f"real {name}"], flush=True)
    versions = {
        "transformers": transformers.__version__,
        "peft": version("peft"),
        "llama.cpp": llama_cpp_version(inputs.llama_bin),
    }
    command = (
        "python -m tests.peers.make_saved_fixtures (given models, llama.cpp and a folder by tests.peers)"
    )
    write_peer_record(inputs.out / "saved.json", versions, command, opened=results)


if __name__ == "__main__":
    main()
