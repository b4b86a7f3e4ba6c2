"""A folder or .zip of pictures -> items in a fixed order -> batches of model inputs, streamed.

address                 what it opens
pictures/               a folder on disk; pictures/val is its sub-folder
pictures.zip            an archive, read in place, never unpacked
pictures.zip/val        one folder inside an archive

layout                  what it means
CLASS/picture.jpg       labelled; a class's index is its place among the sorted class names (torchvision's ImageFolder)
picture.jpg             no labels
TOP/...                 one folder around either layout is stepped into. So pictures in one single folder have no labels: one class
                        alone cannot measure a classifier, and index 0 would be a guess.

Files that are not pictures, hidden files and __MACOSX are passed over. Folders of splits (train, val) and anything nested deeper
are refused, and the error says how to name one of them. Items are sorted by class and file name, so that a folder and an archive of
the same pictures are the same set, with the same digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gmf_edge.errors import DataError, GmfEdgeError
from gmf_edge.image import Float32Array, Preprocess, default_workers, input_batches, input_from_file, rgb_image

# torchvision's list
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# folders of these names alone are splits of a set, not classes
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "eval", "test", "testing", "calib", "calibration"})
# a picture file of more bytes is refused before it is read
MAX_FILE_BYTES = 128 * 2**20
NAMES_SHOWN = 5
# a folder nested deeper than this is refused anyway, so nothing below it is walked
MAX_DEPTH = 6


@dataclass(frozen=True)
class ImageItem:
    """One picture of a set.

    Attributes:
        name: its path inside the set, with forward slashes: "n01440764/tench.JPEG".
        label: index of its class, or None in a set without labels.
        read: its bytes, read again at every call; raises DataError.
    """

    name: str
    label: int | None
    read: Callable[[], bytes] = field(repr=False, compare=False)

    @cached_property
    def sha256(self) -> str:
        """Digest of the file's bytes, in hexadecimal; read once, when it is first asked for."""
        return hashlib.sha256(self.read()).hexdigest()


class Batch(NamedTuple):
    """Consecutive items of a set.

    Attributes:
        inputs: float32 [B, 3, H, W].
        labels: int64 [B], or None in a set without labels.
        items: the B items.
    """

    inputs: Float32Array
    labels: npt.NDArray[np.int64] | None
    items: tuple[ImageItem, ...]


