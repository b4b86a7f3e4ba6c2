"""Image sets: layouts, order, digests, draws, streaming, and one clear error for each thing that can be wrong."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gmf_edge.imageset
from gmf_edge.errors import DataError, SpecError
from gmf_edge.image import Preprocess, input_from_file
from gmf_edge.imageset import ImageSet

TINY = Preprocess((8, 8))
CLASSES = ("ant", "bee", "cat")


def picture(seed: int = 0, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def labelled_files(per_class: int = 4) -> dict[str, bytes]:
    return {f"{name}/{i:02}.png": picture(100 * c + i) for c, name in enumerate(CLASSES) for i in range(per_class)}


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zip_of(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture(params=["folder", "zip"])
def made(request: pytest.FixtureRequest, tmp_path: Path):  # type: ignore[no-untyped-def]
    """A function from files to the address of a folder or of an archive that holds them."""

    def make(files: dict[str, bytes], name: str = "set") -> Path:
        return folder_of(tmp_path / name, files) if request.param == "folder" else zip_of(tmp_path / f"{name}.zip", files)

    return make


def test_class_folders_are_labels_in_sorted_order(made) -> None:  # type: ignore[no-untyped-def]
    files = dict(reversed(labelled_files().items()))
    with ImageSet.open(made(files)) as images:
        assert images.classes == CLASSES
        assert images.labelled
        assert len(images) == 12
        assert [item.name for item in images.items] == sorted(files)
        assert [item.label for item in images.items] == [0] * 4 + [1] * 4 + [2] * 4
        assert images.labels is not None
        assert images.labels.dtype == np.int64
        assert all(item.read() == files[item.name] for item in images.items)


def test_class_names_sort_as_text_so_10_stands_before_2(made) -> None:  # type: ignore[no-untyped-def]
    with ImageSet.open(made({"2/a.png": picture(), "10/a.png": picture()})) as images:
        assert images.classes == ("10", "2")


def test_flat_pictures_have_no_labels(made) -> None:  # type: ignore[no-untyped-def]
    with ImageSet.open(made({"b.png": picture(1), "a.JPEG": picture(0, "JPEG"), "notes.txt": b"x"})) as images:
        assert [(item.name, item.label) for item in images.items] == [("a.JPEG", None), ("b.png", None)]
        assert images.classes == ()
        assert not images.labelled
        assert images.labels is None
        (batch,) = images.batches(TINY, 4)
        assert batch.labels is None
        assert batch.inputs.shape == (2, 3, 8, 8)


def test_one_folder_around_the_set_is_stepped_into(made) -> None:  # type: ignore[no-untyped-def]
    bare, wrapped = labelled_files(), {f"tin10-val/{name}": content for name, content in labelled_files().items()}
    with ImageSet.open(made(bare, "bare")) as one, ImageSet.open(made(wrapped, "wrapped")) as other:
        assert one.items == other.items
        assert one.classes == other.classes
        assert one.sha256 == other.sha256


def test_pictures_in_one_single_folder_get_no_labels(made) -> None:  # type: ignore[no-untyped-def]
    with ImageSet.open(made({"photos/a.png": picture(), "photos/b.png": picture()})) as images:
        assert [(item.name, item.label) for item in images.items] == [("a.png", None), ("b.png", None)]


def test_macos_junk_and_hidden_files_are_passed_over(made) -> None:  # type: ignore[no-untyped-def]
    junk = {
        "__MACOSX/ant/._00.png": b"junk", "ant/._00.png": b"junk", "ant/.DS_Store": b"junk", ".DS_Store": b"junk",
        ".cache/x.png": b"junk", "words.txt": b"n0 ant",
    }  # fmt: skip
    with ImageSet.open(made(labelled_files() | junk)) as images:
        assert images.classes == CLASSES
        assert len(images) == 12


def test_folder_and_archive_of_the_same_pictures_are_the_same_set(tmp_path: Path) -> None:
    files = labelled_files()
    with ImageSet.open(folder_of(tmp_path / "a", files)) as folder, ImageSet.open(zip_of(tmp_path / "b.zip", files)) as archive:
        assert folder.items == archive.items
        assert folder.sha256 == archive.sha256
        for left, right in zip(folder.batches(TINY, 5), archive.batches(TINY, 5), strict=True):
            np.testing.assert_array_equal(left.inputs, right.inputs)


def test_item_digest_is_the_files_sha256_and_is_read_once(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", labelled_files())
    item = ImageSet.open(root).items[3]
    assert item.sha256 == hashlib.sha256((root / item.name).read_bytes()).hexdigest()
    before = item.sha256
    (root / item.name).unlink()
    assert item.sha256 == before


def test_opening_reads_no_picture(made, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    address = made(labelled_files())
    monkeypatch.setattr(Path, "read_bytes", lambda *_: pytest.fail("a picture was read"))
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("a picture was read"))
    with ImageSet.open(address) as images:
        assert len(images.spread(5)) == 5


@pytest.mark.parametrize("change", ["content", "name", "class", "missing"])
def test_set_digest_changes_with_every_part_of_the_set(tmp_path: Path, change: str) -> None:
    files = labelled_files()
    changed = dict(files)
    if change == "content":
        changed["bee/01.png"] = picture(999)
    elif change == "missing":
        del changed["bee/01.png"]
    else:
        changed["bee/01b.png" if change == "name" else "cat/99.png"] = changed.pop("bee/01.png")
    one, other = ImageSet.open(folder_of(tmp_path / "a", files)), ImageSet.open(folder_of(tmp_path / "b", changed))
    assert one.sha256 != other.sha256


def test_batches_stream_inputs_labels_and_items_in_order(made) -> None:  # type: ignore[no-untyped-def]
    files = labelled_files()
    with ImageSet.open(made(files)) as images:
        batches = list(images.batches(TINY, 5, workers=3))
        assert [batch.inputs.shape for batch in batches] == [(5, 3, 8, 8), (5, 3, 8, 8), (2, 3, 8, 8)]
        assert all(batch.inputs.dtype == np.float32 for batch in batches)
        np.testing.assert_array_equal(np.concatenate([batch.labels for batch in batches]), images.labels)
        assert tuple(item for batch in batches for item in batch.items) == images.items
        expected = np.stack([input_from_file(files[name], TINY) for name in sorted(files)])
        np.testing.assert_array_equal(np.concatenate([batch.inputs for batch in batches]), expected)


def test_batches_hold_few_pictures_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path / "set", {f"{i:04}.png": picture(i) for i in range(60)})
    read: list[str] = []
    real = gmf_edge.imageset.input_from_file
    monkeypatch.setattr(
        gmf_edge.imageset, "input_from_file", lambda data, spec, name: (read.append(name), real(data, spec, name))[1]
    )
    batches = ImageSet.open(root).batches(TINY, 4, workers=2)
    next(batches)
    assert 4 <= len(read) <= 4 + 2 * 2
    batches.close()  # type: ignore[attr-defined]


def test_spread_is_even_over_the_classes_and_keeps_order_and_labels(made) -> None:  # type: ignore[no-untyped-def]
    with ImageSet.open(made(labelled_files(per_class=6))) as images:
        for n in range(1, 19):
            drawn = images.spread(n, seed=3)
            counts = Counter(item.label for item in drawn.items)
            assert len(drawn) == n
            assert drawn.classes == CLASSES
            assert max(counts.values()) - min(counts.get(label, 0) for label in range(3)) <= 1
            assert [item for item in images.items if item in drawn.items] == list(drawn.items)
        assert images.spread(18).items == images.items
        assert len(list(images.spread(4).batches(TINY, 3))) == 2


def test_spread_takes_the_rest_from_other_classes_where_one_runs_out(tmp_path: Path) -> None:
    files = {"few/0.png": picture(), **{f"many/{i}.png": picture(i) for i in range(9)}}
    drawn = ImageSet.open(folder_of(tmp_path / "set", files)).spread(6)
    assert Counter(item.label for item in drawn.items) == {0: 1, 1: 5}


def test_spread_depends_on_the_seed_alone(made) -> None:  # type: ignore[no-untyped-def]
    with ImageSet.open(made(labelled_files(per_class=8))) as images:
        assert images.spread(9, seed=1).items == images.spread(9, seed=1).items
        assert len({tuple(item.name for item in images.spread(9, seed=seed).items) for seed in range(6)}) == 6
        # smaller draws are part of larger ones, so that more pictures refine a result instead of replacing it
        assert set(images.spread(5, seed=1).items) < set(images.spread(9, seed=1).items)


def test_spread_is_the_same_on_every_machine_and_version(tmp_path: Path) -> None:
    drawn = ImageSet.open(folder_of(tmp_path / "set", labelled_files(per_class=8))).spread(4, seed=0)
    # the first of each class by sha256("0:ant/00.png") and so on, and the second of the class first by sha256("0:ant") and so on
    assert [item.name for item in drawn.items] == ["ant/06.png", "bee/02.png", "bee/05.png", "cat/00.png"]


def test_spread_of_a_flat_set_draws_by_seed(tmp_path: Path) -> None:
    images = ImageSet.open(folder_of(tmp_path / "set", {f"{i}.png": picture(i) for i in range(9)}))
    assert len(images.spread(4)) == 4
    assert images.spread(4, 1).items != images.spread(4, 2).items


@pytest.mark.parametrize("n", [0, -1, 13])
def test_spread_of_more_than_there_are_is_an_error(tmp_path: Path, n: int) -> None:
    with pytest.raises(DataError, match=r"which has 12; ask for 1 to 12"):
        ImageSet.open(folder_of(tmp_path / "set", labelled_files())).spread(n)


def test_folder_inside_an_archive_is_opened_by_its_path(tmp_path: Path) -> None:
    files = {f"{split}/{name}": content for split in ("train", "val") for name, content in labelled_files().items()}
    archive = zip_of(tmp_path / "set.zip", files | {"words.txt": b"x"})
    with ImageSet.open(archive / "val") as images, ImageSet.open(folder_of(tmp_path / "same", labelled_files())) as same:
        assert images.items == same.items
        assert images.sha256 == same.sha256
    with ImageSet.open(f"{archive}/val/bee") as flat:
        assert len(flat) == 4
        assert not flat.labelled
    with pytest.raises(DataError, match=r"holds no folder 'test'; its folders are train, val"):
        ImageSet.open(archive / "test")
    with pytest.raises(DataError, match=r"holds no folder 'va'"):  # a prefix of a name is not the name
        ImageSet.open(archive / "va")


def test_splits_are_refused_and_the_error_names_one(made) -> None:  # type: ignore[no-untyped-def]
    address = made({f"{split}/{name}": content for split in ("train", "val") for name, content in labelled_files().items()})
    with pytest.raises(DataError, match=rf"its folders are train, val; name the folder .* such as {address}/val"):
        ImageSet.open(address)


def test_splits_of_flat_pictures_are_not_taken_for_classes(made) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match="looks like splits"):
        ImageSet.open(made({"train/a.png": picture(), "val/b.png": picture()}))


def test_pictures_beside_class_folders_are_refused(made) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=r"holds pictures \(stray\.png\) beside folders of pictures \(ant, bee, cat\)"):
        ImageSet.open(made(labelled_files() | {"stray.png": picture()}))


def test_class_folder_without_pictures_is_an_error(made) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=r"1 class folders in .* hold no pictures: bad;"):
        ImageSet.open(made(labelled_files() | {"bad/readme.txt": b"x"}))


def test_empty_class_folder_is_an_error_even_beside_one_full_one(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", {"ant/0.png": picture()})
    (root / "bee").mkdir()
    with pytest.raises(DataError, match="hold no pictures: bee"):
        ImageSet.open(root)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("ant/0.png", picture())
        archive.writestr("bee/", b"")
    with pytest.raises(DataError, match="hold no pictures: bee"):
        ImageSet.open(tmp_path / "set.zip")


def test_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; name a folder"):
        ImageSet.open(tmp_path / "nowhere")


def test_name_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be opened|does not exist"):
        ImageSet.open(tmp_path / ("x" * 300))


def test_empty_folder_and_empty_archive_are_errors(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for address in (tmp_path / "set", zip_of(tmp_path / "set.zip", {})):
        with pytest.raises(DataError, match=r"holds no pictures; put pictures there \(\.jpg"):
            ImageSet.open(address)


def test_set_of_other_files_holds_no_pictures(made) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match="holds no pictures"):
        ImageSet.open(made({"ant/readme.txt": b"x", "labels.csv": b"x"}))


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n"])
def test_file_that_is_no_archive_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"set\.zip is neither a folder nor a \.zip"):
        ImageSet.open(tmp_path / "set.zip")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_archive_is_an_error(tmp_path: Path, share: float) -> None:
    archive = zip_of(tmp_path / "set.zip", labelled_files())
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    with pytest.raises(DataError, match=r"set\.zip is a truncated or damaged \.zip .*copy it again"):
        ImageSet.open(archive)


def test_damaged_member_of_an_archive_is_an_error_that_names_it(tmp_path: Path) -> None:
    files = labelled_files()
    archive = zip_of(tmp_path / "set.zip", files, zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    content[content.index(files["bee/02.png"]) + 50] ^= 0xFF
    archive.write_bytes(content)
    with ImageSet.open(archive) as images:
        with pytest.raises(DataError, match=r"set\.zip: bee/02\.png is damaged"):
            list(images.batches(TINY, 4))
        assert [item.name for item, _ in images.broken_items()] == ["bee/02.png"]


@pytest.mark.parametrize("name", ["../evil.png", "ant/../../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\evil.png"])
def test_unsafe_name_in_an_archive_is_refused(tmp_path: Path, name: str) -> None:
    archive = zip_of(tmp_path / "set.zip", labelled_files() | {name: picture()})
    with pytest.raises(DataError, match=r"unsafe name .*evil\.png"):
        ImageSet.open(archive)


def test_name_that_an_archive_holds_twice_is_refused(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "set.zip", labelled_files() | {"ant\\00.png": picture()})
    with pytest.raises(DataError, match=r"holds 'ant\\\\00\.png' twice"):
        ImageSet.open(archive)


def test_encrypted_archive_is_an_error(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "set.zip", labelled_files(), zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    flags = content.index(b"PK\x01\x02") + 8  # general purpose bit 0 of the first central directory entry
    content[flags] |= 1
    archive.write_bytes(content)
    with ImageSet.open(archive) as images, pytest.raises(DataError, match=r"ant/00\.png is encrypted"):
        images.items[0].read()


def test_file_too_large_to_be_a_picture_is_refused_unread(made, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(gmf_edge.imageset, "MAX_FILE_BYTES", 100)
    with ImageSet.open(made(labelled_files())) as images, pytest.raises(DataError, match=r"00\.png has more than"):
        images.items[0].read()


def test_broken_picture_among_good_ones_is_named_in_the_sets_order(made) -> None:  # type: ignore[no-untyped-def]
    files = labelled_files() | {"bee/03.png": picture(5)[:90], "cat/01.png": b"text"}
    with ImageSet.open(made(files)) as images:
        batches = images.batches(TINY, 4)
        assert next(batches).labels.tolist() == [0] * 4  # type: ignore[union-attr]
        with pytest.raises(DataError, match=r"set(\.zip)?: bee/03\.png is broken"):
            list(batches)


def test_all_broken_pictures_are_found_and_five_of_them_named(made) -> None:  # type: ignore[no-untyped-def]
    files = labelled_files() | {f"bee/bad{i}.png": b"text" for i in range(7)}
    with ImageSet.open(made(files)) as images:
        assert [item.name for item, _ in images.broken_items()] == [f"bee/bad{i}.png" for i in range(7)]
        with pytest.raises(
            DataError, match=r"7 of 19 pictures in .* cannot be read: bee/bad0\.png, .*bad4\.png and 2 more \(first: "
        ) as caught:
            images.require_readable()
        assert "bad5" not in str(caught.value)
        assert caught.value.remedy
        good = ImageSet(images.address, tuple(item for item in images.items if "bad" not in item.name), images.classes)
        good.require_readable()


def test_picture_removed_after_opening_is_an_error(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", labelled_files())
    images = ImageSet.open(root)
    (root / "bee/00.png").unlink()
    with pytest.raises(DataError, match=r"bee/00\.png cannot be read .*check that it is still there"):
        list(images.batches(TINY, 3))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipe_with_a_picture_name_does_not_hang(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", {"a.png": picture()})
    os.mkfifo(root / "b.png")
    assert [why for _, why in ImageSet.open(root).broken_items()] == [f"{root}/b.png is not a regular file"]


def test_folder_that_links_to_itself_does_not_hang(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", labelled_files())
    (root / "ant" / "again").symlink_to(root)
    with pytest.raises(DataError, match="nests pictures deeper"):
        ImageSet.open(root)


def test_archive_is_closed_when_opening_fails_and_when_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str | None] = []
    real = zipfile.ZipFile.close
    monkeypatch.setattr(zipfile.ZipFile, "close", lambda archive: (closed.append(archive.filename), real(archive))[1])
    empty, full = zip_of(tmp_path / "e.zip", {}), zip_of(tmp_path / "f.zip", labelled_files())
    closed.clear()
    with pytest.raises(DataError) as caught:
        ImageSet.open(empty)
    with ImageSet.open(full):
        assert set(closed) == {str(empty)}
    assert caught.value  # alive until here, and the archive with its traceback: nothing but the code above has closed it
    assert set(closed) == {str(empty), str(full)}


def test_refused_batch_size_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        ImageSet.open(folder_of(tmp_path / "set", labelled_files())).batches(TINY, 0)


def test_pictures_need_neither_torch_nor_onnx() -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['onnx'] = sys.modules['onnxruntime'] = None; import gmf_edge.imageset"
    subprocess.run([sys.executable, "-c", code], check=True)
