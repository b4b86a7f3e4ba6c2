"""What the classes are called, and their WordNet ids where they are ImageNet's.

--labels FILE                     one name a line, in the order of the logits
packaged weights                  the packaged names
evaluation set                    its class folders; folders that are all WordNet ids of ImageNet-1k get its names
1,000 classes and none of these   ImageNet-1k, in the order of the sorted WordNet ids, as upstream's checkpoints have it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gmf_edge.errors import DataError
from gmf_edge.weights import ASSETS

PACKAGED_LABELS, IMAGENET_1K = ASSETS / "pico-labels.txt", ASSETS / "imagenet-1k.txt"
IMAGENET_CLASSES = 1000
MAX_LABELS_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Classes:
    """Names, index = class.

    Attributes:
        names: one a class.
        ids: their WordNet ids; empty where they are not ImageNet's.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...] = ()


@cache
def imagenet_names() -> dict[str, str]:
    """WordNet id -> name of the 1,000 classes of ILSVRC 2012, in the order of the ids."""
    lines = IMAGENET_1K.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t", 1) for line in lines)


def packaged_classes(count: int) -> Classes:
    """Of the packaged weights."""
    return Classes(tuple(PACKAGED_LABELS.read_text(encoding="utf-8").split("\n"))[:count])


def classes_from_file(path: Path, count: int) -> Classes:
    """One name a line; the last line may end without a line feed.

    Raises:
        DataError: not a text file, an empty name, or not `count` names.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DataError(f"--labels {path} is not a regular file", "name a text file with one class name a line")
        with path.open("rb") as file:
            content = file.read(MAX_LABELS_BYTES + 1)
    except OSError as error:
        raise DataError(
            f"--labels {path} cannot be read ({error.strerror})", "name a text file with one class name a line"
        ) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"--labels {path} is not UTF-8 text ({error.reason})", "write one class name a line") from error
    if len(content) > MAX_LABELS_BYTES or "\0" in text:
        raise DataError(f"--labels {path} is no list of class names", "write one class name a line")
    names = tuple(line.strip() for line in text.splitlines())
    if "" in names:
        raise DataError(f"line {names.index('') + 1} of --labels {path} is empty", "write one class name a line, and nothing else")
    if len(names) != count:
        raise DataError(
            f"--labels {path} has {len(names)} names, the model {count} classes",
            "give one name a class, in the order of the logits",
        )
    return Classes(names)


def classes_from_folders(folders: Sequence[str]) -> Classes:
    """Names of the class folders of a set of images."""
    known = imagenet_names()
    if folders and all(folder in known for folder in folders):
        return Classes(tuple(known[folder] for folder in folders), tuple(folders))
    return Classes(tuple(folders))


def default_classes(count: int) -> Classes:
    """Where nothing else names them."""
    if count == IMAGENET_CLASSES:
        return classes_from_folders(tuple(imagenet_names()))
    return Classes(tuple(f"class {index}" for index in range(count)))
