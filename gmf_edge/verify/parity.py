"""Does the engine behave like FP32 PyTorch? The same images through both: what changes for users, and by how much numbers differ.

prove_batches  numerics at every batch size that is served, row by row
measure        the evaluation images: top-1, top-5, their change with its interval, agreement, flipped images by name, logit errors
judge          both against a gate: passed or not, and why, in one sentence

Units: top-1 and top-5 in percent, changes in percentage points, agreement a share in 0..1, logit errors in logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmf_edge.engines.protocol import Engine, FloatArray, Progress, silent
from gmf_edge.errors import DataError, EngineError
from gmf_edge.spec import BatchProfile, Gate
from gmf_edge.verify import metrics

TOP_K = 5
# a row that is this many times nearer to another image's reference than to its own holds that other image
MISPLACED_FACTOR = 2.0
# a near tie may be no wider than this share of the spread (standard deviation) of the image's reference logits
NEAR_TIE_SHARE = 0.02
# an error above this share of the reference's spread over the images drowns what tells images apart
BLIND_SHARE = 0.5
# of a comparison with a limit, for the rounding of sums and percentages
SLACK = 1e-9


@dataclass(frozen=True)
class Flip:
    """An image whose top-1 class changed.

    Attributes:
        image: its name.
        label, reference, engine: its class, FP32 PyTorch's choice and the engine's: names where they are known, else indices. None
            for an image without a label, or for a choice among logits that are not finite.
        margin: FP32 PyTorch's largest logit less its second largest; None where it is not finite.
        error: largest absolute logit difference of this image; None where it is not finite.
        near_tie: whether the margin is so small that a usual logit difference turns it: at most twice the median over all images
            of their largest logit difference, and at most NEAR_TIE_SHARE of the spread of this image's logits.
    """

    image: str
    label: str | int | None
    reference: str | int | None
    engine: str | int | None
    margin: float | None
    error: float | None
    near_tie: bool


@dataclass(frozen=True)
class BatchNumerics:
    """Logits at one batch size against FP32 PyTorch's.

    Attributes:
        images: different images.
        rows: rows compared; images repeat where there are fewer of them than rows.
        agreement: share of rows with the same top-1.
        max_abs_error: largest absolute logit difference; NaN where any row is not finite, as the three that follow.
        relative_l2: norm of all differences over the norm of the reference.
        cosine, min_cosine: mean and smallest over the rows.
        row_spread: by how much a row's cosine falls short of the best that the same image reaches in any row at any batch size.
        misplaced_rows: rows that are nearer to another image's reference than to their own by MISPLACED_FACTOR.
        worst_row: the row, within its batch, with the smallest cosine (or the first that is not finite).
        non_finite_rows: rows with NaN or infinite logits.
    """

    images: int
    rows: int
    agreement: float
    max_abs_error: float
    relative_l2: float
    cosine: float
    min_cosine: float
    row_spread: float
    misplaced_rows: int
    worst_row: int
    non_finite_rows: int

    def to_json(self) -> dict[str, Any]:
        """Plain values; null for what is not finite, which JSON cannot say."""
        return {key: _json_number(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class ParityReport:
    """What measure found.

    Attributes:
        images: how many.
        reference_top1, engine_top1, reference_top5, engine_top5: percent; None without labels or with untrained weights, and top-5
            where there are five classes or fewer.
        top1_change_points: engine_top1 - reference_top1.
        interval_95: of that change, in points, for images like these; None where the change is.
        agreement: share of images with the same top-1.
        clear_agreement: the same, with flips that are near ties counted as agreeing.
        flips: every image whose top-1 changed.
        max_abs_error: largest absolute logit difference; NaN where any image's logits are not finite, as the three that follow.
        relative_l2: norm of all differences over the norm of the reference.
        cosine, min_cosine: mean and smallest over the images.
        reference_spread: norm of the reference logits' deviation from their mean over the images, over the norm of the
            reference. Where relative_l2 is not well below it, the numbers do not tell this engine from one that ignores its input.
        non_finite_images, reference_non_finite_images: images with NaN or infinite logits of the engine, and of FP32 PyTorch.
        batches: numerics by batch size.
    """

    images: int
    reference_top1: float | None
    engine_top1: float | None
    reference_top5: float | None
    engine_top5: float | None
    top1_change_points: float | None
    interval_95: tuple[float, float] | None
    agreement: float
    clear_agreement: float
    flips: tuple[Flip, ...]
    max_abs_error: float
    relative_l2: float
    cosine: float
    min_cosine: float
    reference_spread: float
    non_finite_images: int
    reference_non_finite_images: int
    batches: Mapping[int, BatchNumerics] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, batch sizes as strings; null for what is not finite, which JSON cannot say."""
        values: dict[str, Any] = {f.name: _json_number(getattr(self, f.name)) for f in fields(self)}
        values["interval_95"] = None if self.interval_95 is None else list(self.interval_95)
        values["flips"] = [asdict(flip) for flip in self.flips]
        values["batches"] = {str(size): numerics.to_json() for size, numerics in sorted(self.batches.items())}
        return values


