"""Numbers, sizes, times and intervals as people read them."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from typing import Any

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def count(value: float) -> str:
    """``1234567`` -> ``1,234,567``."""
    return f"{round(value):,}"


def size(nbytes: float) -> str:
    """Bytes in powers of 1000: ``1.5 MB``."""
    for unit in _UNITS[:-1]:
        if abs(nbytes) < 999.5:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.1f} {_UNITS[-1]}"


def rate(amount: float, seconds: float) -> str:
    """Rows a second; empty when there is nothing to divide."""
    if seconds <= 0 or amount <= 0:
        return ""
    per_s = amount / seconds
    return f"{per_s:,.0f}/s" if per_s >= 10 else f"{per_s:.1f}/s"


def duration(seconds: float | None) -> str:
    """``75.2`` -> ``1:15``; under a minute with a tenth, under a second in milliseconds; unknown is ``?``."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} days {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(done: float, total: float) -> str:
    """A share that says 100 % only when all is done, and 0 % only when nothing is."""
    if total <= 0:
        return ""
    share = 100 * done / total
    if 0 < share < 1:
        return "<1 %"
    return "100 %" if done >= total else f"{min(99, math.floor(share))} %"


def value(item: Any, spread: float | None = None) -> str:
    """A cell. Floats show as many digits as ``spread`` (the interval's half width) supports, six when it is
    unknown."""
    if item is None:
        return "–"
    if isinstance(item, bool):
        return str(item)
    if isinstance(item, int):
        return f"{item:,}"
    if isinstance(item, float):
        return _number(item, spread)
    if isinstance(item, datetime):
        return item.isoformat(sep=" ", timespec="seconds")
    if isinstance(item, date):
        return item.isoformat()
    return visible(item if isinstance(item, str) else repr(item))


def instant(time: datetime) -> str:
    """A time in UTC: ``2026-01-01 12:00:05 UTC``, with milliseconds if it has them."""
    shown = time.astimezone(UTC)
    return (
        shown.strftime("%Y-%m-%d %H:%M:%S")
        + (f".{shown.microsecond // 1000:03}" if shown.microsecond else "")
        + " UTC"
    )


def visible(text: str, chars_max: int = 300) -> str:
    """One line of text: control characters of the data are shown (``\\n``), not obeyed by the screen."""
    cut = text if len(text) <= chars_max else text[: chars_max - 1] + "…"
    return (
        cut
        if cut.isprintable()
        else "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)
    )


def _number(item: float, spread: float | None) -> str:
    if not math.isfinite(item):
        return str(item)
    if item.is_integer() and abs(item) < 1e15 and (spread is None or spread >= 1 or spread == 0):
        return f"{item:,.0f}"
    if spread is not None and spread > 0 and math.isfinite(spread):
        digits = 1 - math.floor(math.log10(spread))
        if digits <= 0:
            return f"{item:,.0f}" if abs(item) < 1e15 else f"{item:.6g}"
        return f"{item:,.{digits}f}" if digits <= 9 else f"{item:.6g}"
    if item == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(item)))
    return f"{item:,.{max(0, 5 - magnitude)}f}" if -4 <= magnitude < 15 else f"{item:.6g}"


def interval(center: float, lo: float, hi: float) -> str:
    """``± 12 (1.0 %)`` when the interval is symmetric, else ``[3, 17]``."""
    half = (hi - lo) / 2
    if half == 0:
        return ""
    if abs((hi - center) - (center - lo)) <= 0.02 * half:
        share = f" ({100 * half / abs(center):.2g} %)" if center and half < 10 * abs(center) else ""
        return f"± {value(float(half), half)}{share}"
    return f"[{value(float(lo), half)}, {value(float(hi), half)}]"
