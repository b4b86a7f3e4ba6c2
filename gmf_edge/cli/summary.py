"""A result on one screen, to be read at a glance: what, verdict, accuracy, speed, where, what next. The details are behind --verbose."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# of the last line, for those who read it in a log
LAST_LINE_CHARACTERS = 200
LABEL_WIDTH = 11


def summary_lines(report: Mapping[str, Any], folder: Path | None, next_steps: Sequence[str], width: int | None) -> list[str]:
    """The lines of a report's summary.

    Args:
        report: report.json.
        folder: where the bundle is, None where nothing was written.
        next_steps: commands that make sense now.
        width: of the screen; None for a line a row, however long.
    """
    model = report["model"]
    height, width_pixels = model["image_size"]
    gives = "backbone" if report["parity"].get("maps") else f"{model['num_classes']} classes"
    rows = [
        ("what", f"{model['variant']} {height}x{width_pixels}, {gives}, {report['precision']}"),
        ("verdict", "within the gate" if report["passed"] else "outside the gate"),
        *_rows(report),
    ]
    if folder is not None:
        rows.append(("where", str(folder)))
    rows += [("next" if step is next_steps[0] else "", step) for step in next_steps]
    return [line for label, text in rows for line in _row(label, text, width)]


def _row(label: str, text: str, width: int | None) -> list[str]:
    indent = " " * LABEL_WIDTH
    start = label.ljust(LABEL_WIDTH)
    if width is None:
        return [start + text]
    # a path that is longer than the screen stays whole, so that it can be copied
    return textwrap.wrap(
        text, max(width, 40), initial_indent=start, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    engine, parity, gate = report["engine"], report["parity"], report["gate"]
    yield from _map_rows(parity, gate) if parity.get("maps") else _class_rows(parity, gate, report["weights"]["trained"])
    for index, value in enumerate(report["latency"].values()):
        yield "" if index else "speed", _speed(value)
    yield "engine", f"{engine['backend']} {engine['version']} on {engine['device']}, {engine['form']} graph"
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in engine["precision_shares"].items())
    if shares:
        yield "precision", f"asked for {report['precision']}; computed in: {shares}"
    for name in ("choice", "comparison", "plugin"):
        if report.get(name):
            yield name, report[name]["reason"]
    if report.get("alternative"):
        other = report["alternative"]
        yield "beside it", f"{other['precision']}, {'within' if other['passed'] else 'outside'} the gate"


def _class_rows(parity: Mapping[str, Any], gate: Mapping[str, Any], trained: bool) -> Iterator[tuple[str, str]]:
    flips = f"{len(parity['flips'])} of {parity['images']} images flipped"
    if trained and parity["top1_change_points"] is not None:
        change = f"{parity['top1_change_points']:+.2f} points, limit -{gate['max_drop_points']:g}"
        yield "accuracy", f"top-1 {parity['reference_top1']:.2f} % -> {parity['engine_top1']:.2f} % ({change}); {flips}"
    else:
        yield "accuracy", f"none is claimed; the same class as FP32 PyTorch on {100 * parity['agreement']:.2f} %, {flips}"
    cosine = "not finite" if parity["cosine"] is None else f"{parity['cosine']:.6f}"
    yield "numerics", f"cosine {cosine} to FP32 PyTorch's logits; tried at batch {', '.join(parity['batches'])}"


def _map_rows(parity: Mapping[str, Any], gate: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    error_of = {name: numerics["relative_l2"] for name, numerics in parity["maps"].items()}
    worst = max(error_of, key=lambda name: math.inf if error_of[name] is None else error_of[name])
    error = "not finite" if error_of[worst] is None else f"{error_of[worst]:.2e}"
    yield "maps", f"worst relative L2 error {error}, in {worst}; limit {gate['max_relative_l2']:g}"


def _speed(value: Mapping[str, Any]) -> str:
    gpu = value["gpu_compute"]
    on_gpu = f"{gpu['median_ms']:.3f} ms on the GPU, " if gpu else ""
    unsteady = "" if value["steady"] else " (unsteady)"
    return f"batch {value['batch']}: {on_gpu}{value['median_ms']:.3f} ms, {value['throughput']:.1f} images/s{unsteady}"


def shortened(reason: str, characters: int = LAST_LINE_CHARACTERS) -> str:
    """The clauses of a reason that fit, in their order; what was left out is in the summary and in report.json."""
    first, *others = _clauses(reason)
    kept = textwrap.shorten(first, characters, placeholder=" ...") if len(first) > characters else first
    for clause in others:
        if len(kept) + 2 + len(clause) <= characters:
            kept += f"; {clause}"
    return kept


def _clauses(text: str) -> list[str]:
    """Parts between semicolons, but not within brackets."""
    parts, depth, start = [], 0, 0
    for index, sign in enumerate(text):
        depth += (sign in "([") - (sign in ")]")
        if sign == ";" and depth <= 0 and text[index + 1 : index + 2] == " ":
            parts.append(text[start:index])
            start = index + 2
    return [*parts, text[start:]]
