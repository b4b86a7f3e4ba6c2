"""What this machine has and what it lacks, with what to do about it: for `gmf-edge doctor`. Raises nothing."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from gmf_edge import __version__
from gmf_edge.artifact import cache_root
from gmf_edge.cpu import cpu_name, engine_threads
from gmf_edge.engines.choose import BACKENDS, backends_in_question
from gmf_edge.engines.finding import MISSING, OK, WARNING, Finding
from gmf_edge.engines.openvino.doctor import openvino_devices
from gmf_edge.engines.tensorrt.doctor import diagnose
from gmf_edge.errors import GmfEdgeError

WORKSTATION = ("torch", "onnx", "onnx-ir", "onnxscript", "safetensors")
DEVICE = ("numpy", "pillow")
ENGINES = ("onnxruntime", "openvino")
DEVICE_VERBS = ("deploy", "verify", "predict", "bench")
WORKSTATION_VERBS = ("build", "export", "calibrate")
# two graphs and their intermediate tensors of the largest variant
ENOUGH_MEMORY_MIB, ENOUGH_DISK_MIB = 4096, 2048


@dataclass(frozen=True)
class Readiness:
    """What this machine can be used for.

    Attributes:
        verbs: of the command line, that work here.
        backends: that run a bundle here.
        lacking: what has no use here yet -> why, such as "build and export" -> "torch is not installed".
    """

    verbs: tuple[str, ...]
    backends: tuple[str, ...]
    lacking: Mapping[str, str]


def examine(plugin_library: str | None = None) -> tuple[Finding, ...]:
    """This machine, from the interpreter to the GPU. What is missing is marked optional where the machine is of use without it."""
    findings = [
        Finding("gmf-edge", OK, f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    ]
    findings += [_package(name, "pip install gmf-edge") for name in DEVICE]
    others = [_package(name, f"pip install 'gmf-edge[{name}]'") for name in ENGINES]
    others += openvino_devices()
    others += [_package(name, "for build and export: pip install 'gmf-edge[workstation]'") for name in WORKSTATION]
    others += [_processor(), _memory(), _disk()]
    others += diagnose(plugin_library)
    try:
        backends, why = backends_in_question("auto")
    except GmfEdgeError as error:
        # without an engine nothing else that is missing can be called optional
        others = [replace(found, optional=found.state == MISSING and found.subject in WORKSTATION) for found in others]
        return (*findings, *others, Finding("backend", MISSING, error.problem, error.remedy))
    choice = "; deploy delivers the faster" if len(backends) > 1 else ""
    others = [replace(found, optional=found.state == MISSING) for found in others]
    return (*findings, *others, Finding("backend", OK, f"{why}{choice}"))


def readiness(findings: Sequence[Finding]) -> Readiness:
    """What the machine can be used for, by what examine found."""
    missing = {found.subject: found.detail for found in findings if found.state == MISSING}
    lacking: dict[str, str] = {}
    backends: tuple[str, ...] = ()
    here = [name for name in DEVICE if name in missing]
    if here or "backend" in missing:
        lacking["deploy, verify, predict and bench"] = _reason(here, missing) if here else missing["backend"]
    else:
        backends = tuple(kind.name for kind in BACKENDS if kind().missing() is None)
    torch = [name for name in (*WORKSTATION, "onnxruntime") if name in missing]
    if torch:
        lacking["build, export and calibrate"] = _reason(torch, missing)
    if "tensorrt" not in backends:
        gpu = next((name for name in ("NVIDIA driver", "GPU", "CUDA at work", "cuda-python", "TensorRT") if name in missing), None)
        lacking["TensorRT"] = f"{gpu}: {missing[gpu]}" if gpu else "see above"
    verbs = DEVICE_VERBS if backends else ()
    if backends and not torch:
        verbs = (*WORKSTATION_VERBS, *verbs)
    return Readiness(verbs, backends, lacking)


def _reason(names: Sequence[str], missing: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {missing[name]}" for name in names)


def _package(name: str, remedy: str) -> Finding:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, MISSING, "not installed", remedy)
    module = {"pillow": "PIL"}.get(name, name.replace("-", "_"))
    if find_spec(module) is None:
        return Finding(name, MISSING, f"{version} is registered but cannot be imported", f"pip install --force-reinstall {name}")
    return Finding(name, OK, version)


def _processor() -> Finding:
    threads = engine_threads()
    return Finding("CPU", OK, f"{cpu_name()}: {threads.words} for an inference ({threads.reason})")


def _memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free_mib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) // 1024
    except (OSError, StopIteration, ValueError):
        return Finding("memory", WARNING, "unknown on this system")
    detail = f"{free_mib} MiB free"
    if free_mib < ENOUGH_MEMORY_MIB:
        return Finding("memory", WARNING, detail, f"free {ENOUGH_MEMORY_MIB} MiB before building the larger variants")
    return Finding("memory", OK, detail)


def _disk() -> Finding:
    try:
        root = cache_root()
        free_mib = shutil.disk_usage(root).free >> 20
    except (OSError, GmfEdgeError) as error:
        return Finding("cache", WARNING, str(error), "set GMF_EDGE_CACHE to a writable folder")
    detail = f"{root}, {free_mib} MiB free"
    if free_mib < ENOUGH_DISK_MIB:
        return Finding("cache", WARNING, detail, "free space there, or set GMF_EDGE_CACHE to another disk")
    return Finding("cache", OK, detail)
