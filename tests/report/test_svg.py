"""Scales, ticks, escaping, and labels that keep apart."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from distill.report.svg import Box, Canvas, Scale, linear_ticks, place_label, text_box


def test_scales_map_ends_and_middles() -> None:
    linear = Scale(0.0, 10.0, 100.0, 200.0)
    assert (linear(0), linear(5), linear(10)) == (100, 150, 200)
    logarithmic = Scale(1.0, 100.0, 0.0, 10.0, log=True)
    assert logarithmic(10) == pytest.approx(5)
    upside_down = Scale(0.0, 1.0, 300.0, 0.0)
    assert upside_down(0.25) == 225


def test_ticks_are_round_and_inside() -> None:
    assert linear_ticks(0.0, 1.0, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert linear_ticks(0.605, 0.70, 5) == [0.62, 0.64, 0.66, 0.68, 0.7]
    assert linear_ticks(3.0, 3.0, 5) == [3.0]
    assert Scale(3.0, 60.0, 0, 1, log=True).ticks() == [5, 10, 20, 50]
    assert Scale(1.0, 1e6, 0, 1, log=True).ticks() == [1, 10, 100, 1e3, 1e4, 1e5, 1e6]
    assert Scale(1.5e6, 2e7, 0, 1, log=True, binary=True).ticks(4) == [2**21, 2**22, 2**23, 2**24]


def test_drawing_is_well_formed_and_escaped() -> None:
    canvas = Canvas(10, 10, 'a "title" & <more>', "described")
    canvas.text(1, 2, "<script>alert(1)</script>")
    canvas.circle(1, 2, 3, "dot", "x < y")
    canvas.path([(0, 0), (1, 2.25)], "curve")
    root = ElementTree.fromstring(str(canvas.markup()))
    assert root.get("role") == "img" and root.get("aria-label") == 'a "title" & <more>'
    assert [child.tag for child in root] == ["title", "desc", "text", "circle", "path"]
    assert root[2].text == "<script>alert(1)</script>"
    assert root[4].get("d") == "M0.0 0.0 L1.0 2.2"


def test_labels_avoid_what_is_there() -> None:
    bounds, taken = Box(0, 0, 300, 200), [Box(95, 95, 105, 105)]
    boxes = []
    for _ in range(6):
        *_, box = place_label(100, 100, "a label", taken=taken, bounds=bounds, size=12)
        assert box.inside(bounds) and not any(box.overlaps(other) for other in taken)
        taken.append(box)
        boxes.append(box)
    assert len(set(boxes)) == 6


def test_label_at_the_right_edge_goes_left() -> None:
    x, _, anchor, _ = place_label(295, 100, "wide label", taken=[], bounds=Box(0, 0, 300, 200), size=12)
    assert anchor == "end" and x < 295


def test_text_box_follows_the_anchor() -> None:
    start, end = text_box(50, 20, "abcd", "start", 10), text_box(50, 20, "abcd", "end", 10)
    assert start.left == 50 and end.right == 50
    assert start.right - start.left == pytest.approx(end.right - end.left)
