"""The README's commands work as written."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the README speaks of, without the repository's own output."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "gmf_edge").mkdir()
    shutil.copytree(ROOT / "gmf_edge" / "assets", folder / "gmf_edge" / "assets")
    return folder


def run(command: list[str], folder: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # the package is the installed one: the copied folder must not hide it
    environment = {**os.environ, "PATH": path, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_shell_blocks_run(workplace: Path) -> None:
    (block,) = blocks("bash")
    out = run(["bash", "-euo", "pipefail", "-c", block], workplace)
    assert out.count("PASSED: ") == 3  # build, inspect, verify
    assert "100.00 %  3" in out or re.search(r"9\d\.\d\d %  3", out)


def test_python_block_runs(workplace: Path) -> None:
    (block,) = blocks("python")
    out = run([sys.executable, "-c", block], workplace)
    assert out.startswith("True top-1 ")


def test_every_make_target_it_names_exists() -> None:
    named = set(re.findall(r"make ([a-z]+)", README)) - {"a"}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"build", "test", "check"} <= named
    assert {name for name in named if name in {"build", "test", "check", "plugin", "format"}} <= targets


def test_every_file_it_names_exists() -> None:
    for name in re.findall(r"`((?:benchmarks|calibration|plugins|gmf_edge)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name


def test_every_verb_of_its_table_exists() -> None:
    table = README.split("## The verbs")[1].split("Every verb takes")[0]
    verbs = re.findall(r"^\| `([a-z]+)", table, re.MULTILINE)
    assert len(verbs) >= 8
    text = run([sys.executable, "-m", "gmf_edge", "--help"], ROOT)
    for verb in verbs:
        assert re.search(rf"^\s+{verb}\b", text, re.MULTILINE), verb
