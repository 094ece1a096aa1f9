"""The learner of one process: forward, backward and optimizer step on one device.

    transformer, source = load_transformer("smollm2-135m")
    learner = LocalLearner(transformer, AdamWSettings(learning_rate=1e-5))
    critic = LocalLearner(another, AdamWSettings(learning_rate=1e-5), head=ScalarHead(d_model))

    transformer, source = load_frozen("model-q4_k.gguf")
    learner = LocalLearner(transformer, AdamWSettings(learning_rate=1e-4), lora=LoraSettings())
    judge = LocalLearner(transformer)                           scores only

Weights are f32, which keeps what a small learning rate changes; products are computed in bf16 or f32. An
update is a loop over micro-batches that add up gradients; because a loss divides by totals of the whole step,
how samples were packed changes rounding and nothing else.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from etude.learner.allocator import keep_freed_memory
from etude.learner.batch import Batch, Sample, pack
from etude.learner.checkpoint import SavedState, write_state
from etude.learner.distribution import Head, Reference, statistics
from etude.learner.learner import OUTPUTS, Denominators, Loss, Metrics, SampleOutputs, Sampler
from etude.learner.lora import LoraSettings, add_lora, lora_weights
from etude.learner.optimizer import AdamW, AdamWSettings
from etude.learner.quantized import QuantizedLinear
from etude.learner.tensors import copies_alongside, standing_in, zeros_alongside
from etude.model.heads import ScalarHead
from etude.model.projections import Linear
from etude.model.rates import fastest_dtype
from etude.model.transformer import Transformer
from etude.records import EtudeError

COMPUTE_DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
AUTO = "auto"

ADAPTER = "learner"
"""Name under which a LoRA is given to an engine."""


@dataclass(frozen=True)
class ComputeSettings:
    """How a step is computed; nothing here changes what is learnt, but for rounding.

    dtype: of products, "bf16" or "f32"; "auto": what this machine is faster with, measured once when a run
    begins and kept by it. max_tokens: packed tokens of a micro-batch. checkpoint: keep the stream between
    layers only and compute each layer again in the backward.
    """

    dtype: str = AUTO
    max_tokens: int = 1024
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in (*COMPUTE_DTYPES, AUTO):
            raise EtudeError(
                f"dtype is {self.dtype!r}; products can be computed in bf16, in f32, or auto: the faster"
            )
        if self.max_tokens < 1:
            raise EtudeError(f"max_tokens is {self.max_tokens}; it must be at least 1")

    def measured(self, device: torch.device | str) -> ComputeSettings:
        """The same with a dtype, which is measured where it is "auto"."""
        if self.dtype != AUTO:
            return self
        fastest = fastest_dtype(str(device))
        return replace(self, dtype=next(name for name, one in COMPUTE_DTYPES.items() if one == fastest))


class LocalLearner:
    """See `Learner`. It owns the transformer: weights change in place."""

    def __init__(
        self,
        transformer: Transformer,
        optimizer: AdamWSettings | None = None,
        *,
        compute: ComputeSettings | None = None,
        lora: LoraSettings | None = None,
        head: ScalarHead | None = None,
        temperature: float = 1.0,
    ) -> None:
        """optimizer None: for scoring only. lora: train low-rank pairs beside a frozen base. head: gives
        "values" and "scores", and is trained with the rest. temperature: logits are divided by it, as the
        sampler does."""
        if not temperature > 0:
            raise EtudeError(f"temperature is {temperature}; log-probabilities take one above 0")
        self.transformer = transformer
        self.head = head
        self._device = transformer.final_norm.weight.device
        self.compute = (compute or ComputeSettings()).measured(self._device)
        self.temperature = temperature
        self._lora = lora
        self._dtype = COMPUTE_DTYPES[self.compute.dtype]
        self._base = _digest(transformer) if lora is not None else ""
        pairs = None if lora is None else add_lora(transformer, lora)
        self._body = dict(transformer.named_parameters()) if pairs is None else pairs
        heads = {} if head is None else {f"head.{name}": p for name, p in head.named_parameters()}
        self._trained: dict[str, nn.Parameter] = {**self._body, **heads}
        self._reference: dict[str, Tensor] | None = None
        self._optimizer: AdamW | None = None
        transformer.adds_to_grad = optimizer is not None
        if optimizer is None:
            for parameter in self._trained.values():
                parameter.requires_grad_(False)
            return
        if not any(parameter.requires_grad for parameter in self._body.values()):
            raise EtudeError("this base is frozen (its matrices are quantised): train a LoRA beside it")
        if self._device.type == "cpu":
            keep_freed_memory()
        self._optimizer = AdamW(self._trained, optimizer, heads)

    # ── the protocol ──

    def score(
        self, samples: Sequence[Sample], outputs: Sequence[str] = ("logprobs",), *, adapter: bool = True
    ) -> list[SampleOutputs]:
        """Outputs of each sample, without gradients. adapter=False: those of the reference, see
        `refresh_reference`."""
        self._check_outputs(outputs)
        table = _Table(samples, outputs)
        with torch.no_grad(), nullcontext() if adapter else self._as_reference():
            heads = self._heads(outputs)
            for batch in self._packed(samples, outputs, whole_groups=False):
                table.take(batch, self._outputs(batch, outputs, heads, adapters=self._adapters(adapter)))
        return table.rows()

    def update(
        self,
        samples: Sequence[Sample],
        loss: Loss,
        *,
        outputs: Sequence[str] = ("logprobs",),
        denominators: Denominators,
        whole_groups: bool = False,
    ) -> Metrics:
        """One step. A gradient that is not finite changes nothing ("skipped" is 1); without anything to
        compute, weights and moments stay as they are.

        Metrics: those of the loss, "loss", "grad_norm" (before clipping), "learning_rate", "skipped",
        "tokens" (in the mask and computed), "tokens_computed" (prompts too), "samples_computed",
        "micro_batches", "seconds/forward", "seconds/backward", "seconds/optimizer".
        """
        optimizer = self._ready()
        self._check_outputs(outputs)
        clock = _Clock()
        table, parts = _Table(samples, outputs), _Shares()
        batches = self._packed(samples, outputs, whole_groups)
        optimizer.clear()
        heads = self._heads(outputs) if batches else ()
        learnt = False
        for batch in batches:
            found = self._outputs(batch, outputs, heads, adapters=True)
            value, extra = loss(found, batch, denominators)
            parts.add({"loss": value, **extra})
            clock.lap("seconds/forward")
            if value.requires_grad:
                value.backward()
                learnt = True
            clock.lap("seconds/backward")
            table.take(batch, found)
            del found, value  # with all that the backward kept, before the next micro-batch is computed
        stepped = optimizer.step() if learnt else optimizer.idle()
        clock.lap("seconds/optimizer")
        metrics = Metrics(
            **{"loss": 0.0, **parts.totals()},
            grad_norm=stepped.grad_norm,
            learning_rate=stepped.learning_rate,
            skipped=float(stepped.skipped),
            tokens=float(sum(len(batch.rows_M) for batch in batches)),
            tokens_computed=float(sum(batch.n_tokens for batch in batches)),
            samples_computed=float(sum(batch.n_samples for batch in batches)),
            micro_batches=float(len(batches)),
            **clock.seconds,
        )
        metrics.outputs = table.rows()
        return metrics

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """The transformer's weights under Hugging Face names, or a LoRA's pairs under PEFT's; without the
        scalar head."""
        return [(name, parameter.detach()) for name, parameter in self._body.items()]

    def publish(self, engine: Sampler, version: int) -> str | None:
        """Give the weights to an engine; the name to sample with (`Request.adapter`), None without a LoRA."""
        if self._lora is None:
            engine.load_weights(self.weights(), version)
            return None
        engine.load_adapter(ADAPTER, lora_weights(self.transformer), version)
        return ADAPTER

    def refresh_reference(self) -> None:
        """The reference becomes the model as it is now, a copy of what is trained. Before the first call a
        LoRA's reference is its base; other learners have none."""
        self._reference = copies_alongside(self._body)

    def save(self, folder: Path | str) -> None:
        """Everything that decides the next step, atomically: a folder of that name is whole or absent."""
        optimizer = self._ready(gradients=False)
        record = {
            **self._identity(),
            "step": optimizer.step_index,
            "skipped": optimizer.n_skipped,
            "random": bytes(torch.get_rng_state().tolist()).hex(),
        }
        tensors = {f"weight/{name}": parameter.detach() for name, parameter in self._trained.items()}
        tensors |= {f"reference/{name}": value for name, value in (self._reference or {}).items()}
        write_state(Path(folder), record, [*tensors.items(), *optimizer.state().items()])

    def restore(self, folder: Path | str) -> None:
        """Go on where `save` was called, bit for bit; EtudeError for another model or other settings.

        torch's random state of the process is set too: a loss may have drawn from it.
        """
        optimizer = self._ready(gradients=False)
        with SavedState(Path(folder)) as saved:
            saved.check(self._identity())
            if saved.names("weight") != self._trained.keys():
                raise EtudeError(f"{folder} holds other weights than this learner trains")
            with torch.no_grad():
                for name, parameter in self._trained.items():
                    parameter.copy_(saved.tensor(f"weight/{name}"))
            moments = {
                f"{kind}/{name}": saved.tensor(f"{kind}/{name}")
                for kind in ("step", "exp_avg", "exp_avg_sq")
                for name in saved.names(kind)
            }
            optimizer.load_state(moments, step_index=saved.record["step"], n_skipped=saved.record["skipped"])
            self._reference = None
            if saved.names("reference"):
                self._reference = zeros_alongside(self._body)
                for name, value in self._reference.items():
                    value.copy_(saved.tensor(f"reference/{name}"))
            random = bytes.fromhex(saved.record["random"])
            torch.set_rng_state(torch.frombuffer(bytearray(random), dtype=torch.uint8))

    # ── what it computes ──

    @property
    def steps(self) -> int:
        """Updates so far, those skipped included: where the schedule stands."""
        return 0 if self._optimizer is None else self._optimizer.step_index

    def _ready(self, *, gradients: bool = True) -> AdamW:
        """The optimizer, with memory for gradients."""
        if self._optimizer is None:
            raise EtudeError("this learner was made for scoring: give it optimizer settings to train it")
        if gradients and next(iter(self._trained.values())).grad is None:
            for name, value in zeros_alongside(self._trained).items():
                self._trained[name].grad = value
        return self._optimizer

    def _packed(self, samples: Sequence[Sample], outputs: Sequence[str], whole_groups: bool) -> list[Batch]:
        return pack(
            samples,
            max_tokens=self.compute.max_tokens,
            whole_groups=whole_groups,
            to_the_end="scores" in outputs,
            device=self._device,
        )

    def _outputs(
        self, batch: Batch, names: Sequence[str], heads: tuple[Head, ...], *, adapters: bool
    ) -> dict[str, Tensor]:
        """What `names` ask for, of one micro-batch; gradients if they are enabled."""
        found: dict[str, Tensor] = {}
        reference = None
        if "reference_kl" in names:
            with torch.no_grad(), self._as_reference():
                hidden_TD = self._hidden(batch, adapters=self._adapters(False))
                reference = Reference(hidden_TD[batch.rows_M], heads[1])
        hidden_TD = self._hidden(batch, adapters=adapters)
        hidden_MD = hidden_TD.index_select(0, batch.rows_M)
        if heads:
            targets_M = batch.target_ids_C[batch.index_M]
            stats = statistics(
                hidden_MD, targets_M, heads[0], entropy="entropy" in names, reference=reference
            )
            pairs = zip(("logprobs", "entropy", "reference_kl"), stats, strict=True)
            found |= {name: batch.scattered(value_M) for name, value_M in pairs if value_M is not None}
        if "values" in names:
            found["values"] = batch.scattered(self._scalar(hidden_MD))
        if "scores" in names:
            assert batch.last_S is not None
            found["scores"] = self._scalar(hidden_TD.index_select(0, batch.last_S))
        return {name: found[name] for name in names}

    def _hidden(self, batch: Batch, *, adapters: bool) -> Tensor:
        hidden_TD: Tensor = self.transformer(
            batch.layout,
            checkpoint=self.compute.checkpoint,
            compute_dtype=self._dtype,
            adapters=adapters,
        )
        return hidden_TD

    def _scalar(self, hidden_ND: Tensor) -> Tensor:
        assert self.head is not None
        scores_N: Tensor = self.head(hidden_ND)
        return scores_N

    def _heads(self, outputs: Sequence[str]) -> tuple[Head, ...]:
        """The output matrix, once for all micro-batches: the model's, the reference's; () if not needed."""
        if not {"logprobs", "entropy", "reference_kl"}.intersection(outputs):
            return ()
        own = self._head()
        if "reference_kl" not in outputs:
            return (own,)
        with self._as_reference():
            return (own, self._head(trained=False))

    def _head(self, trained: bool = True) -> Head:
        tied = self.transformer.config.tied_embeddings
        linear = self.transformer.get_submodule("model.embed_tokens" if tied else "lm_head")
        assert isinstance(linear, Linear)
        return Head.of(
            linear,
            self._dtype,
            self._device,
            trained=trained and self._optimizer is not None and self._lora is None,
            softcap=self.transformer.config.logit_softcap,
            temperature=self.temperature,
        )

    def _adapters(self, wanted: bool) -> bool:
        """Whether pairs are multiplied with: a refreshed reference has pairs of its own."""
        return wanted or self._reference is not None

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        if self._reference is not None:
            with standing_in(self._body, self._reference):
                yield
        elif self._lora is not None:
            yield
        else:
            raise EtudeError("there is no reference yet: call refresh_reference() before training starts")

    def _check_outputs(self, outputs: Sequence[str]) -> None:
        unknown = [name for name in outputs if name not in OUTPUTS]
        if unknown or not outputs:
            raise EtudeError(f"outputs are {list(outputs)}; allowed are {', '.join(OUTPUTS)}")
        if self.head is None and {"values", "scores"}.intersection(outputs):
            raise EtudeError(f"{list(outputs)} need a scalar head, and this learner has none: pass head=")

    def _identity(self) -> dict[str, object]:
        """What a checkpoint must have been saved with."""
        assert self._optimizer is not None
        config = self.transformer.config
        shapes = sorted((name, list(value.shape)) for name, value in self._trained.items())
        described = repr((sorted((k, str(v)) for k, v in config.native_arguments().items()), shapes))
        return {
            "lora": None if self._lora is None else {**asdict(self._lora), "slots": list(self._lora.slots)},
            "model": {
                "architecture": config.architecture,
                "layers": config.n_layers,
                "width": config.d_model,
                "vocabulary": config.n_vocab,
                "digest": hashlib.sha256(described.encode()).hexdigest()[:16],
                "base": self._base,
            },
            "optimizer": self._optimizer.settings.as_json(),
            "dtype": self.compute.dtype,
            "temperature": self.temperature,
        }


