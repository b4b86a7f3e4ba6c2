"""report.json: what was asked, what runs, whether it behaves like FP32 PyTorch, and how fast."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gmf_edge.bundle import Manifest
from gmf_edge.engines.protocol import EngineFacts
from gmf_edge.spec import Gate, MapGate
from gmf_edge.verify.maps import MapReport
from gmf_edge.verify.parity import ParityReport

SCHEMA = 1


def report_of(
    manifest: Manifest,
    facts: EngineFacts,
    backend_reason: str,
    parity: ParityReport | MapReport,
    gate: Gate | MapGate,
    passed: bool,
    reason: str,
    latencies: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Plain values; latencies as bench.latency.Latency.to_json gives them; numbers that do not exist (accuracy without labels) are null."""
    engine = asdict(facts)
    engine["layers"] = [asdict(layer) for layer in facts.layers]
    return {
        "schema": SCHEMA,
        "passed": passed,
        "reason": reason,
        "backend": facts.backend,
        "backend_reason": backend_reason,
        "precision": manifest.precision.value,
        "weights": manifest.weights.to_json(),
        "model": manifest.model.to_json(),
        "gate": vars(gate),
        "parity": parity.to_json(),
        "latency": {str(latency["batch"]): dict(latency) for latency in latencies},
        "engine": engine,
        "versions": dict(manifest.versions),
        "python": platform.python_version(),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write report.json; NaN cannot be in it."""
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
