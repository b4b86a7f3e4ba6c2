"""What every backend gives: is it usable here, build an engine from a graph, open one, run it.

What the rest of the device half needs of a backend is on this page. A new one is a file or a folder beside it and a row in choose.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gmf_edge.errors import EngineError
from gmf_edge.spec import BatchProfile, Precision, SizeRange, Task, words_of_size

FloatArray = NDArray[np.float32]
# (fraction done 0..1 or None where unknown, what is going on)
Progress = Callable[[float | None, str], None]


def silent(fraction: float | None, message: str) -> None:
    """A Progress that shows nothing."""


@dataclass(frozen=True)
class Graphs:
    """The ONNX files that a bundle carries, by the key that says for whom: see Bundle.graphs.

    Attributes:
        folder: where the files lie; their weights lie beside them.
        files: (form, opset) -> file name, where form is "portable" (standard ops) or "plugin" (fused GMA nodes).
    """

    folder: Path
    files: Mapping[tuple[str, int], str]

    def path(self, form: str, opset: int) -> Path:
        """The file of that form and opset; KeyError where the bundle has none."""
        return self.folder / self.files[form, opset]


@dataclass(frozen=True)
class EngineRequest:
    """What to build an engine from and for.

    Attributes:
        graphs: the bundle's ONNX files.
        precision: what the graph was lowered to, and what the engine must prove that it runs.
        profile: batch sizes.
        image_size: (H, W) in pixels; what the engine is tuned for where it takes several.
        sizes: the image sizes that it takes, or None for image_size alone.
        task: what comes out.
        fp32_islands: names of layers that must stay FP32 (weakly typed builders need to be told).
        quantised_layers: ONNX node names of the layers that INT8 was asked for; the engine is held against them.
        use_plugin: whether the plugin form may be used.
        options: the backend's own options, checked by it (TensorRT: workspace_mib, ...; a CPU: threads).
    """

    graphs: Graphs
    precision: Precision
    profile: BatchProfile
    image_size: tuple[int, int]
    fp32_islands: tuple[str, ...] = ()
    quantised_layers: tuple[str, ...] = ()
    use_plugin: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    sizes: SizeRange | None = None
    task: Task = Task.CLASSIFY


@dataclass(frozen=True)
class LayerRecord:
    """One layer of a built engine, as the backend reports it."""

    name: str
    kind: str
    precision: str
    time_ms: float | None = None


def precision_shares(layers: Sequence[LayerRecord], weighted_kinds: Collection[str]) -> dict[str, float]:
    """Share of the weighted layers per precision, sums to 1: of their time where any was measured, else of their number.

    Args:
        layers: as the backend reports them.
        weighted_kinds: kinds of layers that carry weights or multiply matrices: what a request for FP16 or INT8 is about.
    """
    weighted = [layer for layer in layers if layer.kind in weighted_kinds]
    timed = any(layer.time_ms for layer in weighted)
    shares: Counter[str] = Counter()
    for layer in weighted:
        shares[layer.precision] += (layer.time_ms or 0.0) if timed else 1.0  # type: ignore[assignment]
    total = sum(shares.values())
    return {name: value / total for name, value in sorted(shares.items())} if total else {}


@dataclass(frozen=True)
class EngineFacts:
    """What an opened engine says of itself.

    Attributes:
        backend: its name, of spec.BACKENDS.
        version: of the backend.
        device: the hardware's name.
        form: "portable" or "plugin": which graph it was built from.
        layers: as built, after the backend's own fusions.
        precision_shares: share of the weighted layers (by time where it was measured) per precision, sums to 1.
        notes: choices and fallbacks that the user should know, one sentence each.
        refitted: its weights were put in when it was opened, so that what was proved of the file is not proved of them.
        options: of the request, with which this engine is opened again as it is; empty where its files keep them.
        execution: how it runs, for the report, such as {"threads": 2, "threads_reason": "2 cores"}; plain values.
    """

    backend: str
    version: str
    device: str
    form: str
    layers: tuple[LayerRecord, ...] = ()
    precision_shares: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refitted: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    execution: Mapping[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """An opened engine. Not thread-safe; use one per thread. A context manager: leaving it releases the engine."""

    @property
    def facts(self) -> EngineFacts:
        """What it is."""

    @property
    def task(self) -> Task:
        """What comes out: logits by infer, or maps by infer_maps."""

    def infer(self, images: FloatArray) -> FloatArray:
        """Preprocessed images [B, 3, H, W], FP32 -> logits [B, classes], FP32.

        Raises:
            EngineError: wrong shape, a batch size outside the profile, or a backbone.
        """

    def infer_maps(self, images: FloatArray) -> Mapping[str, FloatArray]:
        """Preprocessed images [B, 3, H, W], FP32 -> a backbone's maps by the names of spec.MAPS, [B, C, H / stride, W / stride], FP32.

        Raises:
            EngineError: wrong shape, a batch or image size outside the profile, or a classifier.
        """

    def compute_times_ms(self, images: FloatArray, count: int) -> NDArray[np.float64] | None:
        """GPU time in milliseconds of each of `count` inferences of these images, enqueued one after the other; None on a CPU.

        By events on the GPU's own clock: transfers and the host's gaps between inferences are excluded.

        Raises:
            EngineError: as infer.
        """

    def close(self) -> None:
        """Release memory; further calls of infer raise EngineError."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, *exc: object) -> None: ...


