"""What TensorRT needs and whether it is here, with a remedy for each thing that is not: for `gmf-edge doctor`.

It runs on any machine, also with none of it installed, and raises nothing.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from pathlib import Path

from gmf_edge.engines.finding import MISSING, OK, WARNING, Finding
from gmf_edge.engines.tensorrt.backend import require_polygraphy
from gmf_edge.engines.tensorrt.cuda import Device, driver_version, free_memory_mib
from gmf_edge.engines.tensorrt.plugins import PLUGIN_OP, check_plugin_library, registered_plugins
from gmf_edge.engines.tensorrt.smoke import STEPS, smoke_test
from gmf_edge.engines.tensorrt.versions import TensorRTVersion, version_of_number
from gmf_edge.errors import GmfEdgeError


def diagnose(plugin_library: str | None = None) -> tuple[Finding, ...]:
    """Driver, GPU, CUDA (its versions, and a small test of its work), TensorRT, Polygraphy and plugin of this machine, in that order."""
    findings = [_jetson(), _driver()]
    try:
        device, free_mib = Device.here(), free_memory_mib()
    except GmfEdgeError as error:
        findings.append(Finding("GPU", MISSING, error.problem, error.remedy))
    except Exception as error:  # cuda-python of another version than the driver may fail in any way
        findings.append(
            Finding("GPU", MISSING, f"{type(error).__name__}: {error}", "install the cuda-bindings of the driver's CUDA")
        )
    else:
        memory = f"{device.memory_mib} MiB{', shared with the CPU' if device.integrated else ''}, {free_mib} MiB free"
        findings.append(Finding("GPU", OK, f"{device.name} ({device.architecture}), {memory}"))
        findings += [_cuda(device), _smoke()]
    findings.append(_cuda_python())
    version: TensorRTVersion | None = None
    try:
        version = TensorRTVersion.here()
    except GmfEdgeError as error:
        findings.append(Finding("TensorRT", MISSING, error.problem, error.remedy))
    except Exception as error:  # a broken installation may fail in any way while it is imported
        findings.append(Finding("TensorRT", MISSING, f"{type(error).__name__}: {error}", "install it again for this CUDA"))
    else:
        lacks = "; ".join(version.missing)
        findings.append(Finding("TensorRT", OK, f"{version.text}, target {version.target.name}" + (f" ({lacks})" if lacks else "")))
        findings.append(_bindings_match(version))
    findings.append(_polygraphy(version))
    if version is not None:
        findings.append(_plugin(plugin_library, version))
    return tuple(finding for finding in findings if finding is not None)


def _jetson(path: Path = Path("/etc/nv_tegra_release")) -> Finding | None:
    try:
        text = path.read_text()
    except OSError:
        return None
    return Finding("Jetson Linux", OK, text.splitlines()[0].strip("# ") if text else "unknown release")


def _driver() -> Finding:
    version = driver_version()
    if version:
        return Finding("NVIDIA driver", OK, version)
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Finding(
            "NVIDIA driver", MISSING, "libcuda.so.1 cannot be loaded", "install the driver; in a container use '--gpus all'"
        )
    return Finding("NVIDIA driver", OK, "libcuda.so.1 loads; its version cannot be read")


def _cuda(device: Device) -> Finding:
    # a driver of an older major version is no finding but the GPU's problem: see cuda.py
    return Finding("CUDA", OK, f"driver supports {device.driver_cuda}, cuda-python is for {device.runtime_cuda}")


def _smoke() -> Finding:
    worked: list[str] = []
    try:
        copies_ms = smoke_test(worked.append)
    except GmfEdgeError as error:
        return Finding("CUDA at work", MISSING, f"{STEPS[len(worked)]}: {error.problem}", error.remedy)
    except Exception as error:  # a symbol that a library lacks is found at its first use, and told in several ways
        return Finding(
            "CUDA at work",
            MISSING,
            f"{STEPS[len(worked)]}: {type(error).__name__}: {error}",
            "install the cuda-bindings of the driver's CUDA version (on a Jetson of JetPack's)",
        )
    return Finding("CUDA at work", OK, f"{', '.join(STEPS)}: all work; copies of 256 KiB there and back took {copies_ms:.3f} ms")


def _cuda_python() -> Finding:
    for package in ("cuda-bindings", "cuda-python"):
        try:
            return Finding("cuda-python", OK, f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Finding("cuda-python", MISSING, "not installed", "pip install cuda-bindings")


def _polygraphy(version: TensorRTVersion | None) -> Finding:
    try:
        have = importlib.metadata.version("polygraphy")
    except importlib.metadata.PackageNotFoundError:
        return Finding("Polygraphy", MISSING, "not installed, needed to build engines (not to run them)", "pip install polygraphy")
    if version is not None:
        try:
            require_polygraphy(version)
        except GmfEdgeError as error:
            return Finding("Polygraphy", MISSING, error.problem, error.remedy)
    return Finding("Polygraphy", OK, have)


def _bindings_match(version: TensorRTVersion) -> Finding | None:
    """The Python bindings and the library are installed apart from each other on Debian and Jetson, and may differ."""
    major = version.numbers[0]
    try:
        library = version_of_number(int(ctypes.CDLL(f"libnvinfer.so.{major}").getInferLibVersion()))
    except (OSError, AttributeError):
        return None
    if library.split(".")[:2] == [str(number) for number in version.numbers]:
        return Finding("TensorRT library", OK, f"libnvinfer {library} fits the Python bindings")
    return Finding(
        "TensorRT library",
        WARNING,
        f"libnvinfer is {library}, the Python bindings are {version.text}",
        "install both from one place (JetPack: python3-libnvinfer and libnvinfer of one version)",
    )


def _plugin(library: str | None, version: TensorRTVersion) -> Finding:
    if PLUGIN_OP in registered_plugins(version):
        return Finding("plugin", OK, f"{PLUGIN_OP} is registered")
    if library is None:
        return Finding(
            "plugin", OK, f"no library was given and {PLUGIN_OP} is not registered: engines are built from the portable graph"
        )
    try:
        # into a builder's or a runtime's registry it is loaded when an engine is built or opened, which needs a GPU
        check_plugin_library(library, version)
    except GmfEdgeError as error:
        return Finding("plugin", MISSING, error.problem, error.remedy)
    return Finding("plugin", OK, f"{library} exports plugin creators for TensorRT {version.text}")
