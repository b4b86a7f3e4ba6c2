"""`pip install` of the wheel in fresh environments: the base and every extra, on every Python that is here; and `make build` offline."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import gmf_edge

ROOT = Path(gmf_edge.__file__).parents[1]
TEST_SET = ROOT / "gmf_edge" / "assets" / "pico-digits-test.zip"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not run from a source tree"),
]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# what pip says where an index is not there, or has no file for this Python and machine
NOT_IN_THE_INDEX = re.compile(
    r"No matching distribution found for (\S+)|Failed to establish a new connection|Could not fetch URL|Network is unreachable"
    # tensorrt's package on PyPI is a stub that asks an index of NVIDIA's
    r"|The installation of tensorrt\S* for version \S+ failed"
)


class Environment(NamedTuple):
    """A fresh virtual environment."""

    folder: Path

    def run(self, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """A program of its bin/, without anything of this process's Python."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        words = [str(self.folder / "bin" / str(command[0])), *map(str, command[1:])]
        return subprocess.run(words, cwd=self.folder, env={**clean, **environment}, capture_output=True, text=True, timeout=1800)

    def install(self, what: str) -> None:
        """Pip-install, or skip where the index lacks something."""
        done = self.run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", what)
        if done.returncode and (found := NOT_IN_THE_INDEX.search(done.stderr)):
            pytest.skip(f"the package index does not have it: {found.group(0)}")
        assert done.returncode == 0, done.stderr


def interpreter(version: str) -> str | None:
    """A Python of that version: on the path, or one of pyenv's or uv's."""
    roots = (Path.home() / ".pyenv" / "versions", Path.home() / ".local" / "share" / "uv" / "python")
    kept = [path for root in roots for path in sorted(root.glob(f"*{version}*/bin/python{version}"))]
    candidates = [shutil.which(f"python{version}"), *map(str, reversed(kept))]
    for candidate in filter(None, candidates):
        said = subprocess.run([candidate, "-c", "import venv, ensurepip, sys; print(sys.version)"], capture_output=True, text=True)
        if said.returncode == 0 and said.stdout.startswith(f"{version}."):
            return candidate
    return None


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> Path:
    return wheel_file


def fresh(folder: Path, python: str) -> Environment:
    subprocess.run([python, "-m", "venv", str(folder)], check=True, capture_output=True)
    return Environment(folder)


def travelling(pico_export: Path, folder: Path) -> Path:
    return Path(shutil.copytree(pico_export, folder / "bundle"))


@pytest.mark.parametrize("version", PYTHONS)
def test_the_base_installs_and_says_what_it_lacks(wheel: Path, tmp_path: Path, version: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    here = fresh(tmp_path / "env", python)
    here.install(str(wheel))
    assert here.run("gmf-edge", "--version").stdout == f"gmf-edge {gmf_edge.__version__}\n"
    doctor = here.run("gmf-edge", "doctor", GMF_EDGE_CACHE=str(tmp_path / "cache"))
    assert doctor.returncode == 4, doctor.stdout
    assert "not ready for deploy, verify, predict and bench" in doctor.stdout
    build = here.run("gmf-edge", "build", GMF_EDGE_CACHE=str(tmp_path / "cache"))
    assert (build.returncode, "Traceback" in build.stderr) == (4, False), build.stderr
    names = [name for name in ("torch", "onnx") if here.run("python", "-c", f"import {name}").returncode == 0]
    assert names == []


@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.parametrize("extra", ["onnxruntime", "openvino"])
def test_a_device_with_one_engine_deploys_and_predicts(
    wheel: Path, pico_export: Path, tmp_path: Path, version: str, extra: str
) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    here = fresh(tmp_path / "env", python)
    here.install(f"{wheel}[{extra}]")
    cache = {"GMF_EDGE_CACHE": str(tmp_path / "cache")}
    doctor = here.run("gmf-edge", "doctor", **cache)
    assert (doctor.returncode, doctor.stdout.splitlines()[-1].startswith("ready for deploy, verify, predict, bench")) == (0, True)
    bundle = travelling(pico_export, tmp_path)
    deployed = here.run("gmf-edge", "deploy", bundle, "--eval-data", TEST_SET, **cache)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    predicted = here.run("gmf-edge", "predict", bundle, TEST_SET, "--json", "--quiet", **cache)
    assert (predicted.returncode, predicted.stdout.count('"image"')) == (0, 360), predicted.stderr


def declared_extras() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))


# pycuda compiles against a CUDA toolkit, dev is this environment, and the engines were tried above
@pytest.mark.parametrize("extra", sorted(declared_extras() - {"pycuda", "dev", "onnxruntime", "openvino"}))
def test_every_other_extra_installs_beside_the_base(wheel: Path, tmp_path: Path, extra: str) -> None:
    here = fresh(tmp_path / "env", sys.executable)
    here.install(f"{wheel}[{extra}]")
    modules = {"report": "jinja2", "tensorrt": "polygraphy", "kernels": "triton", "workstation": "torch"}
    done = here.run("python", "-c", f"import gmf_edge.cli, {modules.get(extra, 'gmf_edge')}")
    assert done.returncode == 0, done.stderr
    assert here.run("python", "-m", "pip", "check").returncode == 0


def test_make_build_needs_no_network_once_it_is_set_up(tmp_path: Path) -> None:
    alone = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody have a network of his own")
    for name in ("pyproject.toml", "constraints.txt", "Makefile"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / ".venv" / ".installed").touch()
    environment = {**os.environ, "PIP_NO_INDEX": "1"}
    done = subprocess.run([*alone, "make", "build"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("PASSED: top-1 99.72 %")
    assert "pip install" not in done.stdout
