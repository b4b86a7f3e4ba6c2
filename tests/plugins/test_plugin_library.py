"""Builds the C++ plugin and its host-logic test with AddressSanitizer, and runs it against a mock of the CUDA driver.

TENSORRT_ROOT: one or more folders with TensorRT's headers, separated by ":" (8.6, 10.3, 10.13, 11.1 in CI); without it, or without
CMake, a C++ compiler or CUDA's headers, these tests are skipped.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from fake_kernels import fake_table

from gmf_edge.kernels.archive import kernel_archive
from gmf_edge.kernels.layout import (
    AGGREGATE_JOBS,
    MATRIX_COUNT,
    VECTOR_ROWS,
    Tile,
    Tiling,
    fills_the_device,
    padded_dim,
    plan,
)

PLUGINS = Path(__file__).parents[2] / "plugins"
ROOTS = [Path(root) for root in os.environ.get("TENSORRT_ROOT", "").split(":") if root]

needs_headers = pytest.mark.skipif(not ROOTS, reason="TENSORRT_ROOT is not set")
needs_tools = pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="needs CMake and a C++ compiler")
pytestmark = [needs_headers, needs_tools]


@pytest.fixture(scope="module", params=ROOTS, ids=[root.name for root in ROOTS])
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build folder with the library, the mock and the test, for one set of headers."""
    folder = tmp_path_factory.mktemp("plugin")
    configure = ["cmake", "-S", str(PLUGINS), "-B", str(folder), f"-DTENSORRT_ROOT={request.param}", "-DGMF_EDGE_PLUGIN_TESTS=ON"]
    sanitize = ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS=-fsanitize=address,undefined -fno-sanitize-recover=all"]
    done = subprocess.run([*configure, *sanitize], capture_output=True, text=True)
    if "cuda.h was not found" in done.stderr:
        pytest.skip("needs CUDA's headers")
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["cmake", "--build", str(folder), "--parallel", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_host_logic_against_the_mock_driver(build: Path, tmp_path: Path) -> None:
    kernels = tmp_path / "kernels.txt"
    kernels.write_text(base64.b64encode(kernel_archive(fake_table(tmp_path), 16)).decode())
    # the address sanitizer's allocator hides a leaked module no better than the mock's own count
    environment = {**os.environ, "LD_LIBRARY_PATH": str(build / "mock"), "ASAN_OPTIONS": "detect_leaks=1:alloc_dealloc_mismatch=1"}
    command = [str(build / "plugin_host_test"), str(build / "libgmf_edge_plugin.so"), str(kernels)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_library_exports_only_what_tensorrt_looks_for(build: Path) -> None:
    text = subprocess.run(
        ["nm", "-D", "--defined-only", str(build / "libgmf_edge_plugin.so")], capture_output=True, text=True
    ).stdout
    names = {line.split()[-1] for line in text.splitlines() if " T " in line}
    assert {"getPluginCreators", "setLoggerFinder"} <= names
    assert names - {"getPluginCreators", "setLoggerFinder", "getCreators", "_init", "_fini"} == set()
    needed = subprocess.run(["readelf", "-d", str(build / "libgmf_edge_plugin.so")], capture_output=True, text=True).stdout
    # loads on a machine without a driver, and does not pull a TensorRT in
    assert "libcuda" not in needed
    assert "libnvinfer" not in needed


def test_without_a_driver_the_library_loads_and_says_so(build: Path, tmp_path: Path) -> None:
    kernels = tmp_path / "kernels.txt"
    kernels.write_text(base64.b64encode(kernel_archive(fake_table(tmp_path), 16)).decode())
    if subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout.count("libcuda.so.1"):
        pytest.skip("this machine has a driver")
    code = f"import ctypes; ctypes.CDLL({str(build / 'libgmf_edge_plugin.so')!r}).getPluginCreators(ctypes.byref(ctypes.c_int()))"
    # a library built with a sanitizer needs its runtime first
    runtime = subprocess.run(["c++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    environment = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
    subprocess.run([shutil.which("python3") or "python3", "-c", code], check=True, env=environment)


def test_geometry_in_cpp_is_that_of_python(build: Path) -> None:
    maps = ((56, 56, 16, 64), (28, 28, 32, 32), (14, 14, 64, 16), (7, 7, 64, 32), (96, 96, 48, 64), (11, 13, 96, 16))
    cases = [(batch, *shape, processors) for batch in (1, 2, 3, 7, 8, 52, 53, 64) for shape in maps for processors in (8, 16, 132)]
    lines = "\n".join(" ".join(map(str, case)) for case in cases)
    done = subprocess.run([str(build / "plugin_host_test"), "--geometry"], input=lines, capture_output=True, text=True, check=True)
    for case, line in zip(cases, done.stdout.splitlines(), strict=True):
        batch, height, width, segment_dim, tile, processors = case
        tiling = Tiling("any", Tile(tile, 16, 4), Tile(tile, 16, 4), parts=1, merge=1)
        geometry = plan(batch, height, width, segment_dim, tiling, processors)
        *got, partial_bytes = map(int, line.split())
        floats = geometry.partial_floats
        assert got == [
            *(geometry.splits, geometry.tiles_per_split, fills_the_device(batch, height, width, tile, processors)),
            *(padded_dim(segment_dim), floats, VECTOR_ROWS, MATRIX_COUNT, AGGREGATE_JOBS),
        ], case
        # the workspace for this batch also holds the partials of every smaller one, on every GPU and with every larger tile: its size
        # is kept in the engine
        for larger in (tile, 4 * tile):
            other = replace(tiling, aggregate=Tile(larger, 16, 4))
            for smaller in range(1, batch + 1):
                for many in (1, 8, 16, 108, 132, 160, 1024):
                    splits = plan(smaller, height, width, segment_dim, other, many).splits
                    assert partial_bytes >= smaller * splits * 4 * floats * 4, (case, larger, smaller, many)


def test_the_library_that_registers_itself_gives_nothing_to_load_library(build: Path) -> None:
    library = str(build / "libgmf_edge_plugin_registered.so")
    text = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True).stdout
    names = {line.split()[-1] for line in text.splitlines() if " T " in line}
    assert names - {"_init", "_fini"} == set()
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True).stdout
    assert "libnvinfer" not in needed


def test_the_library_that_registers_itself_says_where_it_cannot(build: Path) -> None:
    code = f"import ctypes; ctypes.CDLL({str(build / 'libgmf_edge_plugin_registered.so')!r})"
    runtime = subprocess.run(["c++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    environment = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([shutil.which("python3") or "python3", "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "not registered, because libnvinfer.so." in done.stderr


REGISTERED_BESIDE = """
import ctypes, os, sys
nvinfer = ctypes.CDLL(sys.argv[2], mode=os.RTLD_NOW | os.RTLD_LOCAL) if sys.argv[3] == "loaded" else None
ctypes.CDLL(sys.argv[1], mode=os.RTLD_NOW | os.RTLD_LOCAL)
nvinfer = nvinfer or ctypes.CDLL(sys.argv[2])
nvinfer.registryNotes.restype = ctypes.c_char_p
print(nvinfer.registryNotes().decode(), end="")
"""


@pytest.mark.parametrize("order", ["loaded", "found"])
def test_the_library_that_registers_itself_uses_the_interface_of_its_tensorrt(build: Path, order: str) -> None:
    """Whether the program has loaded TensorRT already, or the loader finds it."""
    [nvinfer] = (build / "fake").glob("libnvinfer.so.*")
    runtime = subprocess.run(["c++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    environment = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
    environment |= {"LD_LIBRARY_PATH": str(nvinfer.parent)} if order == "found" else {}
    library = str(build / "libgmf_edge_plugin_registered.so")
    command = [shutil.which("python3") or "python3", "-c", REGISTERED_BESIDE, library, str(nvinfer), order]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    interface = "V2" if nvinfer.name.endswith(".8") else "V3"
    assert done.stdout == f"{interface} GmfGroupMixAttention 1 ''\n", done.stdout + done.stderr


LOADED_BY_DLOPEN = """
import ctypes, os, sys
import tensorrt as trt
name = "GmfGroupMixAttention"
registry = trt.get_plugin_registry()
before = name in [creator.name for creator in registry.plugin_creator_list]
# as Triton's backend does it: dlopen(path, RTLD_NOW | RTLD_LOCAL), and nothing else
ctypes.CDLL(sys.argv[1], mode=os.RTLD_NOW | os.RTLD_LOCAL)
found = [creator for creator in registry.plugin_creator_list if creator.name == name]
print(before, [(creator.name, creator.plugin_version, creator.plugin_namespace) for creator in found])
"""


def test_a_plain_dlopen_beside_the_real_library_registers_the_plugin(tmp_path: Path) -> None:
    home = os.environ.get("GMF_EDGE_TRT_HOME", "")
    roots = [root for root in ROOTS if root.name.startswith("8.")]
    if not home or not roots:
        pytest.skip("needs GMF_EDGE_TRT_HOME (an unpacked TensorRT 8.6) and its headers in TENSORRT_ROOT")
    configure = ["cmake", "-S", str(PLUGINS), "-B", str(tmp_path), f"-DTENSORRT_ROOT={roots[0]}"]
    subprocess.run(configure, check=True, capture_output=True)
    target = ["cmake", "--build", str(tmp_path), "--parallel", "2", "--target", "gmf_edge_plugin_registered"]
    subprocess.run(target, check=True, capture_output=True)
    script = tmp_path / "load.py"
    script.write_text(LOADED_BY_DLOPEN)
    line = f". {home}/env.sh; trt-python {script} {tmp_path / 'libgmf_edge_plugin_registered.so'}"
    # the pack's Python needs none of this process's paths
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_LIBRARY_PATH")}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment)
    assert done.stdout == "False [('GmfGroupMixAttention', '1', '')]\n", done.stdout + done.stderr
