"""Engines that benchmarks/gpu_check.sh has deployed, for the tests that need a GPU: GMF_EDGE_BUNDLES names their folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from gmf_edge.bundle import is_bundle
from gmf_edge.engines.tensorrt.backend import ENGINE_FILE, open_engine
from gmf_edge.engines.tensorrt.options import TensorRTOptions
from gmf_edge.engines.tensorrt.run import TensorRTEngine
from gmf_edge.engines.tensorrt.sidecar import Sidecar


def deployed() -> list[Path]:
    folder = os.environ.get("GMF_EDGE_BUNDLES")
    if not folder:
        return []
    return [path for path in sorted(Path(folder).iterdir()) if is_bundle(path) and (path / ENGINE_FILE).is_file()]


def opened(folder: Path, **options: Any) -> TensorRTEngine:
    sidecar = Sidecar.read(folder / ENGINE_FILE)
    return open_engine(folder / ENGINE_FILE, sidecar, TensorRTOptions(**options), folder / sidecar.graph_file)


def images_for(engine: TensorRTEngine, batch: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(batch, *engine.io.image_shape)).astype(np.float32)
