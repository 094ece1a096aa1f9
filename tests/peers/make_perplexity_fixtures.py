"""llama.cpp's perplexity of both real models on one text, its distributions in two windows of it, and what
transformers' float32 says of the first eight.

Why: perplexity within 0.5 % of llama.cpp's shows that nothing is wrong on real weights and real text; top-1
agreement and KL on stored distributions show more sharply where something is.

llama-perplexity -c 512 cuts the ids of the whole text (BOS in front where the model wants one) into windows
of 512, drops the rest, puts BOS in place of each window's first token where the model wants one, and scores
the tokens at positions 257 to 511 of each window: 255 of them, from the logits at positions 256 to 510. It
drops one newline at the end of the file.

The perplexity is llama.cpp's at its defaults. The distributions are made with flash attention off, as
llama.cpp is more exact then: its flash attention adds in float16, which alone moves the perplexity of the two
windows by 0.3 to 0.5 %. transformers, with the file's weights in float32, tells whose rounding a difference
in a few windows is.

perplexity.json: per model `ppl`, `ppl_after_window` (running), `n_windows`, `model_sha256`, and of
transformers `surprise_of_window`: -sum of the logprobs of the scored tokens, nats.
perplexity_MODEL.npz, for the first two windows: `ids_WT` int32 (2, 512); `top_ids_WPK` int32 (2, 255, 64),
likeliest first; `top_steps_WPK` uint16: logprob = -steps / 4096, at most 3e-4 off (llama.cpp stores 16 bits
itself).
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.peers.gguf_to_transformers import load_gguf
from tests.peers.inputs import Inputs, file_sha256, llama_cpp_version, read_inputs
from tests.peers.llama_server import llama_server

TEXT = Path(__file__).parents[1] / "data" / "ppl" / "alice.txt"
N_CTX = 512
N_STORED_WINDOWS = 2
N_EXACT_WINDOWS = 8
N_TOP = 64
STEPS_PER_NAT = 4096


def run_perplexity(inputs: Inputs, model: Path, *more: str) -> str:
    """Run llama-perplexity on the text with this model; its whole output."""
    command = [inputs.program("llama-perplexity"), "-m", str(model), "-f", str(TEXT), "-c", str(N_CTX), *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def measure(inputs: Inputs, model: Path) -> dict[str, object]:
    """The perplexity over all windows, as llama.cpp prints it."""
    output = run_perplexity(inputs, model)
    running = [float(ppl) for ppl in re.findall(r"\[\d+\](\d+\.\d+),", output)]
    final = re.search(r"Final estimate: PPL = (\d+\.\d+) \+/- (\d+\.\d+)", output)
    if final is None or not running:
        raise RuntimeError(f"llama-perplexity printed no result:\n{output[-2000:]}")
    return {
        "ppl": float(final[1]),
        "ppl_standard_error": float(final[2]),
        "n_windows": len(running),
        "ppl_after_window": running,
        "model_sha256": file_sha256(model),
    }


def read_distributions(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A `--kl-divergence-base` file → ids (W, 512) int32 and logprobs (W, 255, V) float32.

    Layout (perplexity.cpp): "_logits_", i32 n_ctx, n_vocab, n_chunk, the ids; then per scored position a row
    of u16: the first four hold f32 scale and f32 minimum, the others give logprob = scale * value + minimum
    (value 0: that or less).
    """
    raw = path.read_bytes()
    if raw[:8] != b"_logits_":
        raise ValueError(f"{path} is not a file of llama-perplexity")
    n_ctx, n_vocab, n_windows = np.frombuffer(raw, "<i4", 3, 8)
    ids_WT = np.frombuffer(raw, "<i4", n_windows * n_ctx, 20).reshape(n_windows, n_ctx)
    n_scored = n_ctx - 1 - n_ctx // 2
    row_length = 2 * ((n_vocab + 1) // 2) + 4
    rows = np.frombuffer(raw, "<u2", n_windows * n_scored * row_length, 20 + ids_WT.nbytes)
    rows = rows.reshape(n_windows * n_scored, row_length)
    scale_and_minimum = np.ascontiguousarray(rows[:, :4]).view("<f4")
    logprobs = rows[:, 4 : 4 + n_vocab] * scale_and_minimum[:, :1] + scale_and_minimum[:, 1:]
    return ids_WT, logprobs.reshape(n_windows, n_scored, n_vocab)


def store_distributions(inputs: Inputs, name: str) -> None:
    """Write the likeliest tokens of every scored position of the first windows."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base.kld"
        options = ["-fa", "off", "--chunks", str(N_STORED_WINDOWS), "--kl-divergence-base", str(base)]
        run_perplexity(inputs, inputs.models[name], *options)
        ids_WT, logprobs_WPV = read_distributions(base)
    top_ids_WPK = np.argsort(-logprobs_WPV, axis=-1, kind="stable")[..., :N_TOP].astype(np.int32)
    top_logprobs_WPK = np.take_along_axis(logprobs_WPV, top_ids_WPK, axis=-1)
    steps_WPK = np.clip(np.rint(-top_logprobs_WPK * STEPS_PER_NAT), 0, 65535).astype(np.uint16)
    np.savez_compressed(
        inputs.out / f"perplexity_{name}.npz", ids_WT=ids_WT, top_ids_WPK=top_ids_WPK, top_steps_WPK=steps_WPK
    )


def windows_of(inputs: Inputs, model: Path, n_windows: int) -> np.ndarray:
    """ids (W, 512) of the text's beginning, as llama-perplexity cuts them, BOS in front of the first only."""
    text = TEXT.read_text(encoding="utf-8").removesuffix("\n")
    with llama_server(inputs.program("llama-server"), model) as server:
        body = {"content": text, "add_special": True, "parse_special": False}
        ids = np.array(server.post("/tokenize", body)["tokens"], np.int64)
    return ids[: n_windows * N_CTX].reshape(n_windows, N_CTX)


def exact_surprises(inputs: Inputs, model: Path) -> list[float]:
    """`surprise_of_window` by transformers in float32, with the weights of the file."""
    ids_WT = windows_of(inputs, model, N_EXACT_WINDOWS)
    network = load_gguf(model)
    bos = network.config.bos_token_id
    first, surprises = N_CTX // 2, []
    for ids_T in torch.from_numpy(ids_WT):
        ids_T = ids_T.clone()
        if ids_WT[0, 0] == bos:
            ids_T[0] = bos
        with torch.no_grad():
            logits_PV = network(ids_T[None], use_cache=False, logits_to_keep=N_CTX - first).logits[0, :-1]
        logprobs_P = torch.log_softmax(logits_PV.double(), -1).gather(1, ids_T[first + 1 :, None])
        surprises.append(round(-float(logprobs_P.sum()), 4))
    return surprises


def main() -> None:
    inputs = read_inputs(__doc__)
    results = {}
    for name, model in inputs.models.items():
        results[name] = measure(inputs, model)
        results[name]["surprise_of_window"] = exact_surprises(inputs, model)
        store_distributions(inputs, name)
        print(name, results[name]["ppl"])
    record = {
        "peers": {
            "llama.cpp": llama_cpp_version(inputs.llama_bin),
            "transformers": transformers.__version__,
            "torch": torch.__version__.split("+")[0],
        },
        "command": "llama-perplexity -m MODEL -f tests/data/ppl/alice.txt -c 512; "
        "for the distributions also -fa off "
        f"--chunks {N_STORED_WINDOWS} --kl-divergence-base FILE",
        "text_sha256": file_sha256(TEXT),
        "n_ctx": N_CTX,
        "models": results,
    }
    (inputs.out / "perplexity.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
