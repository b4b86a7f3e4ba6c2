"""Calibration: ranges with their provenance, a file that is up to date, and one that is not."""

from __future__ import annotations

import dataclasses
import shutil

import onnx_ir
import pytest
from int8_helpers import PREPROCESS

from gmf_edge.errors import CalibrationError
from gmf_edge.image import Preprocess
from gmf_edge.precision.calibrate import calibrate
from gmf_edge.precision.ranges import read_ranges
from gmf_edge.precision.recipe import Recipe

BALANCED = Recipe()


def test_ranges_carry_their_provenance_and_are_read_again(fused_path, digits, tmp_path):
    out = tmp_path / "ranges.json"
    said: list[str] = []

    def ask(recipe=BALANCED, seed=0, graph=fused_path):
        said.clear()
        return calibrate(
            graph,
            digits,
            PREPROCESS,
            recipe,
            out=out,
            count=32,
            seed=seed,
            checkpoint_sha256="e" * 64,
            progress=lambda fraction, message: said.append(message),
        )

    first = ask()
    assert read_ranges(out) == first
    assert first.provenance.images == len(first.pictures) == 32
    assert first.provenance.method == "mse"
    assert {"onnxruntime", "numpy", "gmf-edge"} <= set(first.provenance.versions)
    written = out.read_bytes()
    assert ask() == first
    assert said == ["ranges.json is up to date"]
    ask(seed=1)
    assert any("the images and the seed changed" in words for words in said)
    ask(Recipe(method="minmax"), seed=1)
    assert any("the method changed" in words for words in said)
    ask()
    assert out.read_bytes() == written


def test_another_file_in_its_place_is_not_overwritten(fused_path, digits, tmp_path):
    out = tmp_path / "notes.json"
    out.write_text('{"mine": true}')
    with pytest.raises(CalibrationError, match="is not a ranges file"):
        calibrate(fused_path, digits, PREPROCESS, Recipe(), out=out, count=32)
    assert out.read_text() == '{"mine": true}'


def test_graph_of_another_checkpoint_makes_other_ranges(fused_path, digits, tmp_path):
    first = calibrate(fused_path, digits, PREPROCESS, Recipe(), out=tmp_path / "ranges.json", count=32)
    other = onnx_ir.load(fused_path)
    node = next(node for node in other.graph if node.op_type == "LayerNormalization")
    array = node.inputs[1].const_value.numpy()
    node.inputs[1].const_value = onnx_ir.tensor(2 * array, name=node.inputs[1].name)
    onnx_ir.save(other, tmp_path / "other.onnx")
    second = calibrate(tmp_path / "other.onnx", digits, PREPROCESS, Recipe(), out=tmp_path / "other.json", count=32)
    assert first.provenance.graph_sha256 != second.provenance.graph_sha256
    assert first.tensors != second.tensors
    shutil.copy(tmp_path / "ranges.json", tmp_path / "foreign.json")
    with pytest.raises(CalibrationError, match=r"foreign\.json was calibrated on another graph"):
        read_ranges(tmp_path / "foreign.json").require(
            tmp_path / "foreign.json",
            graph_sha256=second.provenance.graph_sha256,
            checkpoint_sha256=None,
            preprocess=PREPROCESS.to_json(),
        )


def test_preprocessing_is_part_of_the_provenance(fused_path, digits, tmp_path):
    ranges = calibrate(fused_path, digits, PREPROCESS, Recipe(), out=tmp_path / "ranges.json", count=32)
    with pytest.raises(CalibrationError, match="another preprocessing"):
        ranges.require(
            "ranges.json",
            graph_sha256=ranges.provenance.graph_sha256,
            checkpoint_sha256=None,
            preprocess=dataclasses.replace(Preprocess((64, 64)), crop_pct=1.0).to_json(),
        )
