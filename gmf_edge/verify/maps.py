"""A backbone's maps against FP32 PyTorch's, map by map, at every batch size and image size that is served.

There are no labels behind a map, and what a detector or segmenter makes of it is not known here; so the maps themselves are judged, row
by row, by numbers that do not depend on how large the map or its values are:

relative L2   norm of the difference over the norm of the map: the noise that is added, as a share (0.01 is -40 dB)
cosine        blind to a wrong scale, and so no judge alone
largest error beside the largest value: a border or a corner that is wrong is a small share of the norm, and shows here

golden.npz of a backbone: images/HxW float32 [g, 3, H, W] and MAP/HxW float32 [g, C, H / stride, W / stride] for each size, source.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.artifact import json_number
from gmf_edge.engines.protocol import Engine, FloatArray, Progress, silent
from gmf_edge.errors import BundleError, DataError, EngineError
from gmf_edge.spec import MAPS, MapGate, words_of_size
from gmf_edge.verify.batches import MISPLACED_FACTOR

# of a comparison with a limit, for the rounding of sums and percentages
SLACK = 1e-9


@dataclass(frozen=True)
class GoldenSize:
    """Golden images of one size: float32 [g, 3, H, W], and FP32 PyTorch's maps of them by name."""

    images: NDArray[np.float32]
    maps: Mapping[str, NDArray[np.float32]]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return int(self.images.shape[2]), int(self.images.shape[3])


@dataclass(frozen=True)
class GoldenMaps:
    """Images that travel with a backbone's bundle, and what FP32 PyTorch makes of them."""

    sizes: tuple[GoldenSize, ...]
    source: str

    def save(self, path: Path) -> None:
        """Write golden.npz, compressed: maps are large."""
        arrays: dict[str, Any] = {"source": np.array(self.source)}
        for golden in self.sizes:
            size = words_of_size(golden.image_size)
            arrays[f"images/{size}"] = golden.images
            arrays |= {f"{name}/{size}": golden.maps[name] for name in MAPS}
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> GoldenMaps:
        """Read golden.npz.

        Raises:
            BundleError: not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                sizes = [name.partition("/")[2] for name in stored.files if name.startswith("images/")]
                found = tuple(
                    GoldenSize(stored[f"images/{size}"], {name: stored[f"{name}/{size}"] for name in MAPS}) for size in sizes
                )
                source = str(stored["source"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise BundleError(f"{path} is not readable as a backbone's golden data", "build or export the bundle again") from error
        if not found:
            raise BundleError(f"{path} has no golden images", "build or export the bundle again")
        return cls(found, source)


@dataclass(frozen=True)
class MapNumerics:
    """One map at one batch size and image size against FP32 PyTorch's.

    Attributes:
        name: of spec.MAPS.
        image_size: (H, W) in pixels.
        batch: images an inference.
        rows: rows compared; images repeat where there are fewer of them than rows.
        relative_l2: the largest of the rows; NaN where any is not finite, as the three that follow.
        cosine: the smallest of the rows.
        max_abs_error: largest difference of any value.
        row_spread: largest relative L2 difference between two rows of the same image, at any batch size of this image size.
        largest: FP32 PyTorch's largest magnitude.
        worst_row: the row, within its batch, with the largest relative L2 error (or the first that is not finite).
        misplaced_rows: rows that are nearer to another image's map than to their own by MISPLACED_FACTOR.
        non_finite_rows: rows with NaN or infinite values.
    """

    name: str
    image_size: tuple[int, int]
    batch: int
    rows: int
    relative_l2: float
    cosine: float
    max_abs_error: float
    row_spread: float
    largest: float
    worst_row: int
    misplaced_rows: int
    non_finite_rows: int

    def to_json(self) -> dict[str, Any]:
        """Plain values; null for what is not finite, which JSON cannot say."""
        return {key: json_number(value) for key, value in asdict(self).items()} | {"image_size": list(self.image_size)}

    @property
    def error_share(self) -> float:
        """max_abs_error over the largest magnitude; NaN of a map of zeros."""
        return self.max_abs_error / self.largest if self.largest > 0 else float("nan")

    def failure(self, gate: MapGate) -> str | None:
        """What is outside the gate, in words; every comparison is written so that NaN is outside."""
        where = f"{self.name} at {words_of_size(self.image_size)}, batch {self.batch}"
        if self.non_finite_rows:
            return f"{where}: {self.non_finite_rows} of {self.rows} rows are NaN or infinite, the first in row {self.worst_row}"
        if self.misplaced_rows:
            return f"{where}: {self.misplaced_rows} of {self.rows} rows hold another image's map"
        if not self.relative_l2 <= gate.max_relative_l2 + SLACK:
            return (
                f"{where}: relative L2 error {self.relative_l2:.4g} is above the limit {gate.max_relative_l2:g} "
                f"(row {self.worst_row} is the worst)"
            )
        if not self.cosine >= gate.min_cosine - SLACK:
            return f"{where}: cosine {self.cosine:.6f} is below the limit {gate.min_cosine:g}"
        if not self.max_abs_error <= gate.max_error_share * self.largest + SLACK:
            return f"{where}: the largest error is {self.error_share:.4g} of the largest value (limit {gate.max_error_share:g})"
        # rows of one image may differ by what the gate lets one differ from FP32
        if not self.row_spread <= gate.max_relative_l2 + SLACK:
            return f"{where}: two rows of one image differ by {self.row_spread:.4g} of its norm (limit {gate.max_relative_l2:g})"
        return None


@dataclass(frozen=True)
class MapReport:
    """What prove_maps found: one MapNumerics a map, batch size and image size.

    Attributes:
        images: different images, of all sizes.
        rows: every comparison.
    """

    images: int
    rows: tuple[MapNumerics, ...]

    def worst(self, name: str) -> MapNumerics:
        """Of one map: the comparison with the largest relative L2 error, one that is not finite first."""
        own = [row for row in self.rows if row.name == name]
        return max(own, key=lambda row: row.relative_l2 if np.isfinite(row.relative_l2) else np.inf)

    def to_json(self) -> dict[str, Any]:
        """Plain values: "maps" has each map's worst, "proofs" all; what is about logits alone is null or empty."""
        return {
            "task": "features",
            "images": self.images,
            "relative_l2": json_number(max((row.relative_l2 for row in self.rows), key=_nan_last)),
            "cosine": json_number(min((row.cosine for row in self.rows), key=lambda value: -_nan_last(-value))),
            "maps": {name: self.worst(name).to_json() for name in MAPS},
            "proofs": [row.to_json() for row in self.rows],
            "flips": [],
            "top1_change_points": None,
        }

    def failure(self, gate: MapGate) -> str | None:
        """The first comparison that is outside the gate, in words; None where all are within it."""
        return next((failure for failure in (row.failure(gate) for row in self.rows) if failure is not None), None)


