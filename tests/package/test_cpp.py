"""The C++ programs: the ONNX Runtime one is built, run and compared with Python, the TensorRT one is built against NVIDIA's headers.

ONNXRUNTIME_ROOT  folder with onnxruntime_cxx_api.h in it or in include/, of ONNX Runtime 1.14 or newer; the
                  library is that of the Python package
TENSORRT_ROOT     see tests/plugins
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gmf_edge.bundle import GOLDEN, Manifest, open_bundle, seal
from gmf_edge.deploy import open_engine
from gmf_edge.errors import PackageError
from gmf_edge.package import package_bundle
from gmf_edge.verify.golden import Golden, in_batches

TENSORRT_ROOTS = [Path(root) for root in os.environ.get("TENSORRT_ROOT", "").split(":") if root]
CUDA_HEADERS = Path(os.environ.get("CUDA_ROOT", "/usr/local/cuda")) / "include"
needs_tools = pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="needs CMake and a C++ compiler")


def onnxruntime_headers() -> Path | None:
    root = os.environ.get("ONNXRUNTIME_ROOT")
    found = (
        [Path(root) / below for below in ("", "include", "include/onnxruntime", "include/onnxruntime/core/session")] if root else []
    )
    return next((folder for folder in found if (folder / "onnxruntime_cxx_api.h").is_file()), None)


def built(source: Path, *options: str) -> Path:
    """The program of a package."""
    for command in (["cmake", "-S", source, "-B", source / "build", *options], ["cmake", "--build", source / "build"]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr
    return source / "build" / "classify"


def classify(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True)


@needs_tools
@pytest.mark.skipif(onnxruntime_headers() is None, reason="ONNXRUNTIME_ROOT names no folder with onnxruntime_cxx_api.h")
def test_the_onnxruntime_programs_logits_are_pythons(pico_fp16: Path, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    out = tmp_path / "cpp"
    package_bundle(pico_fp16, "cpp", out)
    (library,) = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / name).symlink_to(library)
    program = built(
        out, f"-DONNXRUNTIME_INCLUDE={onnxruntime_headers()}", f"-DONNXRUNTIME_LIBRARY={tmp_path / 'libonnxruntime.so'}"
    )
    golden = Golden.load(pico_fp16 / GOLDEN)
    model, images, logits, expected = (
        out / "model" / "model.onnx",
        out / "golden" / "images.f32",
        tmp_path / "l.f32",
        out / "golden",
    )
    done = classify(
        program, model, images, logits, "--batch", 3, "--labels", out / "model" / "labels.txt", "--expect", expected / "logits.f32"
    )
    assert done.returncode == 0, done.stderr
    got = np.fromfile(logits, "<f4").reshape(golden.logits.shape)
    with open_engine(open_bundle(pico_fp16)) as engine:
        wanted = np.concatenate([engine.infer(batch) for batch in in_batches(golden.images, 3)])
    # one library, one graph, the same batches
    np.testing.assert_array_equal(got, wanted)
    classes = open_bundle(pico_fp16).manifest.classes
    lines = done.stdout.splitlines()
    assert lines[:-1] == [f"image {index}: {classes[best]}" for index, best in enumerate(wanted.argmax(1))]
    assert lines[-1].startswith(f"PASSED: {len(got)} of {len(got)} images have the expected class")

    other = golden.logits.copy()
    other[0, (other[0].argmax() + 1) % other.shape[1]] = 1e3
    other.tofile(tmp_path / "other.f32")
    done = classify(program, model, images, logits, "--batch", 8, "--expect", tmp_path / "other.f32")
    assert (done.returncode, done.stdout.splitlines()[-1].split(",")[0]) == (
        1,
        f"FAILED: 15 of {len(got)} images have the expected class",
    )
    (tmp_path / "few.f32").write_bytes(b"\0" * 400)
    done = classify(program, model, tmp_path / "few.f32", logits)
    assert (done.returncode, "does not hold images of that size" in done.stderr) == (2, True)


STUB = """
#include <NvInfer.h>
#include <cuda_runtime_api.h>
// the library's one C entry point that a program calls, as NvInferRuntime.h declares it: no driver, no runtime
extern "C" void* createInferRuntime_INTERNAL(void*, std::int32_t) noexcept { return nullptr; }
"""


@needs_tools
@pytest.mark.skipif(not TENSORRT_ROOTS, reason="TENSORRT_ROOT is not set")
@pytest.mark.skipif(not (CUDA_HEADERS / "cuda_runtime_api.h").is_file(), reason="needs CUDA's headers")
def test_the_tensorrt_program_compiles_for_every_version(tensorrt_bundle: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "cpp"
    package_bundle(tensorrt_bundle(), "cpp", out)
    for root in TENSORRT_ROOTS:
        includes = ["-isystem", root / "include", "-isystem", CUDA_HEADERS]
        command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *includes, out / "classify.cpp"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, f"{root}: {done.stderr}"


@needs_tools
@pytest.mark.skipif(not TENSORRT_ROOTS, reason="TENSORRT_ROOT is not set")
@pytest.mark.skipif(not list(CUDA_HEADERS.parent.glob("lib*/libcudart.so")), reason="needs the CUDA runtime")
def test_the_tensorrt_program_is_linked_and_says_where_tensorrt_cannot_start(
    tensorrt_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    out, root = tmp_path / "cpp", TENSORRT_ROOTS[0]
    package_bundle(tensorrt_bundle(), "cpp", out)
    (tmp_path / "stub.cpp").write_text(STUB)
    stub = tmp_path / "libnvinfer.so"
    includes = ["-isystem", root / "include", "-isystem", CUDA_HEADERS]
    command = ["c++", "-shared", "-fPIC", *includes, tmp_path / "stub.cpp", "-o", stub]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    runtime = next(iter(CUDA_HEADERS.parent.glob("lib*/libcudart.so")))
    program = built(
        out,
        f"-DTENSORRT_INCLUDE={root / 'include'}",
        f"-DTENSORRT_LIBRARY={stub}",
        f"-DCUDA_INCLUDE={CUDA_HEADERS}",
        f"-DCUDA_LIBRARY={runtime}",
    )
    done = classify(program, out / "model" / "model.plan", out / "golden" / "images.f32", tmp_path / "l.f32")
    assert (done.returncode, done.stderr) == (2, "error: TensorRT cannot be started\n")
    assert not (tmp_path / "l.f32").exists()


def test_golden_data_and_the_model_travel_with_the_program(pico_fp16: Path, tmp_path: Path) -> None:
    out = tmp_path / "cpp"
    package = package_bundle(pico_fp16, "cpp", out)
    assert package.notes == ()
    golden = Golden.load(pico_fp16 / GOLDEN)
    np.testing.assert_array_equal(np.fromfile(out / "golden" / "images.f32", "<f4").reshape(golden.images.shape), golden.images)
    np.testing.assert_array_equal(np.fromfile(out / "golden" / "logits.f32", "<f4").reshape(golden.logits.shape), golden.logits)
    assert {path.name for path in (out / "model").iterdir()} == {"model.onnx", "weights.bin", "labels.txt"}
    page = (out / "README.md").read_text()
    assert "float32 [n, 3, 64, 64]" in page
    assert "$" not in page


def test_a_graph_that_nothing_was_proved_of_is_given_with_a_word(pico_export: Path, pico_int8: Path, tmp_path: Path) -> None:
    package = package_bundle(pico_export, "cpp", tmp_path / "fp16")
    assert any("nothing was proved" in note for note in package.notes)
    # INT8 has a graph of its own for ONNX Runtime
    package_bundle(pico_int8, "cpp", tmp_path / "int8")
    assert (tmp_path / "int8" / "model" / "model.onnx").read_bytes() == (pico_int8 / "onnxruntime.onnx").read_bytes()


def test_half_inputs_and_stripped_engines_are_refused(
    tensorrt_bundle: Callable[..., Path], pico_fp16: Path, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    half = copied(pico_fp16)
    seal(half, Manifest.from_json({**open_bundle(half).manifest.to_json(), "io_dtype": "float16"}))
    with pytest.raises(PackageError, match="takes float16"):
        package_bundle(half, "cpp", tmp_path / "out")
    with pytest.raises(PackageError, match="no weights of its own"):
        package_bundle(tensorrt_bundle(stripped=True), "cpp", tmp_path / "out")
    assert not (tmp_path / "out").exists()
