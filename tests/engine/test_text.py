"""Cutting text before stop strings: what is shown never has to be taken back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from etude.engine.text import TextCutter


class Pieces:
    """A token's text is the token itself."""

    def push(self, token: str) -> str:
        return token

    def flush(self) -> str:
        return ""


class Holding(Pieces):
    """Ends with text that only flush() gives."""

    def flush(self) -> str:
        return "�"


def run(pieces: list[str], stops: tuple[str, ...], stream: Pieces | None = None) -> tuple[list[str], bool]:
    cutter = TextCutter(stream or Pieces(), stops)
    shown = []
    for piece in pieces:
        shown.append(cutter.push(piece))
        if cutter.stopped:
            break
    return [*shown, cutter.flush()], cutter.stopped


def test_text_passes_through():
    assert run(["a", "b"], ()) == (["a", "b", ""], False)
    assert run(["a", "b"], ("",)) == (["a", "b", ""], False)


def test_the_start_of_a_stop_string_is_held():
    assert run(["one ST", "O", "P two"], ("STOP",)) == (["one ", "", "", ""], True)
    assert run(["one ST", "AR"], ("STOP",)) == (["one ", "STAR", ""], False)
    assert run(["one ST"], ("STOP",)) == (["one ", "ST"], False)


def test_the_stop_string_that_begins_first_wins():
    assert run(["abcd"], ("bc", "abcd")) == (["", ""], True)
    assert run(["xbcd"], ("cd", "bc")) == (["x", ""], True)


def test_flushed_text_can_complete_a_stop_string():
    assert run(["a"], ("a�",), Holding()) == (["", ""], True)
    assert run(["b"], ("a�",), Holding()) == (["b", "�"], False)


@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=3),
)
def test_equals_cutting_the_whole(pieces, stops):
    """Up to the piece in which the first stop string ends, shown text is the text before it."""
    shown, stopped = run(pieces, tuple(stops))
    whole = "".join(pieces)
    ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    if not ends:
        assert not stopped and "".join(shown) == whole
        return
    read = ""
    for piece in pieces:
        read += piece
        if len(read) >= min(ends):
            break
    assert stopped
    assert "".join(shown) == read[: min(read.find(stop) for stop in stops if stop in read)]
