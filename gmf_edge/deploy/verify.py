"""Proving a bundle's engine again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gmf_edge.bundle import open_bundle
from gmf_edge.deploy.engine import open_or_build
from gmf_edge.deploy.parity import evaluation_images, gate_of, parity_of
from gmf_edge.deploy.result import Result
from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.verify.judge import judge
from gmf_edge.verify.report import report_of


def verify_bundle(
    folder: Path,
    *,
    backend: str = "auto",
    options: Mapping[str, Any] | None = None,
    eval_data: Path | str | None = None,
    max_drop_points: float | None = None,
    progress: Progress = silent,
) -> Result:
    """Prove a bundle's engine again, every byte and every number; nothing is written. What `gmf-edge verify` does.

    Args:
        folder: a bundle.
        backend: "auto" is the one that the bundle was deployed with, where it was.
        options: the backend's own, such as threads, over those that the bundle was deployed with.
        eval_data: the evaluation images that the bundle was built with; None for golden data alone.
        max_drop_points: overrides the gate's, in percentage points.
        progress: told what is going on.

    Raises:
        GmfEdgeError: see gmf_edge.errors.
    """
    bundle = open_bundle(folder)
    gate = gate_of(bundle.manifest, max_drop_points)
    with ExitStack() as stack:
        images = evaluation_images(bundle, eval_data, stack)
        engine, why = open_or_build(bundle, backend, stack, progress, options)
        parity = parity_of(engine, bundle, images, progress)
        passed, reason = judge(parity, gate, bundle.manifest.weights.trained)
        report = report_of(bundle.manifest, engine.facts, why, parity, gate, passed, reason, [])
    return Result(folder, passed, reason, report)
