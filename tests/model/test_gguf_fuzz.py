"""A share of the fuzzing that `python -m tests.model.fuzz_gguf` does at length."""

from __future__ import annotations

import mmap
from pathlib import Path

import gguf
import pytest

from etude.model.gguf import GGUFError, GGUFFile
from etude.records import EtudeError
from tests.model import fuzz_gguf
from tests.model.fuzz_gguf import make_case, run
from tests.model.gguf_samples import encode, samples
from tests.model.test_gguf import assert_equal_to_gguf

CASES_PER_SHARE = 500


@pytest.mark.parametrize("share", range(4))
def test_nothing_but_a_gguf_error(tmp_path: Path, share: int) -> None:
    report = run(tmp_path, CASES_PER_SHARE, first=share * CASES_PER_SHARE)
    assert report.problems == []
    assert report.outcomes.total() == CASES_PER_SHARE
    assert report.outcomes["accepted"] > CASES_PER_SHARE // 8, "mutations too coarse to get past the header"
    assert len(report.reasons) > 20, "mutations too narrow to reach most checks"


def test_a_case_is_always_the_same() -> None:
    drafts = samples()
    donor, _ = encode(drafts[-1])
    cases = [make_case(drafts, donor, 0, index) for index in range(30)]
    assert cases == [make_case(samples(), donor, 0, index) for index in range(30)]
    assert len(set(cases)) == 30
    assert cases != [make_case(drafts, donor, 1, index) for index in range(30)]


def test_accepted_files_equal_gguf(tmp_path: Path) -> None:
    """Where both readers take a mutated file, they read the same."""
    drafts = samples()
    donor, _ = encode(drafts[-1])
    compared = 0
    for index in range(150):
        path = tmp_path / f"{index}.gguf"
        path.write_bytes(make_case(drafts, donor, 2, index))
        try:
            GGUFFile.open(path).close()
            gguf.GGUFReader(path)
        except (GGUFError, UnicodeDecodeError, ValueError, KeyError, IndexError):
            continue
        assert_equal_to_gguf(path)
        compared += 1
    assert compared > 15


def test_the_fuzzer_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong exception, a greedy allocation and a broken forward are found, named and kept."""

    def breaks(path: Path) -> None:
        raise ZeroDivisionError(path.name)

    report = run(tmp_path, 40, forward=breaks)
    assert report.outcomes["failed"] == len(report.problems) > 3
    index, problem = report.problems[0]
    assert problem == "ZeroDivisionError: case.gguf"
    assert (tmp_path / f"case-{index}.gguf").exists()

    def refuses(path: Path) -> None:
        raise EtudeError(str(path))

    assert run(tmp_path, 40, forward=refuses).outcomes["accepted, refused by the engine"] > 3
    assert run(tmp_path, 40, forward=lambda path: None).outcomes["accepted, forward ran"] > 3

    def careless(path: Path, mapping: mmap.mmap) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr("etude.model.gguf.read_header", careless)
    assert "IndexError: list index out of range" in {problem for _, problem in run(tmp_path, 5).problems}


def test_the_fuzzer_sees_greedy_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_gguf, "MEMORY_FLOOR_BYTES", 0)
    monkeypatch.setattr(fuzz_gguf, "MEMORY_PER_FILE_BYTE", 0)
    problems = run(tmp_path, 3).problems
    assert len(problems) == 3
    assert "MemoryError" in problems[0][1]
