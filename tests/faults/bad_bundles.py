"""Bundles that must be refused: every file damaged, every field of the manifest wrong though its digest is right."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fault_harness import BadInput, Material, bad

from gmf_edge.bundle import MANIFEST, _manifest_bytes

# texts and notes that a reader prints and nothing depends on, and what is derived from other fields
FREE = (
    "weights.detail",
    "weights.statement",
    "weights.trained",
    "weights.file",
    "lowering.",
    "rewriting.",
    "versions.",
    "request.",
    "evaluation",
)
WRONG = (None, "nonsense", -1, 2.5, [], {}, [None], "../../etc/passwd")
REMOVED = object()


def linked(bundle: Path, here: Path) -> Path:
    """A copy of a bundle that shares its files with it: to be unlinked before they are written."""
    folder = here / "bundle"
    folder.mkdir()
    for path in bundle.iterdir():
        os.link(path, folder / path.name)
    return folder


def rewritten(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def bundle_files(material: Material, rng: random.Random) -> Iterator[BadInput]:
    """Every file, damaged in every way."""

    def damaged(name: str, change: Callable[[Path], object], verb: str = "verify") -> Callable[[Path], Sequence[object]]:
        def make(here: Path) -> Sequence[object]:
            folder = linked(material.bundle, here)
            change(folder / name)
            return [verb, folder]

        return make

    for path in sorted(material.bundle.iterdir()):
        content = path.read_bytes()
        flips = sorted(rng.sample(range(len(content)), 4 if path.name != MANIFEST else 16))
        changes: dict[str, Callable[[Path], object]] = {
            **{f"byte {offset} of": _flip(content, offset, rng.randrange(8)) for offset in flips},
            **{f"only {size} bytes of": _replace(content[:size]) for size in (0, 1, len(content) // 2, len(content) - 1)},
            "one byte more in": _replace(content + b"\0"),
            "zeros instead of": _replace(bytes(len(content))),
            "no": lambda file: file.unlink(),
            "a folder instead of": lambda file: (file.unlink(), file.mkdir()),
            "a pipe instead of": lambda file: (file.unlink(), os.mkfifo(file)),
            "a dead link instead of": lambda file: (file.unlink(), file.symlink_to("nowhere")),
            "a device instead of": lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
        }
        for name, change in changes.items():
            verb = rng.choice(("verify", "verify", "inspect", "deploy", "bench"))
            yield bad(f"{name} {path.name}, {verb}", damaged(path.name, change, verb))
    for name in ("extra.txt", "engine.plan", ".hidden", "weights.bin.old", "a\nb", "plugin.so"):
        yield bad(f"{name!r} more", damaged(name, lambda file: file.write_bytes(b"x")))
    for text in (b"", b"null", b"[]", b"{}", b"1", b"[" * 100_000, b"\xff\xfe", b'{"schema": 1}', b'{"manifest_sha256": ""}'):
        yield bad(f"the manifest {text[:12]!r}", damaged(MANIFEST, _replace(text)))
    for path in ("none", "/dev/null", "/etc", "/proc/self/mem", "", "a" * 5000):
        for verb in ("verify", "inspect", "deploy", "bench"):
            yield bad(f"{verb} {path[:9]!r}", lambda here, verb=verb, path=path: [verb, path])  # type: ignore[misc]


def _flip(content: bytes, offset: int, bit: int) -> Callable[[Path], object]:
    return _replace(content[:offset] + bytes([content[offset] ^ 1 << bit]) + content[offset + 1 :])


def _replace(content: bytes) -> Callable[[Path], object]:
    return lambda file: rewritten(file, content)


def fields(values: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all values in nested dicts."""
    for key, value in values.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from fields(value, (*prefix, key))


def manifest_fields(material: Material, rng: random.Random) -> Iterator[BadInput]:
    """Every field with a value that it cannot have, under a digest that is right."""
    manifest = json.loads((material.bundle / MANIFEST).read_bytes())

    def signed(path: tuple[str, ...], value: object) -> Callable[[Path], Sequence[object]]:
        def make(here: Path) -> Sequence[object]:
            changed = copy.deepcopy(manifest)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            if value is REMOVED:
                del inner[path[-1]]
            else:
                inner[path[-1]] = value
            folder = linked(material.bundle, here)
            rewritten(folder / MANIFEST, _manifest_bytes(changed))
            return ["inspect", folder]

        return make

    for path in fields(manifest):
        name = ".".join(path)
        if path[0] == "manifest_sha256" or name.startswith(FREE):
            continue
        if len(path) == 1 or path[0] not in ("files", "graphs"):
            yield bad(f"no {name}", signed(path, REMOVED))
        right = manifest
        for key in path:
            right = right[key]
        for value in WRONG:
            if value == right or _may_be(name, value):
                continue
            yield bad(f"{name} = {value!r}", signed(path, value))
    for name in ("lowering", "rewriting", "versions", "request"):
        for value in (None, "nonsense", -1, [None]):
            yield bad(f"{name} = {value!r}", signed((name,), value))
    for name in ("../outside", "/etc/passwd", "a/b", "..", ""):
        yield bad(f"a file {name!r}", signed(("files", name), {"sha256": "0" * 64, "bytes": 0}))
        yield bad(f"a graph {name!r}", signed(("graphs", "portable/20"), name))
        yield bad(f"an engine {name!r}", signed(("engine_files",), [name]))
    for key in ("portable", "portable/", "portable/20/1", "/20", "portable/x"):
        yield bad(f"the graph's key {key!r}", signed(("graphs", key), "portable.onnx"))
    for schema in (0, 2, 99):
        yield bad(f"schema {schema}", signed(("schema",), schema))


def _may_be(name: str, value: object) -> bool:
    """Whether a reader may take this value: a limit, an empty list where there may be none, a share within its bounds."""
    return (
        (name in ("engine_files", "class_ids", "rewriting") and value == [])
        or (name == "gate.max_drop_points" and value == 2.5)
        or (name == "gate.min_cosine" and value == -1)
        or name == "gate.strict"
        or (name in ("lowering", "versions", "request") and value == {})
        or (name == "model.variant" and isinstance(value, str))
    )


def copies(bundle: Path, here: Path) -> Path:
    """A copy that may be run and changed."""
    return Path(shutil.copytree(bundle, here / "bundle"))
