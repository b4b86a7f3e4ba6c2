"""predict on files, folders, archives and patterns; broken pictures among good ones; turned photographs; captioned copies."""

from __future__ import annotations

import json
import zipfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmf_edge import cli
from gmf_edge.deploy import predict
from gmf_edge.deploy.captions import captioned
from gmf_edge.deploy.pictures import pictures_at
from gmf_edge.errors import DataError, SpecError
from gmf_edge.image import rgb_image


@pytest.fixture
def photos(tmp_path: Path, digits: Path) -> Path:
    """a/, a/b/ and c/ with two digits each, and a text file."""
    for place, digit in (("a", "3"), ("a/b", "7"), ("c", "0")):
        folder = tmp_path / "photos" / place
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(sorted((digits / digit).iterdir())[:2]):
            (folder / f"{digit}-{number}.png").write_bytes(picture.read_bytes())
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path / "photos"


def names(*addresses: Path | str) -> list[str]:
    with ExitStack() as stack:
        return [picture.name for picture in pictures_at([Path(address) for address in addresses], stack)]


def test_a_folder_is_every_picture_below_it(photos: Path) -> None:
    found = names(photos)
    assert [Path(name).relative_to(photos).as_posix() for name in found] == [
        "a/3-0.png", "a/3-1.png", "a/b/7-0.png", "a/b/7-1.png", "c/0-0.png", "c/0-1.png",
    ]  # fmt: skip


def test_a_pattern_is_what_it_matches_and_nothing_counts_twice(photos: Path) -> None:
    assert len(names(photos / "*" / "*.png")) == 4
    assert len(names(photos / "**" / "*.png")) == 6
    assert names(photos / "c" / "0-0.png", photos / "c") == [str(photos / "c" / "0-0.png"), str(photos / "c" / "0-1.png")]
    with pytest.raises(DataError, match="no picture matches"):
        names(photos / "*.jpg")


def test_an_archive_is_read_in_place(photos: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(photos.rglob("*.png")):
            archive.write(path, path.relative_to(photos))
    assert len(names(tmp_path / "photos.zip")) == 6
    assert len(names(tmp_path / "photos.zip" / "a")) == 4
    with pytest.raises(DataError, match="holds no folder"):
        names(tmp_path / "photos.zip" / "z")


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        names(tmp_path / "empty")


def test_many_pictures_come_back_in_order_past_the_largest_batch(pico_fp16: Path, digits: Path) -> None:
    found = predict(pico_fp16, [digits], top=1)
    assert len(found) > 2 * 8
    assert [Path(prediction.image).parent.name for prediction in found] == sorted(
        Path(prediction.image).parent.name for prediction in found
    )
    assert [prediction.classes[0][0] for prediction in found] == [Path(prediction.image).parent.name for prediction in found]


def test_a_broken_picture_among_others_is_named_and_the_others_are_classified(pico_fp16: Path, photos: Path) -> None:
    (photos / "c" / "0-0.png").write_bytes(b"no picture")
    found = predict(pico_fp16, [photos])
    broken = [prediction for prediction in found if prediction.problem]
    assert [Path(prediction.image).name for prediction in broken] == ["0-0.png"]
    assert broken[0].classes == ()
    assert "is not a picture" in str(broken[0].problem)
    assert [prediction.classes[0][0] for prediction in found if not prediction.problem] == ["3", "3", "7", "7", "0"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_exif_says(tmp_path: Path, orientation: int) -> None:
    # what a camera that was held differently writes: the upright picture, stored turned
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:10, :15] = (250, 10, 10)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    assert np.array_equal(np.asarray(rgb_image(path, upright=True)), upright)
    assert np.array_equal(np.asarray(rgb_image(path)), stored)


def test_damaged_exif_data_leave_the_picture_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (8, 8), "red").save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert rgb_image(path, upright=True).size == (8, 8)


def test_copies_have_the_classes_below_the_picture(pico_fp16: Path, photos: Path, tmp_path: Path) -> None:
    predict(pico_fp16, [photos / "a"], top=2, save=tmp_path / "saved")
    saved = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert saved == ["1-3-0.png", "2-3-1.png", "3-7-0.png", "4-7-1.png"]
    with Image.open(tmp_path / "saved" / saved[0]) as page, Image.open(photos / "a" / "3-0.png") as picture:
        assert page.height > picture.height + 2 * 16
        below = np.asarray(page.convert("L"))[picture.height :]
        assert below.min() < 128 < below.max()  # text on white
    with pytest.raises(SpecError, match="exists already"):
        predict(pico_fp16, [photos / "a"], save=tmp_path / "saved")


def test_a_large_picture_is_scaled_down_and_any_name_can_be_written() -> None:
    page = captioned(Image.new("RGB", (4000, 2000)), ["50.0 %  Grüße ☃", "25.0 %  b"])
    assert page.width == 1024
    assert page.height < 700


def test_the_command_prints_a_line_a_picture_and_ends_with_1_where_one_is_broken(
    capsys: pytest.CaptureFixture[str], pico_fp16: Path, photos: Path
) -> None:
    assert cli.run(["predict", str(pico_fp16), str(photos), "-q"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["picture", "class", "%"]
    assert [row[1] for row in rows[1:]] == ["3", "3", "7", "7", "0", "0"]
    (photos / "c" / "0-0.png").write_bytes(b"")
    assert cli.run(["predict", str(pico_fp16), str(photos), "-q"]) == 1
    printed = capsys.readouterr()
    assert "error: 1 of 6 pictures could not be read" in printed.err
    assert printed.out.splitlines()[-1].startswith("FAILED: 1 of 6 pictures")
    assert cli.run(["predict", str(pico_fp16), str(photos), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [bool(entry.get("error")) for entry in found] == [False, False, False, False, True, False]
