"""Pictures -> ranges of the activations that may be quantised: two streamed passes over the fused graph.

Pass 1 finds, per channel, the largest magnitude and the mean; pass 2 fills a histogram of magnitudes for each tensor, over the
range that pass 1 found. Memory is one batch of activations and HISTOGRAM_BINS counts a tensor, whatever the number of pictures.

method       range
minmax       the largest magnitude
percentile   the magnitude below which that share of the values lies
mse          the one with the smallest squared error of rounding and clipping together
entropy      the one whose 128 levels lose the least information (Kullback-Leibler divergence)

ONNX Runtime runs the graph. Its own calibrators do not serve here: they keep all activations that one call collects, rank no range
by squared error, and know no smoothing. Tests hold percentile and minmax against theirs.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from gmf_edge import __version__
from gmf_edge.artifact import sha256_of
from gmf_edge.errors import CalibrationError, DataError, SpecError
from gmf_edge.image import Preprocess, rgb_image
from gmf_edge.imageset import ImageItem, ImageSet
from gmf_edge.precision.int8_layers import quantizable_layers
from gmf_edge.precision.ranges import Provenance, Ranges, TensorRange, read_ranges, write_ranges
from gmf_edge.precision.recipe import Recipe
from gmf_edge.precision.smoothing import smoothable, smoothing_factors

Float32Array = NDArray[np.float32]
# (fraction done 0..1 or None where unknown, what is going on)
Progress = Callable[[float | None, str], None]
# makes the batches, float32 [B, 3, H, W], from the start at every call
Batches = Callable[[], Iterable[Float32Array]]

DEFAULT_IMAGES = 500
FEWEST_IMAGES = 32
BATCH_SIZE = 4
HISTOGRAM_BINS = 4096
# magnitudes of symmetric INT8: 0..127
LEVELS = 128
LARGEST_CODE = 127
# candidates for the range, as shares of the largest magnitude
MSE_SHARES = np.linspace(0.1, 1.0, 181)
ENTROPY_STEP_BINS = 16
# neighbouring pixels of noise are unrelated; those of pictures are not, see looks_random
NOISE_CORRELATION = 0.25
# more pictures than this share that carry nothing make a set unusable
UNUSABLE_SHARE = 0.5
NAMES_SHOWN = 5
PACKAGES = ("onnxruntime", "numpy", "pillow")


def silent(fraction: float | None, message: str) -> None:
    """A Progress that shows nothing."""


@dataclass
class TensorStatistics:
    """One tensor over all pictures.

    Attributes:
        channel_largest: largest magnitude of each channel, float64 [C].
        channel_mean: mean of each channel, float64 [C].
        largest: largest magnitude after smoothing.
        histogram: counts of magnitudes after smoothing in HISTOGRAM_BINS equal bins over 0..largest, int64.
    """

    channel_largest: NDArray[np.float64]
    channel_mean: NDArray[np.float64]
    largest: float
    histogram: NDArray[np.int64]


@dataclass
class Statistics:
    """What the pictures do to a graph: every method's ranges follow from it, see threshold.

    Attributes:
        tensors: by name.
        smoothing: factors by the name of a Linear's input, float32 [C].
        images: how many pictures.
    """

    tensors: dict[str, TensorStatistics]
    smoothing: dict[str, NDArray[np.float32]]
    images: int


def calibrate(
    graph: Path,
    images: ImageSet,
    preprocess: Preprocess,
    recipe: Recipe,
    *,
    out: Path,
    count: int = DEFAULT_IMAGES,
    seed: int = 0,
    checkpoint_sha256: str | None = None,
    progress: Progress = silent,
) -> Ranges:
    """Ranges of a fused graph's activations on pictures, written to `out` with their provenance.

    A file that is already there and was made from the same graph, checkpoint, pictures, preprocessing, method and versions is read
    instead; one that differs in any of them is replaced, and one that is no ranges file is refused.

    Args:
        graph: 2-fused.onnx, FP32.
        images: of the kind that the model will see, from the training split.
        preprocess: how they become inputs.
        recipe: its method, percentile and smoothings.
        out: ranges.json.
        count: pictures to draw, spread over the classes; all of them where there are fewer.
        seed: of the draw.
        checkpoint_sha256: of the weights' file, for the provenance.
        progress: called after each batch.

    Raises:
        CalibrationError: too few pictures, random or empty ones, activations that are not finite, or `out` is another file.
        DataError: a picture that cannot be read.
        SpecError: a count below FEWEST_IMAGES.
    """
    drawn = draw(images, count, seed)
    notes = check_images(drawn, wanted=count)
    provenance = Provenance(
        graph_sha256=sha256_of(graph),
        checkpoint_sha256=checkpoint_sha256,
        images_sha256=drawn.sha256,
        preprocess=preprocess.to_json(),
        method=recipe.method,
        percentile=recipe.percentile if recipe.method == "percentile" else 0.0,
        smoothing=recipe.smoothing,
        images=len(drawn),
        seed=seed,
        versions=_versions(),
        proj_smoothing=recipe.proj_smoothing,
    )
    if out.exists():
        known = read_ranges(out)
        changed = provenance.differences(known.provenance)
        if not changed:
            progress(1.0, f"{out.name} is up to date")
            return known
        progress(None, f"calibrating again: {' and '.join(changed)} changed")

    def batches() -> Iterator[Float32Array]:
        return (batch.inputs for batch in drawn.batches(preprocess, BATCH_SIZE))

    statistics = observe(
        onnx_ir.load(graph),
        batches,
        images=len(drawn),
        smoothing=recipe.smoothing,
        proj_smoothing=recipe.proj_smoothing,
        progress=progress,
    )
    ranges = ranges_from(statistics, recipe, provenance, tuple(item.name for item in drawn.items), notes)
    write_ranges(ranges, out)
    return ranges


def draw(images: ImageSet, count: int = DEFAULT_IMAGES, seed: int = 0) -> ImageSet:
    """The pictures to calibrate on: spread over the classes, the same for the same seed; all where there are fewer than count.

    Raises:
        SpecError: a count below FEWEST_IMAGES.
        CalibrationError: fewer than FEWEST_IMAGES pictures.
    """
    if count < FEWEST_IMAGES:
        raise SpecError(f"calibration on {count} images", f"use at least {FEWEST_IMAGES}; {DEFAULT_IMAGES} is the default")
    if len(images) < FEWEST_IMAGES:
        raise CalibrationError(
            f"{images.address} holds {len(images)} images, too few to calibrate on",
            f"give at least {FEWEST_IMAGES}, better {DEFAULT_IMAGES}",
        )
    return images.spread(min(count, len(images)), seed)


def check_disjoint(calibration: ImageSet, evaluation: ImageSet) -> None:
    """Calibration and evaluation share no picture, by content.

    Raises:
        CalibrationError: they do; names up to five files of each.
    """
    known: dict[str, str] = {item.sha256: item.name for item in calibration.items}
    shared = [(known[item.sha256], item.name) for item in evaluation.items if item.sha256 in known]
    if shared:
        pairs = ", ".join(a if a == b else f"{a} = {b}" for a, b in shared[:NAMES_SHOWN])
        more = f" and {len(shared) - NAMES_SHOWN} more" if len(shared) > NAMES_SHOWN else ""
        words = f"{len(shared)} of {len(evaluation)} evaluation images in {evaluation.address} are calibration images too"
        raise CalibrationError(f"{words}: {pairs}{more}", "calibrate on images of the training split, and evaluate on others")


def check_images(drawn: ImageSet, wanted: int | None = None) -> tuple[str, ...]:
    """What the user should know of a drawn set, one sentence each.

    Args:
        drawn: by draw.
        wanted: how many were asked for.

    Raises:
        CalibrationError: fewer than FEWEST_IMAGES different pictures, or most of them are random or of one colour.
        DataError: a picture that cannot be read.
    """
    different = len({item.sha256 for item in drawn.items})
    if different < FEWEST_IMAGES:
        raise CalibrationError(
            f"only {different} of the {len(drawn)} images drawn from {drawn.address} differ",
            f"give at least {FEWEST_IMAGES} different ones",
        )
    kinds = [_picture_kind(item) for item in drawn.items]
    for kind, words in (("random", "look like random noise"), ("blank", "are of one colour")):
        found = [item.name for item, its in zip(drawn.items, kinds, strict=True) if its == kind]
        if len(found) > UNUSABLE_SHARE * len(drawn):
            raise CalibrationError(
                f"{len(found)} of {len(drawn)} images in {drawn.address} {words} (the first: {found[0]})",
                "calibrate on real images of the kind that the model will see",
            )
    notes = []
    if wanted is not None and len(drawn) < wanted:
        notes.append(f"calibrated on {len(drawn)} images, all there are; {wanted} were wanted")
    present = {item.label for item in drawn.items}
    if not drawn.labelled:
        notes.append("the calibration images lie in no class folders: they could not be spread over the classes")
    elif len(present) == 1:
        (label,) = present
        assert label is not None
        notes.append(f"all calibration images are of one class, {drawn.classes[label]}: other classes may leave the ranges")
    return tuple(notes)


def looks_random(grey: NDArray[Any]) -> bool:
    """Whether neighbouring pixels are unrelated, as in noise and in hardly any photograph or drawing (3 of 4,950 tried).

    The larger of the correlations of a pixel with its right and with its lower neighbour is below NOISE_CORRELATION. Noise that
    was blurred, enlarged or strongly compressed is related to its neighbours and passes.

    Args:
        grey: [H, W] of any numeric type, not all of one value.
    """
    values = np.asarray(grey, np.float64)
    correlations = []
    for axis in (0, 1):
        if values.shape[axis] < 2:
            continue
        count = values.shape[axis]
        first, second = values.take(range(count - 1), axis), values.take(range(1, count), axis)
        first, second = first - first.mean(), second - second.mean()
        norm = math.sqrt(float((first**2).sum() * (second**2).sum()))
        # stripes: constant along one axis, so that nothing but that axis can speak
        correlations.append(float((first * second).sum()) / norm if norm > 0 else 1.0)
    return not correlations or not max(correlations) >= NOISE_CORRELATION


def observe(
    graph: onnx_ir.Model,
    batches: Batches,
    *,
    images: int,
    smoothing: float = 0.0,
    proj_smoothing: float = 0.0,
    progress: Progress = silent,
) -> Statistics:
    """Both passes over the pictures; the module says what they find.

    Args:
        graph: fused, FP32; left as it is.
        batches: called once a pass.
        images: how many pictures the batches hold together, for the progress.
        smoothing, proj_smoothing: exponents; the histograms are of the smoothed activations.

    Raises:
        CalibrationError: activations that are not finite, or passes that differ.
        DataError: no pictures.
    """
    axes = {layer.tensor: layer.channel_axis for layer in quantizable_layers(graph)}
    with tempfile.TemporaryDirectory(prefix="gmf-edge-") as folder:
        run = activation_runner(graph, tuple(axes), Path(folder))
        largest: dict[str, NDArray[np.float64]] = {}
        sums: dict[str, NDArray[np.float64]] = {}
        counts: dict[str, int] = {}
        seen = 0
        for batch in batches():
            for name, value in run(batch):
                channels = np.moveaxis(value, axes[name], -1).reshape(-1, value.shape[axes[name]])  # [B * N, C]
                found = np.abs(channels).max(axis=0).astype(np.float64)
                if not np.isfinite(found).all():
                    raise CalibrationError(
                        f"{name} is NaN or infinite on a calibration image", "check the checkpoint in FP32 first"
                    )
                largest[name] = np.maximum(largest[name], found) if name in largest else found
                sums[name] = sums.get(name, np.zeros(1)) + channels.sum(axis=0, dtype=np.float64)
                counts[name] = counts.get(name, 0) + len(channels)
            seen += len(batch)
            progress(seen / images / 2, f"calibration, pass 1 of 2: {seen} of {images} images")
        if seen < 1:
            raise DataError("no images to calibrate on", f"give at least {FEWEST_IMAGES}")
        factors = {}
        for name, place in smoothable(graph).items():
            exponent = smoothing if place.is_folded else proj_smoothing
            if exponent > 0:
                factors[name] = smoothing_factors(largest[name], place.weight, exponent)
        smoothed = {name: float((found / factors[name] if name in factors else found).max()) for name, found in largest.items()}
        histograms = {name: np.zeros(HISTOGRAM_BINS, np.int64) for name in axes}
        again = 0
        for batch in batches():
            for name, value in run(batch):
                histograms[name] += _histogram(value / factors[name] if name in factors else value, smoothed[name])
            again += len(batch)
            progress(0.5 + again / images / 2, f"calibration, pass 2 of 2: {again} of {images} images")
        if again != seen:
            raise CalibrationError(f"pass 1 saw {seen} images and pass 2 {again}", "leave the images alone while calibrating")
    tensors = {name: TensorStatistics(largest[name], sums[name] / counts[name], smoothed[name], histograms[name]) for name in axes}
    return Statistics(tensors, factors, seen)


def ranges_from(
    statistics: Statistics,
    recipe: Recipe,
    provenance: Provenance,
    pictures: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Ranges:
    """The ranges that the recipe's method draws from the statistics, whose smoothing must be the recipe's."""
    return Ranges(
        provenance=provenance,
        tensors={
            name: TensorRange(
                threshold=threshold(found, recipe.method, recipe.percentile),
                largest=found.largest,
                channel_largest=tuple(map(float, found.channel_largest)),
                # nine significant digits are all that FP32 has, and half of the file
                channel_mean=tuple(float(f"{mean:.9g}") for mean in found.channel_mean),
            )
            for name, found in statistics.tensors.items()
        },
        smoothing={name: tuple(map(float, factors)) for name, factors in statistics.smoothing.items()},
        pictures=pictures,
        notes=notes,
    )


def threshold(found: TensorStatistics, method: str, percentile: float = 99.99) -> float:
    """The range of one tensor by one of the module's methods; 0 for a tensor that is all zero."""
    if not found.largest > 0:
        return 0.0
    if method == "minmax":
        return found.largest
    if method == "percentile":
        return percentile_threshold(found.histogram, found.largest, percentile)
    if method == "mse":
        return mse_threshold(found.histogram, found.largest)
    if method == "entropy":
        return entropy_threshold(found.histogram, found.largest)
    raise SpecError(f"calibration method {method!r} is not known", "use minmax, entropy, percentile or mse")


