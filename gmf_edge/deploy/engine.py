"""A bundle's engine: the request that it is built from, and opening it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gmf_edge.bundle import Bundle
from gmf_edge.engines.choose import choose_backend
from gmf_edge.engines.protocol import Engine, EngineRequest, Progress
from gmf_edge.errors import BundleError


def engine_request(bundle: Bundle, use_plugin: bool, options: Mapping[str, Any]) -> EngineRequest:
    """What a backend is asked to build from the bundle."""
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


def open_engine(bundle: Bundle) -> Engine:
    """The deployed engine of a bundle, by the backend it was deployed with; close it, or use it in a `with` statement.

    Raises:
        GmfEdgeError: see gmf_edge.errors; BundleError where the bundle was not deployed yet.
    """
    report = bundle.report
    if report is None:
        raise BundleError(f"{bundle.folder} has no engine yet", "run 'gmf-edge deploy' on it")
    backend, _ = choose_backend(str(report["backend"]))
    return backend.open(engine_request(bundle, use_plugin=True, options={}), bundle.folder, bundle.manifest.engine_files)


def open_or_build(bundle: Bundle, backend: str, stack: ExitStack, progress: Progress) -> tuple[Engine, str]:
    """The bundle's engine, by the backend it was deployed with; ONNX Runtime needs no deployment."""
    deployed = (bundle.report or {}).get("backend")
    chosen, why = choose_backend(str(deployed) if backend == "auto" and deployed else backend)
    files = bundle.manifest.engine_files if deployed == chosen.name else ()
    folder = bundle.folder
    request = engine_request(bundle, use_plugin=True, options={})
    if not files:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gmf-edge-")))
        files = chosen.build(request, folder, progress)
    return stack.enter_context(chosen.open(request, folder, files)), why
