"""The evaluation images through FP32 PyTorch and the engine: what changes for users, and by how much numbers differ.

Units: top-1 and top-5 in percent, changes in percentage points, agreement a share in 0..1, logit errors in logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmf_edge.artifact import json_number
from gmf_edge.engines.protocol import Engine, FloatArray, Progress, silent
from gmf_edge.errors import DataError
from gmf_edge.spec import BatchProfile
from gmf_edge.verify import metrics
from gmf_edge.verify.accuracy import Discordant
from gmf_edge.verify.batches import BatchNumerics
from gmf_edge.verify.inference import served_logits
from gmf_edge.verify.samples import LogitSampler, ParitySamples

TOP_K = 5
# a near tie may be no wider than this share of the spread (standard deviation) of the image's reference logits
NEAR_TIE_SHARE = 0.02


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
class ParityReport:
    """What measure found.

    Attributes:
        images: how many.
        reference_top1, engine_top1, reference_top5, engine_top5: percent; None without labels or with untrained weights, and top-5
            where there are five classes or fewer.
        top1_change_points: engine_top1 - reference_top1.
        interval_95: of that change, in points, for images like these; None where the change is.
        discordant: images that one of the two has right and the other wrong; None where the change is.
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
        samples: what figures are drawn from; not part of to_json.
    """

    images: int
    reference_top1: float | None
    engine_top1: float | None
    reference_top5: float | None
    engine_top5: float | None
    top1_change_points: float | None
    interval_95: tuple[float, float] | None
    discordant: Discordant | None
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
    samples: ParitySamples | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values, batch sizes as strings; null for what is not finite, which JSON cannot say."""
        values: dict[str, Any] = {f.name: json_number(getattr(self, f.name)) for f in fields(self) if f.name != "samples"}
        values["interval_95"] = None if self.interval_95 is None else list(self.interval_95)
        values["discordant"] = None if self.discordant is None else asdict(self.discordant)
        values["flips"] = [asdict(flip) for flip in self.flips]
        values["batches"] = {str(size): numerics.to_json() for size, numerics in sorted(self.batches.items())}
        return values


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
    sampler = LogitSampler(images, classes)
    total = np.zeros(classes)
    done = 0
    for batch in batches:
        if done + len(batch) > images:
            raise DataError(f"more images than the {images} reference logits", "compute the reference on the same images")
        span = slice(done, done + len(batch))
        logits = served_logits(engine, batch, classes, profile)
        parts.append(_compare(reference_logits[span], logits, None if known is None else known[span]))
        sampler.add(done, reference_logits[span], logits)
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
    samples = sampler.finish(found.error, found.margin)
    return replace(_report(found, names, labels, class_names, known, classes, batch_numerics, spread), samples=samples)


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
    near_tie = _near_ties(found)
    flips = _flips(found, near_tie, names, labels, class_names)
    reference_top1 = engine_top1 = reference_top5 = engine_top5 = change = None
    interval: tuple[float, float] | None = None
    discordant: Discordant | None = None
    if known is not None:
        reference_top1, engine_top1 = _percent(found.reference_hit), _percent(found.engine_hit)
        lost, gained = found.reference_hit & ~found.engine_hit, ~found.reference_hit & found.engine_hit
        clear = ~near_tie
        discordant = Discordant(*(int(which.sum()) for which in (lost, gained, lost & clear, gained & clear)))
        change = 100.0 * (discordant.gained - discordant.lost) / images
        low, high = metrics.paired_interval(discordant.lost, discordant.gained, images)
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
        discordant=discordant,
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


def _near_ties(found: _Compared) -> NDArray[np.bool_]:
    """Which images have a margin that a usual error turns: bool [n]; see Flip.near_tie."""
    usual_error = float(np.median(found.error[np.isfinite(found.error)])) if np.isfinite(found.error).any() else 0.0
    narrow = (found.margin <= 2 * usual_error) & (found.margin <= NEAR_TIE_SHARE * found.spread)
    return np.asarray(narrow & found.engine_finite, np.bool_)


def _flips(
    found: _Compared,
    near_tie: NDArray[np.bool_],
    names: Sequence[str],
    labels: NDArray[np.int64] | None,
    class_names: Sequence[str] | None,
) -> tuple[Flip, ...]:
    def name_of(index: int) -> str | int | None:
        if index == metrics.NO_CLASS:
            return None
        return class_names[index] if class_names is not None else index

    return tuple(
        Flip(
            image=names[i],
            label=None if labels is None else name_of(int(labels[i])),
            reference=name_of(int(found.reference_class[i])),
            engine=name_of(int(found.engine_class[i])),
            margin=json_number(float(found.margin[i])),
            error=json_number(float(found.error[i])),
            near_tie=bool(near_tie[i]),
        )
        for i in np.flatnonzero(~found.same)
    )


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


def _percent(hits: NDArray[Any]) -> float:
    return 100.0 * int(hits.sum()) / len(hits)