def percentile_threshold(histogram: NDArray[np.int64], largest: float, percentile: float) -> float:
    """Upper edge of the first bin at which `percentile` per cent of the values are reached."""
    share = np.cumsum(histogram) / histogram.sum()
    # the last share is 1 up to rounding, and 100 % must find it
    bins = min(int(np.searchsorted(share, percentile / 100.0 - 1e-12)) + 1, len(histogram))
    return largest * bins / len(histogram)


def mse_threshold(histogram: NDArray[np.int64], largest: float) -> float:
    """The candidate t that minimises sum of count * (x - t/127 * min(round(127 x / t), 127))^2 over the bins' centres x."""
    centres = (np.arange(len(histogram)) + 0.5) * (largest / len(histogram))  # [bins]
    step = largest * MSE_SHARES[:, None] / LARGEST_CODE  # [candidates, 1]
    error = centres - step * np.minimum(np.rint(centres / step), LARGEST_CODE)
    return float(largest * MSE_SHARES[int(np.argmin((error**2) @ histogram))])


def entropy_threshold(histogram: NDArray[np.int64], largest: float) -> float:
    """The range whose clipped distribution P is nearest to its own version Q of 128 levels: the smallest sum of P log(P / Q).

    Source: S. Migacz, 8-bit Inference with TensorRT, GTC 2017. The zeros' bin takes its neighbour's count: exact zeros cost nothing
    whatever the range, and their number would drown all else.
    """
    counts = histogram.astype(np.float64)
    counts[0] = counts[1]
    total = counts.sum()
    if not total > 0:
        return largest
    best_divergence, best_bins = math.inf, len(counts)
    for bins in range(LEVELS, len(counts) + 1, ENTROPY_STEP_BINS):
        inside = counts[:bins]
        clipped = inside.copy()
        clipped[-1] += counts[bins:].sum()
        starts = np.arange(LEVELS) * bins // LEVELS
        sizes = np.diff(np.append(starts, bins))
        alive = inside > 0
        filled = np.add.reduceat(alive.astype(np.float64), starts)
        level = np.add.reduceat(inside, starts) / np.maximum(filled, 1.0)
        expanded = np.repeat(level, sizes) * alive
        mass = expanded.sum()
        if not mass > 0:
            continue
        p, q = clipped / total, expanded / mass
        # where Q has nothing and P has, the clipped tail fell into an empty bin: as bad as a tiny Q
        divergence = float((p[p > 0] * np.log(p[p > 0] / np.maximum(q[p > 0], 1e-9))).sum())
        if divergence < best_divergence:
            best_divergence, best_bins = divergence, bins
    return largest * best_bins / len(counts)