def prove_batches(
    engine: Engine,
    golden_images: FloatArray,
    reference_logits: FloatArray,
    sizes: Iterable[int],
    progress: Progress = silent,
) -> dict[int, BatchNumerics]:
    """Numerics at each batch size, every row compared. All golden images go through every size, in full batches.

    Args:
        engine: opened, with a profile that covers the sizes.
        golden_images: preprocessed, float32 [g, 3, H, W].
        reference_logits: FP32 PyTorch's, float32 [g, c].
        sizes: batch sizes, such as BatchProfile.sizes.
        progress: called after each batch.

    Returns:
        By batch size, ascending.

    Raises:
        DataError: no golden images, not as many logits, or no batch sizes.
        EngineError: the engine refuses a batch, or returns another shape.
    """
    count = len(golden_images)
    ordered = sorted(set(sizes))
    if count < 1 or count != len(reference_logits):
        raise DataError(f"{count} golden images with {len(reference_logits)} reference logits", "write the golden data again")
    if not ordered or ordered[0] < 1:
        raise DataError(f"batch sizes {ordered} cannot be proved", "give at least one batch size, each at least 1")
    per_size: dict[int, tuple[NDArray[np.int64], FloatArray]] = {}
    total = sum(-(-count // size) for size in ordered)
    done = 0
    for size in ordered:
        # whole batches only, so that every row of that size is run; the images start again where they end
        order = np.arange(-(-count // size) * size) % count
        rows = []
        for start in range(0, len(order), size):
            rows.append(_infer(engine, golden_images[order[start : start + size]], reference_logits.shape[1]))
            done += 1
            progress(done / total, f"parity at batch size {size}")
        per_size[size] = (order, np.concatenate(rows))

    best = np.full(count, -np.inf)
    for order, logits in per_size.values():
        # fmax passes NaN over: a broken row must not hide what the image reaches elsewhere
        np.fmax.at(best, order, metrics.cosines(reference_logits[order], logits))
    return {size: _batch_numerics(size, order, logits, reference_logits, best) for size, (order, logits) in per_size.items()}


def measure(
    engine: Engine,
    batches: Iterable[FloatArray],
    reference_logits: NDArray[Any],
    *,
    names: Sequence[str],
    labels: NDArray[np.int64] | None = None,
    class_names: Sequence[str] | None = None,
    trained: bool = True,
    profile: BatchProfile | None = None,
    batch_numerics: Mapping[int, BatchNumerics] | None = None,
    progress: Progress = silent,
) -> ParityReport:
    """The evaluation images through the engine, against FP32 PyTorch's logits of the same images.

    Memory stays at one batch and a few numbers an image.

    Args:
        engine: opened.
        batches: preprocessed images, float32 [B, 3, H, W], in the order of the reference; any B.
        reference_logits: FP32 PyTorch's, [n, c].
        names: of the n images.
        labels: int64 [n], or None.
        class_names: of the c classes, for naming flips; None for indices.
        trained: whether accuracy means anything; where it does not, it stays None although there are labels.
        profile: batch sizes that the engine takes: larger batches are cut and smaller ones filled up. None where any is taken.
        batch_numerics: what prove_batches returned, to go into the report.
        progress: called after each batch.

    Raises:
        DataError: no images, or not as many images, names or labels as reference logits; or labels that are no classes.
        EngineError: the engine refuses a batch, or returns another shape.
    """
    images, classes = reference_logits.shape
    _refuse_mismatch(images, classes, names, labels, class_names)
    known = labels if trained else None
    parts: list[_Compared] = []
    total = np.zeros(classes)
    done = 0
    for batch in batches:
        if done + len(batch) > images:
            raise DataError(f"more images than the {images} reference logits", "compute the reference on the same images")
        span = slice(done, done + len(batch))
        logits = _served_logits(engine, batch, classes, profile)
        parts.append(_compare(reference_logits[span], logits, None if known is None else known[span]))
        total += reference_logits[span].astype(np.float64).sum(axis=0)
        done += len(batch)
        progress(done / images, f"parity on {done} of {images} images")
    if done != images:
        raise DataError(f"{done} images with {images} reference logits", "compute the reference on the same images")
    found = _Compared(*map(np.concatenate, zip(*parts, strict=True)))
    # sum of squares about the mean = sum of squares - squared norm of the sum / n
    squares = float(found.squared_reference.sum())
    about_mean = squares - float((total**2).sum()) / images
    spread = math.sqrt(max(about_mean, 0.0) / squares) if squares > 0 and math.isfinite(about_mean) else math.nan
    return _report(found, names, labels, class_names, known, classes, batch_numerics, spread)


def judge(report: ParityReport, gate: Gate, has_trained_weights: bool) -> tuple[bool, str]:
    """Whether the report is within the gate, and why, with figures and limits.

    In this order: all logits finite; every batch size (cosine, relative L2, rows alike and in their places); then top-1 where there
    are labels and trained weights, else agreement (flips that are near ties excused: they say nothing about the engine); then the
    cosine and relative L2 of the evaluation images. A report that passes on images that the model hardly tells apart says so, since
    its figures then say little. The limit of the relative L2, which alone sees a wrong scale, is twice the
    relative error that the cosine limit stands for.
    """
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


class _Compared(NamedTuple):
    """Numbers of each image, arrays [n]."""

    same: NDArray[Any]
    reference_class: NDArray[Any]
    engine_class: NDArray[Any]
    margin: NDArray[Any]
    spread: NDArray[Any]
    error: NDArray[Any]
    squared_error: NDArray[Any]
    squared_reference: NDArray[Any]
    cosine: NDArray[Any]
    reference_finite: NDArray[Any]
    engine_finite: NDArray[Any]
    reference_hit: NDArray[Any]
    engine_hit: NDArray[Any]
    reference_hit5: NDArray[Any]
    engine_hit5: NDArray[Any]


def _compare(reference: NDArray[Any], engine: FloatArray, labels: NDArray[np.int64] | None) -> _Compared:
    squared_error, squared_reference = metrics.squared_norms(reference, engine)
    reference_finite = metrics.finite_rows(reference)

    def hits(logits: NDArray[Any], k: int) -> NDArray[np.bool_]:
        return np.zeros(len(logits), np.bool_) if labels is None else metrics.topk_hits(logits, labels, k)

    return _Compared(
        same=metrics.same_top1(reference, engine),
        reference_class=metrics.top1(reference),
        engine_class=metrics.top1(engine),
        margin=metrics.margins(reference),
        spread=np.where(reference_finite[:, None], reference, 0).astype(np.float64).std(axis=1),
        error=metrics.max_abs_errors(reference, engine),
        squared_error=squared_error,
        squared_reference=squared_reference,
        cosine=metrics.cosines(reference, engine),
        reference_finite=reference_finite,
        engine_finite=metrics.finite_rows(engine),
        reference_hit=hits(reference, 1),
        engine_hit=hits(engine, 1),
        reference_hit5=hits(reference, TOP_K),
        engine_hit5=hits(engine, TOP_K),
    )


def _report(
    found: _Compared,
    names: Sequence[str],
    labels: NDArray[np.int64] | None,
    class_names: Sequence[str] | None,
    known: NDArray[np.int64] | None,
    classes: int,
    batch_numerics: Mapping[int, BatchNumerics] | None,
    spread: float,
) -> ParityReport:
    images = len(found.same)
    usual_error = float(np.median(found.error[np.isfinite(found.error)])) if np.isfinite(found.error).any() else 0.0
    near_tie = (found.margin <= 2 * usual_error) & (found.margin <= NEAR_TIE_SHARE * found.spread)

    def name_of(index: int) -> str | int | None:
        if index == metrics.NO_CLASS:
            return None
        return class_names[index] if class_names is not None else index

    flips = tuple(
        Flip(
            image=names[i],
            label=None if labels is None else name_of(int(labels[i])),
            reference=name_of(int(found.reference_class[i])),
            engine=name_of(int(found.engine_class[i])),
            margin=_json_number(float(found.margin[i])),
            error=_json_number(float(found.error[i])),
            near_tie=bool(near_tie[i] and found.engine_finite[i]),
        )
        for i in np.flatnonzero(~found.same)
    )
    reference_top1 = engine_top1 = reference_top5 = engine_top5 = change = None
    interval: tuple[float, float] | None = None
    if known is not None:
        reference_top1, engine_top1 = _percent(found.reference_hit), _percent(found.engine_hit)
        lost = int((found.reference_hit & ~found.engine_hit).sum())
        gained = int((~found.reference_hit & found.engine_hit).sum())
        change = 100.0 * (gained - lost) / images
        low, high = metrics.paired_interval(lost, gained, images)
        interval = (100.0 * low, 100.0 * high)
        if classes > TOP_K:
            reference_top5, engine_top5 = _percent(found.reference_hit5), _percent(found.engine_hit5)
    return ParityReport(
        images=images,
        reference_top1=reference_top1,
        engine_top1=engine_top1,
        reference_top5=reference_top5,
        engine_top5=engine_top5,
        top1_change_points=change,
        interval_95=interval,
        agreement=float(found.same.mean()),
        clear_agreement=1.0 - sum(not flip.near_tie for flip in flips) / images,
        flips=flips,
        max_abs_error=float(found.error.max()),
        relative_l2=metrics.relative_l2(found.squared_error, found.squared_reference),
        cosine=float(found.cosine.mean()),
        min_cosine=float(found.cosine.min()),
        reference_spread=spread,
        non_finite_images=int((~found.engine_finite).sum()),
        reference_non_finite_images=int((~found.reference_finite).sum()),
        batches=dict(batch_numerics or {}),
    )


def _batch_numerics(
    size: int, order: NDArray[np.int64], logits: FloatArray, reference_logits: FloatArray, best: NDArray[np.float64]
) -> BatchNumerics:
    """Of one batch size: `order` says which golden image each row of `logits` is, `best` each image's best cosine at any size."""
    reference = reference_logits[order]
    cosine = metrics.cosines(reference, logits)
    worst = int(np.argmin(np.where(np.isnan(cosine), -np.inf, cosine)))
    return BatchNumerics(
        images=len(reference_logits),
        rows=len(order),
        agreement=float(metrics.same_top1(reference, logits).mean()),
        max_abs_error=float(metrics.max_abs_errors(reference, logits).max()),
        relative_l2=metrics.relative_l2(*metrics.squared_norms(reference, logits)),
        cosine=float(cosine.mean()),
        min_cosine=float(cosine.min()),
        row_spread=float((best[order] - cosine).max()),
        misplaced_rows=_misplaced_rows(order, logits, reference_logits),
        worst_row=worst % size,
        non_finite_rows=int((~metrics.finite_rows(logits)).sum()),
    )


def _misplaced_rows(order: NDArray[np.int64], logits: FloatArray, reference_logits: FloatArray) -> int:
    """Rows that hold another image's logits. Where images look alike to the model (untrained weights), a cosine hardly sees it."""
    references = reference_logits.astype(np.float64)
    count = 0
    for image, row in zip(order, logits.astype(np.float64), strict=True):
        distances = np.sqrt(((references - row) ** 2).sum(axis=1))  # [g]
        count += bool(distances.min() * MISPLACED_FACTOR < distances[image])
    return count


def _served_logits(engine: Engine, images: FloatArray, classes: int, profile: BatchProfile | None) -> FloatArray:
    """The logits of a batch of any size, run in sizes that the profile has."""
    if profile is None:
        return _infer(engine, images, classes)
    return np.concatenate([_infer(engine, part, classes)[:real] for part, real in _served_parts(images, profile)])


def _served_parts(images: FloatArray, profile: BatchProfile) -> Iterator[tuple[FloatArray, int]]:
    """Parts of at most profile.max images, each filled up to profile.min with its last image; and how many are real."""
    for start in range(0, len(images), profile.max):
        part = images[start : start + profile.max]
        short = profile.min - len(part)
        yield (np.concatenate([part, np.repeat(part[-1:], short, axis=0)]) if short > 0 else part), len(part)


def _infer(engine: Engine, images: FloatArray, classes: int) -> FloatArray:
    logits = np.asarray(engine.infer(np.ascontiguousarray(images)))
    if logits.shape != (len(images), classes):
        raise EngineError(
            f"the engine returned logits of shape {logits.shape} for {len(images)} images and {classes} classes",
            "build the engine again from this bundle",
        )
    # a copy, because a backend may hand out the buffer that it fills again
    return np.array(logits, np.float32)


def _refuse_mismatch(
    images: int,
    classes: int,
    names: Sequence[str],
    labels: NDArray[np.int64] | None,
    class_names: Sequence[str] | None,
) -> None:
    remedy = "compute the reference on the same images"
    if images < 1:
        raise DataError("no images to compare on", "give at least one image")
    if len(names) != images:
        raise DataError(f"{len(names)} image names with {images} reference logits", remedy)
    if class_names is not None and len(class_names) != classes:
        raise DataError(f"{len(class_names)} class names for {classes} classes", "give one name a class")
    if labels is not None:
        if len(labels) != images:
            raise DataError(f"{len(labels)} labels with {images} reference logits", remedy)
        if not (labels.min() >= 0 and labels.max() < classes):
            raise DataError(
                f"labels {labels.min()}..{labels.max()} for a model of {classes} classes",
                "evaluate on images of the classes that the model was trained on",
            )


def _failure(report: ParityReport, gate: Gate, has_trained_weights: bool) -> str | None:
    """The first thing that is outside the gate. Every comparison is written so that NaN is outside."""
    if report.reference_non_finite_images:
        return f"FP32 PyTorch itself gives NaN or infinite logits on {report.reference_non_finite_images} of {report.images} images"
    if report.non_finite_images:
        return f"the engine gives NaN or infinite logits on {report.non_finite_images} of {report.images} images"
    if not report.batches:
        return "no batch size was proved"
    most_l2 = _relative_l2_limit(gate.min_cosine)
    for size, numerics in sorted(report.batches.items()):
        failure = _batch_failure(numerics, gate.min_cosine, most_l2)
        if failure is not None:
            return f"at batch {size}: {failure}"
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


def _percent(hits: NDArray[Any]) -> float:
    return 100.0 * int(hits.sum()) / len(hits)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _json_number(value: Any) -> Any:
    """The value, or None for a float that JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
