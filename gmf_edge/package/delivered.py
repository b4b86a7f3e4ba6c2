"""What the formats share: what is asked for, and the engine of a bundle that may be handed on."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from gmf_edge.bundle import WEIGHTS, Bundle
from gmf_edge.engines.tensorrt.sidecar import Sidecar
from gmf_edge.errors import AccuracyError, PackageError, SpecError
from gmf_edge.spec import Task

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class PackageRequest:
    """What a format leaves open.

    Attributes:
        name: of the model for its clients (Triton); None for gmf_<variant>.
        instances: of the engine that serve at the same time (Triton).
        max_queue_delay_us: microseconds that a request may wait for others to fill a batch (Triton).
        plugin_library: the TensorRT plugin's library that the engine needs, or that the Jetson is to try.
        wheel: of gmf-edge (Jetson); None to build it from the source tree that this program runs from.

    Raises:
        SpecError: a value that none can have.
    """

    name: str | None = None
    instances: int = 1
    max_queue_delay_us: int = 0
    plugin_library: Path | None = None
    wheel: Path | None = None

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise SpecError(f"--name is {self.name!r}", "use letters, digits, '_', '-' and '.'; it becomes a folder's name")
        if self.instances < 1:
            raise SpecError(f"--instances is {self.instances}", "give at least 1")
        if self.max_queue_delay_us < 0:
            raise SpecError(f"--queue-delay is {self.max_queue_delay_us}", "give microseconds, 0 for no waiting")
        for option, path in (("--plugin-library", self.plugin_library), ("--wheel", self.wheel)):
            if path is not None and not path.is_file():
                raise SpecError(f"{option} {path} is not a file", "check the path")


@dataclass(frozen=True)
class Package:
    """A finished package.

    Attributes:
        folder: where it lies.
        form: its format.
        notes: what the user should know, one sentence each.
    """

    folder: Path
    form: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Delivered:
    """The engine of a deployed bundle.

    Attributes:
        backend: a name of spec.BACKENDS.
        version: of the backend that proved it.
        file: the engine or the ONNX file, in the bundle.
        weights: whether WEIGHTS must lie beside it.
        sidecar: of a TensorRT engine.
        options, execution: what report.json says of how it ran.
        device: on which it was proved.
    """

    backend: str
    version: str
    file: Path
    weights: bool
    sidecar: Sidecar | None
    options: dict[str, Any]
    execution: dict[str, Any]
    device: str


def delivered_engine(bundle: Bundle) -> Delivered:
    """The engine of a bundle that was deployed and found right.

    Raises:
        PackageError: the bundle was not deployed.
        AccuracyError: its engine is outside the gate.
    """
    report = bundle.report
    if report is None:
        raise PackageError(f"{bundle.folder} has no engine yet", "run 'gmf-edge deploy' on it, where the package will run")
    if not report["passed"]:
        raise AccuracyError(
            f"the engine of {bundle.folder} is outside its gate: {report['reason']}", "deploy or build one that passes"
        )
    engine, backend = report["engine"], str(report["backend"])
    sidecar = None
    if backend == "tensorrt":
        file = bundle.path(bundle.manifest.engine_files[0])
        sidecar = Sidecar.read(file)
    else:
        form = str(engine["form"])
        # BF16 has an opset of its own; the old one is TensorRT 8.6's
        file = bundle.graphs.path(form, max(opset for name, opset in bundle.graphs.files if name == form))
    return Delivered(
        backend,
        str(engine["version"]),
        file,
        sidecar is None,
        sidecar,
        dict(engine.get("options", {})),
        dict(engine.get("execution", {})),
        str(engine["device"]),
    )


def require_classifier(bundle: Bundle) -> None:
    """Triton's models and the C++ programs have logits for an output.

    Raises:
        PackageError: the bundle is a backbone, whose outputs are maps.
    """
    if bundle.manifest.model.task is not Task.CLASSIFY:
        raise PackageError(
            f"{bundle.folder} is a backbone, whose outputs are maps; this format is for classifiers",
            "use --format jetson, or the bundle itself",
        )


def require_library_for(sidecar: Sidecar | None, library: Path | None) -> None:
    """An engine with the plugin needs its library, and an engine without does not.

    Raises:
        PackageError: the one without the other.
    """
    needs = sidecar is not None and sidecar.form == "plugin"
    if needs and library is None:
        raise PackageError(
            "the engine was built with the TensorRT plugin and cannot be loaded without its library",
            "give --plugin-library (plugins/README.md), or deploy with --no-plugin",
        )
    if library is not None and not needs:
        raise PackageError(f"the engine does not use the plugin, so {library} has no use here", "leave --plugin-library out")


def template(name: str) -> Template:
    """A text of templates/, by its path there."""
    return Template(resources.files("gmf_edge.package").joinpath("templates", *name.split("/")).read_text(encoding="utf-8"))


def copy_template(name: str, target: Path) -> None:
    """Copy a file of templates/ as it is."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with resources.as_file(resources.files("gmf_edge.package").joinpath("templates", *name.split("/"))) as source:
        shutil.copyfile(source, target)


def copy_model(engine: Delivered, bundle: Bundle, folder: Path, name: str) -> None:
    """The engine's file under another name, with its weights beside it where they are a file of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    # copied, not linked: ONNX's loaders refuse weights of which the file system knows a second name
    shutil.copyfile(engine.file, folder / name)
    if engine.weights:
        shutil.copyfile(bundle.path(WEIGHTS), folder / WEIGHTS)