def activation_runner(
    graph: onnx_ir.Model, names: tuple[str, ...], folder: Path
) -> Callable[[Float32Array], list[tuple[str, Float32Array]]]:
    """A call that runs the graph on a batch [B, 3, H, W] and returns (name, value) of these activations, in their order.

    Args:
        graph: left as it is.
        names: of values of its main graph.
        folder: where the graph with these outputs is written, for as long as the call is used.
    """
    import onnxruntime as ort

    watched = graph.clone()
    values = {str(value.name): value for node in watched.graph for value in node.outputs}
    values |= {str(value.name): value for value in watched.graph.inputs}
    given = {str(value.name) for value in watched.graph.inputs}
    already = {str(value.name) for value in watched.graph.outputs}
    fetched = tuple(name for name in names if name not in given)
    for name in fetched:
        if name not in already:
            value = values[name]
            value.dtype = value.dtype or onnx_ir.DataType.FLOAT
            watched.graph.outputs.append(value)
    path = folder / "watched.onnx"
    onnx_ir.save(watched, path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # batches of one shape alone would profit from it, and it keeps the largest batch's memory for good
    options.enable_mem_pattern = False
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    input_name = session.get_inputs()[0].name

    def run(batch: Float32Array) -> list[tuple[str, Float32Array]]:
        found = dict(zip(fetched, session.run(list(fetched), {input_name: batch}), strict=True)) if fetched else {}
        return [(name, batch if name in given else found[name]) for name in names]

    return run


def _histogram(value: NDArray[Any], largest: float) -> NDArray[np.int64]:
    if not largest > 0:
        return np.bincount([0], weights=[value.size], minlength=HISTOGRAM_BINS).astype(np.int64)
    bins = (np.abs(value).reshape(-1) * np.float32(HISTOGRAM_BINS / largest)).astype(np.int32)
    # the largest value itself lies on the upper edge
    return np.bincount(np.minimum(bins, HISTOGRAM_BINS - 1), minlength=HISTOGRAM_BINS)


def _picture_kind(item: ImageItem) -> str:
    """ "random", "blank" or "picture"."""
    grey = np.asarray(rgb_image(item.read(), item.name).convert("L"))
    if grey.min() == grey.max():
        return "blank"
    return "random" if looks_random(grey) else "picture"


def _versions() -> dict[str, str]:
    found = {"gmf-edge": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
