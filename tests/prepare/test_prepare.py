"""The workstation's half: what may be replaced, what is done again, and where the golden pictures come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gmf_edge
from gmf_edge import Precision
from gmf_edge.bundle import open_bundle, require_replaceable
from gmf_edge.errors import BundleError
from gmf_edge.verify.golden import Golden, Reference

pytest.importorskip("torch")


def test_only_a_bundle_or_an_empty_place_may_be_replaced(tmp_path: Path, pico_export: Path) -> None:
    require_replaceable(tmp_path / "nothing")
    require_replaceable(pico_export)
    (tmp_path / "empty").mkdir()
    require_replaceable(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    for place in (tmp_path / "full", tmp_path / "full" / "a"):
        with pytest.raises(BundleError, match="not a bundle"):
            require_replaceable(place)


def test_a_damaged_bundle_may_be_replaced(copied: Callable[[Path], Path], pico_export: Path) -> None:
    folder = copied(pico_export)
    (folder / "weights.bin").unlink()
    (folder / "notes.txt").write_text("foreign")
    gmf_edge.export(gmf_edge.BuildSpec(precision=Precision.FP16), folder)
    assert "notes.txt" not in open_bundle(folder).manifest.files


def test_two_builds_into_one_folder_do_not_mix(tmp_path: Path, odd_pico: Any, odd_spec: Any, pico_export: Path) -> None:
    first = gmf_edge.export(gmf_edge.BuildSpec(precision=Precision.FP16), tmp_path / "out")
    assert "reference.npz" in first.manifest.files
    second = gmf_edge.export(gmf_edge.BuildSpec(precision=Precision.FP32, eval_images=50), tmp_path / "out")
    assert second.manifest.precision is Precision.FP32
    found = {path.name for path in (tmp_path / "out").iterdir()} - {"manifest.json"}
    assert found == set(second.manifest.files)
    assert second.manifest.evaluation is not None
    assert second.manifest.evaluation["images"] == 50
    assert len(Reference.load(tmp_path / "out" / "reference.npz").names) == 50


def test_equal_inputs_do_no_work_twice(tmp_path: Path, pico_export: Path) -> None:
    said: list[str] = []
    gmf_edge.export(gmf_edge.BuildSpec(precision=Precision.FP16), tmp_path / "out", lambda fraction, message: said.append(message))
    assert [message.split(":")[0] for message in said if "unchanged" in message] == [
        "1-plain.onnx",
        "2-fused.onnx",
        "FP32 PyTorch's logits",
        "3-fp16.onnx",
    ]
    assert not any(message.startswith(("exporting", "rewriting", "lowering")) for message in said)


def test_another_request_redoes_only_what_depends_on_it(tmp_path: Path, pico_export: Path) -> None:
    said: list[str] = []
    spec = gmf_edge.BuildSpec(precision=Precision.FP16, crop_pct=0.95, eval_images=10)
    gmf_edge.export(spec, tmp_path / "out", lambda fraction, message: said.append(message))
    kept = [message.split(":")[0] for message in said if "unchanged" in message]
    assert kept == ["1-plain.onnx", "2-fused.onnx"]


def test_without_images_the_golden_pictures_are_drawn_and_say_so(odd_pico: Any) -> None:
    golden = Golden.load(odd_pico.bundle / "golden.npz")
    assert golden.source == "synthetic pictures"
    assert golden.images.shape == (16, 3, 96, 64)
    # like ImageNet's pixels after normalisation: not constant, not saturated
    assert 0.3 < golden.images.std() < 3
    assert np.abs(golden.images).max() < 3
    assert golden.logits.shape == (16, 7)


def test_golden_pictures_come_from_the_evaluation_images(pico_export: Path) -> None:
    golden = Golden.load(pico_export / "golden.npz")
    assert golden.source == "16 images of pico-digits-test.zip"
    reference = Reference.load(pico_export / "reference.npz")
    distances = np.abs(golden.logits[:, None] - reference.logits[None]).max(axis=2).min(axis=1)
    assert distances.max() <= 1e-4
