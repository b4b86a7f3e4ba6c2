"""Numbers as people read them: three digits, a unit, no exponents in programmers' notation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MINUS = "\N{MINUS SIGN}"


def power_of_ten(exponent: int) -> str:
    """10⁻³."""
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def figure(value: float | None, digits: int = 3) -> str:
    """Significant digits: 12.3, 0.00123, 1.23 · 10⁻⁷, 12,300; "not finite" for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    # rounding may carry: 9.996e-5 has the digits 1.00e-4
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    size = int(exponent)
    if size < -3:
        return f"{mantissa} · {power_of_ten(size)}".replace("-", MINUS)
    rounded = round(value, digits - 1 - size)
    decimals = max(0, digits - 1 - size)
    return f"{rounded:,.{decimals}f}".replace("-", MINUS)


def percent(share: float | None, decimals: int = 2) -> str:
    """Of a share 0..1: "99.72 %"."""
    return "not finite" if share is None or not math.isfinite(share) else f"{100 * share:.{decimals}f} %"


def signed_points(value: float | None) -> str:
    """A change in percentage points, always with its sign: "+0.12"."""
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:+.2f}".replace("-", MINUS)


def milliseconds(value: float | None) -> str:
    """ "12.3 ms"."""
    return f"{figure(value)} ms" if value is not None else ""


def size(count: int) -> str:
    """Of bytes: "1.2 MiB"."""
    for unit, one in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= one:
            return f"{figure(count / one)} {unit}"
    return f"{count} bytes"


def measure_of(row: Mapping[str, Any]) -> str:
    """What was timed."""
    return "GPU compute time" if row.get("gpu_compute") else "host latency"


def decisive(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """GPU compute time where there is a GPU."""
    times: Mapping[str, Any] = row.get("gpu_compute") or row
    return times


def bar(value: float | None, longest: float) -> float:
    """Length of a bar, in percent of the longest; 0 where nothing was timed."""
    return round(100 * (value or 0.0) / longest, 1) if longest > 0 else 0.0
