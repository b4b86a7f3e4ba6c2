"""Both halves on one machine: what `gmf-edge build` does."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from gmf_edge.bench.compare import compare_engines, refused
from gmf_edge.bundle import REPORT, open_bundle, require_replaceable
from gmf_edge.deploy import Result, deploy_in_place, open_engine
from gmf_edge.engines.choose import choose_backend
from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.prepare import write_bundle
from gmf_edge.prepare.source import SourceModel, load_source
from gmf_edge.report import seal_with_page
from gmf_edge.scratch import new_folder, scratch_folder
from gmf_edge.spec import BuildSpec, Precision
from gmf_edge.verify.report import write_report


def build(
    spec: BuildSpec,
    out: Path,
    *,
    use_plugin: bool = True,
    options: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Result:
    """From a checkpoint to a bundle with a proved and measured engine.

    INT8 is built beside what it would replace (FP16 on a GPU, FP32 on a CPU) and both are timed in turn: INT8 is delivered only where it
    is within its gate and clearly faster (bench.compare), the other otherwise, and the report tells of both.

    Args:
        spec: the request.
        out: folder to write; a bundle that is there is replaced whole, anything else is refused.
        use_plugin: whether the plugin form may be used.
        options: the backend's own.
        progress: told what is going on.

    Returns:
        The result; a result outside the gate is returned (and its bundle written), not raised.

    Raises:
        GmfEdgeError: see gmf_edge.errors; nothing is left behind.
    """
    require_replaceable(out)
    backend, _ = choose_backend(spec.backend, to_build=True)  # fails here, not after minutes of export
    with ExitStack() as stack:
        source = load_source(spec, stack, progress)
        folder = stack.enter_context(new_folder(out))

        def built(request: BuildSpec, place: Path) -> Result:
            return deploy_in_place(
                write_bundle(source, request, place, progress),
                source.evaluation,
                backend=spec.backend,
                gate=request.gate,
                use_plugin=use_plugin,
                options=options,
                progress=progress,
            )

        result = built(spec, folder)
        if spec.precision is Precision.INT8:
            other = stack.enter_context(scratch_folder()) / "bundle"
            other.mkdir()
            fallback = Precision.FP16 if backend.name == "tensorrt" else Precision.FP32
            plain = replace(
                spec,
                precision=fallback,
                calibration_data=None,
                ranges=None,
                auto=False,
                max_drop_points=None,
            )
            result = _better(result, built(plain, other), spec, source, folder, progress)
    return Result(out, result.passed, result.reason, result.report)


def _better(int8: Result, other: Result, spec: BuildSpec, source: SourceModel, folder: Path, progress: Progress) -> Result:
    """Leave in `folder` the one of the two that should be delivered, with both in its report."""
    names = ("INT8", str(other.report["precision"]).upper())
    if int8.passed:
        with ExitStack() as stack:
            engines = [stack.enter_context(open_engine(open_bundle(result.folder))) for result in (int8, other)]
            size = source.spec.image_size
            decision = compare_engines(*engines, names=names, profile=spec.profile, image_size=size, progress=progress)
    else:
        decision = refused(names, f"INT8 is outside its accuracy gate: {int8.reason}")
    progress(None, decision.reason)
    int8_delivered = decision.accepted or (int8.passed and spec.keep_int8)
    delivered, alternative = (int8, other) if int8_delivered else (other, int8)
    reason = decision.reason
    if int8_delivered and not decision.accepted:
        reason = f"INT8 is delivered, as asked, although it is not faster here ({decision.reason})"
    report = {
        **delivered.report,
        "passed": delivered.passed and int8.passed,
        "reason": f"{delivered.reason}; {reason}",
        "comparison": decision.to_json(),
        "alternative": {
            key: alternative.report[key] for key in ("precision", "passed", "reason", "parity", "latency", "plugin", "choice")
        },
    }
    request = open_bundle(folder).manifest.request
    if not int8_delivered:
        for path in folder.iterdir():
            path.unlink()
        for path in delivered.folder.iterdir():
            shutil.copyfile(path, folder / path.name)
    # asked for was INT8, whatever was delivered
    manifest = replace(open_bundle(delivered.folder).manifest, request=request)
    write_report(report, folder / REPORT)
    bundle = seal_with_page(folder, manifest, report)
    return Result(bundle.folder, bool(report["passed"]), str(report["reason"]), report)
