"""Building a bundle's engine, with the plugin where that is right and faster."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gmf_edge.bench.compare import compare
from gmf_edge.bundle import GOLDEN, Bundle
from gmf_edge.engines.protocol import Backend, EngineRequest, Progress
from gmf_edge.spec import Gate
from gmf_edge.verify.batches import prove_batches
from gmf_edge.verify.golden import Golden

# a library that has to travel must be worth it
PLUGIN_MARGIN = 1.02


def build_engine(
    backend: Backend, request: EngineRequest, bundle: Bundle, gate: Gate, progress: Progress
) -> tuple[EngineRequest, tuple[str, ...], dict[str, Any] | None]:
    """Build into the bundle's folder.

    Returns:
        The request that the engine was built from, its files (the engine first), and the comparison of the engines with and without
        the plugin: None where no plugin engine was built.
    """
    engine_files = backend.build(request, bundle.folder, progress)
    plugin = compare_plugin(backend, request, bundle, engine_files, gate, progress)
    if plugin is not None and not plugin["accepted"]:
        request = replace(request, use_plugin=False, options=without_plugin(request.options))
        for name in engine_files:
            bundle.path(name).unlink()
        engine_files = backend.build(request, bundle.folder, progress)
    return request, engine_files, plugin


def compare_plugin(
    backend: Backend, request: EngineRequest, bundle: Bundle, engine_files: tuple[str, ...], gate: Gate, progress: Progress
) -> dict[str, Any] | None:
    """Whether a plugin engine is right and faster than the engine without it; None where no plugin engine was built."""
    if not engine_files:
        return None  # the backend runs the bundle's portable graph itself
    golden = Golden.load(bundle.path(GOLDEN))
    with ExitStack() as stack:
        engine = stack.enter_context(backend.open(request, bundle.folder, engine_files))
        if engine.facts.form != "plugin":
            return None
        progress(None, "building the engine without the plugin, to compare")
        portable = replace(request, use_plugin=False, options=without_plugin(request.options))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gmf-edge-")))
        other = stack.enter_context(backend.open(portable, folder, backend.build(portable, folder, progress)))
        numerics = prove_batches(engine, golden.images, golden.logits, request.profile.sizes)
        right = all(found.cosine >= gate.min_cosine and not found.non_finite_rows for found in numerics.values())
        images = np.repeat(golden.images[:1], request.profile.opt, axis=0)
        decision = compare(
            lambda: engine.infer(images),
            lambda: other.infer(images),
            candidate="the plugin engine",
            baseline="the engine without it",
            within_gate=right,
            margin=PLUGIN_MARGIN,
        )
    progress(None, decision.reason)
    return decision.to_json()


def without_plugin(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an engine that needs no plugin library."""
    return {name: value for name, value in options.items() if name != "plugin_library"}
