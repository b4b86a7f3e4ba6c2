"""The stages between a subject and a bundle, each a function of content that is skipped where nothing changed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.artifact import Stage, digest_of, run_stage, sha256_of
from gmf_edge.bundle import GOLDEN, RANGES, REFERENCE
from gmf_edge.engines.protocol import Progress
from gmf_edge.errors import DataError
from gmf_edge.image import Preprocess
from gmf_edge.imageset import ImageSet
from gmf_edge.spec import OPSET_NEW, OPSET_OLD, TARGETS, BuildSpec, ModelSpec, Precision
from gmf_edge.subject import Subject
from gmf_edge.verify.golden import Golden, Reference

if TYPE_CHECKING:
    import onnx_ir

    from gmf_edge.precision.lower import Lowered, Quantization
    from gmf_edge.precision.recipe import Recipe

PLAIN, FUSED = "1-plain.onnx", "2-fused.onnx"
GOLDEN_IMAGES = 16
REFERENCE_BATCH = 8
# the range check keeps more activations alive than an inference does
RANGE_BATCH = 2
# file name -> (form, opset): the graphs that the targets of gmf_edge.spec.TARGETS need; INT8 adds CPU_GRAPH
GRAPH_FILES = {
    "portable.onnx": ("portable", OPSET_NEW),
    "plugin.onnx": ("plugin", OPSET_NEW),
    "portable-opset17.onnx": ("portable", OPSET_OLD),
    "plugin-opset17.onnx": ("plugin", OPSET_OLD),
}
CPU_GRAPH = {"onnxruntime.onnx": ("onnxruntime", OPSET_NEW)}


def plain_stage(subject: Subject, progress: Progress) -> Stage:
    """1-plain.onnx: the model as PyTorch exports it, proved."""

    def make(folder: Path) -> Mapping[str, Any]:
        from gmf_edge.model.export import export_plain

        progress(None, "exporting 1-plain.onnx")
        export_plain(subject.model, subject.spec.image_size, folder / PLAIN)
        return {}

    return _said(run_stage("plain", subject.key, make), PLAIN, progress)


def fused_stage(plain: Stage, progress: Progress) -> Stage:
    """2-fused.onnx: rewritten, each pass proved; facts: "passes"."""

    def make(folder: Path) -> Mapping[str, Any]:
        from gmf_edge.rewrite.passes import rewrite_onnx

        progress(None, "rewriting to 2-fused.onnx")
        return {"passes": [asdict(record) for record in rewrite_onnx(plain.folder / PLAIN, folder / FUSED)]}

    return _said(run_stage("fused", {"plain": plain.key}, make), FUSED, progress)


def ranges_stage(subject: Subject, fused: Stage, spec: BuildSpec, recipe: Recipe, progress: Progress) -> Stage:
    """ranges.json: the activations' ranges for INT8, calibrated, or read from the file that was given and held against this build."""
    from gmf_edge.precision.calibrate import calibrate
    from gmf_edge.precision.ranges import read_ranges, write_ranges

    graph = fused.folder / FUSED
    if spec.ranges is not None:
        given = read_ranges(spec.ranges)
        given.require(
            spec.ranges,
            graph_sha256=sha256_of(graph),
            checkpoint_sha256=subject.origin.sha256,
            preprocess=subject.preprocess.to_json(),
        )

        def copy(folder: Path) -> Mapping[str, Any]:
            write_ranges(given, folder / RANGES)
            return {}

        return run_stage("given-ranges", {"ranges": given.to_json()}, copy)
    images = subject.calibration
    assert images is not None, "resolve opens calibration images for INT8"

    def make(folder: Path) -> Mapping[str, Any]:
        progress(None, f"calibrating on {len(images)} images")
        ranges = calibrate(
            graph,
            images,
            subject.preprocess,
            recipe,
            out=folder / RANGES,
            count=spec.calibration_images,
            seed=spec.seed,
            checkpoint_sha256=subject.origin.sha256,
            progress=progress,
        )
        return {"notes": list(ranges.notes)}

    inputs = {
        "fused": fused.key,
        "images": images.sha256,
        "count": spec.calibration_images,
        "seed": spec.seed,
        "preprocess": subject.preprocess.to_json(),
        "recipe": recipe.to_json(),
    }
    return _said(run_stage("ranges", inputs, make), RANGES, progress)


def lowered_stage(
    model: ModelSpec, fused: Stage, reference: Stage, spec: BuildSpec, quantization: Quantization | None, progress: Progress
) -> Stage:
    """The bundle's graphs over one weights.bin; facts: "lowering" (precision.lower.Lowered.facts) and "graphs" (key -> file)."""

    def make(folder: Path) -> Mapping[str, Any]:
        import onnx_ir

        from gmf_edge.precision.lower import lower_precision
        from gmf_edge.rewrite.bodies import inline_bodies
        from gmf_edge.rewrite.shared_weights import save_graphs

        progress(None, f"lowering to 3-{spec.precision.value}.onnx")
        golden = Golden.load(reference.folder / GOLDEN).images
        lowered = lower_precision(
            onnx_ir.load(fused.folder / FUSED),
            spec.precision,
            spec.io_dtype,
            inline_bodies,
            _parts(golden, RANGE_BATCH),
            quantization,
        )
        files = GRAPH_FILES | (CPU_GRAPH if spec.precision is Precision.INT8 else {})
        graphs = {name: _graph_for(lowered, form, opset) for name, (form, opset) in files.items()}
        kernels: list[Mapping[str, Any]] = []
        if spec.plugin_archs:
            progress(None, f"compiling GPU kernels for {', '.join(spec.plugin_archs)}")
            kernels = _attach_kernels(graphs, model, spec)
        save_graphs(graphs, folder)
        return {
            "lowering": {**lowered.facts, "kernels": kernels},
            "graphs": {f"{form}/{opset}": name for name, (form, opset) in files.items()},
        }

    inputs = {
        "fused": fused.key,
        "golden": sha256_of(reference.folder / GOLDEN),
        "precision": spec.precision.value,
        "io_dtype": spec.io_dtype,
        "plugin_archs": list(spec.plugin_archs),
        "quantization": None if quantization is None else quantization.to_json(),
    }
    return _said(run_stage("lowered", inputs, make), f"3-{spec.precision.value}.onnx", progress)


