"""What pictures do to a graph's activations: two streamed passes over the fused graph.

Pass 1 finds, per channel, the largest magnitude and the mean; pass 2 fills a histogram of magnitudes for each tensor, over the
range that pass 1 found. Memory is one batch of activations and HISTOGRAM_BINS counts a tensor, whatever the number of pictures.

ONNX Runtime runs the graph. Its own calibrators do not serve here: they keep all activations that one call collects, rank no range
by squared error, and know no smoothing. Tests hold percentile and minmax against theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.errors import CalibrationError, DataError
from gmf_edge.precision.calibration_images import FEWEST_IMAGES
from gmf_edge.precision.int8_layers import quantizable_layers
from gmf_edge.precision.smoothing import smoothable, smoothing_factors
from gmf_edge.scratch import scratch_folder

Float32Array = NDArray[np.float32]
# makes the batches, float32 [B, 3, H, W], from the start at every call
Batches = Callable[[], Iterable[Float32Array]]
HISTOGRAM_BINS = 4096


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
    """What the pictures do to a graph: every method's ranges follow from it, see gmf_edge.precision.thresholds.

    Attributes:
        tensors: by name.
        smoothing: factors by the name of a Linear's input, float32 [C].
        images: how many pictures.
    """

    tensors: dict[str, TensorStatistics]
    smoothing: dict[str, NDArray[np.float32]]
    images: int


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
    with scratch_folder() as folder:
        run = activation_runner(graph, tuple(axes), folder)
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
                histograms[name] += histogram_of(value / factors[name] if name in factors else value, smoothed[name])
            again += len(batch)
            progress(0.5 + again / images / 2, f"calibration, pass 2 of 2: {again} of {images} images")
        if again != seen:
            raise CalibrationError(f"pass 1 saw {seen} images and pass 2 {again}", "leave the images alone while calibrating")
    tensors = {name: TensorStatistics(largest[name], sums[name] / counts[name], smoothed[name], histograms[name]) for name in axes}
    return Statistics(tensors, factors, seen)


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


def histogram_of(value: NDArray[Any], largest: float) -> NDArray[np.int64]:
    """Counts of the magnitudes of `value` in HISTOGRAM_BINS equal bins over 0..largest, int64."""
    if not largest > 0:
        return np.bincount([0], weights=[value.size], minlength=HISTOGRAM_BINS).astype(np.int64)
    bins = (np.abs(value).reshape(-1) * np.float32(HISTOGRAM_BINS / largest)).astype(np.int32)
    # the largest value itself lies on the upper edge
    return np.bincount(np.minimum(bins, HISTOGRAM_BINS - 1), minlength=HISTOGRAM_BINS)
