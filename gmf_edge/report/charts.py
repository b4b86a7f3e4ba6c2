"""Figures as geometry: scales, ticks and SVG paths in a box of WIDTH x HEIGHT units. The template draws them.

A point is a line of no length with a round cap, so that two thousand of them are one path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.report.figures import MINUS, figure, power_of_ten

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 340, 14, 188
FEWEST_BINS, MOST_BINS = 8, 40


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in units of the box, and what is written there."""

    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """One path: its class in the style sheet, its geometry, and what it is (for a legend; empty for none)."""

    style: str
    path: str
    label: str = ""


@dataclass(frozen=True)
class Note:
    """Words at a place in the box; anchor as SVG's text-anchor."""

    x: float
    y: float
    text: str
    anchor: str = "start"


@dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        title: above it.
        says: what it shows, in words, for those who do not see it.
        x_label, y_label: of the axes, with units.
        x_ticks, y_ticks: on them.
        marks: in the order in which they are drawn.
        notes: words in it.
        caption: below it.
        height: of the box.
    """

    title: str
    says: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    notes: tuple[Note, ...] = ()
    caption: str = ""
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM

    @property
    def legend(self) -> tuple[Mark, ...]:
        """Marks that have a label."""
        return tuple(mark for mark in self.marks if mark.label)


@dataclass(frozen=True)
class Scale:
    """Values low..high on start..end units of the box."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, in units; values outside lie on the edge."""
        low, high, value = (
            math.log10(v) if self.log else v for v in (self.low, self.high, max(value, self.low) if self.log else value)
        )
        share = (value - low) / (high - low)
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 1)

    def ticks(self, most: int = 5) -> tuple[Tick, ...]:
        """Round values."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first + 1) / most))
            return tuple(
                Tick(self.at(10.0**e), power_of_ten(e) if abs(e) > 2 else f"{10.0**e:g}") for e in range(first, last + 1, every)
            )
        step = round_step((self.high - self.low) / most)
        values = [n * step for n in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]
        decimals = max(0, -math.floor(math.log10(step)))
        return tuple(Tick(self.at(value), f"{value:,.{decimals}f}".replace("-", MINUS)) for value in values)


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least so large."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def x_scale(low: float, high: float, log: bool = False) -> Scale:
    """Across the box."""
    return Scale(low, high, LEFT, RIGHT, log)


def y_scale(high: float, low: float = 0.0) -> Scale:
    """Up the box."""
    return Scale(low, high, BOTTOM, TOP)


def points(x: Iterable[float], y: Iterable[float]) -> str:
    """A path of points."""
    return "".join(f"M{a:g} {b:g}h0" for a, b in zip(x, y, strict=True))


def bars(counts: Sequence[float], edges: Sequence[float], x: Scale, y: Scale) -> str:
    """A path of the bars of a histogram; edges one more than counts."""
    parts = []
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            a, b, top = x.at(left), x.at(right), y.at(count)
            parts.append(f"M{a:g} {y.start:g}V{top:g}H{max(b - 0.5, a + 0.5):g}V{y.start:g}z")
    return "".join(parts)


def rule(at: float, bottom: float = BOTTOM, top: float = TOP) -> str:
    """A path straight up the box."""
    return f"M{at:g} {bottom:g}V{top:g}"


def scatter(reference: NDArray[Any], engine: NDArray[Any], largest: NDArray[np.bool_]) -> Chart | None:
    """Logits of FP32 PyTorch against the engine's; None where there are none that are finite."""
    finite = np.isfinite(reference) & np.isfinite(engine)
    reference, engine, largest = reference[finite], engine[finite], largest[finite]
    if not len(reference):
        return None
    low, high = _widened(min(reference.min(), engine.min()), max(reference.max(), engine.max()))
    x, y = x_scale(low, high), y_scale(high, low)
    marks = [Mark("guide", f"M{x.start:g} {y.start:g}L{x.end:g} {y.end:g}", "equal")]
    for style, which, label in (("dot", ~largest, "other logits"), ("dot top", largest, "an image's largest")):
        if which.any():
            marks.append(Mark(style, points(map(x.at, reference[which]), map(y.at, engine[which])), label))
    worst = float(np.abs(engine - reference).max())
    return Chart(
        "Logits: this engine against FP32 PyTorch",
        f"{len(reference)} points along the diagonal; the farthest is {figure(worst)} from it.",
        "FP32 PyTorch's logit",
        "engine's logit",
        x.ticks(),
        y.ticks(),
        tuple(marks),
        caption=f"{len(reference):,} logits, the farthest of these from the line of equality is {figure(worst)} off.",
    )


