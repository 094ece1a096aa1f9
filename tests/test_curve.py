"""Curves of a run as SVG: what is drawn, and that any XML reader takes it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from etude.runlog.curve import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, curve_svg

SVG = "{http://www.w3.org/2000/svg}"


def test_points_lie_where_their_numbers_say() -> None:
    rows = [
        {"step": 0, "acc": 0.0, "acc/low": 0.0, "acc/high": 0.1},
        {"step": 5, "acc": "nan"},
        {"step": 10, "acc": 1.0, "acc/low": 0.9, "acc/high": 1.0},
    ]
    tree = ElementTree.fromstring(curve_svg(rows, [Curve("acc", "held out")], levels={"always '<7>'": 0.5}))
    first, last = tree.findall(f"{SVG}circle")
    assert float(first.attrib["cx"]) == LEFT and float(last.attrib["cx"]) == WIDTH - RIGHT
    assert float(last.attrib["cy"]) == TOP < float(first.attrib["cy"]) < HEIGHT
    (path,) = tree.findall(f"{SVG}polyline")
    assert len(path.attrib["points"].split()) == 2
    texts = [text.text for text in tree.findall(f"{SVG}text")]
    assert "held out" in texts and "always '<7>'" in texts and "10" in texts


@pytest.mark.parametrize("rows", [[], [{"step": 0}], [{"step": 0, "acc": -3.0}, {"step": 1, "acc": 12.5}]])
def test_any_run_can_be_drawn(rows: list[dict[str, float]]) -> None:
    ElementTree.fromstring(curve_svg(rows, [Curve("acc", "x & y")], title="a < b"))
