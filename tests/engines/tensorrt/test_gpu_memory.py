"""GPU memory of engines that are opened and closed, on the deployed bundles of test_gpu; gpu_check.sh runs it last.

GMF_EDGE_BUNDLES=out/gpu_check pytest -m gpu tests/engines/tensorrt/test_gpu_memory.py
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from gmf_edge.bundle import is_bundle
from gmf_edge.engines.tensorrt.backend import ENGINE_FILE, TensorRTBackend, open_engine
from gmf_edge.engines.tensorrt.cuda import Device, free_memory_mib
from gmf_edge.engines.tensorrt.options import TensorRTOptions
from gmf_edge.engines.tensorrt.sidecar import Sidecar

pytestmark = pytest.mark.gpu


def deployed() -> list[Path]:
    folder = os.environ.get("GMF_EDGE_BUNDLES")
    return [path for path in sorted(Path(folder).iterdir()) if is_bundle(path) and (path / ENGINE_FILE).is_file()] if folder else []


def use(folder: Path) -> None:
    sidecar = Sidecar.read(folder / ENGINE_FILE)
    with open_engine(folder / ENGINE_FILE, sidecar, TensorRTOptions(), folder / sidecar.graph_file) as engine:
        for batch in engine.profile.sizes:
            engine.infer(np.zeros((batch, *engine.io.image_shape), np.float32))


@pytest.mark.parametrize("folder", deployed() or [None], ids=lambda path: path.name if path else "none")
def test_opening_and_closing_leaks_no_memory(folder: Path | None) -> None:
    missing = TensorRTBackend().missing()
    if missing is not None or folder is None:
        pytest.skip(missing or "GMF_EDGE_BUNDLES names no folder of deployed bundles")
    if Device.here().integrated:
        pytest.skip("a Jetson's free memory is the whole system's: other programs and the page cache change it")
    use(folder)  # lazy loading of kernels and libraries stays
    free_mib = [free_memory_mib()]
    for _ in range(6):
        use(folder)
        free_mib.append(free_memory_mib())
    # what an engine holds at least would be lost each time; a program beside this one takes its memory once
    lost_mib = -np.diff(free_mib)
    assert np.median(lost_mib) <= 1, f"free MiB after each use: {free_mib}"
