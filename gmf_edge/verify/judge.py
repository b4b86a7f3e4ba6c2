"""A parity report against a gate: passed or not, and why, in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping

from gmf_edge.spec import Gate, MapGate
from gmf_edge.verify.accuracy import EXCLUDED, SHOWN, SHOWN_CONFIDENCE, flips_shown, images_to_settle, loss_verdict
from gmf_edge.verify.batches import BatchNumerics
from gmf_edge.verify.maps import SLACK, MapReport, judge_maps
from gmf_edge.verify.parity import ParityReport

# an error above this share of the reference's spread over the images drowns what tells images apart
BLIND_SHARE = 0.5


def judge(report: ParityReport | MapReport, gate: Gate | MapGate, has_trained_weights: bool) -> tuple[bool, str]:
    """Whether the report is within the gate, and why, with figures and limits; a backbone's by maps.judge_maps.

    In this order: all logits finite; every batch size (cosine, relative L2, rows alike and in their places); then top-1 where there
    are labels and trained weights: outside where a loss above the limit is shown or, with a strict gate, measured; then, unless such a
    loss is excluded or the gate is strict, agreement (flips that are near ties excused: they say nothing about the engine; without
    labels or trained weights it is outside where more flips than the gate allows are shown or, with a strict gate, counted); then the
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
        return True, f"{_accuracy_words(report, gate)}{_settled_words(report, gate)}; {_flip_words(report)}; {numerics}"
    too_few = "" if _agrees(report, gate) else f"; {report.images} images are too few to show that it is below the limit"
    return True, f"{_agreement_words(report, gate)}{too_few}; {numerics}"


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
    agreement_decides = True
    claims_accuracy = _claims_accuracy(report, has_trained_weights)
    if claims_accuracy:
        failure, agreement_decides = _accuracy_failure(report, gate)
        if failure is not None:
            return failure
    below = agreement_decides and not _agrees(report, gate)
    if below and (claims_accuracy or gate.strict or _flips_shown(report, gate)):
        return _agreement_words(report, gate)
    if not report.cosine >= gate.min_cosine - SLACK:
        return f"cosine {report.cosine:.6f} is below the limit {gate.min_cosine:g}"
    if not report.relative_l2 <= most_l2 + SLACK:
        return f"relative L2 error {report.relative_l2:.4g} is above the limit {most_l2:.4g}"
    return None


def _accuracy_failure(report: ParityReport, gate: Gate) -> tuple[str | None, bool]:
    """What is wrong with top-1, and whether agreement has to be asked as well."""
    words = _accuracy_words(report, gate)
    if not math.isfinite(_number(report.top1_change_points)):
        return words, False
    if gate.strict:
        one = 100.0 / report.images
        within = -_number(report.top1_change_points) <= gate.max_drop_points + SLACK
        grain = f"; of {report.images} images one is {one:.2f} points" if one > gate.max_drop_points else ""
        return None if within else words + grain, False
    verdict = _loss_verdict(report, gate)
    if verdict == SHOWN:
        return f"{words}: a loss above the limit is shown at {100 * SHOWN_CONFIDENCE:g} % confidence; {_flip_words(report)}", False
    return None, verdict != EXCLUDED


def _loss_verdict(report: ParityReport, gate: Gate) -> str:
    assert report.discordant is not None, "a change of top-1 comes with its counts"
    return loss_verdict(report.discordant, report.images, gate.max_drop_points)


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


def _agrees(report: ParityReport, gate: Gate) -> bool:
    return report.clear_agreement >= gate.min_agreement - SLACK


def _flips_shown(report: ParityReport, gate: Gate) -> bool:
    clear = sum(not flip.near_tie for flip in report.flips)
    return not math.isfinite(report.clear_agreement) or flips_shown(clear, report.images, 1 - gate.min_agreement)


def _accuracy_words(report: ParityReport, gate: Gate) -> str:
    low, high = report.interval_95 or (math.nan, math.nan)
    change = f"{_number(report.top1_change_points):+.2f} points, limit -{gate.max_drop_points:g}"
    return (
        f"top-1 {_number(report.reference_top1):.2f} % -> {_number(report.engine_top1):.2f} % "
        f"({change}; 95 % interval {low:+.2f} to {high:+.2f})"
    )


def _settled_words(report: ParityReport, gate: Gate) -> str:
    """What the images of a report that passes leave open, and how many would not."""
    assert report.discordant is not None
    if gate.strict or gate.max_drop_points == 0 or _loss_verdict(report, gate) == EXCLUDED:
        return ""
    number = images_to_settle(report.discordant, report.images, gate.max_drop_points)
    enough = "" if number is None else f", about {number:,} would do"
    return f"; no such loss is shown, but {report.images} images are too few to exclude it{enough}"


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
