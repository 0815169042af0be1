"""Numbers as a reader wants them. None is always said, never shown as 0."""

from __future__ import annotations

NOT_MEASURED = "not measured"


def quantity(value: float | None) -> str:
    """1,234; 7.34 M; 1.2 B."""
    if value is None:
        return NOT_MEASURED
    for unit, divisor in ((" B", 1e9), (" M", 1e6)):
        if abs(value) >= divisor:
            return f"{value / divisor:.3g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"


def bytes_text(value: float | None) -> str:
    """Binary units, three figures."""
    if value is None:
        return NOT_MEASURED
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 100 else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:,.3g} TiB"


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 as a percentage."""
    return NOT_MEASURED if share is None else f"{100 * share:.{digits}f}%"


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{signed(100 * share)} points"


def signed(value: float) -> str:
    """One decimal with its sign, a true minus among them."""
    return f"{value:+.1f}".replace("-", "\u2212")


def dollars(value: float | None) -> str:
    """Dollars; unknown and free are different things."""
    if value is None:
        return "price unknown"
    return "free" if value == 0 else f"${value:,.2f}" if value >= 0.01 else f"${value:.2g}"


def duration(seconds: float | None) -> str:
    """0.4 s; 48 s; 3 min 20 s; 2 h 5 min."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
