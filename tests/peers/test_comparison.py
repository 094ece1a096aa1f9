"""The comparison of stored outputs must see a difference: otherwise `make test-peers` proves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.peers.comparison import compare_folders
from tests.peers.hard_texts import hard_texts

STORED = Path(__file__).parents[1] / "data" / "peers"


def write_json(folder: Path, value: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "a.json").write_text(json.dumps(value))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    write_json(tmp_path / "stored", {})
    write_json(tmp_path / "made", {})
    return tmp_path / "stored", tmp_path / "made"


def test_equal_folders_have_no_difference(folders: tuple[Path, Path]) -> None:
    assert compare_folders(*folders) == []


def test_a_missing_and_a_new_file_are_reported(folders: tuple[Path, Path]) -> None:
    (folders[0] / "old.txt").write_text("x")
    (folders[1] / "new.txt").write_text("x")
    assert compare_folders(*folders) == [
        "old.txt: stored, but no peer made it",
        "new.txt: made, but not stored",
    ]


@pytest.mark.parametrize(
    ("stored", "made", "is_same"),
    [
        ({"ppl": 17.0}, {"ppl": 17.01}, True),
        ({"ppl": 17.0}, {"ppl": 17.1}, False),
        ({"ids": [1, 2]}, {"ids": [1, 3]}, False),
        ({"ids": [1, 2]}, {"ids": [1]}, False),
        ({"version": "1"}, {"version": "2"}, False),
        ({"float32_max_difference": 1e-5}, {"float32_max_difference": 3e-5}, True),
        ({"a": 1}, {"b": 1}, False),
    ],
)
def test_json(folders: tuple[Path, Path], stored: object, made: object, is_same: bool) -> None:
    write_json(folders[0], stored)
    write_json(folders[1], made)
    assert (compare_folders(*folders) == []) == is_same


@pytest.mark.parametrize(("shift", "is_same"), [(1e-5, True), (1e-3, False), (np.nan, False)])
def test_arrays(folders: tuple[Path, Path], shift: float, is_same: bool) -> None:
    logits = np.linspace(-3, 3, 40, dtype=np.float32)
    np.savez(folders[0] / "logits_x.npz", logits=logits)
    np.savez(folders[1] / "logits_x.npz", logits=logits + np.float32(shift))
    assert (compare_folders(*folders) == []) == is_same


@pytest.mark.parametrize(
    ("n_changed", "step_shift", "is_same"), [(0, 0, True), (30, 0, False), (0, 200, False)]
)
def test_windows(folders: tuple[Path, Path], n_changed: int, step_shift: int, is_same: bool) -> None:
    top_ids_WPK = np.tile(np.arange(4, dtype=np.int32), (2, 255, 1))
    steps_WPK = np.full((2, 255, 4), 5000, np.uint16)
    ids_WT = np.zeros((2, 512), np.int32)
    np.savez(folders[0] / "perplexity_x.npz", ids_WT=ids_WT, top_ids_WPK=top_ids_WPK, top_steps_WPK=steps_WPK)
    top_ids_WPK[0, :n_changed] += 9
    steps_WPK += np.uint16(step_shift)
    np.savez(folders[1] / "perplexity_x.npz", ids_WT=ids_WT, top_ids_WPK=top_ids_WPK, top_steps_WPK=steps_WPK)
    assert (compare_folders(*folders) == []) == is_same


def test_hard_texts_are_many_and_valid() -> None:
    texts = hard_texts()
    assert len(texts) == len(set(texts)) >= 500
    assert all(text.encode("utf-8") is not None for text in texts)  # raises on a lone surrogate


def test_stored_outputs_name_their_peer() -> None:
    records = [*STORED.glob("*.json"), STORED / "families" / "peers.json"]
    assert records
    for path in records:
        record = json.loads(path.read_text())
        assert record["peers"], path
        assert record["command"], path
