"""What this machine has and what it lacks, with what to do about it: for `gmf-edge doctor`. Raises nothing."""

from __future__ import annotations

import platform
import shutil
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from gmf_edge import __version__
from gmf_edge.artifact import cache_root
from gmf_edge.cpu import cpu_name, engine_threads
from gmf_edge.engines.choose import backends_in_question
from gmf_edge.engines.openvino.doctor import openvino_devices
from gmf_edge.engines.tensorrt.doctor import MISSING, OK, WARNING, Finding, diagnose
from gmf_edge.errors import GmfEdgeError

WORKSTATION = ("torch", "onnx", "onnx-ir", "onnxscript", "safetensors")
DEVICE = ("numpy", "pillow")
ENGINES = ("onnxruntime", "openvino")
# two graphs and their intermediate tensors of the largest variant
ENOUGH_MEMORY_MIB, ENOUGH_DISK_MIB = 4096, 2048


def examine(plugin_library: str | None = None) -> tuple[Finding, ...]:
    """This machine, from the interpreter to the GPU."""
    findings = [
        Finding("gmf-edge", OK, f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    ]
    findings += [_package(name, "pip install gmf-edge") for name in DEVICE]
    findings += [_package(name, f"pip install 'gmf-edge[{name}]'") for name in ENGINES]
    findings += openvino_devices()
    findings += [_package(name, "for build and export: pip install 'gmf-edge[workstation]'") for name in WORKSTATION]
    findings += [_processor(), _memory(), _disk()]
    findings += diagnose(plugin_library)
    try:
        backends, why = backends_in_question("auto")
        choice = "; deploy delivers the faster" if len(backends) > 1 else ""
        findings.append(Finding("backend", OK, f"{why}{choice}"))
    except GmfEdgeError as error:
        findings.append(Finding("backend", MISSING, error.problem, error.remedy))
    return tuple(findings)


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
    return Finding("CPU", OK, f"{cpu_name()}: {threads.count} threads for an inference ({threads.reason})")


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
