"""reproduce.sh makes the same graphs again, or says what differs; names of files cannot become commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import gmf_edge
from gmf_edge.artifact import cache_root
from gmf_edge.bundle import open_bundle
from gmf_edge.errors import DataError
from gmf_edge.imageset import ImageSet
from gmf_edge.report.reproduce import commands_of, install_command, reproduce_script
from gmf_edge.report.reproduction import check_file, check_images, compare, main

TEST_SET = Path(gmf_edge.__file__).parent / "assets" / "pico-digits-test.zip"
HOSTILE = "a'; touch pwned; $(touch pwned) `touch pwned`\ntouch pwned #.pth"


def bash(script: Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(script)], cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=600
    )


def rewritten(folder: Path, **changes: Any) -> None:
    """A manifest with other values, as another build would write it; only reproduction reads it here."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "kept", ["plain-*", pytest.param("", marks=pytest.mark.slow)], ids=["but for PyTorch's export", "all anew"]
)
def test_the_script_makes_the_same_graphs_in_another_cache(pico_export: Path, tmp_path: Path, kept: str) -> None:
    for stage in (cache_root() / "stages").glob(kept) if kept else ():
        shutil.copytree(stage, tmp_path / "cache" / "stages" / stage.name)
    done = bash(pico_export / "reproduce.sh", tmp_path, PYTHON=sys.executable, GMF_EDGE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "REPRODUCED"
    made, again = (open_bundle(folder).manifest.files for folder in (pico_export, tmp_path / "reproduced"))
    assert made["portable.onnx"] == again["portable.onnx"]
    assert made["weights.bin"] == again["weights.bin"]


def test_what_differs_is_named_with_both_digests_and_versions(
    pico_export: Path, copied: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = copied(pico_export)
    files = json.loads((other / "manifest.json").read_text())["files"]
    rewritten(other, files={**files, "portable.onnx": {"sha256": "0" * 64, "bytes": 1}})
    assert main(["compare", str(pico_export), str(other)]) == 1
    said = capsys.readouterr().out
    assert f"differs: portable.onnx: {files['portable.onnx']['sha256']} -> {'0' * 64}" in said
    assert "made with the same versions" in said
    older = other.parent / "older"
    older.mkdir()
    (older / "manifest.json").write_bytes((pico_export / "manifest.json").read_bytes())
    rewritten(older, versions={"torch": "1.0"})
    assert "torch 1.0 -> " in "\n".join(compare(older, other)[1])


def test_what_was_only_computed_differently_is_no_failure(pico_export: Path, copied: Callable[[Path], Path]) -> None:
    other = copied(pico_export)
    files = json.loads((other / "manifest.json").read_text())["files"]
    rewritten(other, files={**files, "golden.npz": {"sha256": "0" * 64, "bytes": 1}, "report.json": {"sha256": "1", "bytes": 1}})
    same, lines = compare(pico_export, other)
    assert same
    assert [line for line in lines if line.startswith("differs: ")] == [
        f"differs: golden.npz: {files['golden.npz']['sha256']} -> {'0' * 64}"
    ]


def stand_in(folder: Path) -> Path:
    """A Python that writes down what it is asked, a line an argument."""
    path = folder / "python"
    path.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@" -- >> asked.txt\n')
    path.chmod(0o755)
    return path


def test_names_of_files_are_data_for_the_shell(pico_export: Path, tmp_path: Path) -> None:
    manifest = open_bundle(pico_export).manifest
    request = {
        "options": {"--precision": HOSTILE},
        "files": {
            "--checkpoint": {"name": HOSTILE, "sha256": "a" * 64},
            "--eval-data": {"name": HOSTILE, "images": 2, "seed": 0, "sha256": "b"},
        },
        "unspelled": {"option": HOSTILE},
        "source_sha256": "",
    }  # fmt: skip
    script = tmp_path / "bundle" / "reproduce.sh"
    script.parent.mkdir()
    script.write_text(reproduce_script(replace(manifest, request=request), None))
    done = bash(script, tmp_path, PYTHON=str(stand_in(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "pwned").exists()
    asked = (tmp_path / "asked.txt").read_text()
    shown = HOSTILE.replace("\n", "?")
    assert f"--checkpoint\n{shown}\n" in asked
    assert f"file\nCHECKPOINT\n{shown}\n{'a' * 64}\n" in asked
    assert f"--precision\n{HOSTILE}\n" in asked


def test_the_variables_say_where_the_files_lie(pico_export: Path, tmp_path: Path) -> None:
    manifest = open_bundle(pico_export).manifest
    request = {**manifest.request, "files": {"--checkpoint": {"name": "m.pth", "sha256": "a" * 64}}}
    script = tmp_path / "bundle" / "reproduce.sh"
    script.parent.mkdir()
    script.write_text(reproduce_script(replace(manifest, request=request), None))
    done = bash(script, tmp_path, PYTHON=str(stand_in(tmp_path)), CHECKPOINT="/my place/m.pth", OUTPUT="there")
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked.txt").read_text()
    assert "--checkpoint\n/my place/m.pth\n" in asked
    assert "--output\nthere\n" in asked
    assert bash(script, tmp_path, PYTHON=str(stand_in(tmp_path)), OUTPUT="bundle").returncode == 2


def test_a_deployed_bundle_is_exported_and_deployed_again(pico_export: Path) -> None:
    manifest = open_bundle(pico_export).manifest
    engine = {
        "verb": "deploy", "options": {"--backend": "openvino", "--threads": 2}, "files": {}, "unspelled": {}, "evaluated": True,
    }  # fmt: skip
    report: Mapping[str, Any] = {"request": engine}
    exported, deployed = commands_of(manifest, report)
    assert exported == 'gmf-edge export --precision fp16 --output "$OUTPUT"'
    assert deployed == 'gmf-edge deploy "$OUTPUT" --backend openvino --threads 2 --eval-data "$EVAL_DATA"'


def test_a_build_is_one_command_with_the_backend_it_was_asked_for(pico_fp16: Path) -> None:
    bundle = open_bundle(pico_fp16)
    (command,) = commands_of(bundle.manifest, bundle.report)
    assert command == 'gmf-edge build --backend onnxruntime --precision fp16 --output "$OUTPUT"'
    text = (pico_fp16 / "reproduce.sh").read_text()
    assert str(pico_fp16.parent) not in text
    assert os.access(pico_fp16 / "reproduce.sh", os.X_OK)
    for name, version in bundle.manifest.versions.items():
        assert f"{name}=={version.split('+')[0]}" in text or name == "gmf-edge"


def test_a_build_of_a_version_is_asked_for_by_its_number() -> None:
    versions = {"gmf-edge": "0.1.0", "torch": "2.13.0+cpu"}
    assert install_command(versions, None) == "pip install 'gmf-edge[workstation]==0.1.0' torch==2.13.0"
    report = {"backend": "openvino", "engine": {"version": "2026.4.1"}}
    assert install_command(versions, report).endswith("openvino==2026.4.1 torch==2.13.0")


def test_another_file_is_refused_before_anything_is_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.pth"
    with pytest.raises(DataError, match="no file"):
        check_file("CHECKPOINT", path, "a" * 64)
    path.write_bytes(b"other")
    assert main(["file", "CHECKPOINT", str(path), "a" * 64]) == 1
    assert f"set it to the file with SHA-256 {'a' * 64}" in capsys.readouterr().err


def test_other_images_are_refused() -> None:
    with ImageSet.open(TEST_SET) as images:
        drawn = images.spread(12, 5).sha256
    check_images("EVAL_DATA", str(TEST_SET), 12, 5, drawn)
    with pytest.raises(DataError, match="not those that were used"):
        check_images("EVAL_DATA", str(TEST_SET), 12, 6, drawn)
    with pytest.raises(DataError, match="with 360 images"):
        check_images("EVAL_DATA", str(TEST_SET), 361, 5, drawn)
