"""The device's half: a bundle becomes an engine that is proved and measured. Needs NumPy and a backend; never torch, never onnx.

backends in question -> build -> the fastest -> parity at every batch size and on the evaluation images -> latency -> report.json, page

choice       the fastest of several engines, where a machine has several
engine       what an engine is asked for, and opening it
build        the engine, and one with the plugin where that may be right and faster
             (plugin_trial: in a process of its own, plugin_process)
parity       an engine against the FP32 PyTorch logits that travel in the bundle
verify bench prediction   what a deployed bundle is used for
             (pictures: what predict was given; captions: what it saves)
difference   two of them, or two measurements, against each other; summary: what a measurement says of its bundle
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmf_edge.bench.latency import BenchPlan, Latency, measure_latency
from gmf_edge.bench.load import machine_facts
from gmf_edge.bundle import MEASUREMENTS, PAGE, REPORT, Bundle, Manifest, open_bundle
from gmf_edge.deploy.bench import BenchRequest, BenchResult, bench_bundle
from gmf_edge.deploy.build import BuiltEngine, build_engines
from gmf_edge.deploy.choice import engines_by_speed
from gmf_edge.deploy.difference import Difference, Limits, compare
from gmf_edge.deploy.engine import engine_request, open_engine
from gmf_edge.deploy.parity import evaluation_images, gate_of, parity_of, pictures_by_name
from gmf_edge.deploy.prediction import Prediction, predict
from gmf_edge.deploy.result import Result
from gmf_edge.deploy.verify import verify_bundle
from gmf_edge.engines.choose import backends_in_question, requests_in_question
from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.errors import GmfEdgeError
from gmf_edge.report import Measurements, seal_with_page
from gmf_edge.report import missing as missing_page
from gmf_edge.report.commands import engine_request_of
from gmf_edge.report.measurements import thinned
from gmf_edge.report.thumbnails import thumbnails
from gmf_edge.scratch import new_folder
from gmf_edge.spec import Gate, MapGate, Task
from gmf_edge.verify.judge import judge
from gmf_edge.verify.parity import ParityReport
from gmf_edge.verify.report import report_of, write_report

if TYPE_CHECKING:
    from gmf_edge.imageset import ImageSet

__all__ = [
    "BenchRequest",
    "BenchResult",
    "Difference",
    "Limits",
    "Prediction",
    "Result",
    "bench_bundle",
    "compare",
    "deploy_bundle",
    "deploy_in_place",
    "open_engine",
    "predict",
    "verify_bundle",
]

# what a build measures of each batch size; `bench` takes longer
BUILD_PLAN = BenchPlan(duration_s=1.0)


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
        backend: a name of spec.BACKENDS, or "auto": TensorRT where it can be used, else the fastest within the gate of the others.
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
        engine_files = {REPORT, MEASUREMENTS, PAGE, *source.manifest.engine_files}
        for name in source.manifest.files:
            if name not in engine_files:
                # copied, not linked: ONNX's loaders refuse weights of which the file system knows a second name
                shutil.copyfile(source.path(name), temporary / name)
        images = evaluation_images(source, eval_data, stack)
        result = deploy_in_place(
            Bundle(temporary, source.manifest),
            images,
            backend=backend,
            gate=gate_of(source.manifest, max_drop_points),
            use_plugin=use_plugin,
            options=options or {},
            request=engine_request_of(
                "deploy",
                use_plugin=use_plugin,
                options=options or {},
                backend=backend,
                max_drop_points=max_drop_points,
                evaluated=eval_data is not None,
            ),
            progress=progress,
        )
    return Result(out or folder, result.passed, result.reason, result.report)


def deploy_in_place(
    bundle: Bundle,
    images: ImageSet | None,
    *,
    backend: str,
    gate: Gate | MapGate,
    use_plugin: bool = True,
    options: Mapping[str, Any] | None = None,
    request: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Result:
    """Build the engine into the bundle's folder, prove it, measure it, write the reports and seal the folder.

    `request` is report.commands.engine_request_of what was asked for; None for a build's.
    """
    if bundle.manifest.model.task is Task.FEATURES:
        # the golden images were taken from them, and are what a backbone is proved on
        images = None
    backends, why = backends_in_question(backend)
    progress(None, f"backend: {why}")
    asked = request or engine_request_of("build", use_plugin=use_plugin, options=options or {})
    engine_asked = engine_request(bundle, use_plugin, options or {})
    place = bundle.folder.absolute()
    choice = plugin = None
    with tempfile.TemporaryDirectory(prefix=f".{place.name}.", suffix=".engines", dir=place.parent) as scratch:
        contenders = [(one, wanted) for one in backends for wanted in requests_in_question(one, engine_asked)]
        if len(contenders) > 1:
            engines, choice = engines_by_speed(contenders, bundle, gate, Path(scratch), progress)
        else:
            engines, plugin = build_engines(*contenders[0], bundle, gate, Path(scratch), progress)
        for built in engines:
            try:
                report, measurements = _report(built, why, bundle, images, gate, progress)
            except GmfEdgeError as error:
                if built is engines[-1]:
                    raise
                failure = str(error)
            else:
                if report["passed"] or built is engines[-1]:
                    break
                failure = report["reason"]
            # it passed its trial and not this: the next one is still there
            if choice is not None:
                choice["reason"] += f"; {built.name} is not delivered: {failure}"
                progress(None, choice["reason"])
                continue
            plugin = {**(plugin or {}), "accepted": False, "reason": f"the engine without the plugin stays: with it, {failure}"}
            progress(None, plugin["reason"])
        for path in built.folder.iterdir():
            shutil.move(path, bundle.folder / path.name)
    report |= {"plugin": plugin, "choice": choice and {**choice, "delivered": built.name}}
    report |= {"request": asked, "machine": machine_facts(), "notes": _page_notes(progress)}
    write_report(report, bundle.folder / REPORT)
    flips = report["parity"]["flips"]
    replace(measurements, thumbnails=thumbnails(flips, pictures_by_name(bundle, images))).save(bundle.folder / MEASUREMENTS)
    manifest = Manifest.from_json({**bundle.manifest.to_json(), "engine_files": list(built.files)})
    seal_with_page(bundle.folder, manifest, report)
    return Result(bundle.folder, report["passed"], report["reason"], report)


def _report(
    built: BuiltEngine, why: str, bundle: Bundle, images: ImageSet | None, gate: Gate | MapGate, progress: Progress
) -> tuple[dict[str, Any], Measurements]:
    """Open an engine, prove it, measure it: the content of report.json, and what its figures are drawn from."""
    with built.backend.open(built.request, built.folder, built.files) as engine:
        parity = parity_of(engine, bundle, images, progress)
        progress(None, "measuring latency")
        latencies: list[Latency] = []
        sizes = bundle.manifest.profile.sizes
        for batch in sizes:
            latencies.append(measure_latency(engine, batch, bundle.manifest.model.image_size, BUILD_PLAN))
            progress(len(latencies) / len(sizes), "measuring latency")
        passed, reason = judge(parity, gate, bundle.manifest.weights.trained)
        report = report_of(
            bundle.manifest, engine.facts, why, parity, gate, passed, reason, [latency.to_json() for latency in latencies]
        )
        times = {latency.batch: thinned([trace.compute_ms for trace in latency.traces]) for latency in latencies}
        return report, Measurements(parity.samples if isinstance(parity, ParityReport) else None, times)


def _page_notes(progress: Progress) -> list[str]:
    """What the reader of report.json should know of the page beside it."""
    problem = missing_page()
    if problem is None:
        return []
    progress(None, problem)
    return [problem]
