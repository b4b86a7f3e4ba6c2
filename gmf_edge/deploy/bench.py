"""Latency of a bundle's engine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gmf_edge.bench.latency import Latency, measure_latency, require_settings
from gmf_edge.bundle import open_bundle
from gmf_edge.deploy.engine import open_or_build
from gmf_edge.engines.protocol import Progress, silent


def bench_bundle(
    folder: Path,
    *,
    batches: tuple[int, ...] = (),
    backend: str = "auto",
    options: Mapping[str, Any] | None = None,
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
    require_settings(warmup_ms, duration_s, iterations, percentiles)
    bundle = open_bundle(folder)
    with ExitStack() as stack:
        engine, _ = open_or_build(bundle, backend, stack, progress, options)
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
