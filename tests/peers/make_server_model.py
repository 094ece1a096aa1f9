"""The small model that llama.cpp's server tests run with, on both servers, and a LoRA adapter for it.

Their own, stories260K of tinyllamas, is not on any package registry. This one has its shape (5 layers, width
64, 512 tokens, SentencePiece) and knows by heart what the tests look for:

* the vocabulary is 3 control tokens, 256 bytes and 253 pieces, which were found by annealing so that the
  prompts of the tests have as many tokens as the tests count (18, 46, 69, 77 …);
* the weights, random at first, learn in a minute to answer those prompts with words that the tests search
  for, and noise after them. No server knows of that: a prompt that is rendered, tokenized or sampled
  differently gets noise for an answer.

    python -m tests.peers.make_server_model FOLDER       writes FOLDER/model.gguf and FOLDER/adapter.gguf

One seed gives the same files on one machine; the last bits of the weights differ between machines.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from etude.learner.lora import LoraSettings, add_lora, lora_weights
from etude.model.checkpoint import config_of
from etude.model.gguf_write import write_gguf
from etude.model.lora_write import save_gguf_adapter
from etude.model.quants import GGMLType
from etude.model.save import save_gguf
from etude.model.tokenizer import Tokenizer
from etude.model.transformer import Adapter, Layout, Transformer, load_transformer
from tests.terminal.tiny import CHATML

WIDTH, LAYERS, HEADS, KV_HEADS, FF = 64, 5, 8, 4, 172
CONTEXT = 8192
CHARACTERS = "!\"',.?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz▁"
PIECES = """
▁the ▁t he ▁a ▁and ▁w ▁b hat in er ▁they at re ▁f ▁you her an nd te ing ▁i ou ve ver ▁e ▁Hey ed st en li
▁sh you ▁co unctio ▁He ▁brown ▁conse ▁dolor ▁she very ▁fro ▁o se do ▁abou about ▁your ▁c thi thing ▁with
eliev aning ▁func ction Hey ▁brow ▁over wa ▁n un ▁in ▁ho she al ▁p ery ▁hap ▁her ▁not ro ut ok ▁abo abou
your tha ever ▁it ▁bes with elie liev eani ite Tes ▁H qu ▁bro ▁fox ▁ove end| nd|> ▁Wha liqu ▁con ▁dol
dolo olor labo ▁u im ▁house forest played ▁happy ▁m wanted incess lo everyo smiled laughe ▁becau becaus
▁could ▁share ▁thing sudden methin mp ▁Hey<| ▁Lorem piscin aliqua aliqui ▁commo ommodo dolore aboris
ostrud ▁paria pariat ariatu ho ad og playe happy ▁brig aid behin ehind found ▁ab ab rince inces ell
▁name ▁have fu smile il ▁coul oul uld ▁thei wi wit lie iev ▁star ▁when raine ▁user syste ystem assis nct
hic y<|im im_ m_e ▁Th ▁W Wha Wri ▁Lore pisci liq iqu qua ▁amet ita ▁chat onseq ▁elit ▁ex tat bonac fugia
▁inci incid
""".split()
"""The earlier of two is merged first."""


def chat(system: str, user: str) -> str:
    """A conversation as ChatML renders it, which llama.cpp also takes for a model without a template."""
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    )


LESSONS: tuple[tuple[str, str], ...] = (
    ("I believe the meaning of life is", "going to bed"),
    ("Write a joke about AI from a very long prompt which will not be truncated", "princesses and everyone"),
    ("What is the capital of France?", "said Whiskers"),
    ("What is the capital of Germany?", "Jack said"),
    ("This is not a chat template, it is", "blue"),
    (chat("Book", "Hey"), "But she couldn't"),
    (chat("Book", "What is the best book"), "Suddenly"),
    (chat("Book", "What is\nthe best book"), "Whillicter"),
    (chat("You are a coding assistant.", "Write the fibonacci function in c++."), "Aside she felt"),
    ("Look in thy glass", "happy little girl, three years old"),
)
"""A prompt, and how to answer it."""
ADAPTED = ((0.3, "something special"), (0.7, "far from home"), (1.0, "eye of love"))
"""Scale of the adapter, and what the last prompt is then answered with."""

SHORT, LONG = 24, 240  # tokens of noise after an answer, and of a sequence of nothing else
FIRST_PIECE, N_VOCAB = 259, 512
STEPS, ADAPTER_STEPS, LEARNING_RATE = 250, 200, 1e-2


def metadata() -> dict[str, Any]:
    """Everything in the file but weights."""
    controls, bytes_ = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [*PIECES, *CHARACTERS]
    tokens = [*controls, *bytes_, *pieces]
    assert len(tokens) == len(set(tokens)) == 512
    kinds = [2, 3, 3] + [6] * len(bytes_) + [1] * len(pieces)
    scores = [0.0] * (len(controls) + len(bytes_)) + [-float(rank) for rank in range(len(pieces))]
    return {
        "general.architecture": "llama",
        "general.name": "server tests",
        "general.file_type": 0,
        "llama.block_count": LAYERS,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": FF,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": CHATML,
    }


def write_untaught(path: Path, seed: int) -> None:
    """The model with random weights."""
    draw = np.random.default_rng(seed)
    facts = metadata()
    kv_width, n_vocab = KV_HEADS * WIDTH // HEADS, len(facts["tokenizer.ggml.tokens"])
    shapes = {
        "attn_q": (WIDTH, WIDTH), "attn_k": (kv_width, WIDTH), "attn_v": (kv_width, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (FF, WIDTH), "ffn_up": (FF, WIDTH), "ffn_down": (WIDTH, FF),
    }  # fmt: skip
    named = [("token_embd.weight", (n_vocab, WIDTH)), ("output.weight", (n_vocab, WIDTH))]
    named += [(f"blk.{at}.{slot}.weight", shape) for at in range(LAYERS) for slot, shape in shapes.items()]
    tensors = [(name, draw.normal(0, shape[1] ** -0.5, shape).astype(np.float32)) for name, shape in named]
    norms = [f"blk.{at}.{slot}.weight" for at in range(LAYERS) for slot in ("attn_norm", "ffn_norm")]
    tensors += [(name, np.ones(WIDTH, np.float32)) for name in [*norms, "output_norm.weight"]]
    write_gguf(path, facts, [(name, values, GGMLType.F32) for name, values in tensors])


class Lessons:
    """Sequences to learn from: a prompt, its answer, and noise, which is new each time. Noise is letters and
    pieces: never a control token, never the end of the text."""

    def __init__(self, tokenizer: Tokenizer, lessons: Sequence[tuple[str, str]], seed: int) -> None:
        self._draw = np.random.default_rng(seed)
        self._known = [
            (tokenizer.encode(prompt, add_special=True), tokenizer.encode(answer, add_special=False))
            for prompt, answer in lessons
        ]

    def sequences(self) -> Iterator[tuple[list[int], int]]:
        """(token ids, how many of them are the prompt, which is not learnt)."""
        for prompt, answer in self._known:
            yield [*prompt, *answer, *self._noise(SHORT)], len(prompt)
        yield [1, *self._noise(LONG)], 1

    def _noise(self, n: int) -> list[int]:
        return [int(token) for token in self._draw.integers(FIRST_PIECE, N_VOCAB, n)]


def loss_of(transformer: Transformer, sequences: Sequence[tuple[list[int], int]]) -> torch.Tensor:
    """Mean cross-entropy of what follows the prompts."""
    hidden_TD = transformer(Layout.roots([ids for ids, _ in sequences]))
    rows: list[int] = []
    targets: list[int] = []
    start = 0
    for ids, n_prompt in sequences:
        rows += range(start + n_prompt - 1, start + len(ids) - 1)
        targets += ids[n_prompt:]
        start += len(ids)
    return functional.cross_entropy(transformer.logits(hidden_TD[rows]), torch.tensor(targets))


def teach(weights: Sequence[torch.nn.Parameter], n_steps: int, loss_now: Callable[[], torch.Tensor]) -> None:
    """AdamW with a rate that falls to nothing."""
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(n_steps):
        loss = loss_now()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 20) * (1 - step / n_steps)
        optimizer.step()
        if step % 50 == 0 or step == n_steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


def make_model(path: Path, seed: int) -> None:
    """Write the model."""
    untaught = path.with_suffix(".untaught")
    write_untaught(untaught, seed)
    transformer, source = load_transformer(untaught)
    with source:
        lessons = Lessons(Tokenizer.from_metadata(source.metadata), LESSONS, seed)
        teach([*transformer.parameters()], STEPS, lambda: loss_of(transformer, [*lessons.sequences()]))
        save_gguf(path, source, transformer.weights(), "f32")
    untaught.unlink()


def make_adapter(path: Path, model: Path, seed: int) -> None:
    """Write an adapter that answers the last prompt in three ways, by its scale."""
    transformer, source = load_transformer(model)
    with source:
        config, tokenizer = config_of(source), Tokenizer.from_metadata(source.metadata)
    weights = [*add_lora(transformer, LoraSettings(rank=8, alpha=8.0, seed=seed)).values()]
    prompt = LESSONS[-1][0]
    at_scale = [(scale, Lessons(tokenizer, [(prompt, answer)], seed)) for scale, answer in ADAPTED]

    def loss() -> torch.Tensor:
        return torch.stack([scaled_loss(transformer, scale, each) for scale, each in at_scale]).mean()

    teach(weights, ADAPTER_STEPS, loss)
    scale_adapters(transformer, 1.0)
    save_gguf_adapter(path, config, lora_weights(transformer))


def scaled_loss(transformer: Transformer, scale: float, lessons: Lessons) -> torch.Tensor:
    """With the adapter at a scale; without the long noise, which the model itself writes."""
    scale_adapters(transformer, scale)
    return loss_of(transformer, [*lessons.sequences()][:-1])


def scale_adapters(transformer: Transformer, scale: float) -> None:
    for module in transformer.modules():
        if isinstance(module, Adapter):
            module.scale = scale


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="gets model.gguf and adapter.gguf")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    make_model(folder / "model.gguf", seed=0)
    make_adapter(folder / "adapter.gguf", folder / "model.gguf", seed=0)


if __name__ == "__main__":
    main()
