"""Files by content: digests, atomic writing, and stages that are skipped where nothing changed.

A stage is a function from inputs to files in a folder. Its key is a digest of its name, its inputs, this package's source and the
versions of the libraries it uses; a finished stage lies in the cache under that key and is taken from there after its files have been
checked. The cache is $GMF_EDGE_CACHE, else $XDG_CACHE_HOME/gmf-edge, else ~/.cache/gmf-edge; the oldest stages go when it
grows beyond CACHE_MIB.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from gmf_edge.errors import EnvironmentProblem, GmfEdgeError

CACHE_MIB = 4096
LIBRARIES = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "pillow")
_CHUNK_BYTES = 1 << 20
_RECORD = "stage.json"


def sha256_of(path: Path) -> str:
    """Digest of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(values: Any) -> str:
    """Digest of plain values (numbers, strings, lists, dicts), independent of a dict's order, hexadecimal."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@functools.cache
def source_digest() -> str:
    """Digest of this package's Python source: a changed rule must not meet a result of the old one."""
    root = Path(__file__).parent
    return digest_of({str(path.relative_to(root)): sha256_of(path) for path in sorted(root.rglob("*.py"))})


@functools.cache
def library_versions() -> dict[str, str]:
    """Installed versions of LIBRARIES, those that are there."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def write_failure(path: Path, error: OSError) -> EnvironmentProblem:
    """The error for a file or folder that cannot be written: a full disk, a read-only folder, a path through a file."""
    reason = error.strerror or str(error)
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        reason = "a part of that path is a file, not a folder"
    return EnvironmentProblem(f"cannot write {path}: {reason}", "free space there, or choose a writable --output")


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the path and rename, so that a reader sees the old file or the whole new one.

    Raises:
        EnvironmentProblem: the folder cannot be written, or the disk is full.
    """
    scratch = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name + ".", delete=False) as file:
            scratch = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.chmod(0o644)
        scratch.replace(path)
    except OSError as error:
        if scratch is not None:
            scratch.unlink(missing_ok=True)
        raise write_failure(path, error) from error


@contextlib.contextmanager
def new_folder(destination: Path, *, replace: bool = True) -> Iterator[Path]:
    """A temporary folder beside `destination` that takes its place when the block ends well, and vanishes when it does not.

    A folder that is there already is replaced whole, so that the files of two builds never mix; with replace=False it stays.

    Raises:
        EnvironmentProblem: no permission, no space, or no such place.
    """
    destination = destination.absolute()
    made = [parent for parent in destination.parents if not parent.exists()]
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".tmp", dir=destination.parent))
    except OSError as error:
        _remove_empty(made)
        raise write_failure(destination, error) from error
    try:
        yield temporary
        _swap(temporary, destination, replace)
    except OSError as error:
        raise write_failure(Path(error.filename or destination), error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)


def _swap(temporary: Path, destination: Path, replace: bool) -> None:
    # mkdtemp makes a private folder; a result folder follows the user's umask like any other
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o777 & ~umask)
    if not replace or not destination.exists():
        try:
            temporary.rename(destination)
        except OSError as error:
            if replace or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        return
    old = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".old", dir=destination.parent))
    try:
        destination.rename(old / "replaced")
        try:
            temporary.rename(destination)
        except OSError:
            (old / "replaced").rename(destination)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _remove_empty(folders: list[Path]) -> None:
    """Take back parent folders that were made for a result which did not come."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        folder: where its files lie; not to be changed.
        files: their names.
        key: digest of everything that went in.
        facts: plain values that the stage noted.
        reused: whether it was taken from the cache.
    """

    folder: Path
    files: tuple[str, ...]
    key: str
    facts: Mapping[str, Any]
    reused: bool


def run_stage(name: str, inputs: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]) -> Stage:
    """Run a stage, or take it from the cache where equal inputs have been through it.

    Args:
        name: of the stage, a word.
        inputs: plain values that decide the result (digests stand for files).
        make: writes files into the folder it is given and returns plain values to note.

    Raises:
        EnvironmentProblem: the cache cannot be written.
    """
    key = digest_of({"stage": name, "inputs": dict(inputs), "source": source_digest(), "libraries": library_versions()})
    root = cache_root() / "stages"
    folder = root / f"{name}-{key[:24]}"
    found = folder.exists()
    known = _intact(folder)
    if known is not None:
        with contextlib.suppress(OSError):
            os.utime(folder)
        return Stage(folder, tuple(known["files"]), key, known["facts"], reused=True)
    if found:
        shutil.rmtree(folder, ignore_errors=True)
    # another process may finish the same stage first and be reading it by then: what lies there stays
    with new_folder(folder, replace=False) as temporary:
        noted = dict(make(temporary))
        digests = {path.name: sha256_of(path) for path in sorted(temporary.iterdir())}
        (temporary / _RECORD).write_text(json.dumps({"facts": noted, "files": digests}))
    _trim(root, keep=folder)
    return Stage(folder, tuple(digests), key, noted, reused=False)


def _intact(folder: Path) -> dict[str, Any] | None:
    """The record of a stage whose files are what they were, else None."""
    try:
        record: dict[str, Any] = json.loads((folder / _RECORD).read_text())
        if all(sha256_of(folder / name) == digest for name, digest in record["files"].items()) and "facts" in record:
            return record
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return None


def _trim(root: Path, keep: Path) -> None:
    """Remove the stages that were not used for longest, until the rest fits."""
    stages = []
    for folder in root.iterdir():
        with contextlib.suppress(OSError):
            stages.append((folder.stat().st_mtime, sum(file.stat().st_size for file in folder.iterdir()), folder))
    total = sum(size for _, size, _ in stages)
    for _, size, folder in sorted(stages):
        if total <= CACHE_MIB << 20:
            break
        if folder != keep and not folder.name.startswith("."):
            shutil.rmtree(folder, ignore_errors=True)
            total -= size


@functools.cache
def cache_root() -> Path:
    """The cache folder; a temporary one, for this process only, where the usual place cannot be written.

    Raises:
        EnvironmentProblem: $GMF_EDGE_CACHE names a place that cannot be written.
    """
    chosen = os.environ.get("GMF_EDGE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(chosen) if chosen else base / "gmf-edge"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return root
    except OSError as error:
        if chosen:
            raise EnvironmentProblem(
                f"cannot write the cache {root}: {error.strerror or error}", "set GMF_EDGE_CACHE to a writable folder"
            ) from error
    import atexit

    temporary = Path(tempfile.mkdtemp(prefix="gmf-edge-cache-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


def read_json(path: Path, error: type[GmfEdgeError], remedy: str) -> Any:
    """A JSON file's content.

    Raises:
        GmfEdgeError: of the given type, where the file cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror or problem}", remedy) from problem
    except ValueError as problem:
        raise error(f"{path} is not valid JSON", remedy) from problem