def _attach_kernels(graphs: dict[str, onnx_ir.Model], model: ModelSpec, spec: BuildSpec) -> list[Mapping[str, Any]]:
    """Put the compiled kernels of the model's widths into the plugin graphs; what was compiled, for the manifest."""
    import onnx_ir

    from gmf_edge.kernels.archive import attach_kernels
    from gmf_edge.kernels.compile import compile_kernels

    dtype = "fp32" if spec.precision is Precision.FP32 else "fp16"
    with tempfile.TemporaryDirectory(prefix="gmf-edge-") as folder:
        table = compile_kernels(model, spec.plugin_archs, Path(folder), dtype=dtype)
        for name, (form, _) in GRAPH_FILES.items():
            if form == "plugin":
                graphs[name] = onnx_ir.from_proto(attach_kernels(onnx_ir.to_proto(graphs[name]), table, dtype))
        return list(table.rows)


def _graph_for(lowered: Lowered, form: str, opset: int) -> onnx_ir.Model:
    from gmf_edge.rewrite.bodies import drop_bodies, inline_bodies
    from gmf_edge.rewrite.opset import for_target

    target = next(target for target in TARGETS.values() if target.opset == opset)
    if form == "onnxruntime":
        return for_target(inline_bodies(lowered.cpu), target)
    fused = lowered.weak if opset == OPSET_OLD else lowered.strong
    return for_target(drop_bodies(fused) if form == "plugin" else inline_bodies(fused), target)


def reference_stage(subject: Subject, spec: BuildSpec, progress: Progress) -> Stage:
    """golden.npz and reference.npz: FP32 PyTorch's logits; facts: "evaluation"."""
    images = subject.images
    inputs = {
        **subject.key,
        "preprocess": subject.preprocess.to_json(),
        "images": None if images is None else images.sha256,
        "seed": spec.seed,
    }

    def make(folder: Path) -> Mapping[str, Any]:
        from gmf_edge.model.reference import reference_logits

        if images is None:
            golden_inputs, source = _synthetic_inputs(subject.preprocess, spec.seed), "synthetic pictures"
        else:
            try:
                _evaluation_reference(subject, images, progress).save(folder / REFERENCE)
                chosen = images.spread(min(GOLDEN_IMAGES, len(images)), spec.seed)
                golden_inputs = np.concatenate([batch.inputs for batch in chosen.batches(subject.preprocess, REFERENCE_BATCH)])
            except DataError:
                # one broken picture stops the stream; name all of them before giving up
                images.require_readable()
                raise
            source = f"{len(chosen)} images of {Path(images.address).name}"
        logits = np.concatenate(list(reference_logits(subject.model, _parts(golden_inputs, REFERENCE_BATCH))))
        Golden(golden_inputs, logits, source).save(folder / GOLDEN)
        evaluation = None
        if images is not None:
            evaluation = {"name": Path(images.address).name, "images": len(images), "sha256": digest_of(images.sha256)}
        return {"evaluation": evaluation}

    return _said(run_stage("reference", inputs, make), "FP32 PyTorch's logits", progress)


def _evaluation_reference(subject: Subject, images: ImageSet, progress: Progress) -> Reference:
    from gmf_edge.model.reference import reference_logits

    def inputs() -> Iterator[NDArray[np.float32]]:
        done = 0
        for batch in images.batches(subject.preprocess, REFERENCE_BATCH):
            yield batch.inputs
            done += len(batch.inputs)
            progress(done / len(images), f"FP32 PyTorch on {done} of {len(images)} images")

    logits = np.concatenate(list(reference_logits(subject.model, inputs())))
    return Reference(
        tuple(item.name for item in images.items),
        tuple(item.sha256 for item in images.items),
        images.labels if subject.origin.trained else None,
        logits,
    )


def _parts(inputs: NDArray[np.float32], size: int) -> Iterator[NDArray[np.float32]]:
    return (inputs[start : start + size] for start in range(0, len(inputs), size))


def _synthetic_inputs(preprocess: Preprocess, seed: int) -> NDArray[np.float32]:
    """Pictures drawn with the 1/f spectrum of natural images, preprocessed: for numerics where no images were given.

    Source of the spectrum: Field, Relations between the statistics of natural images, JOSA A 4 (1987).
    """
    height, width = preprocess.image_size
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    spectrum = rng.standard_normal((GOLDEN_IMAGES, 3, height, width)) + 1j * rng.standard_normal((GOLDEN_IMAGES, 3, height, width))
    pictures = np.fft.ifft2(spectrum / frequency).real
    pictures /= pictures.std(axis=(1, 2, 3), keepdims=True)
    # ImageNet's pixels have about these moments on the 0..1 scale
    pixels = np.clip(0.45 + 0.25 * pictures, 0, 1)
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return np.ascontiguousarray((pixels - mean) / std, np.float32)


def _said(stage: Stage, what: str, progress: Progress) -> Stage:
    if stage.reused:
        progress(None, f"{what}: unchanged, taken from the cache")
    return stage
