"""A bundle's engine: the request that it is built from, and opening it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from gmf_edge.bundle import GOLDEN, Bundle
from gmf_edge.engines.choose import choose_backend
from gmf_edge.engines.protocol import Engine, EngineRequest, Progress
from gmf_edge.errors import BundleError, EngineError
from gmf_edge.scratch import scratch_folder
from gmf_edge.verify.proof import golden_failure


def engine_request(bundle: Bundle, use_plugin: bool, options: Mapping[str, Any]) -> EngineRequest:
    """What a backend is asked to build from the bundle."""
    manifest = bundle.manifest
    return EngineRequest(
        graphs=bundle.graphs,
        precision=manifest.precision,
        profile=manifest.profile,
        image_size=manifest.model.image_size,
        fp32_islands=tuple(manifest.lowering.get("islands", {})),
        quantised_layers=tuple(manifest.lowering.get("int8", {}).get("layers", ())),
        use_plugin=use_plugin,
        options=options,
        sizes=manifest.sizes,
        task=manifest.model.task,
    )


def open_engine(bundle: Bundle) -> Engine:
    """The deployed engine of a bundle, by the backend it was deployed with; close it, or use it in a `with` statement.

    Raises:
        GmfEdgeError: see gmf_edge.errors; BundleError where the bundle was not deployed yet, EngineError where weights that were put in
            now make another function of it.
    """
    report = bundle.report
    if report is None:
        raise BundleError(f"{bundle.folder} has no engine yet", "run 'gmf-edge deploy' on it")
    backend, _ = choose_backend(str(report["backend"]))
    request = engine_request(bundle, use_plugin=True, options=_options_of(report))
    engine = backend.open(request, bundle.folder, bundle.manifest.engine_files)
    try:
        _prove_refit(engine, bundle)
    except BaseException:
        engine.close()
        raise
    return engine


def open_or_build(
    bundle: Bundle, backend: str, stack: ExitStack, progress: Progress, options: Mapping[str, Any] | None = None
) -> tuple[Engine, str]:
    """The bundle's engine, by the backend and with the options that it was deployed with; ONNX Runtime and OpenVINO need no deployment.

    Args:
        bundle: deployed or not.
        backend: "auto" for the one that it was deployed with.
        stack: closes the engine.
        progress: told what is going on.
        options: of the backend, over those that it was deployed with.

    Raises:
        GmfEdgeError: see gmf_edge.errors.
    """
    report = bundle.report or {}
    deployed = report.get("backend")
    chosen, why = choose_backend(str(deployed) if backend == "auto" and deployed else backend)
    files = bundle.manifest.engine_files if deployed == chosen.name else ()
    folder = bundle.folder
    stored = _options_of(report) if deployed == chosen.name else {}
    request = engine_request(bundle, use_plugin=True, options={**stored, **(options or {})})
    if not files:
        folder = stack.enter_context(scratch_folder())
        files = chosen.build(request, folder, progress)
    engine = stack.enter_context(chosen.open(request, folder, files))
    _prove_refit(engine, bundle)
    return engine, why


def _options_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """With which the delivered engine is opened again; an older report has none."""
    return dict(report["engine"].get("options", {}))


def _prove_refit(engine: Engine, bundle: Bundle) -> None:
    """What was proved of the file is not proved of weights that were put in afterwards: TensorRT may leave folded ones as they were.

    Raises:
        EngineError: the golden images are outside the bundle's gate.
    """
    if not engine.facts.refitted:
        return
    failure = golden_failure(engine, bundle.path(GOLDEN), bundle.manifest.profile.sizes, bundle.manifest.gate)
    if failure is not None:
        raise EngineError(
            f"the engine of {bundle.folder} is wrong with its weights put back: {failure}", "deploy again without --stripWeights"
        )
