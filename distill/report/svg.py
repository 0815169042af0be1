"""A small writer of inline SVG: escaped, accessible, coloured by the page's CSS classes so that it keeps its theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

CHARACTER_WIDTH = 0.56  # of the font size, a mean for the interface fonts of the page


@dataclass(frozen=True)
class Box:
    """A rectangle on the page, for keeping labels apart."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def inside(self, other: Box) -> bool:
        return (
            self.left >= other.left
            and self.top >= other.top
            and self.right <= other.right
            and self.bottom <= other.bottom
        )


@dataclass
class Canvas:
    """Elements of one drawing; `title` and `description` are what a screen reader says."""

    width: float
    height: float
    title: str
    description: str = ""
    _parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        self._parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{escape(css)}"/>')

    def circle(self, x: float, y: float, radius: float, css: str, hint: str = "") -> None:
        inner = f"<title>{escape(hint)}</title>" if hint else ""
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{escape(css)}">{inner}</circle>')

    def rectangle(self, x: float, y: float, width: float, height: float, css: str, hint: str = "") -> None:
        inner = f"<title>{escape(hint)}</title>" if hint else ""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}" rx="2"'
        self._parts.append(f'<rect {place} class="{escape(css)}">{inner}</rect>')

    def path(self, points: Sequence[tuple[float, float]], css: str) -> None:
        """A polyline."""
        steps = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
        self._parts.append(f'<path d="{steps}" class="{escape(css)}"/>')

    def text(self, x: float, y: float, text: str, css: str = "", anchor: str = "start") -> None:
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{escape(css)}">{escape(text)}</text>'
        )

    def markup(self) -> Markup:
        """The drawing as one element; it scales to the width of its place."""
        head = (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(self.title)}"'
            f' preserveAspectRatio="xMidYMid meet"><title>{escape(self.title)}</title>'
        )
        description = f"<desc>{escape(self.description)}</desc>" if self.description else ""
        return Markup(head + description + "".join(self._parts) + "</svg>")


@dataclass(frozen=True)
class Scale:
    """Maps values from `low`..`high` to pixels from `start`..`end`, in logarithms where `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    binary: bool = False  # logarithmic ticks at powers of two

    def __call__(self, value: float) -> float:
        if self.log:
            share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the range."""
        if self.log and self.binary:
            return _binary_ticks(self.low, self.high, count)
        return _log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high, count)


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten, at most `count` + 1 of them, within low..high."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    ticks = []
    while first * step <= high + step * 1e-9:
        ticks.append(round(first * step, 12))
        first += 1
    return ticks


def _binary_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of two, thinned to about `count`."""
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    step = max(1, math.ceil((last - first + 1) / (count + 1)))
    return [2.0**power for power in range(first, last + 1, step)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; only the powers where those would crowd."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]
    return fine if len(fine) <= 6 else [tick for tick in fine if math.log10(tick).is_integer()]


def text_box(x: float, y: float, text: str, anchor: str, size: float) -> Box:
    """Where a text would stand, its baseline at (x, y)."""
    width = len(text) * size * CHARACTER_WIDTH
    left = x if anchor == "start" else x - width if anchor == "end" else x - width / 2
    return Box(left, y - size * 0.8, left + width, y + size * 0.25)


def place_label(
    x: float, y: float, text: str, *, taken: Sequence[Box], bounds: Box, size: float, gap: float = 9
) -> tuple[float, float, str, Box]:
    """A free place beside the point (x, y): right, left, above, below, then further out; the last tried if none is."""
    best: tuple[float, float, str, Box] | None = None
    for distance in (1.0, 1.7, 2.6, 3.8):
        out = gap * distance
        for dx, dy, anchor in (
            (out, size * 0.33, "start"),
            (-out, size * 0.33, "end"),
            (0, -out, "middle"),
            (0, out + size * 0.7, "middle"),
            (out * 0.8, -out * 0.7, "start"),
            (-out * 0.8, -out * 0.7, "end"),
            (out * 0.8, out * 0.7 + size * 0.6, "start"),
            (-out * 0.8, out * 0.7 + size * 0.6, "end"),
        ):
            box = text_box(x + dx, y + dy, text, anchor, size)
            best = (x + dx, y + dy, anchor, box)
            if box.inside(bounds) and not any(box.overlaps(other) for other in taken):
                return best
    assert best is not None
    return best
