"""How far two sets of logits are apart: functions of arrays, and nothing else.

Letters: n images, c classes; `reference` is FP32 PyTorch's logits [n, c], `engine` the engine's of the same images in their order.
A row is finite where all of its logits are. What is computed from a row that is not finite never speaks for it: no hit, no
agreement, and NaN for every number; so compare as `value <= limit`, which NaN fails, and never as `value > limit`.
All arithmetic is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[Any]  # [n, c], any float dtype
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

NO_CLASS = -1


def finite_rows(logits: Logits) -> Bool:
    """Which images have neither NaN nor infinity among their logits: bool [n]."""
    return np.asarray(np.isfinite(logits).all(axis=1), np.bool_)


def top1(logits: Logits) -> Int64:
    """Class of the largest logit, the first of equal ones; NO_CLASS where a row is not finite: int64 [n]."""
    finite = finite_rows(logits)
    winners = np.where(finite[:, None], logits, 0).argmax(axis=1)
    return np.where(finite, winners, NO_CLASS).astype(np.int64)


def topk_hits(logits: Logits, labels: Int64, k: int) -> Bool:
    """Whether the label is among the k largest logits: bool [n]. Of equal logits the lower class comes first, as in top1.

    Args:
        labels: int64 [n], each in 0..c-1.
        k: at least 1.
    """
    classes = np.arange(logits.shape[1])
    own = np.take_along_axis(logits, labels[:, None], axis=1)  # [n, 1]
    before = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    hits: Bool = (before.sum(axis=1) < k) & finite_rows(logits)
    return hits


def same_top1(reference: Logits, engine: Logits) -> Bool:
    """Whether both choose the same class, both rows finite: bool [n]. Its mean is the agreement, where it is False is a flip."""
    chosen = top1(reference)
    same: Bool = (chosen == top1(engine)) & (chosen != NO_CLASS)
    return same


def margins(logits: Logits) -> Float64:
    """Largest logit less the second largest: float64 [n]; NaN where a row is not finite, infinity where there is one class."""
    finite = finite_rows(logits)
    if logits.shape[1] == 1:
        return np.where(finite, np.inf, np.nan)
    exact = np.where(finite[:, None], logits, 0).astype(np.float64)
    largest = np.partition(exact, -2, axis=1)[:, -2:]  # [n, 2], ascending
    return np.where(finite, largest[:, 1] - largest[:, 0], np.nan)


def max_abs_errors(reference: Logits, engine: Logits) -> Float64:
    """Largest absolute logit difference of each image: float64 [n]; NaN where either row is not finite."""
    difference, finite = _difference(reference, engine)
    return np.where(finite, np.abs(difference).max(axis=1), np.nan)


def squared_norms(reference: Logits, engine: Logits) -> tuple[Float64, Float64]:
    """Squared L2 norms of each image's logit difference and of its reference: float64 [n] each; NaN where a row is not finite.

    Over any images, relative L2 = sqrt(sum of the first / sum of the second).
    """
    difference, finite = _difference(reference, engine)
    exact = np.where(finite[:, None], reference, 0).astype(np.float64)
    return np.where(finite, (difference**2).sum(axis=1), np.nan), np.where(finite, (exact**2).sum(axis=1), np.nan)


def cosines(reference: Logits, engine: Logits) -> Float64:
    """Cosine of the angle between each image's two logit vectors: float64 [n]; NaN where a row is not finite or all zero."""
    finite = finite_rows(reference) & finite_rows(engine)
    a = np.where(finite[:, None], reference, 0).astype(np.float64)
    b = np.where(finite[:, None], engine, 0).astype(np.float64)
    norms = np.sqrt((a**2).sum(axis=1)) * np.sqrt((b**2).sum(axis=1))
    defined = norms > 0
    return np.where(defined, (a * b).sum(axis=1) / np.where(defined, norms, 1.0), np.nan)


def relative_l2(squared_errors: Float64, squared_references: Float64) -> float:
    """sqrt(sum / sum) of what squared_norms returns, for a set: NaN where any image's is, or where the reference is all zero."""
    whole = float(squared_references.sum())
    return math.sqrt(float(squared_errors.sum()) / whole) if whole > 0 else math.nan


def paired_interval(lost: int, gained: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the change in a share of hits, both shares measured on the same images.

    Tango's score interval: all changes that a score test does not reject, with the variance that the change itself implies. Unlike
    Wald's it stays in -1..1, and with no discordant pair it is not empty but about +-3.84 / images at 95 %.
    Source: T. Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design,
    Statistics in Medicine 17 (1998) 891-908.

    Args:
        lost: images that the reference has right and the engine wrong.
        gained: images that the reference has wrong and the engine right.
        images: all of them, discordant or not.
        confidence: in 0..1.

    Returns:
        (low, high) of engine's share less reference's share, in -1..1.

    Raises:
        ValueError: no images, or counts that cannot be.
    """
    if images < 1 or lost < 0 or gained < 0 or lost + gained > images:
        raise ValueError(f"{lost} lost and {gained} gained of {images} images")
    critical = NormalDist().inv_cdf(0.5 + confidence / 2)
    observed = (gained - lost) / images

    def rejected(change: float) -> bool:
        return abs(paired_score(lost, gained, images, change)) > critical

    return _boundary(rejected, observed, -1.0), _boundary(rejected, observed, 1.0)


def paired_score(lost: float, gained: float, images: float, change: float) -> float:
    """Tango's score: how many standard errors the observed change lies above `change`, with the variance that `change` implies.

    Args:
        lost, gained, images: as paired_interval's; expected counts, which are no whole numbers, are welcome.
        change: hypothetical change of the share of hits, in -1..1.

    Returns:
        The score, standard normal for many images if `change` is the true one; 0 where the observed change equals `change`, and
        plus or minus infinity where `change` leaves no room for what was observed.
    """
    difference = (gained - lost) / images - change
    if difference == 0:
        return 0.0
    # the maximum-likelihood share of lost images if the true change were `change`: the larger root of
    # 2n q^2 + (change * (2n + lost - gained) - lost - gained) q - lost * change * (1 - change) = 0
    linear = change * (2 * images + lost - gained) - lost - gained
    root = math.sqrt(max(linear**2 + 8 * images * lost * change * (1 - change), 0.0))
    share_lost = (root - linear) / (4 * images)
    variance = (2 * share_lost + change * (1 - change)) / images
    return difference / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, difference)


def _boundary(rejected: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where, on the way from `inside` to `outside`, changes begin to be rejected; `outside` where none is."""
    if not rejected(outside):
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        if rejected(middle):
            outside = middle
        else:
            inside = middle
    return outside


def _difference(reference: Logits, engine: Logits) -> tuple[Float64, Bool]:
    """engine - reference with zeros in the rows that are not finite, and which rows are."""
    finite = finite_rows(reference) & finite_rows(engine)
    exact = np.where(finite[:, None], reference, 0).astype(np.float64)
    return np.where(finite[:, None], engine, 0).astype(np.float64) - exact, finite
