"""The device's half: a bundle becomes an engine that is proved and measured. Needs NumPy and a backend; never torch, never onnx.

choose a backend -> build -> open -> parity at every batch size and on the evaluation images -> latency -> report.json
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmf_edge.artifact import new_folder
from gmf_edge.bench.latency import Latency, measure_latency
from gmf_edge.bundle import GOLDEN, REFERENCE, REPORT, Bundle, Manifest, open_bundle, seal
from gmf_edge.engines.choose import choose_backend
from gmf_edge.engines.protocol import Backend, Engine, EngineRequest, Progress, silent
from gmf_edge.errors import BundleError, DataError
from gmf_edge.spec import Gate
from gmf_edge.verify.golden import Golden, Reference
from gmf_edge.verify.parity import ParityReport, judge, measure, prove_batches
from gmf_edge.verify.report import report_of, write_report

if TYPE_CHECKING:
    from gmf_edge.imageset import ImageSet

EVALUATION_BATCH = 8
BUILD_DURATION_S = 1.0
# a library that has to travel must be worth it
PLUGIN_MARGIN = 1.02


@dataclass(frozen=True)
class Result:
    """How a build, a deployment or a verification ended.

    Attributes:
        folder: of the bundle.
        passed: whether parity is within the gate.
        reason: why, with figures and limits.
        report: what report.json says.
    """

    folder: Path
    passed: bool
    reason: str
    report: Mapping[str, Any]


def deploy_bundle(
    folder: Path,
    *,
    backend: str = "auto",
    eval_data: Path | str | None = None,
    max_drop_points: float | None = None,
    use_plugin: bool = True,
    options: Mapping[str, Any] | None = None,
    out: Path | None = None,
    progress: Progress = silent,
) -> Result:
    """Build, prove and measure an engine from a bundle, on the machine where it will run; what `gmf-edge deploy` does.

    Args:
        folder: a bundle.
        backend: "auto", "onnxruntime" or "tensorrt".
        eval_data: the evaluation images that the bundle was built with (they do not travel); None for golden data alone.
        max_drop_points: overrides the gate's, in percentage points.
        use_plugin: whether the plugin form may be used.
        options: the backend's own.
        out: where to write the result; None for the bundle's own folder.
        progress: told what is going on.

    Raises:
        GmfEdgeError: see gmf_edge.errors; the bundle stays as it was.
    """
    source = open_bundle(folder)
    with new_folder(out or folder) as temporary, ExitStack() as stack:
        engine_files = {REPORT, *source.manifest.engine_files}
        for name in source.manifest.files:
            if name not in engine_files:
                # copied, not linked: ONNX's loaders refuse weights of which the file system knows a second name
                shutil.copyfile(source.path(name), temporary / name)
        images = _evaluation_images(source, eval_data, stack)
        result = complete(
            Bundle(temporary, source.manifest),
            images,
            backend=backend,
            gate=_gate(source.manifest, max_drop_points),
            use_plugin=use_plugin,
            options=options or {},
            progress=progress,
        )
    return Result(out or folder, result.passed, result.reason, result.report)


def complete(
    bundle: Bundle,
    images: ImageSet | None,
    *,
    backend: str,
    gate: Gate,
    use_plugin: bool = True,
    options: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Result:
    """Build the engine into the bundle's folder, prove it, measure it, write report.json and seal the folder."""
    chosen, why = choose_backend(backend)
    progress(None, f"backend: {why}")
    request = _request(bundle, use_plugin, options or {})
    engine_files = chosen.build(request, bundle.folder, progress)
    plugin = _plugin_pays(chosen, request, bundle, engine_files, gate, progress)
    if plugin is not None and not plugin["pays"]:
        request = replace(request, use_plugin=False, options=_without_plugin(request.options))
        for name in engine_files:
            bundle.path(name).unlink()
        engine_files = chosen.build(request, bundle.folder, progress)
    with chosen.open(request, bundle.folder, engine_files) as engine:
        parity = _parity(engine, bundle, images, progress)
        progress(None, "measuring latency")
        latencies = [
            measure_latency(engine, batch, bundle.manifest.model.image_size, duration_s=BUILD_DURATION_S).to_json()
            for batch in bundle.manifest.profile.sizes
        ]
        passed, reason = judge(parity, gate, bundle.manifest.weights.trained)
        report = report_of(bundle.manifest, engine.facts, why, parity, gate, passed, reason, latencies)
    report["plugin"] = plugin
    write_report(report, bundle.folder / REPORT)
    manifest = Manifest.from_json({**bundle.manifest.to_json(), "engine_files": list(engine_files)})
    seal(bundle.folder, manifest)
    return Result(bundle.folder, passed, reason, report)


