"""The folder that travels: graphs, weights, golden data, labels and reports, with a digest of every byte.

file                     what it is
manifest.json            this page's Manifest: what was asked, what was made, the digest of every other file and of itself
portable.onnx            standard ops, opset 20: ONNX Runtime, OpenVINO, and TensorRT 10 and 11 without plugins
plugin.onnx              GmfGroupMixAttention nodes, opset 20: TensorRT 10 and 11 with the plugin
*-opset17.onnx           the same two for TensorRT 8.6; BF16 has none
weights.bin              the weights of all of them, once
golden.npz               preprocessed images and FP32 PyTorch's logits, or its maps
reference.npz            with evaluation images: their names, digests, labels and FP32 PyTorch's logits (not the pictures)
onnxruntime.onnx         FP32, INT8 and BF16: standard ops as ONNX Runtime has kernels for them on a CPU: laid out for its convolutions,
                         INT8 Linears as Gemm and all else FP32, or BF16 storage round FP32 arithmetic
ranges.json              INT8 only: the activations' ranges with their provenance
labels.txt               a class name a line; a backbone has none
reproduce.sh             the commands, versions and digests that make it again
report.json              after deploy: parity, gate, engine, latency
measurements.npz         after deploy: what the figures of report.html are drawn from, thumbnails of flipped images among it
report.html              after deploy, where Jinja2 is installed: all of it on one page
engine.*                 after deploy, with TensorRT: the engine and its sidecar

Torch-free and onnx-free, as everything on the device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gmf_edge.artifact import digest_of, read_json, sha256_of
from gmf_edge.engines.protocol import Graphs
from gmf_edge.errors import BundleError, GmfEdgeError
from gmf_edge.image import Preprocess
from gmf_edge.scratch import write_atomically
from gmf_edge.spec import IO_DTYPES, BatchProfile, Gate, MapGate, ModelSpec, Precision, SizeRange, Task
from gmf_edge.weights import WeightsOrigin

SCHEMA = 1
MANIFEST, REPORT, GOLDEN, REFERENCE, LABELS = "manifest.json", "report.json", "golden.npz", "reference.npz", "labels.txt"
RANGES, MEASUREMENTS, PAGE, REPRODUCE = "ranges.json", "measurements.npz", "report.html", "reproduce.sh"
WEIGHTS = "weights.bin"
_SELF = "manifest_sha256"
_REBUILD = "build or export it again"


@dataclass(frozen=True)
class Manifest:
    """What a bundle is.

    Attributes:
        model: which GroupMixFormer.
        weights: where they come from.
        precision: the arithmetic of the graphs' heavy layers.
        profile: batch sizes that will be served.
        sizes: image sizes that will be served, or None for the model's alone.
        preprocess: how pictures become inputs.
        gate: what was accepted when it was built.
        io_dtype: of the graphs' input and output.
        classes: class names, index = class; none of a backbone.
        class_ids: their WordNet ids; empty where they are not ImageNet's.
        graphs: "form/opset" -> file name.
        lowering: what the precision room noted: islands, weights and activations near the range.
        rewriting: what each rewriting pass did.
        versions: of gmf-edge and of the libraries that made it.
        engine_files: what deploy added, the engine first.
        evaluation: where the evaluation images came from (address and digest), or None.
        request: what the user asked for, with digests of the files that were given: report.commands.request_of; empty where
            the bundle was made otherwise.
        files: file name -> {"sha256", "bytes"} of every file but the manifest.
    """

    model: ModelSpec
    weights: WeightsOrigin
    precision: Precision
    profile: BatchProfile
    preprocess: Preprocess
    gate: Gate | MapGate
    io_dtype: str
    classes: tuple[str, ...]
    graphs: Mapping[str, str]
    lowering: Mapping[str, Any] = field(default_factory=dict)
    rewriting: tuple[Mapping[str, Any], ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    engine_files: tuple[str, ...] = ()
    evaluation: Mapping[str, Any] | None = None
    class_ids: tuple[str, ...] = ()
    request: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sizes: SizeRange | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "schema": SCHEMA,
            "model": self.model.to_json(),
            "weights": self.weights.to_json(),
            "precision": self.precision.value,
            "profile": {"min": self.profile.min, "opt": self.profile.opt, "max": self.profile.max},
            "sizes": None if self.sizes is None else self.sizes.to_json(),
            "preprocess": self.preprocess.to_json(),
            "gate": vars(self.gate),
            "io_dtype": self.io_dtype,
            "classes": list(self.classes),
            "class_ids": list(self.class_ids),
            "graphs": dict(self.graphs),
            "lowering": dict(self.lowering),
            "rewriting": [dict(step) for step in self.rewriting],
            "versions": dict(self.versions),
            "engine_files": list(self.engine_files),
            "evaluation": None if self.evaluation is None else dict(self.evaluation),
            "request": dict(self.request),
            "files": {name: dict(entry) for name, entry in sorted(self.files.items())},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Manifest:
        """The inverse of to_json; KeyError, TypeError, ValueError or SpecError where it is not one."""
        model = ModelSpec.from_json(values["model"])
        gate = Gate if model.task is Task.CLASSIFY else MapGate
        return cls(
            model=model,
            weights=WeightsOrigin.from_json(values["weights"]),
            precision=Precision(values["precision"]),
            profile=BatchProfile(**values["profile"]),
            preprocess=Preprocess.from_json(values["preprocess"]),
            gate=gate(**values["gate"]),
            io_dtype=values["io_dtype"],
            classes=tuple(values["classes"]),
            class_ids=tuple(values["class_ids"]),
            graphs=dict(values["graphs"]),
            lowering=dict(values["lowering"]),
            rewriting=tuple(values["rewriting"]),
            versions=dict(values["versions"]),
            engine_files=tuple(values["engine_files"]),
            evaluation=values["evaluation"],
            request=dict(values.get("request") or {}),
            files=dict(values["files"]),
            sizes=SizeRange.from_json(values.get("sizes")),
        )


@dataclass(frozen=True)
class Bundle:
    """An opened, intact bundle."""

    folder: Path
    manifest: Manifest

    @property
    def graphs(self) -> Graphs:
        """The ONNX files, by form and opset."""
        files = {}
        for key, name in self.manifest.graphs.items():
            form, opset = key.split("/")
            files[form, int(opset)] = name
        return Graphs(self.folder, files)

    def path(self, name: str) -> Path:
        """Of one of its files."""
        return self.folder / name

    @property
    def report(self) -> dict[str, Any] | None:
        """What deploy found, or None before it."""
        if REPORT not in self.manifest.files:
            return None
        content: dict[str, Any] = read_json(self.path(REPORT), BundleError, _REBUILD)
        return content


def seal(folder: Path, manifest: Manifest) -> Bundle:
    """Write manifest.json over the files that lie in the folder now; the last step of making or changing a bundle."""
    files = {
        path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    values = {**manifest.to_json(), "files": files}
    (folder / MANIFEST).write_bytes(_manifest_bytes(values))
    return Bundle(folder, Manifest.from_json(values))


def _manifest_bytes(values: Mapping[str, Any]) -> bytes:
    """One way only to write a manifest, so that a changed space shows as well as a changed digit."""
    unsigned = {key: value for key, value in values.items() if key != _SELF}
    signed = {**unsigned, _SELF: digest_of(unsigned)}
    return (json.dumps(signed, indent=2, sort_keys=True) + "\n").encode()


def replace_file(bundle: Bundle, name: str, content: bytes) -> Bundle:
    """The bundle with another content of one file that nothing else depends on, sealed again without reading the others."""
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    values = {**bundle.manifest.to_json(), "files": {**bundle.manifest.files, name: entry}}
    write_atomically(bundle.path(name), content)
    write_atomically(bundle.path(MANIFEST), _manifest_bytes(values))
    return Bundle(bundle.folder, Manifest.from_json(values))


def is_bundle(folder: Path) -> bool:
    """Whether the folder was made by gmf-edge, intact or not."""
    return (folder / MANIFEST).is_file()


def require_replaceable(out: Path) -> None:
    """Never replace what gmf-edge did not make: `out` is a bundle, an empty folder, or not there.

    Raises:
        BundleError: it is a file, or a folder with other content.
    """
    if out.exists() and not is_bundle(out) and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out} exists and is not a bundle", "choose another --output, or remove it")


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle after checking every byte of it.

    Raises:
        BundleError: no bundle, another schema, or a file that is changed, missing or foreign, by name.
    """
    if not folder.exists():
        raise BundleError(f"{folder} does not exist", "give the folder that 'gmf-edge build --output' wrote")
    if not is_bundle(folder):
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}", "give the folder that 'gmf-edge build --output' wrote")
    values = read_json(folder / MANIFEST, BundleError, _REBUILD)
    if not isinstance(values, dict) or _SELF not in values:
        raise BundleError(f"{folder / MANIFEST} is damaged", _REBUILD)
    if (folder / MANIFEST).read_bytes() != _manifest_bytes(values):
        raise BundleError(f"{folder / MANIFEST} was changed after it was written", _REBUILD)
    if values.get("schema") != SCHEMA:
        raise BundleError(
            f"{folder} has schema {values.get('schema')}, this gmf-edge reads {SCHEMA}",
            "use the gmf-edge version named in its manifest",
        )
    try:
        manifest = Manifest.from_json(values)
        if manifest.to_json() != {key: value for key, value in values.items() if key != _SELF}:
            raise ValueError("a field is missing, unknown or of another kind")
        _require_sound(manifest)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, GmfEdgeError) as error:
        raise BundleError(f"{folder / MANIFEST} is not a manifest: {error!r}", _REBUILD) from error
    _check_files(folder, manifest)
    return Bundle(folder, manifest)


