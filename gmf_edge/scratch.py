"""Temporary folders that have an owner: what a killed process leaves behind is removed by a later run, what a living one uses is not.

.NAME.xxxxxxxx.tmp/      beside NAME, or in the temporary folder; locked (flock) by the process that made it for as long as that lives
    NAME                 what is being written; renamed to its place at the end
    .NAME.xxxxxxxx.old   what was in that place, for a moment, where the file system cannot exchange two folders in one step

The system drops a lock with its process, however that ends, so neither clocks nor process numbers are trusted. Where a file system has
no locks nothing is ever removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gmf_edge.errors import EnvironmentProblem

_OUTPUT_REMEDY = "free space there, or choose a writable --output"
_TMPDIR_REMEDY = "free space there, or set TMPDIR to a writable folder with more"
_SCRATCH = "gmf-edge"
# tempfile's own eight letters
_LITTER = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)
_OLD_SUFFIX = ".old"
# of Linux: linux/fcntl.h, linux/fs.h
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_failure(path: Path, error: OSError, remedy: str = _OUTPUT_REMEDY) -> EnvironmentProblem:
    """The error for a file or folder that cannot be written: a full disk, a read-only folder, a path through a file."""
    reason = error.strerror or str(error)
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        reason = "a part of that path is a file, not a folder"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        remedy = "allow more open files (ulimit -n), or run less at the same time"
    return EnvironmentProblem(f"cannot write {path}: {reason}", remedy)


@contextlib.contextmanager
def owned_folder(place: Path, name: str) -> Iterator[Path]:
    """A new folder in `place`, for this block alone; the litter of dead processes that wrote `name` there is removed before.

    Raises:
        OSError: it cannot be made.
    """
    remove_litter(place, name)
    folder, lock = _locked_folder(place, name)
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except BaseException:  # interrupted in the middle of it
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            os.close(lock)
            # rmtree holds a descriptor or two for each level, more than a process may have that ran out of them
            _remove_by_names(folder)


def _remove_by_names(folder: Path) -> None:
    """Remove what is left of a folder with a single descriptor for a moment, as far as that can be."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                _remove_by_names(path)
            else:
                path.unlink(missing_ok=True)
        folder.rmdir()


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder in the system's temporary folder ($TMPDIR), for this block alone.

    Raises:
        EnvironmentProblem: it cannot be made, or what was written there did not fit.
    """
    place = Path(os.environ.get("TMPDIR") or "/tmp")
    try:
        place = Path(tempfile.gettempdir())
        with owned_folder(place, _SCRATCH) as folder:
            place = folder
            yield folder
    except OSError as error:
        if error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(place):
            raise  # of another place
        raise write_failure(place, error, _TMPDIR_REMEDY) from error


@contextlib.contextmanager
def new_folder(destination: Path, *, replace: bool = True, remedy: str = _OUTPUT_REMEDY) -> Iterator[Path]:
    """A temporary folder that takes the place of `destination` when the block ends well, and vanishes when it does not.

    A folder that is there already is replaced whole, so that the files of two builds never mix; with replace=False it stays.

    Raises:
        EnvironmentProblem: no permission, no space, or no such place; `remedy` is what to do then.
    """
    destination = destination.absolute()
    made = [parent for parent in destination.parents if not parent.exists()]
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with owned_folder(destination.parent, destination.name) as place:
            fresh = place / destination.name
            fresh.mkdir()
            yield fresh
            _put_in_place(fresh, destination, replace)
    except OSError as error:
        raise write_failure(Path(os.fsdecode(error.filename or destination)), error, remedy) from error
    finally:
        for parent in made:
            # a folder on the way to a result which did not come
            with contextlib.suppress(OSError):
                parent.rmdir()


def write_atomically(path: Path, content: bytes, remedy: str = _OUTPUT_REMEDY) -> None:
    """Write beside the path and rename, so that a reader sees the old file or the whole new one.

    Raises:
        EnvironmentProblem: the folder cannot be written, or the disk is full; `remedy` is what to do then.
    """
    try:
        with owned_folder(path.parent, path.name) as place:
            fresh = place / path.name
            with fresh.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
    except OSError as error:
        raise write_failure(path, error, remedy) from error


def remove_litter(place: Path, name: str | None = None) -> None:
    """Remove what dead processes of this user left in `place` on their way to `name` (None: anything); what they had moved away returns."""
    try:
        with os.scandir(place) as entries:
            found = [(Path(entry.path), match["name"]) for entry in entries if (match := _LITTER.fullmatch(entry.name))]
    except OSError:
        return
    for folder, written in found:
        if name is not None and written != name:
            continue
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _put_back(folder, place / written)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _locked_folder(place: Path, name: str) -> tuple[Path, int]:
    """A new folder, and the open descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=place))
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another run took it for litter before it was locked
        except OSError:
            folder.rmdir()
            raise
        with contextlib.suppress(OSError):  # a file system without locks: then nobody else gets one either
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink and folder.exists():
            return folder, lock
        os.close(lock)


def _put_in_place(fresh: Path, destination: Path, replace: bool) -> None:
    if not replace or not destination.exists():
        try:
            fresh.rename(destination)
        except OSError as error:
            if replace or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        return
    if _exchange(fresh, destination):
        return
    old = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=_OLD_SUFFIX, dir=fresh.parent)) / destination.name
    destination.rename(old)
    try:
        fresh.rename(destination)
    except BaseException:
        old.rename(destination)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, so that there is no moment without either; False where this system cannot."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # a C library older than 2018's
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _put_back(folder: Path, destination: Path) -> None:
    """What a process had moved away when it died between its two renames."""
    for old in folder.glob(f"*{_OLD_SUFFIX}"):
        if (old / destination.name).exists() and not destination.exists():
            (old / destination.name).rename(destination)
