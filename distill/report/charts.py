"""The report's charts: quality against bytes or speed, training curves, accuracy by family, and time by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from distill.report.format import bytes_text, percent, quantity
from distill.report.svg import Box, Canvas, Scale, linear_ticks, place_label

_FONT = 13.0


@dataclass(frozen=True)
class Point:
    """A variant in a scatter plot: x, accuracy with its interval, and the CSS class of its role."""

    name: str
    x: float
    value: float
    low: float
    high: float
    css: str


def scatter(
    points: Sequence[Point], *, title: str, x_label: str, x_text: Callable[[float], str], better_left: bool
) -> Markup:
    """Accuracy against x, with 95% intervals and a label at every point.

    A point far below all others stands on the lower edge with its value: it would flatten the differences that matter.
    """
    canvas = Canvas(520, 340, title, "; ".join(f"{p.name}: {percent(p.value)} at {x_text(p.x)}" for p in points))
    plot = Box(52, 16, 506, 288)
    low = _floor(points)
    y = Scale(low, 1.0, plot.bottom, plot.top + 6)
    smallest, largest = min(p.x for p in points), max(p.x for p in points)
    log = largest > 3 * smallest
    margin = (largest / smallest) ** 0.12 if log else 0.0
    spread = (largest - smallest) or largest or 1.0
    x = (
        Scale(smallest / margin, largest * margin, plot.left, plot.right, log=True, binary=x_text is bytes_text)
        if log
        else Scale(smallest - 0.12 * spread, largest + 0.12 * spread, plot.left, plot.right)
    )
    for tick in linear_ticks(low, 1.0, 5):
        canvas.line(plot.left, y(tick), plot.right, y(tick), "grid")
        canvas.text(plot.left - 8, y(tick) + 4, percent(tick, 0), "tick", "end")
    for tick in x.ticks(4):
        canvas.line(x(tick), plot.bottom, x(tick), plot.bottom + 4, "axis")
        canvas.text(x(tick), plot.bottom + 18, x_text(tick), "tick", "middle")
    canvas.line(plot.left, plot.bottom, plot.right, plot.bottom, "axis")
    canvas.text((plot.left + plot.right) / 2, 330, x_label, "label", "middle")
    corner = plot.left + 6 if better_left else plot.right - 6
    hint = "↖ smaller and better" if better_left else "faster and better ↗"
    canvas.text(corner, plot.top + 10, hint, "hint", "start" if better_left else "end")
    taken = [Box(corner - (0 if better_left else 130), plot.top, corner + (130 if better_left else 0), plot.top + 16)]
    _draw_points(canvas, points, x, y, plot, low, taken)
    return canvas.markup()


def _draw_points(
    canvas: Canvas, points: Sequence[Point], x: Scale, y: Scale, plot: Box, low: float, taken: list[Box]
) -> None:
    places = [(p, x(p.x), y(max(p.value, low))) for p in points]
    for point, px, py in places:
        if point.value >= low:
            canvas.line(px, y(max(point.low, low)), px, y(min(point.high, 1.0)), f"whisker {point.css}")
        taken.append(Box(px - 7, py - 7, px + 7, py + 7))
    for point, px, py in places:
        canvas.circle(px, py, 5.5, f"dot {point.css}", f"{point.name}: {percent(point.value)}")
        name = point.name if point.value >= low else f"{point.name} ↓ {percent(point.value)}"
        tx, ty, anchor, box = place_label(px, py, name, taken=taken, bounds=plot, size=_FONT)
        taken.append(box)
        canvas.text(tx, ty, name, f"name {point.css}", anchor)


def _floor(points: Sequence[Point]) -> float:
    """Lower end of the accuracy axis: below all intervals, except those of points that would flatten the rest."""
    lows = sorted(p.low for p in points)
    keep = lows
    if len(lows) > 2 and lows[1] - lows[0] > 0.5 * (1.0 - lows[1]) and lows[1] - lows[0] > 0.15:
        keep = lows[1:]
    return max(0.0, min(0.95, (int(keep[0] * 20) - 1) / 20))


def training_curve(name: str, steps: Sequence[float], losses: Sequence[float]) -> Markup:
    """Loss by optimizer step, its first and last value labelled."""
    canvas = Canvas(340, 210, f"training loss of {name}", f"from {losses[0]:.4g} to {losses[-1]:.4g}")
    plot = Box(46, 14, 328, 172)
    # The first steps of a fresh model would flatten all that follows: the axis holds 98% of the points.
    ordered = sorted(losses)
    top = max(ordered[int(0.98 * (len(ordered) - 1))], losses[-1])
    bottom = min(0.0, ordered[0]) if ordered[0] < 0.35 * top else ordered[0] - 0.1 * (top - ordered[0] or top or 1.0)
    y = Scale(bottom, top + 0.08 * (top - bottom or 1.0), plot.bottom, plot.top)
    x = Scale(0.0, max(steps) or 1.0, plot.left, plot.right)
    for tick in linear_ticks(y.low, y.high, 5):
        canvas.line(plot.left, y(tick), plot.right, y(tick), "grid")
        canvas.text(plot.left - 7, y(tick) + 4, f"{tick:.4g}", "tick", "end")
    for tick in x.ticks(4):
        canvas.text(x(tick), plot.bottom + 17, quantity(tick), "tick", "middle")
    canvas.line(plot.left, plot.bottom, plot.right, plot.bottom, "axis")
    canvas.text((plot.left + plot.right) / 2, 206, "optimizer step", "label", "middle")
    line = [(x(step), max(plot.top, y(loss))) for step, loss in zip(steps, losses, strict=True)]
    canvas.path(line, "curve")
    end_x, end_y = line[-1]
    canvas.circle(end_x, end_y, 3.5, "dot trained", f"step {steps[-1]:g}: {losses[-1]:.4g}")
    above = end_y - 9 if end_y - 9 > plot.top + 10 else end_y + 18
    canvas.text(end_x, above, f"{losses[-1]:.3g}", "name trained", "end")
    return canvas.markup()


@dataclass(frozen=True)
class FamilyRow:
    """Accuracy of one family of tasks: the teacher's and the student's, either of which may be missing."""

    name: str
    teacher: float | None
    student: float | None
    count: int


def family_chart(rows: Sequence[FamilyRow], *, title: str) -> Markup:
    """A line between teacher and student for each family, in the order given."""
    row_height, top = 19, 30
    canvas = Canvas(520, top + row_height * len(rows) + 8, title)
    x = Scale(0.0, 1.0, 172, 500)
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        canvas.line(x(tick), top - 8, x(tick), top + row_height * len(rows), "grid")
        canvas.text(x(tick), top - 14, percent(tick, 0), "tick", "middle")
    for index, row in enumerate(rows):
        y = top + row_height * (index + 0.5)
        canvas.text(162, y + 4, row.name, "row", "end")
        if row.teacher is not None and row.student is not None:
            loses = row.student < row.teacher
            canvas.line(x(row.teacher), y, x(row.student), y, "gap loss" if loses else "gap gain")
        if row.teacher is not None:
            canvas.circle(x(row.teacher), y, 5.5, "ring teacher", f"teacher {percent(row.teacher)} of {row.count}")
        if row.student is not None:
            canvas.circle(x(row.student), y, 4, "dot trained", f"student {percent(row.student)} of {row.count}")
    return canvas.markup()


@dataclass(frozen=True)
class Bar:
    """A labelled amount."""

    name: str
    value: float
    text: str
    css: str


def bar_chart(bars: Sequence[Bar], *, title: str) -> Markup:
    """Horizontal bars, each with its text at its end."""
    row_height = 22
    canvas = Canvas(520, row_height * len(bars) + 4, title, "; ".join(f"{bar.name}: {bar.text}" for bar in bars))
    x = Scale(0.0, max((bar.value for bar in bars), default=1.0) or 1.0, 172, 440)
    for index, bar in enumerate(bars):
        y = row_height * index + 3
        canvas.text(162, y + 12, bar.name, "row", "end")
        canvas.rectangle(172, y, max(1.5, x(bar.value) - 172), 15, f"bar {bar.css}", f"{bar.name}: {bar.text}")
        canvas.text(max(173.5, x(bar.value)) + 6, y + 12, bar.text, "tick")
    return canvas.markup()
