"""ranges.json: what it says is what was found, and a file of another checkpoint, graph or preprocessing is refused by name."""

from __future__ import annotations

import dataclasses
import json

import pytest

from gmf_edge.errors import CalibrationError, EnvironmentProblem
from gmf_edge.precision.ranges import Provenance, Ranges, TensorRange, read_ranges, write_ranges

MADE = Provenance("a" * 64, "b" * 64, "c" * 64, {"image_size": [64, 64]}, "mse", 0.0, 0.5, 500, 0, {"numpy": "2"})
RANGES = Ranges(MADE, {"x": TensorRange(1.5, 2.0, (2.0, 1.0), (0.25, -0.1))}, {"x": (1.0, 2.0)}, ("0/a.png",), ("a note",))


@pytest.fixture
def path(tmp_path):
    write_ranges(RANGES, tmp_path / "deep" / "ranges.json")
    return tmp_path / "deep" / "ranges.json"


def test_round_trip(path):
    assert read_ranges(path) == RANGES
    assert [file.name for file in path.parent.iterdir()] == ["ranges.json"]


def requirement(**changes):
    return {"graph_sha256": "a" * 64, "checkpoint_sha256": "b" * 64, "preprocess": {"image_size": [64, 64]}} | changes


def test_its_own_build_may_use_it(path):
    read_ranges(path).require(path, **requirement())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint_sha256": "d" * 64}, "another checkpoint .*bbbbbbbbbbbb, not SHA-256 dddddddddddd"),
        ({"checkpoint_sha256": None}, "another checkpoint .*not random weights"),
        ({"graph_sha256": "d" * 64}, "another graph"),
        ({"preprocess": {"image_size": [96, 96]}}, "another preprocessing"),
    ],
)
def test_foreign_ranges_are_refused_by_name(path, changes, words):
    with pytest.raises(CalibrationError, match=words) as caught:
        read_ranges(path).require(path, **requirement(**changes))
    assert str(path) in caught.value.problem
    assert "calibrate" in caught.value.remedy


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Provenance)])
def test_every_field_of_the_provenance_makes_a_cache_stale(field):
    other = {"preprocess": {}, "versions": {}, "proj_smoothing": 0.3}.get(field, "other")
    assert len(MADE.differences(dataclasses.replace(MADE, **{field: other}))) == 1
    assert MADE.differences(MADE) == ()


def test_edited_file_is_refused(path):
    content = json.loads(path.read_text())
    content["tensors"]["x"]["threshold"] = 1.6
    path.write_text(json.dumps(content))
    with pytest.raises(CalibrationError, match="was changed after it was written"):
        read_ranges(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "not a ranges file"), ("[]", "not a ranges file"), ('{"a": 1}', "not a ranges file"), ('{"schema": 99}', "schema 99")],
)
def test_other_files_are_refused(tmp_path, text, words):
    (tmp_path / "ranges.json").write_text(text)
    with pytest.raises(CalibrationError, match=words):
        read_ranges(tmp_path / "ranges.json")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CalibrationError, match=r"none\.json cannot be read"):
        read_ranges(tmp_path / "none.json")


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), -1.0])
def test_range_that_is_no_number_is_refused(tmp_path, threshold):
    write_ranges(dataclasses.replace(RANGES, tensors={"x": TensorRange(threshold, 2.0, (), ())}), tmp_path / "r.json")
    with pytest.raises(CalibrationError, match="gives x the range"):
        read_ranges(tmp_path / "r.json")


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot write"):
        write_ranges(RANGES, tmp_path / "file" / "ranges.json")
