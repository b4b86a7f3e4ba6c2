"""The folder for a Jetson: nothing too much, nothing missing, and it installs and deploys where there is neither torch nor onnx."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gmf_edge import __version__
from gmf_edge.bundle import open_bundle
from gmf_edge.errors import PackageError
from gmf_edge.package import PackageRequest, package_bundle
from gmf_edge.package.delivered import delivered_engine

pytest.importorskip("hatchling")
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture(scope="module")
def jetson(pico_fp16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model's folder; the wheel in it was built here."""
    out = tmp_path_factory.mktemp("jetson") / "pico"
    package_bundle(pico_fp16, "jetson", out)
    return out


def test_the_folder_holds_what_the_device_needs_and_nothing_else(jetson: Path) -> None:
    files = {str(path.relative_to(jetson)) for path in jetson.rglob("*") if path.is_file()}
    bundle = {"manifest.json", "portable.onnx", "plugin.onnx", "weights.bin", "golden.npz", "reference.npz", "labels.txt"}
    wheel = f"wheels/gmf_edge-{__version__}-py3-none-any.whl"
    assert files == {f"bundle/{name}" for name in bundle} | {wheel, "install.sh", "README.md", "package.json"}
    assert os.access(jetson / "install.sh", os.X_OK)
    inside = open_bundle(jetson / "bundle")
    assert inside.report is None
    assert set(inside.manifest.graphs) == {"portable/20", "plugin/20"}
    assert set(inside.manifest.lowering["parsers"]) <= set(inside.manifest.graphs.values())


def test_an_engine_of_another_machine_stays_there(tensorrt_bundle: Callable[..., Path], jetson: Path, tmp_path: Path) -> None:
    wheel = next((jetson / "wheels").iterdir())
    package_bundle(tensorrt_bundle(), "jetson", tmp_path / "out", PackageRequest(wheel=wheel))
    assert not list((tmp_path / "out").rglob("engine.*"))
    assert open_bundle(tmp_path / "out" / "bundle").manifest.engine_files == ()
    assert next((tmp_path / "out" / "wheels").iterdir()).read_bytes() == wheel.read_bytes()


def test_bf16s_graphs_travel(bf16_bundle: Path, jetson: Path, tmp_path: Path) -> None:
    wheel = next((jetson / "wheels").iterdir())
    package_bundle(bf16_bundle, "jetson", tmp_path / "out", PackageRequest(wheel=wheel))
    inside = open_bundle(tmp_path / "out" / "bundle")
    assert set(inside.manifest.graphs) == {"portable/22", "plugin/22"}
    assert {"portable.onnx", "plugin.onnx"} <= set(inside.manifest.files)


def test_a_bf16_engine_is_handed_on_with_its_graph(bf16_bundle: Path) -> None:
    assert delivered_engine(open_bundle(bf16_bundle)).file == bf16_bundle / "portable.onnx"


def test_another_wheel_and_another_processors_library_are_refused(pico_fp16: Path, jetson: Path, tmp_path: Path) -> None:
    out, wheel = tmp_path / "out", next((jetson / "wheels").iterdir())
    with pytest.raises(PackageError, match="is not a wheel"):
        package_bundle(pico_fp16, "jetson", out, PackageRequest(wheel=pico_fp16 / "labels.txt"))
    older = tmp_path / "older.whl"
    with zipfile.ZipFile(older, "w") as archive:
        archive.writestr("gmf_edge-0.0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: gmf-edge\nVersion: 0.0.1\n")
    with pytest.raises(PackageError, match=r"is gmf-edge 0\.0\.1, not"):
        package_bundle(pico_fp16, "jetson", out, PackageRequest(wheel=older))
    library = tmp_path / "libgmf_edge_plugin.so"
    # e_machine 62 is x86-64, 183 is AArch64
    library.write_bytes(b"\x7fELF" + bytes(14) + (62).to_bytes(2, "little"))
    with pytest.raises(PackageError, match="not a library for aarch64"):
        package_bundle(pico_fp16, "jetson", out, PackageRequest(wheel=wheel, plugin_library=library))
    assert not out.exists()
    library.write_bytes(b"\x7fELF" + bytes(14) + (183).to_bytes(2, "little"))
    package = package_bundle(pico_fp16, "jetson", out, PackageRequest(wheel=wheel, plugin_library=library))
    assert (out / "plugins" / library.name).is_file()
    # the bundle was exported without --plugin-arch
    assert any("carries no GPU kernels" in note for note in package.notes)


