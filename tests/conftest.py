"""What several tests share: a cache of the run's own, and bundles that are built once a run and never changed.

With pytest-xdist the workers share both, under a lock. GMF_EDGE_TEST_CACHE names a folder that outlives the run, for faster repeats.
"""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import gmf_edge
from gmf_edge.artifact import cache_root
from gmf_edge.bench.latency import BenchPlan
from gmf_edge.spec import ModelSpec, SizeRange, Task

if TYPE_CHECKING:
    from gmf_edge.kernels.compile import KernelTable

# pytest-xdist tells its workers how wide the terminal is: output is compared as it is without one
os.environ.pop("COLUMNS", None)
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    # each worker has its own cores: thread pools that wait by spinning would take the other workers' time
    cores, worker = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    os.sched_setaffinity(0, cores[worker :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])] or cores)
# graph_tools.py is imported by name
sys.path.append(str(Path(__file__).parent))

ROOT = Path(__file__).parents[1]
TEST_SET = Path(gmf_edge.__file__).parent / "assets" / "pico-digits-test.zip"
# pixels and classes of the second model: sides that differ, an odd class count
ODD_SIZE, ODD_CLASSES = (96, 64), 7


def pytest_addoption(parser: pytest.Parser) -> None:
    # here, because pytest asks only the conftest.py of the folders that it is started with
    parser.addoption("--kill-rounds", type=int, default=100, help="rounds of the kill test (slow)")


def pytest_configure(config: pytest.Config) -> None:
    """Before anything asks for the cache: the user's own is never touched."""
    if hasattr(config, "workerinput"):
        return  # the workers inherit the environment
    kept = os.environ.get("GMF_EDGE_TEST_CACHE")
    root = Path(kept) if kept else Path(tempfile.mkdtemp(prefix="gmf-edge-tests-"))
    if not kept:
        config.add_cleanup(lambda: shutil.rmtree(root, ignore_errors=True))
    os.environ["GMF_EDGE_CACHE"] = str(root / "cache")


def pytest_collection_finish() -> None:
    """What is imported stays: looking through it for garbage again and again takes a tenth of a run."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of this run."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def made_once(shared_folder: Path) -> Callable[[str, Callable[[Path], object]], Path]:
    """made_once(name, make): the folder that make wrote, whichever worker came first."""

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared_folder / name
        with _locked(shared_folder / f"{name}.lock"):
            if not folder.exists():
                make(folder)
        return folder

    return made


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def pico_export(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The packaged model exported at FP16, not deployed: what travels to a device. Copy it before changing it."""
    pytest.importorskip("torch")
    spec = gmf_edge.BuildSpec(precision=gmf_edge.Precision.FP16)
    return made_once("pico-export", lambda folder: gmf_edge.export(spec, folder))


