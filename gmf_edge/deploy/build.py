"""Building a bundle's engine, and a second one with the plugin where that may be right and faster.

The engine without the plugin is built first and closed, so that it is there whatever the plugin does, and none is in memory while
another is built. Each engine is built once: the one that was timed is the one that is delivered.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmf_edge.bundle import GOLDEN, Bundle
from gmf_edge.deploy.plugin_trial import LIMIT_BUILDS, LIMIT_S, TrialJob, try_plugin, without_plugin
from gmf_edge.engines.protocol import Backend, EngineRequest, Progress
from gmf_edge.engines.tensorrt.plugins import require_library_file
from gmf_edge.spec import Gate, MapGate


@dataclass(frozen=True)
class BuiltEngine:
    """A finished engine: who built it and from what, its files in a folder, the engine first, and what it is called among several."""

    backend: Backend
    request: EngineRequest
    folder: Path
    files: tuple[str, ...]
    name: str = ""


def build_engines(
    backend: Backend, request: EngineRequest, bundle: Bundle, gate: Gate | MapGate, scratch: Path, progress: Progress
) -> tuple[list[BuiltEngine], dict[str, Any] | None]:
    """Build the engines that may be delivered, the preferred one first.

    Args:
        backend: that builds.
        request: with the plugin, where it may be used.
        bundle: whose golden data prove the plugin.
        gate: that the plugin engine must be within.
        scratch: folder for the engines; exists and is empty.
        progress: told what is going on.

    Returns:
        One engine or, with the plugin accepted, two; and the comparison of the two for the report, None where no plugin was tried.

    Raises:
        EngineError: the engine without the plugin cannot be built, or there is no plugin library where one was given.
    """
    library = request.options.get("plugin_library")
    if library is not None:
        require_library_file(library)
    with_plugin = backend.graph_form(request) == "plugin"
    portable_request = without_plugin(request) if with_plugin else request
    folders = {name: scratch / name for name in ("portable", "plugin", "trial")}
    for folder in folders.values():
        folder.mkdir()
    started = time.monotonic()
    files = backend.build(portable_request, folders["portable"], progress)
    portable = BuiltEngine(backend, portable_request, folders["portable"], files)
    if not with_plugin:
        return [portable], None
    limit_s = LIMIT_S + LIMIT_BUILDS * (time.monotonic() - started)
    progress(None, f"trying the plugin in a process of its own, for at most {limit_s / 60:.3g} minutes")
    job = TrialJob(backend.name, request, portable.folder, portable.files, bundle.path(GOLDEN), gate, folders["plugin"])
    trial = try_plugin(job, folders["trial"], limit_s, progress)
    progress(None, str(trial.report["reason"]))
    accepted = [BuiltEngine(backend, request, folders["plugin"], trial.files)] if trial.accepted else []
    return [*accepted, portable], trial.report