class LogitsOnly:
    """What an engine that is always a classifier says of maps."""

    task = Task.CLASSIFY

    def infer_maps(self, images: FloatArray) -> Mapping[str, FloatArray]:
        """Refused.

        Raises:
            EngineError: always.
        """
        require_task(self.task, Task.FEATURES)
        return {}


def inference_of(engine: Engine) -> Callable[[FloatArray], object]:
    """What runs this engine, whatever comes out: infer or infer_maps."""
    return engine.infer if engine.task is Task.CLASSIFY else engine.infer_maps


def require_task(task: Task, wanted: Task) -> None:
    """Refuse logits of a backbone and maps of a classifier.

    Raises:
        EngineError: they are two.
    """
    if task is not wanted and wanted is Task.CLASSIFY:
        raise EngineError(
            "this engine is a backbone: it gives maps and no logits", "call infer_maps, or build with --task classify"
        )
    if task is not wanted:
        raise EngineError("this engine is a classifier: it gives logits and no maps", "call infer, or build with --task features")


def require_images(
    shape: tuple[int, ...], image_shape: tuple[int, ...], sizes: SizeRange | None = None, profile: BatchProfile | None = None
) -> None:
    """Refuse images of a shape that an engine does not take.

    Args:
        shape: of the images.
        image_shape: (3, H, W) of an engine of one image size.
        sizes: of an engine of several.
        profile: batch sizes that it takes; None where it takes any.

    Raises:
        EngineError: another shape, or a batch size outside the profile.
    """
    if sizes is None:
        wanted = f"[batch, {', '.join(map(str, image_shape))}]"
        fits = len(shape) == 4 and shape[1:] == image_shape
    else:
        low, high = words_of_size(sizes.min), words_of_size(sizes.max)
        wanted = f"[batch, 3, H, W] with H and W multiples of 32, from {low} to {high}"
        fits = len(shape) == 4 and shape[1] == 3 and sizes.includes((shape[2], shape[3]))
    if not fits:
        raise EngineError(f"images of shape {tuple(shape)}", f"give {wanted}")
    if profile is not None and not profile.min <= shape[0] <= profile.max:
        raise EngineError(
            f"batch size {shape[0]} is outside the profile {profile.min}..{profile.max}",
            "split or fill up the batch, or build with other --min-batch and --max-batch",
        )


class Backend(Protocol):
    """One way to run a bundle."""

    name: str

    def missing(self) -> str | None:
        """Why this backend cannot be used on this machine, or None where it can; never raises, never slow."""

    def missing_to_build(self) -> str | None:
        """Why this backend cannot build engines here, or None where it can: what only runs engines may need less."""

    def graph_form(self, request: EngineRequest) -> str:
        """Which form of the graph `build` takes for this request: "portable" or "plugin".

        Raises:
            EngineError: the request cannot be met: it names a plugin library that is not there, for instance.
        """

    def build(self, request: EngineRequest, out: Path, progress: Progress = silent) -> tuple[str, ...]:
        """Build the engine into the folder `out`; the names of the files written there (the engine first), possibly none
        where the backend runs the ONNX file itself.

        Raises:
            EngineError: the graph cannot be built.
            PrecisionError: the engine does not run the precision asked for.
            EnvironmentProblem: this machine cannot build it.
        """

    def open(self, request: EngineRequest, folder: Path, files: tuple[str, ...]) -> Engine:
        """Open what build wrote.

        Raises:
            StaleArtifact: built on another device or version.
            EngineError: damaged, or not an engine.
            EnvironmentProblem: this machine cannot run it.
        """


@runtime_checkable
class BackendWithAlternatives(Protocol):
    """A backend that can meet some requests in more than one way, of which the faster shows only when it is timed."""

    def alternatives(self, request: EngineRequest) -> tuple[EngineRequest, ...]:
        """The request and the others that meet it; never raises, for `build` says what is wrong."""