def _digest(transformer: Transformer) -> str:
    """Of a frozen base: both ends of every tensor, which is enough to tell models apart, and quick."""
    digest = hashlib.sha256()
    for name, parameter in transformer.named_parameters():
        flat = parameter.detach().reshape(-1)
        ends = torch.cat([flat[:16], flat[-16:]]).cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + ends.tobytes())
    for name, module in transformer.named_modules():
        if isinstance(module, QuantizedLinear):
            ends = torch.cat([module.blocks[0], module.blocks[-1]]).cpu().numpy()
            digest.update(f"{name} {module.kind.name} {module.shape}".encode() + ends.tobytes())
    return digest.hexdigest()[:16]


class _Table:
    """Outputs of micro-batches, put back to the samples they belong to."""

    def __init__(self, samples: Sequence[Sample], outputs: Sequence[str]) -> None:
        lengths = [len(sample.completion_ids) for sample in samples]
        self._rows: list[dict[str, NDArray[np.float32]]] = [
            {name: np.zeros(1 if name == "scores" else n, np.float32) for name in outputs} for n in lengths
        ]

    def take(self, batch: Batch, found: Mapping[str, Tensor]) -> None:
        for name, values in found.items():
            flat, at = values.detach().cpu().numpy(), 0
            for index in batch.indices:
                row = self._rows[index][name]
                row[:] = flat[at : at + len(row)]
                at += len(row)

    def rows(self) -> list[SampleOutputs]:
        return list(self._rows)


class _Shares:
    """Metrics of micro-batches as one: added, but the largest of "…_max" and the smallest of "…_min"."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.detach())

    def totals(self) -> dict[str, float]:
        totals = {}
        for name, values in self._values.items():
            together = torch.stack(values)
            if name.endswith("_max"):
                together = together.amax(0)
            elif name.endswith("_min"):
                together = together.amin(0)
            else:
                together = together.sum(0)
            totals[name] = float(together)
        return totals


class _Clock:
    """Seconds between laps, added up by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._at = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._at
        self._at = now
