"""Files to native weights, and what becomes of the user's wishes for the cache."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from etude.engine.loader import CacheSettings, LoadedModel, RunSettings, limits_of, load_model, plan_cache
from etude.kernels.reference_quants import dequantize, quantize
from etude.model.checkpoint import HFFolder, config_of
from etude.model.quants import GGMLType
from etude.model.rope import RopeOverrides
from etude.records import EtudeError
from tests.model.tiny_models import FIXTURES, NAMES, f32_weights


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_becomes_native_weights(name: str) -> None:
    """Every matrix is what the file says, in the native order."""
    model = load_model(FIXTURES / name, rope=None, weight_type=None)
    assert model.weight_types == ("BF16" if name == "qwen2_tied" else "F32",) and model.chat is None
    with HFFolder.open(FIXTURES / name) as folder:
        weights = f32_weights(folder, config_of(folder))
    matrices = {place: values for place, values in weights.items() if values.ndim == 2}
    assert len(matrices) >= 8
    for (slot, layer), values in matrices.items():
        assert np.array_equal(model.native.dequantize(slot, layer), values), (slot, layer)


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_conversion_at_load(kind: str) -> None:
    model = load_model(FIXTURES / "llama", rope=None, weight_type=kind)
    plain = load_model(FIXTURES / "llama", rope=None, weight_type=None)
    wanted = GGMLType[kind.upper()]
    assert model.weight_types == (f"F32 as {wanted.name}",)
    for slot, layer in (("token_embd", -1), ("attn_q", 1), ("ffn_down", 0)):
        values = plain.native.dequantize(slot, layer)
        assert model.native.matrix_type(slot, layer) == wanted
        expected = dequantize(wanted, quantize(wanted, values).reshape(-1), values.shape)
        assert np.array_equal(model.native.dequantize(slot, layer), expected)


def test_fingerprints_tell_models_apart() -> None:
    def fingerprint(name: str, **given: object) -> str:
        settings = {"rope": None, "weight_type": None} | given
        return load_model(FIXTURES / name, **settings).fingerprint

    prints = [
        fingerprint("llama"),
        fingerprint("llama_tied"),
        fingerprint("llama", weight_type="q8_0"),
        fingerprint("llama", rope=RopeOverrides(rope_freq_base=5000.0)),
    ]
    assert len(set(prints)) == 4 and fingerprint("llama") == prints[0]


def test_a_wrong_weight_type() -> None:
    with pytest.raises(EtudeError, match="weight_type is 'q4_0'; it must be one of f32, f16, bf16, q8_0"):
        load_model(FIXTURES / "llama", rope=None, weight_type="q4_0")


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    """A context of 64 tokens; a page of 32 holds 2 layers of 2 heads of 16 values, twice."""
    return load_model(FIXTURES / "llama", rope=None, weight_type=None)


def test_the_cache_that_is_planned(llama: LoadedModel) -> None:
    page = 32 * 2 * 2 * 16 * 2 * 2
    plan = plan_cache(llama, CacheSettings(), shifts=False)
    assert plan.page_bytes == page and plan.context == 64
    assert plan.n_pages * page <= 512 << 20
    assert plan_cache(llama, CacheSettings(n_tokens=100), shifts=False).n_pages == 4
    assert plan_cache(llama, CacheSettings(memory_bytes=3 * page + 1), shifts=False).n_pages == 3
    assert plan_cache(llama, CacheSettings(context=20, n_tokens=32), shifts=False).context == 20
    assert plan_cache(llama, CacheSettings(context=0), shifts=False).context == 64
    assert plan_cache(llama, CacheSettings(context=200), shifts=False).context == 200
    assert plan_cache(llama, CacheSettings(type_k="q8_0", type_v="f32"), shifts=False).page_bytes > page


def test_a_context_that_nobody_asked_for_shrinks_to_the_cache(llama: LoadedModel) -> None:
    assert plan_cache(llama, CacheSettings(n_tokens=32), shifts=False).context == 32
    assert plan_cache(llama, CacheSettings(n_tokens=96), shifts=True).context == 32


@pytest.mark.parametrize(
    ("asked", "shifts", "message"),
    [
        (
            CacheSettings(context=64, n_tokens=32),
            False,
            "a cache of 1 pages of 32 tokens .* which needs 16,384 bytes",
        ),
        (CacheSettings(context=64, n_tokens=96), True, "with context shift"),
        (CacheSettings(memory_bytes=100), False, "a cache of 0 pages"),
        (
            CacheSettings(type_k="q4_0"),
            False,
            "cache_type_k is 'q4_0'; it must be one of f32, f16, bf16, q8_0",
        ),
        (CacheSettings(page_tokens=48), False, "page_tokens is 48; it must be a multiple of 32"),
        (CacheSettings(memory_bytes=1 << 20, n_tokens=64), False, "given twice"),
        (CacheSettings(context=-1), False, "context is -1; it must be positive"),
        (CacheSettings(n_tokens=0), False, "cache_tokens is 0; it must be positive"),
    ],
)
def test_caches_that_cannot_be(llama: LoadedModel, asked: CacheSettings, shifts: bool, message: str) -> None:
    with pytest.raises(EtudeError, match=message):
        plan_cache(llama, asked, shifts=shifts)


PLAN = SimpleNamespace(context=64)
TOKENIZER = SimpleNamespace(add_bos=True)


def test_limits() -> None:
    limits = limits_of(RunSettings(), PLAN, TOKENIZER)
    assert (limits.step_tokens, limits.max_sequences, limits.shift_keep) == (512, 256, None)
    limits = limits_of(RunSettings(step_tokens=32, context_shift=True), PLAN, TOKENIZER)
    assert (limits.max_sequences, limits.shift_keep) == (16, 1)
    limits = limits_of(RunSettings(context_shift=True, keep=-1), PLAN, TOKENIZER)
    assert limits.shift_keep == -1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RunSettings(step_tokens=1), "step_tokens is 1; it must be at least 2"),
        (RunSettings(max_sequences=512), "max_sequences is 512; .* below step_tokens .512."),
        (RunSettings(max_sequences=0), "max_sequences is 0"),
        (RunSettings(keep=4), "keep is 4, which has no effect without context_shift"),
        (RunSettings(keep=-2, context_shift=True), "keep is -2"),
    ],
)
def test_limits_that_cannot_be(settings: RunSettings, message: str) -> None:
    with pytest.raises(EtudeError, match=message):
        limits_of(settings, PLAN, TOKENIZER)


def test_threads() -> None:
    assert RunSettings(threads=3).n_threads == 3 and RunSettings().n_threads >= 1
    with pytest.raises(EtudeError, match="threads is 0; it must be at least 1"):
        _ = RunSettings(threads=0).n_threads


def test_the_file_is_let_go(smollm2: Path) -> None:
    """After loading, none of the weights' file pages is mapped into memory."""
    model = load_model(smollm2, rope=None, weight_type=None)
    resident = 0
    mapped = False
    for line in (
        Path("/proc/self/smaps").read_text().splitlines() if Path("/proc/self/smaps").exists() else ()
    ):
        if line.endswith(str(smollm2.resolve())) or (
            "-" in line.split(" ")[0] and ":" not in line.split(" ")[0]
        ):
            mapped = line.endswith(str(smollm2.resolve()))
        elif mapped and line.startswith("Rss:"):
            resident += int(line.split()[1]) << 10
    assert resident < 8 << 20
    assert model.native.weight_bytes <= 1.15 * smollm2.stat().st_size
