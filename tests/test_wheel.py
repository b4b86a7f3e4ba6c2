"""The wheel: one top-level name, its assets and type marker inside, no tests, and the command."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import gmf_edge

REPOSITORY = Path(gmf_edge.__file__).parents[1]
pytestmark = pytest.mark.skipif(not (REPOSITORY / "pyproject.toml").is_file(), reason="not run from a source tree")


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel_file)


def metadata_file(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = [entry for entry in wheel.namelist() if entry.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def test_the_only_top_level_name_is_gmf_edge(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gmf_edge"}
    assert len(tops) == 2


def test_every_module_and_asset_of_the_package_is_inside_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    package = REPOSITORY / "gmf_edge"
    wanted = {
        str(path.relative_to(REPOSITORY))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    inside = {name for name in wheel.namelist() if name.startswith("gmf_edge/")}
    assert inside == wanted
    for name in (
        "pico.safetensors",
        "pico-digits-test.zip",
        "pico-digits-calibration.zip",
        "pico-labels.txt",
        "imagenet-1k.txt",
        "NOTICE.md",
    ):
        assert f"gmf_edge/assets/{name}" in inside
        assert wheel.read(f"gmf_edge/assets/{name}") == (package / "assets" / name).read_bytes()
    assert "gmf_edge/py.typed" in inside


def test_no_tests_and_no_bytecode_travel(wheel: zipfile.ZipFile) -> None:
    parts = {part for name in wheel.namelist() for part in name.split("/")}
    assert parts & {"tests", "benchmarks", "calibration", "plugins", "__pycache__", "conftest.py"} == set()


def test_the_command_the_version_and_the_licence_are_declared(wheel: zipfile.ZipFile) -> None:
    assert "gmf-edge = gmf_edge.__main__:main" in metadata_file(wheel, "entry_points.txt").splitlines()
    said = Parser().parsestr(metadata_file(wheel, "METADATA"))
    assert (said["Name"], said["Version"], said["License-Expression"]) == ("gmf-edge", gmf_edge.__version__, "Apache-2.0")
    assert any(name.endswith("LICENSE") for name in wheel.namelist())


def test_the_base_dependencies_are_light(wheel: zipfile.ZipFile) -> None:
    needs = Parser().parsestr(metadata_file(wheel, "METADATA")).get_all("Requires-Dist") or []
    base = {need.split(">")[0].strip() for need in needs if "extra ==" not in need}
    assert base == {"numpy", "pillow", "rich", "typer"}


def test_the_package_inside_runs_from_the_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    script = "import gmf_edge, sys; from gmf_edge.cli import run; print(gmf_edge.__file__); sys.exit(run(['--version']))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PATH": ""}, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [str(tmp_path / "gmf_edge" / "__init__.py"), f"gmf-edge {gmf_edge.__version__}"], done.stderr
