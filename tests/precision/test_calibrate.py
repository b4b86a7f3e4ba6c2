"""Calibration: thresholds by definition, pictures that can be trusted, a cache that notices, memory that stays flat."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import onnx_ir
import pytest
from int8_helpers import PREPROCESS, drawing, encoded, noise, write_zip

from gmf_edge.errors import CalibrationError, DataError, SpecError
from gmf_edge.image import Preprocess
from gmf_edge.imageset import ImageSet
from gmf_edge.precision import calibrate as module
from gmf_edge.precision.calibrate import (
    HISTOGRAM_BINS,
    calibrate,
    check_disjoint,
    check_images,
    draw,
    entropy_threshold,
    looks_random,
    mse_threshold,
    observe,
    percentile_threshold,
)
from gmf_edge.precision.ranges import read_ranges
from gmf_edge.precision.recipe import METHODS, Recipe


def histogram(values):
    largest = float(np.abs(values).max())
    return module._histogram(values, largest), largest


BALANCED = Recipe()


# thresholds


def test_histogram_holds_every_value_in_its_bin():
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    counts, largest = histogram(values)
    assert counts.sum() == values.size
    edges = np.linspace(0, largest, HISTOGRAM_BINS + 1)
    expected, _ = np.histogram(np.abs(values), edges)
    # a value on an edge may fall to either side of it in FP32
    assert np.abs(counts - expected).sum() <= 0.01 * values.size


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.99, 100.0])
def test_percentile_is_numpys_within_a_bin(percentile):
    values = np.random.default_rng(1).laplace(size=200_000).astype(np.float32)
    counts, largest = histogram(values)
    found = percentile_threshold(counts, largest, percentile)
    exact = np.percentile(np.abs(values), percentile)
    assert abs(found - exact) <= 1.01 * largest / HISTOGRAM_BINS


def test_percentile_agrees_with_onnx_runtimes_collector():
    calibrators = pytest.importorskip("onnxruntime.quantization.calibrate")
    values = np.random.default_rng(2).laplace(size=(4, 5000)).astype(np.float32)
    counts, largest = histogram(values)
    collector = calibrators.HistogramCollector(
        method="percentile", symmetric=True, num_bins=HISTOGRAM_BINS, num_quantized_bins=128, percentile=99.0, scenario="same"
    )
    collector.collect({"x": [values]})
    low, high = collector.compute_collection_result()["x"][:2]
    theirs = max(-float(low), float(high))
    # theirs counts signed values about zero, in bins twice as wide
    assert abs(percentile_threshold(counts, largest, 99.0) - theirs) <= 3 * largest / HISTOGRAM_BINS


def test_mse_threshold_has_the_smallest_error_of_all_candidates():
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.standard_normal(50_000), [30.0]]).astype(np.float32)
    counts, largest = histogram(values)
    found = mse_threshold(counts, largest)

    def error(threshold):
        step = threshold / 127
        return float(((values - step * np.clip(np.rint(values / step), -127, 127)) ** 2).sum())

    errors = {share: error(largest * share) for share in np.linspace(0.1, 1, 37)}
    assert error(found) <= 1.02 * min(errors.values())
    assert error(found) < 0.9 * errors[1.0]


def test_entropy_clips_an_outlier_and_keeps_a_uniform_distribution():
    rng = np.random.default_rng(4)
    spread, largest = histogram(rng.uniform(-1, 1, 100_000).astype(np.float32))
    assert entropy_threshold(spread, largest) > 0.9
    outlier, largest = histogram(np.concatenate([rng.standard_normal(100_000), [60.0]]).astype(np.float32))
    assert 2.0 < entropy_threshold(outlier, largest) < 12.0


@pytest.mark.parametrize("method", METHODS)
def test_threshold_of_silence_is_zero_and_never_above_the_largest(method):
    silent = module.TensorStatistics(np.zeros(1), np.zeros(1), 0.0, module._histogram(np.zeros(8), 0.0))
    assert module.threshold(silent, method) == 0.0
    counts, largest = histogram(np.random.default_rng(5).standard_normal(5000).astype(np.float32))
    found = module.threshold(module.TensorStatistics(np.zeros(1), np.zeros(1), largest, counts), method)
    assert 0 < found <= largest * (1 + 1e-12)


# the pictures


@pytest.fixture
def pictures(tmp_path):
    """A zip of drawings in two classes."""

    def make(name="pictures.zip", count=40, draw_picture=drawing, classes=2, first=0):
        files = {f"class{i % classes}/{i:03}.png": encoded(draw_picture(first + i)) for i in range(count)}
        return ImageSet.open(write_zip(tmp_path / name, files))

    return make


def test_draw_is_seeded_and_spread(digits):
    drawn = draw(digits, 100, 3)
    assert [item.name for item in drawn.items] == [item.name for item in draw(digits, 100, 3).items]
    assert [item.name for item in drawn.items] != [item.name for item in draw(digits, 100, 4).items]
    assert np.bincount(drawn.labels).tolist() == [10] * 10


def test_ten_images_are_too_few(pictures):
    with pytest.raises(CalibrationError, match="10 images, too few"):
        draw(pictures(count=10))


def test_asking_for_ten_images_is_refused(digits):
    with pytest.raises(SpecError, match="10 images"):
        draw(digits, 10)


def test_copies_of_one_picture_are_too_few(pictures):
    with pytest.raises(CalibrationError, match="only 1 of the 40 images"):
        check_images(pictures(draw_picture=lambda i: drawing(0)))


def test_empty_zip_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        ImageSet.open(write_zip(tmp_path / "empty.zip", {}))


def test_random_images_are_refused(pictures):
    with pytest.raises(CalibrationError, match=r"40 of 40 images .* random noise"):
        check_images(pictures(draw_picture=noise))


def test_a_few_odd_images_among_many_are_not(pictures):
    assert check_images(pictures(draw_picture=lambda i: noise(i) if i < 10 else drawing(i))) == ()


def test_blank_images_are_refused(pictures):
    with pytest.raises(CalibrationError, match="of one colour"):
        check_images(pictures(draw_picture=lambda i: np.full((8, 8, 3), 5 + i, np.uint8)))


@pytest.mark.parametrize("quality", [60, 95])
def test_noise_is_known_through_jpeg_compression(quality, tmp_path):
    files = {f"c/{i}.jpg": encoded(noise(i, 64), "JPEG", quality=quality) for i in range(33)}
    with pytest.raises(CalibrationError, match="random noise"), ImageSet.open(write_zip(tmp_path / "n.zip", files)) as images:
        check_images(images)


def test_no_digit_looks_random(digits):
    from gmf_edge.image import rgb_image

    assert not any(looks_random(np.asarray(rgb_image(item.read()).convert("L"))) for item in digits.items[::10])


def test_stripes_are_no_noise():
    assert not looks_random(np.tile(np.random.default_rng(0).integers(0, 255, (1, 40)), (40, 1)))


def test_one_class_is_a_warning_that_names_it(pictures):
    images = pictures(classes=2)
    one = ImageSet(images.address, tuple(item for item in images.items if item.label == 0) * 2, images.classes, images._archive)
    with pytest.raises(CalibrationError, match="only 20"):
        check_images(one)
    more = pictures("more.zip", count=80)
    one = ImageSet(more.address, tuple(item for item in more.items if item.label == 0), more.classes, more._archive)
    (note,) = check_images(one)
    assert "one class, class0" in note


def test_flat_folder_and_few_images_are_noted(tmp_path):
    files = {f"{i}.png": encoded(drawing(i)) for i in range(40)}
    with ImageSet.open(write_zip(tmp_path / "flat.zip", files)) as images:
        notes = check_images(draw(images, 500), wanted=500)
    assert any("no class folders" in note for note in notes)
    assert any("40 images, all there are; 500 were wanted" in note for note in notes)


def test_disjoint_sets_pass(digits, test_digits):
    check_disjoint(draw(digits, 64), test_digits)


def test_overlap_names_the_files_whatever_they_are_called(tmp_path, pictures):
    first = pictures("a.zip", count=40)
    shared = {"x/renamed.png": encoded(drawing(3)), "x/own.png": encoded(drawing(99)), "y/004.png": encoded(drawing(4))}
    second = ImageSet.open(write_zip(tmp_path / "b.zip", shared))
    with pytest.raises(CalibrationError) as caught:
        check_disjoint(first, second)
    assert "2 of 3 evaluation images" in caught.value.problem
    assert "class1/003.png = x/renamed.png" in caught.value.problem
    assert "class0/004.png = y/004.png" in caught.value.problem
    assert "own.png" not in caught.value.problem


# the two passes


def test_statistics_are_numpys(fused, digits):
    drawn = draw(digits, 32)
    inputs = np.concatenate([batch.inputs for batch in drawn.batches(PREPROCESS, 8)])
    found = observe(fused, lambda: iter([inputs[:20], inputs[20:]]), images=32)
    images = found.tensors["images"]
    np.testing.assert_allclose(images.channel_largest, np.abs(inputs).max(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(images.channel_mean, inputs.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-5, atol=1e-7)
    assert images.histogram.sum() == inputs.size
    assert found.images == 32


def test_batch_size_does_not_matter(fused, digits):
    drawn = draw(digits, 32)
    inputs = np.concatenate([batch.inputs for batch in drawn.batches(PREPROCESS, 8)])
    one = observe(fused, lambda: iter([inputs]), images=32)
    many = observe(fused, lambda: iter(np.split(inputs, 8)), images=32)
    for name, found in one.tensors.items():
        np.testing.assert_allclose(found.channel_largest, many.tensors[name].channel_largest, rtol=1e-4)
        assert module.threshold(found, "mse") == pytest.approx(module.threshold(many.tensors[name], "mse"), rel=0.02)


def test_one_batch_at_a_time_is_alive(fused, digits):
    import weakref

    drawn = draw(digits, 32)
    alive: list[weakref.ref] = []

    def batches():
        for batch in drawn.batches(PREPROCESS, 4):
            copy = batch.inputs.copy()
            alive.append(weakref.ref(copy))
            del batch
            yield copy
            del copy
            assert sum(ref() is not None for ref in alive) <= 2

    observe(fused, batches, images=32)
    assert len(alive) == 16


def test_activations_that_are_not_finite_are_named(fused):
    broken = np.full((1, 3, 64, 64), np.nan, np.float32)
    with pytest.raises(CalibrationError, match="images is NaN or infinite"):
        observe(fused, lambda: iter([broken]), images=1)


def test_progress_reaches_the_end_and_never_goes_back(fused, digits):
    drawn = draw(digits, 32)
    seen: list[float] = []
    observe(
        fused,
        lambda: (batch.inputs for batch in drawn.batches(PREPROCESS, 8)),
        images=32,
        progress=lambda fraction, message: seen.append(fraction or 0.0),
    )
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


# the file and its cache


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
