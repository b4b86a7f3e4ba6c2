"""Numerics at every batch size that is served, row by row, against FP32 PyTorch's logits of the golden images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.artifact import json_number
from gmf_edge.engines.protocol import Engine, FloatArray, Progress, silent
from gmf_edge.errors import DataError
from gmf_edge.verify import metrics
from gmf_edge.verify.inference import logits_of

# a row that is this many times nearer to another image's reference than to its own holds that other image
MISPLACED_FACTOR = 2.0


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
        return {key: json_number(value) for key, value in asdict(self).items()}


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
            rows.append(logits_of(engine, golden_images[order[start : start + size]], reference_logits.shape[1]))
            done += 1
            progress(done / total, f"parity at batch size {size}")
        per_size[size] = (order, np.concatenate(rows))

    best = np.full(count, -np.inf)
    for order, logits in per_size.values():
        # fmax passes NaN over: a broken row must not hide what the image reaches elsewhere
        np.fmax.at(best, order, metrics.cosines(reference_logits[order], logits))
    return {size: _batch_numerics(size, order, logits, reference_logits, best) for size, (order, logits) in per_size.items()}


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
