"""What the classes are called, by file, folders, package or ImageNet."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gmf_edge.errors import DataError
from gmf_edge.prepare.classes import classes_from_file, classes_from_folders, default_classes, imagenet_names


def test_imagenet_has_a_thousand_names_in_the_order_of_their_ids() -> None:
    names = imagenet_names()
    assert len(names) == len(set(names.values())) == 1000
    assert list(names) == sorted(names)
    assert all(wordnet_id[0] == "n" and wordnet_id[1:].isdigit() and len(wordnet_id) == 9 for wordnet_id in names)
    # indices that everybody knows
    by_index = list(names.values())
    assert [by_index[index] for index in (0, 1, 207, 281, 285, 999)] == [
        "tench", "goldfish", "golden retriever", "tabby", "Egyptian cat", "toilet tissue",
    ]  # fmt: skip
    assert (by_index[134], by_index[517]) == ("crane (bird)", "crane (machine)")


def test_a_thousand_classes_are_imagenets_and_other_counts_are_numbered() -> None:
    classes = default_classes(1000)
    assert (classes.names[0], classes.ids[0]) == ("tench", "n01440764")
    assert default_classes(3).names == ("class 0", "class 1", "class 2")
    assert default_classes(3).ids == ()


def test_wordnet_folders_get_names_and_other_folders_are_names() -> None:
    classes = classes_from_folders(("n01440764", "n02123045"))
    assert classes.names == ("tench", "tabby")
    assert classes.ids == ("n01440764", "n02123045")
    assert classes_from_folders(("n01440764", "n00000000")).names == ("n01440764", "n00000000")
    assert classes_from_folders(("cat", "dog")).ids == ()


@pytest.mark.parametrize("content", [b"cat\ndog\n", b"cat\r\ndog", b"\xef\xbb\xbfcat\ndog\n", b" cat \ndog\n"])
def test_a_file_has_one_name_a_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    assert classes_from_file(path, 2).names == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"cat\n", "has 1 names, the model 2 classes"),
        (b"", "has 0 names"),
        (b"cat\n\ndog\n", "line 2 of .* is empty"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"cat\0\ndog\n", "is no list of class names"),
        (hashlib.sha512(b"").digest() * 9, "is not UTF-8 text"),
    ],
)
def test_what_is_no_list_of_names_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        classes_from_file(path, 2)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt cannot be read"):
        classes_from_file(tmp_path / "none.txt", 2)
    with pytest.raises(DataError, match="cannot be read"):
        classes_from_file(tmp_path, 2)
