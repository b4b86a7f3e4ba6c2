"""What a bundle is, in the few plain values that travel with a measurement: how it was made, how right it is, how large it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gmf_edge.bundle import Bundle, Manifest

# of report.json's parity
ACCURACY = (
    "images",
    "reference_top1",
    "engine_top1",
    "top1_change_points",
    "interval_95",
    "agreement",
    "cosine",
    "min_cosine",
    "relative_l2",
    "flips",
)


def bundle_summary(bundle: Bundle) -> dict[str, Any]:
    """{"made": see made_of, "accuracy": of its report or None, "bytes": file -> size}."""
    report = bundle.report
    return {
        "made": made_of(bundle.manifest),
        "accuracy": None if report is None else accuracy_of(report["parity"]),
        "bytes": {name: entry["bytes"] for name, entry in bundle.manifest.files.items()},
    }


def made_of(manifest: Manifest) -> dict[str, Any]:
    """What was asked for and what made it, without the lists that only `inspect` shows."""
    values = manifest.to_json()
    lowering = manifest.lowering
    int8 = lowering.get("int8") or {}
    return {
        **{name: values[name] for name in ("model", "precision", "profile", "preprocess", "io_dtype", "gate", "versions")},
        "weights": {name: values["weights"][name] for name in ("kind", "file", "sha256", "detail")},
        "evaluation": values["evaluation"],
        "islands": sorted(lowering.get("islands", {})),
        "int8": {name: int8[name] for name in sorted(int8) if name != "layer_snr"},
    }


def accuracy_of(parity: Mapping[str, Any]) -> dict[str, Any]:
    """ACCURACY of a report's parity."""
    return {name: parity.get(name) for name in ACCURACY}