def verify_bundle(
    folder: Path,
    *,
    backend: str = "auto",
    eval_data: Path | str | None = None,
    max_drop_points: float | None = None,
    progress: Progress = silent,
) -> Result:
    """Prove a bundle's engine again, every byte and every number; nothing is written. What `gmf-edge verify` does.

    Args:
        folder: a bundle.
        backend: "auto" is the one that the bundle was deployed with, where it was.
        eval_data: the evaluation images that the bundle was built with; None for golden data alone.
        max_drop_points: overrides the gate's, in percentage points.
        progress: told what is going on.

    Raises:
        GmfEdgeError: see gmf_edge.errors.
    """
    bundle = open_bundle(folder)
    gate = _gate(bundle.manifest, max_drop_points)
    with ExitStack() as stack:
        images = _evaluation_images(bundle, eval_data, stack)
        engine, why = _opened(bundle, backend, stack, progress)
        parity = _parity(engine, bundle, images, progress)
        passed, reason = judge(parity, gate, bundle.manifest.weights.trained)
        report = report_of(bundle.manifest, engine.facts, why, parity, gate, passed, reason, [])
    return Result(folder, passed, reason, report)


def bench_bundle(
    folder: Path,
    *,
    batches: tuple[int, ...] = (),
    backend: str = "auto",
    warmup_ms: float = 200.0,
    duration_s: float = 3.0,
    iterations: int = 10,
    percentiles: tuple[float, ...] = (90.0, 95.0, 99.0),
    progress: Progress = silent,
) -> list[Latency]:
    """Latency of a bundle's engine at the given batch sizes (none: those of its profile); what `gmf-edge bench` does.

    Raises:
        GmfEdgeError: see gmf_edge.errors.
    """
    bundle = open_bundle(folder)
    with ExitStack() as stack:
        engine, _ = _opened(bundle, backend, stack, progress)
        latencies = []
        for batch in batches or bundle.manifest.profile.sizes:
            progress(None, f"measuring batch {batch}")
            latencies.append(
                measure_latency(
                    engine,
                    batch,
                    bundle.manifest.model.image_size,
                    warmup_ms=warmup_ms,
                    duration_s=duration_s,
                    iterations=iterations,
                    percentiles=percentiles,
                )
            )
    return latencies


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one picture.

    Attributes:
        image: as given.
        classes: (class name, softmax probability), likeliest first.
    """

    image: str
    classes: tuple[tuple[str, float], ...]


def predict(
    folder: Path, images: list[Path], *, top: int = 5, backend: str = "auto", progress: Progress = silent
) -> list[Prediction]:
    """Classify pictures with a bundle's engine; what `gmf-edge predict` does.

    Raises:
        DataError: a picture that cannot be read.
        GmfEdgeError: see gmf_edge.errors.
    """
    import numpy as np

    from gmf_edge.image import input_from_file

    bundle = open_bundle(folder)
    with ExitStack() as stack:
        inputs = [input_from_file(image, bundle.manifest.preprocess, str(image)) for image in images]
        engine, _ = _opened(bundle, backend, stack, progress)
        predictions = []
        for image, pixels in zip(images, inputs, strict=True):
            # the profile's smallest batch: one picture, repeated where the engine takes no single one
            logits = engine.infer(np.repeat(pixels[None], bundle.manifest.profile.min, axis=0))[0].astype(np.float64)
            weights = np.exp(logits - logits.max())
            order = np.argsort(-logits, kind="stable")[:top]
            ranked = tuple((bundle.manifest.classes[index], float(weights[index] / weights.sum())) for index in order)
            predictions.append(Prediction(str(image), ranked))
    return predictions


def open_engine(bundle: Bundle) -> Engine:
    """The deployed engine of a bundle, by the backend it was deployed with; close it, or use it in a `with` statement.

    Raises:
        GmfEdgeError: see gmf_edge.errors; BundleError where the bundle was not deployed yet.
    """
    report = bundle.report
    if report is None:
        raise BundleError(f"{bundle.folder} has no engine yet", "run 'gmf-edge deploy' on it")
    backend, _ = choose_backend(str(report["backend"]))
    return backend.open(_request(bundle, use_plugin=True, options={}), bundle.folder, bundle.manifest.engine_files)


def _opened(bundle: Bundle, backend: str, stack: ExitStack, progress: Progress) -> tuple[Engine, str]:
    """The bundle's engine, by the backend it was deployed with; ONNX Runtime needs no deployment."""
    deployed = (bundle.report or {}).get("backend")
    chosen, why = choose_backend(str(deployed) if backend == "auto" and deployed else backend)
    files = bundle.manifest.engine_files if deployed == chosen.name else ()
    folder = bundle.folder
    request = _request(bundle, use_plugin=True, options={})
    if not files:
        folder = _scratch(stack)
        files = chosen.build(request, folder, progress)
    return stack.enter_context(chosen.open(request, folder, files)), why


