"""Pictures that can be trusted: drawn evenly, and noise, copies and overlaps refused."""

from __future__ import annotations

import numpy as np
import pytest
from int8_helpers import drawing, encoded, noise, write_zip

from gmf_edge.errors import CalibrationError, DataError, SpecError
from gmf_edge.imageset import ImageSet
from gmf_edge.precision.calibration_images import check_disjoint, check_images, draw, looks_random


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