def install(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(folder / "install.sh")], capture_output=True, text=True, timeout=900, env={**os.environ, **environment}
    )


@needs_bash
@pytest.mark.skipif(Path("/etc/nv_tegra_release").exists(), reason="this is a Jetson")
def test_the_script_says_what_the_machine_lacks(jetson: Path) -> None:
    for environment, said in (
        ({"PYTHON": sys.executable}, "error: this is no Jetson"),
        ({"PYTHON": sys.executable, "BACKEND": "openvino"}, "error: BACKEND is openvino"),
        ({"PYTHON": "no-such-python"}, "error: there is no no-such-python here"),
    ):
        done = install(jetson, **environment)
        assert (done.returncode, done.stderr.splitlines()[0][: len(said)]) == (4, said)
        assert done.stderr.splitlines()[1].startswith("what to do: ")
    assert not (jetson / "env").exists()


FROM_THE_WHEEL = """
import sys
for name in ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors"):
    sys.modules[name] = None
import gmf_edge
from gmf_edge.cli import run
print(gmf_edge.__file__)
print(run(["deploy", sys.argv[1], "--backend", "onnxruntime", "-q"]), run(["verify", sys.argv[1], "-q"]))
"""


def test_its_wheel_deploys_its_bundle_without_torch_and_onnx(jetson: Path, tmp_path: Path) -> None:
    """The quick form of the slow test below: this Python, these packages, but not this source tree."""
    pytest.importorskip("onnxruntime")
    shutil.copytree(jetson / "bundle", tmp_path / "bundle")
    with zipfile.ZipFile(next((jetson / "wheels").iterdir())) as archive:
        archive.extractall(tmp_path / "wheel")
    done = subprocess.run(
        [sys.executable, "-c", FROM_THE_WHEEL, str(tmp_path / "bundle")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "wheel")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[0] == str(tmp_path / "wheel" / "gmf_edge" / "__init__.py"), done.stderr
    assert done.stdout.splitlines()[-1] == "0 0", done.stdout + done.stderr


def empty_python() -> Path | None:
    """Python 3.10, as JetPack 6 has it, from the path or from pyenv."""
    found = [Path(shutil.which("python3.10") or "")]
    found += sorted((Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions").glob("3.10.*/bin/python3.10"))
    for python in found:
        if python.is_file() and subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
            return python
    return None


@pytest.mark.slow
@needs_bash
def test_the_script_installs_deploys_and_measures_in_an_empty_python_3_10(jetson: Path, tmp_path: Path) -> None:
    python = empty_python()
    if python is None:
        pytest.skip("needs Python 3.10")
    folder = tmp_path / "pico"
    shutil.copytree(jetson, folder)
    done = install(folder, PYTHON=str(python), BACKEND="onnxruntime", BENCH_SECONDS="0.3")
    if "the packages cannot be installed" in done.stderr:
        pytest.skip("needs a package index")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("PASSED: deployed into ")
    probe = "import importlib.util as u; print([n for n in ('torch', 'onnx', 'onnx_ir') if u.find_spec(n)])"
    there = subprocess.run([folder / "env" / "bin" / "python", "-c", probe], capture_output=True, text=True)
    assert there.stdout == "[]\n"
    deployed = open_bundle(folder / "bundle").report
    assert deployed is not None
    assert (deployed["passed"], deployed["python"].rsplit(".", 1)[0]) == (True, "3.10")
