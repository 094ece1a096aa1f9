"""Models split into parts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from etude.model.gguf import GGMLType, GGUFError, GGUFFile
from tests.model.gguf_samples import INT32, STRING, UINT16, Draft, DraftTensor, encode


def part(number: int, count: int, names: str, total: int = 4) -> Draft:
    """Part `number` of `count`, with a tensor of one value for each name."""
    keys = [("split.no", UINT16, number - 1), ("split.count", UINT16, count)]
    keys.append(("split.tensors.count", INT32, total))
    if number == 1:
        keys.append(("general.architecture", STRING, "llama"))
    tensors = [DraftTensor(name, [1], GGMLType.F32, np.array([ord(name)], "<f4").tobytes()) for name in names]
    return Draft([*keys], tensors)


def write_parts(folder: Path, *drafts: Draft, stem: str = "model") -> list[Path]:
    paths = []
    for number, draft in enumerate(drafts, 1):
        paths.append(folder / f"{stem}-{number:05}-of-{len(drafts):05}.gguf")
        paths[-1].write_bytes(encode(draft)[0])
    return paths


def parts(folder: Path) -> list[Path]:
    return write_parts(folder, part(1, 3, "ab"), part(2, 3, ""), part(3, 3, "cd"))


@pytest.mark.parametrize("through", [0, 1, 2])
def test_any_part_opens_the_model(tmp_path: Path, through: int) -> None:
    paths = parts(tmp_path)
    with GGUFFile.open(paths[through]) as file:
        assert file.path == paths[0]
        assert file.paths == tuple(paths)
        assert file.metadata["general.architecture"] == "llama"
        assert list(file.tensors) == ["a", "b", "c", "d"]
        assert [file.tensors[name].part for name in "abcd"] == [0, 0, 2, 2]
        for name in "abcd":
            file.release(name)
            assert file.dequantize(name).tolist() == [ord(name)]


def test_one_of_one_is_a_whole_model(tmp_path: Path) -> None:
    path = tmp_path / "whatever.gguf"
    path.write_bytes(encode(part(1, 1, "a", total=1))[0])
    with GGUFFile.open(path) as file:
        assert list(file.tensors) == ["a"]


def test_missing_part(tmp_path: Path) -> None:
    paths = parts(tmp_path)
    paths[1].unlink()
    with pytest.raises(GGUFError, match=r"1 of 3 parts are not there, first model-00002-of-00003\.gguf"):
        GGUFFile.open(paths[2])


def test_wrong_name(tmp_path: Path) -> None:
    paths = parts(tmp_path)
    renamed = paths[0].rename(tmp_path / "model.gguf")
    with pytest.raises(GGUFError, match=r"one of 3 parts, .* named …-00001-of-00003\.gguf"):
        GGUFFile.open(renamed)


def test_count_unlike_name(tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00002.gguf"
    path.write_bytes(encode(part(1, 3, "a"))[0])
    with pytest.raises(GGUFError, match=r"one of 3 parts"):
        GGUFFile.open(path)


def test_swapped_parts(tmp_path: Path) -> None:
    paths = parts(tmp_path)
    shutil.copy(paths[2], paths[1])
    with pytest.raises(GGUFError, match=r"model-00002-of-00003\.gguf: split\.no is 2, its name says 1"):
        GGUFFile.open(paths[0])


def test_part_of_another_split(tmp_path: Path) -> None:
    paths = parts(tmp_path)
    paths[1].write_bytes(encode(part(2, 4, "x"))[0])
    with pytest.raises(GGUFError, match=r"00002-of-00003\.gguf: split\.count is 4, its name says 3"):
        GGUFFile.open(paths[0])


def test_part_that_is_no_part(tmp_path: Path) -> None:
    paths = parts(tmp_path)
    paths[1].write_bytes(encode(Draft())[0] + bytes(32))
    with pytest.raises(GGUFError, match=r"00002-of-00003\.gguf: split\.no is None"):
        GGUFFile.open(paths[0])


def test_cut_part(tmp_path: Path) -> None:
    paths = parts(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:-40])
    with pytest.raises(GGUFError, match=r"00003-of-00003\.gguf: .* fetch it again"):
        GGUFFile.open(paths[0])


def test_too_few_tensors(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, part(1, 2, "ab"), part(2, 2, "c"))
    with pytest.raises(GGUFError, match=r"the 2 parts have 3 tensors, split\.tensors\.count says 4"):
        GGUFFile.open(paths[0])


def test_tensor_in_two_parts(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, part(1, 2, "ab"), part(2, 2, "bc"))
    with pytest.raises(GGUFError, match=r"00002\.gguf: tensor 'b' is also in model-00001-of-00002\.gguf"):
        GGUFFile.open(paths[0])


def test_split_count_must_be_a_number(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(encode(Draft([("split.count", STRING, "3")]))[0] + bytes(32))
    with pytest.raises(GGUFError, match=r"split\.count is '3'; a part of a split model needs a number"):
        GGUFFile.open(path)


def test_odd_characters_in_the_name(tmp_path: Path) -> None:
    stem = "a[b]*-00001-of-00009"
    paths = write_parts(tmp_path, part(1, 2, "ab"), part(2, 2, "cd"), stem=stem)
    with GGUFFile.open(paths[1]) as file:
        assert len(file.tensors) == 4
