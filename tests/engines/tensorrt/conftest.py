"""The deployed bundles that the tests marked gpu take one after the other; skipped with the reason where there is no GPU or no bundle."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# the module beside this one is imported by name
sys.path.append(str(Path(__file__).parent))

from deployed_engines import deployed, opened

from gmf_edge.engines.tensorrt.backend import TensorRTBackend
from gmf_edge.engines.tensorrt.run import TensorRTEngine


@pytest.fixture(params=deployed() or [None], ids=lambda path: path.name if path else "none")
def folder(request: pytest.FixtureRequest) -> Path:
    missing = TensorRTBackend().missing()
    if missing is not None:
        pytest.skip(missing)
    if request.param is None:
        pytest.skip("GMF_EDGE_BUNDLES names no folder of deployed bundles")
    path: Path = request.param
    return path


@pytest.fixture
def engine(folder: Path) -> Iterator[TensorRTEngine]:
    with opened(folder) as engine:
        yield engine
