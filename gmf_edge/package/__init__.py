"""A deployed bundle becomes what the people who run it expect: a Triton model repository, a folder for a Jetson, C++ programs.

bundle, intact -> the format's own files in a folder -> package.json with a digest of each -> the folder takes its place

triton   model repository: engine, preprocessing, the two as an ensemble (triton_config: its configuration and what Triton checks of it;
         triton_preprocess: the preprocessing model, copied as it is)
jetson   bundle, wheel, plugin library, install script
cpp      sources for TensorRT or ONNX Runtime, the model, golden inputs and logits
delivered   the engine of a bundle, and whether it may be handed on

Torch-free and onnx-free, as everything on the device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gmf_edge import __version__
from gmf_edge.artifact import read_json, sha256_of
from gmf_edge.bundle import MANIFEST, Bundle, is_bundle, open_bundle
from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.errors import PackageError, SpecError
from gmf_edge.package.cpp import write_cpp
from gmf_edge.package.delivered import Package, PackageRequest
from gmf_edge.package.jetson import write_jetson
from gmf_edge.package.triton import write_triton
from gmf_edge.scratch import new_folder

__all__ = ["FORMATS", "Package", "PackageRequest", "package_bundle"]

PACKAGE = "package.json"
SCHEMA = 1
# each writes its files into the folder that it is given and returns notes for the user, one sentence each
FORMATS: dict[str, Callable[[Bundle, PackageRequest, Path, Progress], tuple[str, ...]]] = {
    "triton": write_triton,
    "jetson": write_jetson,
    "cpp": write_cpp,
}


def package_bundle(
    folder: Path, form: str, out: Path, request: PackageRequest | None = None, progress: Progress = silent
) -> Package:
    """Make a package from a bundle; what `gmf-edge package` does.

    Args:
        folder: a bundle; "triton" needs a deployed one.
        form: a name of FORMATS.
        out: folder to write: new, empty, or an older package, which is replaced whole.
        request: what a format leaves open; None for the defaults.
        progress: told what is going on.

    Raises:
        GmfEdgeError: see gmf_edge.errors; nothing is left at `out`, or the older package as it was.
    """
    if form not in FORMATS:
        raise SpecError(f"unknown package format {form!r}", f"use one of {', '.join(FORMATS)}")
    bundle = open_bundle(folder)
    _require_place(out, folder)
    request = request or PackageRequest()
    with new_folder(out) as temporary:
        notes = FORMATS[form](bundle, request, temporary, progress)
        (temporary / PACKAGE).write_text(json.dumps(_contents(temporary, form, bundle, notes), indent=2) + "\n", encoding="utf-8")
    return Package(out, form, notes)


def _require_place(out: Path, folder: Path) -> None:
    """Never replace what is not a package, and never write into the bundle, whose every file is accounted for."""
    place, bundle = out.resolve(), folder.resolve()
    if place == bundle or bundle in place.parents:
        raise PackageError(f"{out} lies in the bundle {folder}", "choose an --output outside it")
    if bundle.is_relative_to(place):
        raise PackageError(f"the bundle {folder} lies in {out}, which would be replaced", "choose another --output")
    if not out.exists():
        return
    if is_bundle(out) or not out.is_dir() or (any(out.iterdir()) and not (out / PACKAGE).is_file()):
        raise PackageError(f"{out} exists and is not a package", "choose another --output, or remove it")


def _contents(folder: Path, form: str, bundle: Bundle, notes: tuple[str, ...]) -> Mapping[str, Any]:
    """package.json: what it was made from, and what is in it."""
    return {
        "schema": SCHEMA,
        "format": form,
        "gmf_edge": __version__,
        "bundle": read_json(bundle.path(MANIFEST), PackageError, "build or export the bundle again")["manifest_sha256"],
        "notes": list(notes),
        "files": {str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()},
    }