def _scratch(stack: ExitStack) -> Path:
    import tempfile

    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gmf-edge-")))


def _plugin_pays(
    backend: Backend, request: EngineRequest, bundle: Bundle, engine_files: tuple[str, ...], gate: Gate, progress: Progress
) -> dict[str, Any] | None:
    """Whether a plugin engine is right and faster than the engine without it; None where no plugin engine was built."""
    if not engine_files:
        return None  # the backend runs the bundle's portable graph itself
    import numpy as np

    from gmf_edge.precision.pays import pays

    golden = Golden.load(bundle.path(GOLDEN))
    with ExitStack() as stack:
        engine = stack.enter_context(backend.open(request, bundle.folder, engine_files))
        if engine.facts.form != "plugin":
            return None
        progress(None, "building the engine without the plugin, to compare")
        portable = replace(request, use_plugin=False, options=_without_plugin(request.options))
        folder = _scratch(stack)
        other = stack.enter_context(backend.open(portable, folder, backend.build(portable, folder, progress)))
        numerics = prove_batches(engine, golden.images, golden.logits, request.profile.sizes)
        right = all(found.cosine >= gate.min_cosine and not found.non_finite_rows for found in numerics.values())
        images = np.repeat(golden.images[:1], request.profile.opt, axis=0)
        decision = pays(
            lambda: engine.infer(images),
            lambda: other.infer(images),
            candidate="the plugin engine",
            baseline="the engine without it",
            within_gate=right,
            margin=PLUGIN_MARGIN,
        )
    progress(None, decision.reason)
    return decision.to_json()


def _without_plugin(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "plugin_library"}


def _request(bundle: Bundle, use_plugin: bool, options: Mapping[str, Any]) -> EngineRequest:
    manifest = bundle.manifest
    return EngineRequest(
        graphs=bundle.graphs,
        precision=manifest.precision,
        profile=manifest.profile,
        image_size=manifest.model.image_size,
        fp32_islands=tuple(manifest.lowering.get("islands", {})),
        use_plugin=use_plugin,
        options=options,
    )


def _gate(manifest: Manifest, max_drop_points: float | None) -> Gate:
    if max_drop_points is None:
        return manifest.gate
    return Gate(max_drop_points, manifest.gate.min_agreement, manifest.gate.min_cosine)


def _evaluation_images(bundle: Bundle, eval_data: Path | str | None, stack: ExitStack) -> ImageSet | None:
    """The images whose FP32 logits the bundle carries, in their order; other images in the set are left out."""
    if eval_data is None:
        return None
    from gmf_edge.imageset import ImageSet

    if REFERENCE not in bundle.manifest.files:
        raise BundleError(f"{bundle.folder} was built without evaluation images", "build it again with --eval-data")
    images = stack.enter_context(ImageSet.open(eval_data))
    by_digest = {item.sha256: item for item in images.items}
    reference = Reference.load(bundle.path(REFERENCE))
    lacking = [name for name, digest in zip(reference.names, reference.sha256, strict=True) if digest not in by_digest]
    if lacking:
        raise DataError(
            f"{eval_data} lacks {len(lacking)} of the {len(reference.names)} images that the bundle was evaluated on, such as {lacking[0]}",
            "give the images that it was built with, or build it again with these",
        )
    return images.subset([by_digest[digest] for digest in reference.sha256])


def _parity(engine: Engine, bundle: Bundle, images: ImageSet | None, progress: Progress) -> ParityReport:
    manifest = bundle.manifest
    golden = Golden.load(bundle.path(GOLDEN))
    numerics = prove_batches(engine, golden.images, golden.logits, manifest.profile.sizes, progress)
    if images is None:
        return measure(
            engine,
            (golden.images[start : start + EVALUATION_BATCH] for start in range(0, len(golden.images), EVALUATION_BATCH)),
            golden.logits,
            names=[f"golden {index}" for index in range(len(golden.images))],
            class_names=manifest.classes,
            trained=manifest.weights.trained,
            profile=manifest.profile,
            batch_numerics=numerics,
            progress=progress,
        )
    reference = Reference.load(bundle.path(REFERENCE))
    batch = min(EVALUATION_BATCH, manifest.profile.max)

    def inputs() -> Iterator[Any]:
        for part in images.batches(manifest.preprocess, batch):
            yield part.inputs

    return measure(
        engine,
        inputs(),
        reference.logits,
        names=reference.names,
        labels=reference.labels,
        class_names=manifest.classes,
        trained=manifest.weights.trained,
        profile=manifest.profile,
        batch_numerics=numerics,
        progress=progress,
    )
