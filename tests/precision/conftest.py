"""Shared by the INT8 tests: the packaged pico as a fused graph, exported once, and its pictures; int8_helpers is imported by name."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from int8_helpers import ASSETS, HARD, HARD_RECIPE, PREPROCESS, make_harder, portable_session

import gmf_edge
from gmf_edge.imageset import ImageSet
from gmf_edge.precision.activations import observe
from gmf_edge.precision.calibrate import ranges_from
from gmf_edge.precision.calibration_images import draw
from gmf_edge.precision.ranges import Provenance, Ranges
from gmf_edge.prepare.graphs import FUSED, fused_stage, plain_stage
from gmf_edge.prepare.source import load_source


@pytest.fixture(scope="session")
def fused_path(pico_export: Path, made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """2-fused.onnx of the packaged pico, from the stages of its export."""

    def copy(folder: Path) -> None:
        folder.mkdir()
        with ExitStack() as stack:
            source = load_source(gmf_edge.BuildSpec(), stack)
            fused = fused_stage(plain_stage(source, lambda *_: None), lambda *_: None)
        shutil.copyfile(fused.folder / FUSED, folder / FUSED)

    return made_once("pico-fused", copy) / FUSED


@pytest.fixture
def fused(fused_path: Path) -> onnx_ir.Model:
    return onnx_ir.load(fused_path)


@pytest.fixture(scope="session")
def digits() -> Iterator[ImageSet]:
    """The packaged calibration pictures: ten classes of sixty."""
    with ImageSet.open(ASSETS / "pico-digits-calibration.zip") as images:
        yield images


@pytest.fixture(scope="session")
def test_digits() -> Iterator[ImageSet]:
    """The packaged test pictures, 360 of ten classes."""
    with ImageSet.open(ASSETS / "pico-digits-test.zip") as images:
        yield images


@pytest.fixture(scope="session")
def inputs(digits: ImageSet) -> NDArray[np.float32]:
    """48 preprocessed calibration pictures, [48, 3, 64, 64]."""
    return np.concatenate([batch.inputs for batch in draw(digits, 48, 2).batches(PREPROCESS, 16)])


@pytest.fixture(scope="session")
def hard(fused_path: Path, inputs: NDArray[np.float32]) -> tuple[onnx_ir.Model, Ranges]:
    """(graph, ranges) of a pico whose HARD layer has outlier channels; the function is pico's."""
    graph = onnx_ir.load(fused_path)
    make_harder(graph, HARD)
    statistics = observe(graph, lambda: np.split(inputs, 3), images=len(inputs))
    return graph, ranges_from(statistics, HARD_RECIPE, Provenance("", None, "", {}, "minmax", 0.0, 0.0, len(inputs), 0))


Logits = Callable[[onnx_ir.Model, ImageSet], NDArray[np.float32]]


@pytest.fixture(scope="session")
def logits(tmp_path_factory: pytest.TempPathFactory) -> Logits:
    """Runs a graph, bodies inlined, in ONNX Runtime as an engine would."""
    folder = tmp_path_factory.mktemp("logits")

    def run(graph: onnx_ir.Model, images: ImageSet) -> NDArray[np.float32]:
        session = portable_session(graph, folder, integer=False)
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: batch.inputs})[0] for batch in images.batches(PREPROCESS, 16)])

    return run


@pytest.fixture(scope="session")
def exact_logits(fused_path: Path, test_digits: ImageSet, logits: Logits) -> NDArray[np.float32]:
    """The packaged model's FP32 logits of test_digits."""
    return logits(onnx_ir.load(fused_path), test_digits)