class ImageSet:
    """Pictures in a fixed order, with the sorted names of their classes; made by ImageSet.open.

    Attributes:
        address: where it was opened, for messages.
        items: the pictures, sorted by class and file name.
        classes: class names, index = label; empty in a set without labels.
    """

    def __init__(
        self, address: str, items: tuple[ImageItem, ...], classes: tuple[str, ...], archive: zipfile.ZipFile | None = None
    ) -> None:
        self.address = address
        self.items = items
        self.classes = classes
        self._archive = archive

    @classmethod
    def open(cls, address: Path | str) -> ImageSet:
        """The set at an address; see the module for addresses and layouts. Nothing is decoded yet.

        Use it in a `with` statement, or close it: an archive stays open to be read from.

        Raises:
            DataError: nothing there, not a folder or .zip, a damaged or unsafe archive, no pictures, or a layout with two meanings.
        """
        readers, folders, archive = _entries(address)
        try:
            return cls._arranged(str(address), readers, folders, archive)
        except BaseException:
            if archive is not None:
                archive.close()
            raise

    @classmethod
    def without_labels(cls, address: Path | str) -> ImageSet:
        """Every picture at an address, in whatever folders, as a set without labels, sorted by path.

        Raises:
            DataError: nothing there, not a folder or .zip, a damaged or unsafe archive, or no pictures.
        """
        readers, _, archive = _entries(address)
        if not readers:
            if archive is not None:
                archive.close()
            raise _no_pictures(address)
        names = sorted(readers, key=lambda name: name.parts)
        return cls(str(address), tuple(ImageItem(str(name), None, readers[name]) for name in names), (), archive)

    @classmethod
    def _arranged(
        cls,
        address: str,
        readers: dict[PurePosixPath, Callable[[], bytes]],
        folders: set[PurePosixPath],
        archive: zipfile.ZipFile | None = None,
    ) -> ImageSet:
        """The set of these picture files; their layout decides the labels."""
        if not readers:
            raise _no_pictures(address)
        readers, folders = _without_top_folder(readers, folders)
        names = sorted(readers, key=lambda name: name.parts)
        depths = {len(name.parts) for name in names}
        if depths == {1}:
            return cls(address, tuple(ImageItem(str(name), None, readers[name]) for name in names), (), archive)
        _refuse_layout(address, names, folders)
        classes = tuple(sorted({name.parts[0] for name in names}))
        index = {name: i for i, name in enumerate(classes)}
        return cls(address, tuple(ImageItem(str(name), index[name.parts[0]], readers[name]) for name in names), classes, archive)

    def __len__(self) -> int:
        return len(self.items)

    def __enter__(self) -> ImageSet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive, if it is one; items and subsets cannot be read afterwards."""
        if self._archive is not None:
            self._archive.close()

    @property
    def labelled(self) -> bool:
        """Whether the pictures lie in class folders."""
        return bool(self.classes)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """int64 [len(self)], or None in a set without labels."""
        return np.array([item.label for item in self.items], np.int64) if self.labelled else None

    @cached_property
    def sha256(self) -> str:
        """Digest of the whole set: class names, and each item's name, label and content. Reads every file once.

        A folder and an archive of the same pictures have the same digest; where they lie does not count.
        """
        digest = hashlib.sha256(repr(self.classes).encode())
        with ThreadPoolExecutor(default_workers()) as pool:
            for item, content in zip(self.items, pool.map(lambda item: item.sha256, self.items), strict=True):
                digest.update(repr((item.name, item.label, content)).encode())
        return digest.hexdigest()

    def spread(self, n: int, seed: int = 0) -> ImageSet:
        """n of the pictures, drawn evenly over the classes: no class gives two more than another, unless it has run out.

        The draw sorts by sha256 of seed and name, so it is the same on every machine and version, and does not depend on file
        contents. The result keeps the set's order and classes, and reads from the same archive.

        Raises:
            DataError: n is below 1 or more than there are.
        """
        if not 1 <= n <= len(self):
            raise DataError(f"{n} pictures were asked of {self.address}, which has {len(self)}", f"ask for 1 to {len(self)}")

        def lot(name: str) -> str:
            return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).hexdigest()

        by_class: dict[int | None, list[ImageItem]] = {}
        for item in self.items:
            by_class.setdefault(item.label, []).append(item)
        ranked: list[tuple[int, str, str]] = []
        for label, items in by_class.items():
            class_lot = lot("" if label is None else self.classes[label])
            ranked += [(turn, class_lot, item.name) for turn, item in enumerate(sorted(items, key=lambda item: lot(item.name)))]
        drawn = {name for _, _, name in sorted(ranked)[:n]}
        return self.subset(item for item in self.items if item.name in drawn)

    def subset(self, items: Iterable[ImageItem]) -> ImageSet:
        """These pictures of the set, in the order given; it keeps the classes and reads from the same archive."""
        return ImageSet(self.address, tuple(items), self.classes, self._archive)

    def batches(self, preprocess: Preprocess, batch_size: int, workers: int | None = None) -> Iterator[Batch]:
        """The set as model inputs, in its order, streamed: one batch and a few pictures are in memory, see image.input_batches.

        Raises:
            SpecError: batch_size or workers below 1.
            DataError: the first picture, in the set's order, that cannot be read; require_readable names all of them.
        """
        inputs = input_batches((self._input_call(item, preprocess) for item in self.items), batch_size, workers)
        return self._labelled_batches(inputs)

    def _labelled_batches(self, inputs: Iterator[Float32Array]) -> Iterator[Batch]:
        start = 0
        for batch in inputs:
            stop = start + len(batch)
            yield Batch(batch, None if self.labels is None else self.labels[start:stop], self.items[start:stop])
            start = stop

    def _input_call(self, item: ImageItem, preprocess: Preprocess) -> Callable[[], Float32Array]:
        return lambda: input_from_file(item.read(), preprocess, f"{self.address}: {item.name}")

    def broken_items(self, workers: int | None = None) -> list[tuple[ImageItem, str]]:
        """Each picture that cannot be read, with the reason, in the set's order. Decodes every picture."""

        def reason(item: ImageItem) -> str | None:
            try:
                rgb_image(item.read(), item.name)
            except GmfEdgeError as error:
                return error.problem
            return None

        with ThreadPoolExecutor(workers or default_workers()) as pool:
            return [(item, why) for item, why in zip(self.items, pool.map(reason, self.items), strict=True) if why is not None]

    def require_readable(self, workers: int | None = None) -> None:
        """Decode every picture once.

        Raises:
            DataError: some cannot be read; names up to five of them and counts all.
        """
        broken = self.broken_items(workers)
        if broken:
            listed = _listed([item.name for item, _ in broken])
            raise DataError(
                f"{len(broken)} of {len(self)} pictures in {self.address} cannot be read: {listed} (first: {broken[0][1]})",
                "copy them again from their source, or remove them",
            )


