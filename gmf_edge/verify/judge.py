"""A parity report against a gate: passed or not, and why, in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping

from gmf_edge.spec import Gate, MapGate
from gmf_edge.verify.batches import BatchNumerics
from gmf_edge.verify.maps import MapReport, judge_maps
from gmf_edge.verify.parity import ParityReport

# an error above this share of the reference's spread over the images drowns what tells images apart
BLIND_SHARE = 0.5
# of a comparison with a limit, for the rounding of sums and percentages
SLACK = 1e-9


def judge(report: ParityReport | MapReport, gate: Gate | MapGate, has_trained_weights: bool) -> tuple[bool, str]:
    """Whether the report is within the gate, and why, with figures and limits; a backbone's by maps.judge_maps.

    In this order: all logits finite; every batch size (cosine, relative L2, rows alike and in their places); then top-1 where there
    are labels and trained weights, else agreement (flips that are near ties excused: they say nothing about the engine); then the
    cosine and relative L2 of the evaluation images. A report that passes on images that the model hardly tells apart says so, since
    its figures then say little. The limit of the relative L2, which alone sees a wrong scale, is twice the
    relative error that the cosine limit stands for.
    """
    if isinstance(report, MapReport):
        assert isinstance(gate, MapGate), "a backbone's report comes with the gate of maps"
        return judge_maps(report, gate)
    assert isinstance(gate, Gate), "logits come with the gate of logits"
    failure = _failure(report, gate, has_trained_weights)
    if failure is not None:
        return False, failure
    sizes = ", ".join(str(size) for size in sorted(report.batches))
    numerics = f"cosine {report.cosine:.6f} (limit {gate.min_cosine:g}), right at batch {sizes}"
    if report.images > 1 and not report.relative_l2 <= report.reference_spread * BLIND_SHARE:
        numerics += f", but the images' logits differ by only {report.reference_spread:.1e} of their norm, too little to prove much"
    if _claims_accuracy(report, has_trained_weights):
        return True, f"{_accuracy_words(report, gate)}; {_flip_words(report)}; {numerics}"
    return True, f"{_agreement_words(report, gate)}; {numerics}"


def _failure(report: ParityReport, gate: Gate, has_trained_weights: bool) -> str | None:
    """The first thing that is outside the gate. Every comparison is written so that NaN is outside."""
    if report.reference_non_finite_images:
        return f"FP32 PyTorch itself gives NaN or infinite logits on {report.reference_non_finite_images} of {report.images} images"
    if report.non_finite_images:
        return f"the engine gives NaN or infinite logits on {report.non_finite_images} of {report.images} images"
    if not report.batches:
        return "no batch size was proved"
    failure = batches_failure(report.batches, gate)
    if failure is not None:
        return failure
    most_l2 = _relative_l2_limit(gate.min_cosine)
    if _claims_accuracy(report, has_trained_weights):
        if not -_number(report.top1_change_points) <= gate.max_drop_points + SLACK:
            words = _accuracy_words(report, gate)
            one = 100.0 / report.images
            return words + (f"; of {report.images} images one is {one:.2f} points" if one > gate.max_drop_points else "")
    elif not report.clear_agreement >= gate.min_agreement - SLACK:
        return _agreement_words(report, gate)
    if not report.cosine >= gate.min_cosine - SLACK:
        return f"cosine {report.cosine:.6f} is below the limit {gate.min_cosine:g}"
    if not report.relative_l2 <= most_l2 + SLACK:
        return f"relative L2 error {report.relative_l2:.4g} is above the limit {most_l2:.4g}"
    return None


def batches_failure(batches: Mapping[int, BatchNumerics], gate: Gate) -> str | None:
    """The first batch size of prove_batches that is outside the gate, with figures and limits; None where all are within it."""
    most_l2 = _relative_l2_limit(gate.min_cosine)
    for size, numerics in sorted(batches.items()):
        failure = _batch_failure(numerics, gate.min_cosine, most_l2)
        if failure is not None:
            return f"at batch {size}: {failure}"
    return None


def _batch_failure(numerics: BatchNumerics, min_cosine: float, most_l2: float) -> str | None:
    if numerics.non_finite_rows:
        return f"{numerics.non_finite_rows} of {numerics.rows} rows are NaN or infinite, the first in row {numerics.worst_row}"
    if numerics.misplaced_rows:
        return f"{numerics.misplaced_rows} of {numerics.rows} rows hold another image's logits"
    if not numerics.cosine >= min_cosine - SLACK:
        return f"cosine {numerics.cosine:.6f} is below the limit {min_cosine:g} (row {numerics.worst_row} is the worst)"
    # rows of one image may differ by what the gate lets them differ from FP32
    if not numerics.row_spread <= 1 - min_cosine + SLACK:
        return f"a row's cosine is {numerics.row_spread:.6f} below the same image's in another row (limit {1 - min_cosine:.2g})"
    if not numerics.relative_l2 <= most_l2 + SLACK:
        return f"relative L2 error {numerics.relative_l2:.4g} is above the limit {most_l2:.4g}"
    return None


def _relative_l2_limit(min_cosine: float) -> float:
    """Twice the relative error e that, at right angles to the reference, gives that cosine: 1 / sqrt(1 + e^2)."""
    return 2 * math.sqrt(1 / min_cosine**2 - 1) if min_cosine > 0 else math.inf


def _claims_accuracy(report: ParityReport, has_trained_weights: bool) -> bool:
    return has_trained_weights and report.top1_change_points is not None


def _accuracy_words(report: ParityReport, gate: Gate) -> str:
    low, high = report.interval_95 or (math.nan, math.nan)
    change = f"{_number(report.top1_change_points):+.2f} points, limit -{gate.max_drop_points:g}"
    return (
        f"top-1 {_number(report.reference_top1):.2f} % -> {_number(report.engine_top1):.2f} % "
        f"({change}; 95 % interval {low:+.2f} to {high:+.2f})"
    )


def _agreement_words(report: ParityReport, gate: Gate) -> str:
    ties = any(flip.near_tie for flip in report.flips)
    counted = f", {100 * report.clear_agreement:.2f} % with near ties excused" if ties else ""
    return f"agreement {100 * report.agreement:.2f} %{counted} (limit {100 * gate.min_agreement:g} %), {_flip_words(report)}"


def _flip_words(report: ParityReport) -> str:
    ties = sum(flip.near_tie for flip in report.flips)
    flips = f"{len(report.flips)} of {report.images} images flipped"
    return flips + (f", {ties} of them near ties" if ties else "")


def _number(value: float | None) -> float:
    return math.nan if value is None else value
