"""Parity of maps: what is wrong with an engine shows in the map, the size and the row where it is wrong, and NaN never passes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gmf_edge.errors import BundleError, DataError, EngineError, SpecError
from gmf_edge.spec import MAPS, STAGE_STRIDES, MapGate, Task
from gmf_edge.verify.judge import judge
from gmf_edge.verify.maps import GoldenMaps, GoldenSize, MapReport, prove_maps

GATE = MapGate(min_cosine=0.9999, max_relative_l2=0.01, max_error_share=0.02)
SIZES = ((64, 96), (32, 64))
Spoil = Callable[[str, Any, Any], Any]


def maps_of(images: Any) -> dict[str, Any]:
    """Some maps [B, 3, H / stride, W / stride], different from image to image."""
    found = {}
    for name, stride in zip(MAPS, STAGE_STRIDES, strict=True):
        batch, channels, height, width = images.shape
        tiles = images.reshape(batch, channels, height // stride, stride, width // stride, stride)
        found[name] = (tiles.mean(axis=(3, 5)) * stride).astype(np.float32)
    return found


class FakeBackbone:
    """An engine whose maps are the golden ones, spoilt by the test; its buffers are used again."""

    task = Task.FEATURES

    def __init__(self, spoil: Spoil = lambda name, maps, images: maps) -> None:
        self.spoil = spoil
        self.batches: list[tuple[int, ...]] = []

    def infer_maps(self, images: Any) -> Mapping[str, Any]:
        self.batches.append(images.shape)
        return {name: self.spoil(name, maps, images) for name, maps in maps_of(images).items()}


@pytest.fixture(scope="module")
def golden() -> GoldenMaps:
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((3, 3, *size)).astype(np.float32) for size in SIZES]
    return GoldenMaps(tuple(GoldenSize(each, maps_of(each)) for each in images), "noise")


def report_of(golden: GoldenMaps, spoil: Spoil = lambda name, maps, images: maps) -> MapReport:
    return prove_maps(FakeBackbone(spoil), golden, (1, 2))  # type: ignore[arg-type]


def test_an_engine_that_is_right_passes_with_every_map_size_and_batch(golden: GoldenMaps) -> None:
    engine = FakeBackbone()
    report = prove_maps(engine, golden, (2, 1, 2))  # type: ignore[arg-type]
    assert {(row.name, row.image_size, row.batch) for row in report.rows} == {
        (name, size, batch) for name in MAPS for size in SIZES for batch in (1, 2)
    }
    assert engine.batches == [(n, 3, *size) for size in SIZES for n in (1, 1, 1, 2, 2)]
    passed, reason = judge(report, GATE, has_trained_weights=True)
    assert passed
    assert "at 64x96, 32x64, batch 1, 2" in reason


def at(row: int, where: str, change: Callable[[Any], Any], batch: int = 2, size: tuple[int, int] = SIZES[1]) -> Spoil:
    """Change one row of one map at one batch and image size."""

    def spoil(name: str, maps: Any, images: Any) -> Any:
        if name == where and images.shape[0] == batch and images.shape[2:] == size:
            maps = maps.copy()
            maps[row] = change(maps[row])
        return maps

    return spoil


def corner(values: Any) -> Any:
    values = values.copy()
    values[0, -1, -1] += 0.03 * np.abs(values).max()
    return values


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values * 1.02, "relative L2 error 0.02 is above the limit 0.01"),
        (lambda values: values[::-1], "relative L2 error"),
        (lambda values: np.full_like(values, np.nan), r"of 4 rows are NaN or infinite, the first in row 1"),
        (lambda values: values * np.where(values == values.max(), np.inf, 1), "NaN or infinite"),
        (lambda values: values * 0, "relative L2 error 1 is above"),
    ],
)
def test_what_is_wrong_is_named_with_map_size_and_batch(golden: GoldenMaps, change: Any, words: str) -> None:
    report = report_of(golden, at(1, "stage2", change))
    passed, reason = judge(report, GATE, has_trained_weights=False)
    assert not passed
    assert reason.startswith("stage2 at 32x64, batch 2: ")
    assert re.search(words, reason)
    json.dumps(report.to_json(), allow_nan=False)
    assert sum(row.failure(GATE) is not None for row in report.rows) == 1


def test_one_wrong_corner_hardly_moves_the_norm_and_is_seen_all_the_same(golden: GoldenMaps) -> None:
    report = report_of(golden, at(0, "stage1", corner, size=SIZES[0]))
    wrong = next(row for row in report.rows if row.failure(GATE) is not None)
    assert (wrong.name, wrong.image_size, wrong.batch) == ("stage1", SIZES[0], 2)
    assert wrong.relative_l2 <= GATE.max_relative_l2
    assert "the largest error is 0.02872 of the largest value (limit 0.02)" in str(wrong.failure(GATE))


def test_rows_that_are_mixed_up_are_seen(golden: GoldenMaps) -> None:
    report = report_of(golden, lambda name, maps, images: maps[::-1] if len(images) == 2 else maps)
    passed, reason = judge(report, GATE, has_trained_weights=True)
    assert not passed
    assert "rows hold another image's map" in reason


def test_rows_of_one_image_that_differ_are_seen_though_each_is_within_the_limit(golden: GoldenMaps) -> None:
    signs = iter(np.tile(np.repeat([1.0, -1.0], len(MAPS)), 1000))
    report = report_of(golden, lambda name, maps, images: maps * np.float32(1 + 0.0089 * next(signs)))
    assert all(row.relative_l2 <= GATE.max_relative_l2 for row in report.rows)
    assert "two rows of one image differ by 0.01" in str(report.failure(GATE))


def test_a_map_of_another_shape_or_none_is_refused(golden: GoldenMaps) -> None:
    with pytest.raises(EngineError, match=r"the engine's stage3 is \(1, 3, 4, 5\), not \(1, 3, 4, 6\)"):
        report_of(golden, lambda name, maps, images: maps[..., :-1] if name == "stage3" else maps)
    with pytest.raises(DataError, match="batch sizes"):
        prove_maps(FakeBackbone(), golden, ())  # type: ignore[arg-type]


def test_a_reference_of_zeros_proves_nothing(golden: GoldenMaps) -> None:
    first = golden.sizes[0]
    zeros = GoldenMaps((GoldenSize(first.images, {**first.maps, "stage4": first.maps["stage4"] * 0}),), "zeros")
    assert not judge(report_of(zeros, lambda name, maps, images: maps * (name != "stage4")), GATE, True)[0]


def test_golden_maps_go_through_their_file_bit_for_bit(golden: GoldenMaps, tmp_path: Path) -> None:
    golden.save(tmp_path / "golden.npz")
    loaded = GoldenMaps.load(tmp_path / "golden.npz")
    assert loaded.source == "noise"
    for ours, theirs in zip(loaded.sizes, golden.sizes, strict=True):
        assert np.array_equal(ours.images, theirs.images)
        assert all(np.array_equal(ours.maps[name], theirs.maps[name]) for name in MAPS)
    (tmp_path / "golden.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(BundleError, match="not readable as a backbone's golden data"):
        GoldenMaps.load(tmp_path / "golden.npz")


def test_limits_that_cannot_be_are_refused() -> None:
    for nonsense in ({"min_cosine": 2.0}, {"max_relative_l2": -1.0}, {"max_error_share": float("nan")}):
        with pytest.raises(SpecError):
            replace(GATE, **nonsense)