def _no_pictures(address: Path | str) -> DataError:
    return DataError(f"{address} holds no pictures", f"put pictures there ({', '.join(EXTENSIONS)})")


def _entries(
    address: Path | str,
) -> tuple[dict[PurePosixPath, Callable[[], bytes]], set[PurePosixPath], zipfile.ZipFile | None]:
    """Pictures and folders at an address, by relative path, and the open archive where they lie in one."""
    path = Path(address)
    try:
        if path.is_dir():
            return *_folder_entries(path), None
        archive_path = next((p for p in (path, *path.parents) if p.is_file()), None)
    except OSError as error:
        raise DataError(f"{address} cannot be opened ({error.strerror})", "check the path and its permissions") from error
    if archive_path is None:
        remedy = "name a folder of pictures, a .zip, or a folder inside one (pictures.zip/val)"
        raise DataError(f"{address} does not exist", remedy)
    archive = _zip_file(archive_path)
    try:
        return *_zip_entries(archive, archive_path, PurePosixPath(*path.parts[len(archive_path.parts) :])), archive
    except BaseException:
        archive.close()
        raise


def _listed(names: list[str]) -> str:
    """Up to NAMES_SHOWN of the names, and how many more there are."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _is_picture(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _without_top_folder(
    readers: dict[PurePosixPath, Callable[[], bytes]], folders: set[PurePosixPath]
) -> tuple[dict[PurePosixPath, Callable[[], bytes]], set[PurePosixPath]]:
    """The same entries seen from inside the folders that hold everything else."""
    tops = {path.parts[0] for path in (*readers, *folders)}
    if len(tops) != 1 or any(len(name.parts) == 1 for name in readers):
        return readers, folders
    inner = {PurePosixPath(*name.parts[1:]): read for name, read in readers.items()}
    return _without_top_folder(inner, {PurePosixPath(*path.parts[1:]) for path in folders if len(path.parts) > 1})


def _refuse_layout(address: str, names: list[PurePosixPath], folders: set[PurePosixPath]) -> None:
    """DataError unless every picture is CLASS/picture, the classes are no splits, and none of them is empty."""
    tops = sorted({name.parts[0] for name in names if len(name.parts) > 1})
    loose = [str(name) for name in names if len(name.parts) == 1]
    deep = next((name for name in names if len(name.parts) > 2), None)
    if loose:
        raise DataError(
            f"{address} holds pictures ({_listed(loose)}) beside folders of pictures ({_listed(tops)})",
            f"move them into class folders, or name one folder, such as {address}/{tops[0]}",
        )
    if deep is not None or {top.lower() for top in tops} <= SPLIT_NAMES:
        what = "looks like splits of a set, not classes" if deep is None else f"nests pictures deeper than CLASS/PICTURE ({deep})"
        raise DataError(
            f"{address} {what}; its folders are {_listed(tops)}",
            f"name the folder that holds the class folders, such as {address}/{tops[-1]}",
        )
    empty = sorted({path.parts[0] for path in folders} - set(tops))
    if empty:
        raise DataError(
            f"{len(empty)} class folders in {address} hold no pictures: {_listed(empty)}",
            "fill or remove them: an empty one shifts the index of every class after it",
        )


def _folder_entries(root: Path) -> tuple[dict[PurePosixPath, Callable[[], bytes]], set[PurePosixPath]]:
    """Pictures and sub-folders below root, by relative path. Linked folders are followed, as torchvision follows them."""
    readers: dict[PurePosixPath, Callable[[], bytes]] = {}
    folders: set[PurePosixPath] = set()

    def refused(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed ({error.strerror})", "give yourself read permission on it") from error

    for place, subfolders, files in os.walk(root, onerror=refused, followlinks=True):
        relative = PurePosixPath(Path(place).relative_to(root).as_posix())
        deep_enough = len(relative.parts) < MAX_DEPTH
        subfolders[:] = sorted(name for name in subfolders if not _is_hidden(name)) if deep_enough else []
        folders.update(relative / name for name in subfolders)
        for name in files:
            if _is_picture(name) and not _is_hidden(name):
                readers[relative / name] = _file_reader(Path(place, name))
    return readers, folders


def _file_reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path} is not a regular file", "remove it")
            if status.st_size > MAX_FILE_BYTES:
                raise DataError(
                    f"{path} has more than {MAX_FILE_BYTES >> 20} MiB", "remove it; no picture of use here is that large"
                )
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})", "check that it is still there and may be read") from error

    return read


def _zip_file(path: Path) -> zipfile.ZipFile:
    """An open archive.

    Raises:
        DataError: not a .zip, a truncated one, or one that may not be read.
    """
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        began_as_zip = False
        with contextlib.suppress(OSError), path.open("rb") as file:
            began_as_zip = file.read(4) == b"PK\x03\x04"
        if began_as_zip:
            raise DataError(f"{path} is a truncated or damaged .zip ({error})", "copy it again from its source") from error
        raise DataError(f"{path} is neither a folder nor a .zip", "name a folder of pictures or a .zip of one") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})", "give yourself read permission on it") from error


def _zip_entries(
    archive: zipfile.ZipFile, archive_path: Path, inside: PurePosixPath
) -> tuple[dict[PurePosixPath, Callable[[], bytes]], set[PurePosixPath]]:
    """Pictures and folders of an archive below `inside`, by path relative to it."""
    lock = threading.Lock()
    readers: dict[PurePosixPath, Callable[[], bytes]] = {}
    folders: set[PurePosixPath] = set()
    for info in archive.infolist():
        # archives packed on Windows may separate by backslashes
        name = info.filename.replace("\\", "/")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or (parts and parts[0][1:2] == ":"):
            problem = f"{archive_path} holds an entry with the unsafe name {info.filename!r}"
            raise DataError(problem, "do not trust it; pack the pictures anew")
        if any(_is_hidden(part) for part in parts) or tuple(parts[: len(inside.parts)]) != inside.parts:
            continue
        relative = PurePosixPath(*parts[len(inside.parts) :])
        folders.update(folder for folder in relative.parents if folder.parts)
        if name.endswith("/"):
            folders.update([relative] if relative.parts else [])
        elif relative.parts and _is_picture(relative.name):
            if relative in readers:
                raise DataError(f"{archive_path} holds {info.filename!r} twice", "pack the pictures anew")
            readers[relative] = _zip_reader(archive, archive_path, info, lock)
    if inside.parts and not (readers or folders):
        tops = sorted({info.filename.split("/")[0] for info in archive.infolist() if "/" in info.filename})
        raise DataError(f"{archive_path} holds no folder {str(inside)!r}", f"its folders are {_listed(tops) or 'none'}")
    return readers, folders


def _zip_reader(archive: zipfile.ZipFile, archive_path: Path, info: zipfile.ZipInfo, lock: threading.Lock) -> Callable[[], bytes]:
    def read() -> bytes:
        name = f"{archive_path}: {info.filename}"
        if info.file_size > MAX_FILE_BYTES:
            raise DataError(f"{name} has more than {MAX_FILE_BYTES >> 20} MiB", "remove it; no picture of use here is that large")
        if info.flag_bits & 1:
            raise DataError(f"{name} is encrypted", "pack the pictures without a password")
        try:
            # one reader at a time: ZipFile counts its open members without a lock
            with lock:
                return archive.read(info)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError) as error:
            raise DataError(f"{name} is damaged ({error})", "copy the .zip again from its source") from error

    return read
