"""`etude merge`: base and adapter of either format into one model; what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from etude.cli import main
from etude.model.checkpoint import config_of, open_source
from etude.model.gguf import GGMLType, GGUFFile
from etude.model.hf_tensors import hf_tensors
from etude.model.lora_write import save_gguf_adapter, save_peft_folder
from tests.model.test_lora_write import adapter_for
from tests.terminal.tiny import write_tiny


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny GGUF model, with an adapter in both formats beside it."""
    path = write_tiny(tmp_path / "base.gguf")
    with open_source(path) as source:
        config = config_of(source)
    save_peft_folder(tmp_path / "adapter", config, adapter_for(config))
    save_gguf_adapter(tmp_path / "adapter.gguf", config, adapter_for(config))
    return path


@pytest.mark.parametrize("adapter", ["adapter", "adapter.gguf"])
@pytest.mark.parametrize("out", ["merged.gguf", "merged"])
def test_merges(base: Path, adapter: str, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = base.parent / out
    assert main(["merge", str(base), str(base.parent / adapter), "-o", str(target), "--type", "f32"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    with open_source(base) as source, open_source(target) as result:
        config = config_of(source)
        pairs = adapter_for(config)
        before, after = dict(hf_tensors(source, config)), dict(hf_tensors(result, config_of(result)))
    a, b = pairs.tensors["attn_k", 1]
    expected = before["model.layers.1.self_attn.k_proj.weight"] + pairs.scale * (b @ a)
    np.testing.assert_allclose(after["model.layers.1.self_attn.k_proj.weight"], expected, atol=1e-6)
    np.testing.assert_array_equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_types(base: Path) -> None:
    command = ["merge", str(base), str(base.parent / "adapter"), "-o"]
    for words, kind in (([], GGMLType.F16), (["--type", "q8_0"], GGMLType.Q8_0)):
        assert main([*command, str(base.parent / "merged.gguf"), *words]) == 0
        with GGUFFile.open(base.parent / "merged.gguf") as file:
            assert file.tensors["blk.0.attn_q.weight"].type == kind
            assert file.metadata["tokenizer.chat_template"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["BASE", "ADAPTER", "-o", "folder", "--type", "q8_0"], "folder.gguf"),
        (["BASE", "nowhere", "-o", "out.gguf"], "no file or folder 'nowhere'"),
        (["BASE", "ADAPTER", "-o", "BASE"], "would replace what it is made of"),
        (["BASE", "BASE", "-o", "out.gguf"], "general.type"),
    ],
)
def test_refusals(
    base: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(base.parent)
    names = {"BASE": str(base), "ADAPTER": str(base.parent / "adapter")}
    before = sorted(base.parent.rglob("*"))
    assert main(["merge", *(names.get(word, word) for word in words)]) == 1
    assert message in capsys.readouterr().err
    assert sorted(base.parent.rglob("*")) == before
