"""Material that the bad inputs are made from, and the frame in which each of them runs."""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

import gmf_edge
from gmf_edge.artifact import cache_root
from gmf_edge.engines.tensorrt.backend import TensorRTBackend

# the modules beside this one are imported by name
sys.path.append(str(Path(__file__).parent))

from fault_harness import Arena, Material
from workshop import CommandServer

ASSETS = Path(gmf_edge.__file__).parent / "assets"


@pytest.fixture(scope="module")
def server() -> Iterator[CommandServer]:
    """Where commands run that are killed, interrupted or kept short."""
    server = CommandServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def material(pico_fp16: Path, tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Good inputs, of which bad ones are made; none of them is ever changed."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("material")
    state = load_file(ASSETS / "pico.safetensors")
    save_file(state, folder / "good.safetensors")
    torch.save({"model": state, "epoch": 1}, folder / "good.pth")
    with zipfile.ZipFile(ASSETS / "pico-digits-test.zip") as archive:
        pictures = sorted(name for name in archive.namelist() if name.endswith(".png"))
        classes = sorted({Path(name).parent.name for name in pictures})
        content = {
            f"{label}/{place}.png": archive.read([name for name in pictures if Path(name).parent.name == label][place])
            for label in classes
            for place in range(2)
        }
    return Material(
        bundle=pico_fp16,
        state=state,
        safetensors=(folder / "good.safetensors").read_bytes(),
        pth=(folder / "good.pth").read_bytes(),
        pictures=content,
    )


@pytest.fixture
def arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arena]:
    """A place to run bad inputs in, without TensorRT even where there is one."""
    monkeypatch.setattr(TensorRTBackend, "missing", lambda self: "no GPU in this test")
    # the good model's export is in the cache; a bad one that gets so far would take minutes before it is found out
    monkeypatch.setattr("gmf_edge.model.export.export_plain", _reached)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    before = os.getcwd()
    yield Arena(tmp_path)
    os.chdir(before)
    cache_root.cache_clear()


def _reached(*arguments: object) -> None:
    raise AssertionError("a bad input reached the export")