def _require_sound(manifest: Manifest) -> None:
    """What the types of the parts do not hold by themselves; above all, no name leads out of the folder.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: what is wrong.
    """
    for name, entry in manifest.files.items():
        if Path(name).name != name or type(entry["bytes"]) is not int or type(entry["sha256"]) is not str:
            raise ValueError(f"the file {name!r} with {entry}")
    named = [*manifest.graphs.values(), *manifest.engine_files]
    foreign = [name for name in named if name not in manifest.files]
    if foreign or not manifest.graphs or GOLDEN not in manifest.files:
        raise ValueError(f"files that are not among its own: {foreign or [GOLDEN]}")
    for key in manifest.graphs:
        form, opset = key.split("/")
        if not (form and opset.isdecimal()):
            raise ValueError(f"the graph {key!r}")
    texts = (manifest.model.variant, *manifest.classes, *manifest.class_ids, *manifest.versions, *manifest.versions.values())
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a name or a version that is no text")
    if len(manifest.classes) != manifest.model.num_classes or len(manifest.class_ids) not in (0, len(manifest.classes)):
        raise ValueError(f"{len(manifest.classes)} names of {manifest.model.num_classes} classes")
    if not all(type(size) is int for size in vars(manifest.profile).values()):
        raise TypeError("a batch size that is no whole number")
    if manifest.io_dtype not in IO_DTYPES:
        raise ValueError(f"the type {manifest.io_dtype!r}")
    if manifest.preprocess.image_size != manifest.model.image_size:
        raise ValueError("pictures of another size than the model's")
    if not isinstance(manifest.lowering.get("islands", {}), dict) or not isinstance(manifest.lowering.get("int8", {}), dict):
        raise TypeError("how the precision was lowered")
    if not all(isinstance(step, dict) for step in (*manifest.rewriting, manifest.evaluation or {})):
        raise TypeError("the rewriting steps or the evaluation")


def _check_files(folder: Path, manifest: Manifest) -> None:
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    for name in sorted(present - set(manifest.files)):
        raise BundleError(f"{folder / name} does not belong to the bundle", "move it elsewhere")
    for name, entry in manifest.files.items():
        path = folder / name
        if name not in present or not path.is_file():
            raise BundleError(f"{path} is missing", _REBUILD)
        if path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
            raise BundleError(f"{path} was changed after it was written", _REBUILD)
