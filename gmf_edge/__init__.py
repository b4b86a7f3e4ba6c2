"""GroupMixFormer on real hardware: from a checkpoint to a verified, measured engine in one folder.

    import gmf_edge
    result = gmf_edge.build(gmf_edge.BuildSpec(precision=gmf_edge.Precision.FP16), Path("out/pico"))
    print(result.passed, result.reason)

The functions are those of the command line. `build`, `export` and `calibrate` need the workstation's packages (torch, onnx), the others
do not; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gmf_edge.errors import GmfEdgeError
from gmf_edge.spec import BatchProfile, BuildSpec, Gate, ModelSpec, Precision

if TYPE_CHECKING:
    from gmf_edge.bundle import Bundle, Manifest, open_bundle
    from gmf_edge.deploy import (
        BenchRequest,
        BenchResult,
        Prediction,
        Result,
        bench_bundle,
        compare,
        deploy_bundle,
        predict,
        verify_bundle,
    )
    from gmf_edge.package import PackageRequest, package_bundle
    from gmf_edge.pipeline import build
    from gmf_edge.prepare import calibrate, export

__version__ = "0.1.0"

_HOMES = {
    "build": "gmf_edge.pipeline",
    "export": "gmf_edge.prepare",
    "calibrate": "gmf_edge.prepare",
    "deploy_bundle": "gmf_edge.deploy",
    "verify_bundle": "gmf_edge.deploy",
    "bench_bundle": "gmf_edge.deploy",
    "BenchRequest": "gmf_edge.deploy",
    "BenchResult": "gmf_edge.deploy",
    "compare": "gmf_edge.deploy",
    "predict": "gmf_edge.deploy",
    "Prediction": "gmf_edge.deploy",
    "Result": "gmf_edge.deploy",
    "package_bundle": "gmf_edge.package",
    "PackageRequest": "gmf_edge.package",
    "Bundle": "gmf_edge.bundle",
    "Manifest": "gmf_edge.bundle",
    "open_bundle": "gmf_edge.bundle",
}

__all__ = [
    "BatchProfile",
    "BenchRequest",
    "BenchResult",
    "BuildSpec",
    "Bundle",
    "Gate",
    "GmfEdgeError",
    "Manifest",
    "ModelSpec",
    "PackageRequest",
    "Precision",
    "Prediction",
    "Result",
    "__version__",
    "bench_bundle",
    "build",
    "calibrate",
    "compare",
    "deploy_bundle",
    "export",
    "open_bundle",
    "package_bundle",
    "predict",
    "verify_bundle",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'gmf_edge' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
