"""GPU memory of engines that are opened and closed, on the deployed bundles of test_gpu; gpu_check.sh runs it last.

GMF_EDGE_BUNDLES=out/gpu_check pytest -m gpu tests/engines/tensorrt/test_gpu_memory.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from deployed_engines import opened

from gmf_edge.engines.tensorrt.cuda import Device, free_memory_mib

pytestmark = pytest.mark.gpu


def use(folder: Path) -> None:
    with opened(folder) as engine:
        for batch in engine.profile.sizes:
            engine.infer(np.zeros((batch, *engine.io.image_shape), np.float32))


def test_opening_and_closing_leaks_no_memory(folder: Path) -> None:
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
