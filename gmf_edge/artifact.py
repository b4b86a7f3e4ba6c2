"""Files by content: digests, and stages that are skipped where nothing changed.

A stage is a function from inputs to files in a folder. Its key is a digest of its name, its inputs, this package's source and the
versions of the libraries it uses; a finished stage lies in the cache under that key and is taken from there after its files have been
checked. The cache is $GMF_EDGE_CACHE, else $XDG_CACHE_HOME/gmf-edge, else ~/.cache/gmf-edge; the oldest stages go when it
grows beyond CACHE_MIB.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from gmf_edge.errors import EnvironmentProblem, GmfEdgeError
from gmf_edge.scratch import new_folder, remove_litter, scratch_folder

CACHE_MIB = 4096
LIBRARIES = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "pillow")
_CHUNK_BYTES = 1 << 20
_RECORD = "stage.json"
_CACHE_REMEDY = "free space there, or set GMF_EDGE_CACHE to a writable folder with more"


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
    remove_litter(root)
    with new_folder(folder, replace=False, remedy=_CACHE_REMEDY) as temporary:
        noted = dict(make(temporary))
        digests = {path.name: sha256_of(path) for path in sorted(temporary.iterdir())}
        record = {"facts": noted, "files": digests}
        (temporary / _RECORD).write_text(json.dumps({**record, "sha256": digest_of(record)}))
    _trim(root, keep=folder)
    return Stage(folder, tuple(digests), key, noted, reused=False)


def _intact(folder: Path) -> dict[str, Any] | None:
    """The record of a stage that is what it was, files and facts, else None."""
    try:
        record: dict[str, Any] = json.loads((folder / _RECORD).read_text())
        stated = record.pop("sha256")
        if stated == digest_of(record) and all(sha256_of(folder / name) == digest for name, digest in record["files"].items()):
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

    lifetime = contextlib.ExitStack()
    atexit.register(lifetime.close)
    return lifetime.enter_context(scratch_folder())


def read_json(path: Path, error: type[GmfEdgeError], remedy: str) -> Any:
    """A JSON file's content.

    Raises:
        GmfEdgeError: of the given type, where the file cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror or problem}", remedy) from problem
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is not valid JSON", remedy) from problem


def json_number(value: Any) -> Any:
    """The value, or None for a float that JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
