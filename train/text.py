"""Numbers as people read them."""

import math
from typing import Any

MISSING = "–"  # shown for what is not a number


def is_number(value: Any) -> bool:
    """Tells whether `value` is a float (NaN and infinities included) or an int of up to 64 bits; no bool."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**64)


def percent(value: Any) -> str:
    """Returns a fraction as per cent: 0.9722 -> '97.22 %'."""
    return f"{100 * value:.2f} %" if is_number(value) else MISSING


def byte_size(value: Any) -> str:
    """Returns a number of bytes with a decimal unit (1 kB = 1000 B): 1262000 -> '1.26 MB'."""
    if not is_number(value) or not math.isfinite(value):
        return MISSING
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.3g} {unit}" if abs(value) < 999.5 else f"{value:,.0f} {unit}"


def duration(value: Any) -> str:
    """Returns seconds as '4.2 s', '3 min 12 s' or '1 h 05 min'."""
    if not is_number(value) or not math.isfinite(value):
        return MISSING
    if value < 59.95:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def times(raw: Any, sent: Any = 1) -> str:
    """Returns raw / sent as a ratio: '31.8x'."""
    if not is_number(raw) or not is_number(sent) or not sent or not math.isfinite(raw / sent):
        return MISSING
    return f"{raw / sent:,.{1 if raw / sent < 100 else 0}f}x"


def count(value: Any) -> str:
    """Returns a whole number with its thousands set apart."""
    return f"{value:,.0f}" if is_number(value) else MISSING
