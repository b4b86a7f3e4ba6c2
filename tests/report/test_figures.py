"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from gmf_edge.report.figures import figure, percent, signed_points, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (12.345, "12.3"), (0.0012345, "0.00123"), (1234.5, "1,230"), (99.96, "100"), (0.9996, "1.00"),
        (3.8e-7, "3.80 · 10⁻⁷"), (9.996e-5, "1.00 · 10⁻⁴"), (-0.5, "\N{MINUS SIGN}0.500"), (math.nan, "not finite"), (None, "not finite"),
    ],
)  # fmt: skip
def test_three_digits_are_shown(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_units_are_written() -> None:
    assert percent(0.99724) == "99.72 %"
    assert signed_points(0.0) == "+0.00"
    assert signed_points(-0.126) == "\N{MINUS SIGN}0.13"
    assert (size(12), size(2048), size(5 * 2**20), size(3 * 2**30)) == ("12 bytes", "2.00 KiB", "5.00 MiB", "3.00 GiB")