def judge_maps(report: MapReport, gate: MapGate) -> tuple[bool, str]:
    """Whether every map is within the gate at every batch size and image size, and why, with figures and limits."""
    failure = report.failure(gate)
    if failure is not None:
        return False, failure
    words = ", ".join(f"{name} {report.worst(name).relative_l2:.2e}" for name in MAPS)
    sizes = ", ".join(dict.fromkeys(words_of_size(row.image_size) for row in report.rows))
    batches = ", ".join(str(batch) for batch in sorted({row.batch for row in report.rows}))
    lowest = min(row.cosine for row in report.rows)
    return True, (
        f"relative L2 error {words} (limit {gate.max_relative_l2:g}), cosine at least {lowest:.6f} (limit {gate.min_cosine:g}), "
        f"at {sizes}, batch {batches}"
    )


def prove_maps(engine: Engine, golden: GoldenMaps, batches: Iterable[int], progress: Progress = silent) -> MapReport:
    """Every map of every golden image at each image size and batch size, in full batches, row by row.

    Args:
        engine: opened, a backbone, with a profile that covers the batches and sizes.
        golden: images and FP32 PyTorch's maps.
        batches: batch sizes, such as BatchProfile.sizes.
        progress: called after each batch.

    Raises:
        DataError: no batch sizes.
        EngineError: the engine refuses a batch, or returns other maps.
    """
    ordered = sorted(set(batches))
    if not ordered or ordered[0] < 1:
        raise DataError(f"batch sizes {ordered} cannot be proved", "give at least one batch size, each at least 1")
    rows: list[MapNumerics] = []
    total = sum(-(-len(size.images) // batch) for size in golden.sizes for batch in ordered)
    done = 0
    for size in golden.sizes:
        # the first row of each image, which its other rows are held against
        first: dict[tuple[str, int], FloatArray] = {}
        for batch in ordered:
            found: dict[str, _Rows] = {name: _Rows() for name in MAPS}
            for order, maps in _in_full_batches(engine, size, batch):
                for name in MAPS:
                    found[name].add(name, order, maps[name], size.maps[name], first)
                done += 1
                progress(done / total, f"parity at {words_of_size(size.image_size)}, batch size {batch}")
            rows += [found[name].numerics(name, size, batch) for name in MAPS]
    return MapReport(sum(len(size.images) for size in golden.sizes), tuple(rows))


def _in_full_batches(engine: Engine, size: GoldenSize, batch: int) -> Iterator[tuple[NDArray[np.int64], Mapping[str, FloatArray]]]:
    """(which golden image each row is, the engine's maps): whole batches only; the images start again where they end."""
    count = len(size.images)
    order = np.arange(-(-count // batch) * batch) % count
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        maps = engine.infer_maps(np.ascontiguousarray(size.images[part]))
        for name in MAPS:
            wanted = (len(part), *size.maps[name].shape[1:])
            if name not in maps or maps[name].shape != wanted:
                shape = maps[name].shape if name in maps else "missing"
                raise EngineError(f"the engine's {name} is {shape}, not {wanted}", "build the engine again from this bundle")
        yield part, maps


@dataclass
class _Rows:
    """Running numbers of one map at one batch size: a map is too large for all its rows to be kept."""

    count: int = 0
    relative_l2: float = 0.0
    cosine: float = 1.0
    max_abs_error: float = 0.0
    row_spread: float = 0.0
    worst_row: int = 0
    misplaced: int = 0
    non_finite: int = 0

    def add(
        self,
        name: str,
        order: NDArray[np.int64],
        maps: FloatArray,
        references: NDArray[np.float32],
        first: dict[tuple[str, int], FloatArray],
    ) -> None:
        for row, image in enumerate(order.tolist()):
            found = maps[row]
            self.count += 1
            if not np.isfinite(found).all():
                if not self.non_finite:
                    self.worst_row = row
                self.non_finite += 1
                self.relative_l2 = self.cosine = self.max_abs_error = self.row_spread = float("nan")
                continue
            error = _relative(found, references[image])
            if not self.non_finite and not error <= self.relative_l2:
                self.worst_row = row
            self.relative_l2 = float(np.maximum(self.relative_l2, error))  # NaN where either is
            self.cosine = float(np.minimum(self.cosine, _cosine(found, references[image])))
            self.max_abs_error = float(np.maximum(self.max_abs_error, np.abs(found - references[image]).max()))
            others = [_relative(found, other) for index, other in enumerate(references) if index != image]
            self.misplaced += any(other * MISPLACED_FACTOR < error for other in others)
            if (name, image) in first:
                self.row_spread = float(np.maximum(self.row_spread, _relative(found, first[name, image])))
            else:
                # a copy, because a backend may hand out the buffer that it fills again
                first[name, image] = found.copy()

    def numerics(self, name: str, size: GoldenSize, batch: int) -> MapNumerics:
        largest = float(np.abs(size.maps[name]).max())
        measured = {field.name: getattr(self, field.name) for field in fields(MapNumerics) if hasattr(self, field.name)}
        return MapNumerics(
            name=name,
            image_size=size.image_size,
            batch=batch,
            rows=self.count,
            largest=largest,
            misplaced_rows=self.misplaced,
            non_finite_rows=self.non_finite,
            **measured,
        )


def _relative(found: FloatArray, wanted: FloatArray) -> float:
    """Norm of the difference over the norm of the wanted map, both float64; NaN where that is all zero."""
    exact = wanted.reshape(-1).astype(np.float64)
    difference = found.reshape(-1).astype(np.float64) - exact
    whole = float(np.sqrt(exact @ exact))
    return float(np.sqrt(difference @ difference)) / whole if whole > 0 else float("nan")


def _cosine(found: FloatArray, wanted: FloatArray) -> float:
    a, b = (each.reshape(-1).astype(np.float64) for each in (found, wanted))
    norms = float(np.sqrt(a @ a) * np.sqrt(b @ b))
    return float(a @ b) / norms if norms > 0 else float("nan")


def _nan_last(value: float) -> float:
    return float("inf") if value != value else value