def error_histogram(errors: NDArray[Any], margins: NDArray[Any]) -> Chart | None:
    """How large errors are beside what it takes to change a class; None where no error is finite and above zero."""
    errors = errors[np.isfinite(errors)]
    needed = margins[np.isfinite(margins)] / 2
    positive, needed_positive = errors[errors > 0], needed[needed > 0]
    if not len(positive):
        return None
    both = np.concatenate([positive, needed_positive])
    low, high = 10.0 ** math.floor(math.log10(both.min())), 10.0 ** math.ceil(math.log10(both.max()) + 1e-9)
    x = x_scale(low, high, log=True)
    edges = np.logspace(math.log10(low), math.log10(high), MOST_BINS + 1)
    found = [np.histogram(values, edges)[0] for values in (positive, needed_positive)]
    y = y_scale(float(max(counts.max() for counts in found)) * 1.05)
    within = int((errors < needed.min()).sum()) if len(needed) else 0
    return Chart(
        "How large the errors are, and how large they would have to be",
        f"Errors from {figure(float(positive.min()))} to {figure(float(positive.max()))}.",
        "logits (logarithmic)",
        "images",
        x.ticks(6),
        y.ticks(),
        (
            Mark(
                "area needed",
                bars(found[1].tolist(), edges.tolist(), x, y),
                "half the lead of an image's class: smaller errors cannot change it",
            ),
            Mark("area errors", bars(found[0].tolist(), edges.tolist(), x, y), "largest error of an image's logits"),
        ),
        caption=f"{len(errors):,} images, the median error is {figure(float(np.median(errors)))}. "
        + (f"{within:,} of them have errors below the smallest half lead of all." if within else ""),
    )


def latency_histogram(times: NDArray[Any], batch: int, median: float, late: tuple[str, float], measure: str) -> Chart | None:
    """How the times of one batch size are spread; `late` is the name and the value of a high percentile."""
    percentile, late_ms = late
    times = times[np.isfinite(times)]
    if not len(times):
        return None
    # one stray time must not squeeze the others into a corner
    shown_high = float(max(late_ms, np.percentile(times, 99.5)))
    low, high = _widened(float(times.min()), max(shown_high, median))
    low = max(low, 0.0)
    inside = times[times <= high]
    # about twice the square root of the number: few times need wide bars to show a shape
    bins = min(max(round(2 * math.sqrt(len(inside))), FEWEST_BINS), MOST_BINS)
    counts, edges = np.histogram(inside, bins, (low, high))
    x, y = x_scale(low, high), y_scale(float(counts.max()) * 1.15)
    beyond = len(times) - len(inside)
    return Chart(
        f"Batch {batch}: {measure}",
        f"{len(times)} times, median {figure(median)} ms, {percentile} % within {figure(late_ms)} ms.",
        f"{measure}, ms",
        "inferences",
        x.ticks(),
        y.ticks(4),
        (
            Mark("area errors", bars(counts.tolist(), edges.tolist(), x, y)),
            Mark("rule", rule(x.at(median)), f"median {figure(median)} ms"),
            Mark("rule late", rule(x.at(late_ms)), f"{percentile} % within {figure(late_ms)} ms"),
        ),
        caption=f"{len(times):,} inferences"
        + (f"; {beyond} took longer than {figure(high)} ms, up to {figure(float(times.max()))} ms." if beyond else "."),
    )


def sweep(rows: Sequence[tuple[int, float]], title: str, y_label: str, shown: Callable[[float], str]) -> Chart | None:
    """A figure for each batch size, as bars."""
    if len(rows) < 2:
        return None
    y = y_scale(max(value for _, value in rows) * 1.15)
    width = (RIGHT - LEFT) / len(rows)
    path, ticks, notes = "", [], []
    for number, (batch, value) in enumerate(rows):
        middle, half = LEFT + (number + 0.5) * width, min(width * 0.3, 34)
        top = y.at(value)
        path += f"M{middle - half:g} {BOTTOM}V{top:g}H{middle + half:g}V{BOTTOM}z"
        ticks.append(Tick(round(middle, 1), str(batch)))
        notes.append(Note(round(middle, 1), top - 4, shown(value), "middle"))
    return Chart(
        title,
        "; ".join(f"batch {batch}: {shown(value)}" for batch, value in rows),
        "batch size",
        y_label,
        tuple(ticks),
        y.ticks(4),
        (Mark("area errors", path),),
        tuple(notes),
    )


INTERVAL_HEIGHT = 96


def interval(change: float, low: float, high: float, limit: float) -> Chart:
    """A change in percentage points with its 95 % interval, beside the loss that is accepted."""
    left, right = _widened(min(low, -limit, 0.0), max(high, 0.0))
    x = x_scale(left, right)
    bottom, middle = 52, 32
    return Chart(
        "Change of top-1",
        f"{figure(change)} points, 95 % interval {figure(low)} to {figure(high)}; accepted loss {figure(limit)}.",
        "percentage points, engine less FP32 PyTorch",
        "",
        x.ticks(6),
        (),
        (
            Mark(
                "area refused",
                f"M{LEFT} {bottom}V{TOP}H{x.at(-limit):g}V{bottom}z" if x.at(-limit) > LEFT else "",
                "loss above the limit",
            ),
            Mark("guide", rule(x.at(0.0), bottom)),
            Mark(
                "whisker",
                f"M{x.at(low):g} {middle}H{x.at(high):g}M{x.at(low):g} {middle - 6}v12M{x.at(high):g} {middle - 6}v12",
                "95 % interval",
            ),
            Mark("dot big", points([x.at(change)], [middle]), "measured"),
        ),
        height=INTERVAL_HEIGHT,
        bottom=bottom,
    )


def _widened(low: float, high: float) -> tuple[float, float]:
    """With some room at both ends; never empty."""
    low, high = float(low), float(high)
    room = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room