@pytest.fixture(scope="session")
def pico_fp16(pico_export: Path, made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The packaged model built at FP16 for ONNX Runtime. Copy it before changing it."""
    spec = gmf_edge.BuildSpec(precision=gmf_edge.Precision.FP16, backend="onnxruntime")
    return made_once("pico-fp16", lambda folder: gmf_edge.build(spec, folder))


@pytest.fixture(scope="session")
def pico_fp32(pico_export: Path, made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The packaged model built at FP32 for ONNX Runtime. Copy it before changing it."""
    spec = gmf_edge.BuildSpec(precision=gmf_edge.Precision.FP32, backend="onnxruntime")
    return made_once("pico-fp32", lambda folder: gmf_edge.build(spec, folder))


@pytest.fixture(scope="session")
def backbone_spec() -> gmf_edge.BuildSpec:
    """The request of pico_backbone."""
    return gmf_edge.BuildSpec(
        precision=gmf_edge.Precision.FP16,
        task=Task.FEATURES,
        sizes=SizeRange((32, 64), (64, 64), (64, 96)),
        profile=gmf_edge.BatchProfile(1, 1, 2),
        backend="onnxruntime",
    )


@pytest.fixture(scope="session")
def pico_backbone(backbone_spec: gmf_edge.BuildSpec, made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The packaged model's backbone built at FP16 for ONNX Runtime, for several image sizes. Copy it before changing it."""
    pytest.importorskip("torch")
    return made_once("pico-backbone", lambda folder: gmf_edge.build(backbone_spec, folder))


@pytest.fixture(scope="session")
def pico_int8(pico_export: Path, made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The packaged model exported at INT8, not deployed. Copy it before changing it."""
    spec = gmf_edge.BuildSpec(precision=gmf_edge.Precision.INT8, calibration_images=100)
    return made_once("pico-int8", lambda folder: gmf_edge.export(spec, folder))


@pytest.fixture(scope="session")
def pico_kernels(made_once: Callable[[str, Callable[[Path], object]], Path]) -> KernelTable:
    """The kernels of the packaged model's widths, 8 and 16, for sm_87."""
    pytest.importorskip("triton")
    from gmf_edge.kernels.compile import compile_kernels, read_table

    model = ModelSpec.of("pico")
    return read_table(made_once("pico-kernels", lambda folder: compile_kernels(model, ("sm_87",), folder)))


@dataclass(frozen=True)
class OddModel:
    """A pico of random weights at ODD_SIZE with ODD_CLASSES: its bundle and the graphs on the way there."""

    bundle: Path
    plain: Path
    fused: Path


@pytest.fixture(scope="session")
def odd_spec() -> gmf_edge.BuildSpec:
    """The request that OddModel answers."""
    return gmf_edge.BuildSpec(
        precision=gmf_edge.Precision.FP16, variant="pico", num_classes=ODD_CLASSES, image_size=ODD_SIZE, backend="onnxruntime"
    )


@pytest.fixture(scope="session")
def odd_pico(odd_spec: gmf_edge.BuildSpec, made_once: Callable[[str, Callable[[Path], object]], Path]) -> OddModel:
    """The untrained model, exported. Copy what you change."""
    pytest.importorskip("torch")

    def make(folder: Path) -> None:
        # a cache of its own, in which there is one stage of each name
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GMF_EDGE_CACHE", os.environ["GMF_EDGE_CACHE"] + "-odd")
            cache_root.cache_clear()
            gmf_edge.export(odd_spec, folder / "bundle")
            stages = cache_root() / "stages"
        cache_root.cache_clear()
        for name, stage in (("1-plain.onnx", "plain"), ("2-fused.onnx", "fused")):
            shutil.copyfile(max(stages.glob(f"{stage}-*"), key=lambda path: path.stat().st_mtime) / name, folder / name)

    folder = made_once("odd-pico", make)
    return OddModel(folder / "bundle", folder / "1-plain.onnx", folder / "2-fused.onnx")


@pytest.fixture(scope="session")
def wheel_file(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The package's wheel, built from this source tree."""
    pytest.importorskip("hatchling")

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    (path,) = made_once("wheel", make).glob("*.whl")
    return path


@pytest.fixture
def brief_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds measure latency for a moment only: these tests are not about its value."""
    monkeypatch.setattr("gmf_edge.deploy.BUILD_PLAN", BenchPlan(warmup_ms=0, duration_s=0.05))


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """copied(bundle): a copy that may be changed."""

    def copy(bundle: Path) -> Path:
        target = tmp_path / bundle.name
        shutil.copytree(bundle, target)
        return target

    return copy


@pytest.fixture(scope="session")
def digits(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Twenty pictures of the packaged test set in class folders. Copy them before changing them."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(TEST_SET) as archive:
            pictures = sorted(name for name in archive.namelist() if name.endswith(".png"))
            for label in range(10):
                for name in [p for p in pictures if Path(p).parent.name == str(label)][:2]:
                    target = folder / str(label) / Path(name).name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(name))

    return made_once("digits", make)
