"""The OpenVINO backend: runs the bundle's portable graph, compiled for the machine that it is opened on. Nothing is written to the bundle.

What is computed in which precision is read from the compiled model. FP32 that is not FP32, and INT8 of which nothing is left, are
refused; FP16 becomes what the device multiplies, see gmf_edge.engines.openvino.settings.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from gmf_edge.cpu import Threads, cpu_name
from gmf_edge.engines.openvino.compiled import Compiler, reason_of
from gmf_edge.engines.openvino.engine import Description, OpenVinoEngine
from gmf_edge.engines.openvino.layers import WEIGHTED_KINDS
from gmf_edge.engines.openvino.saturation import NARROWED_NOTE, saturates
from gmf_edge.engines.openvino.settings import FP32, NAMES, OpenVinoOptions, arithmetic_for, properties_for
from gmf_edge.engines.protocol import EngineRequest, Progress, precision_shares, silent
from gmf_edge.errors import EngineError, EnvironmentProblem, GmfEdgeError, PrecisionError
from gmf_edge.spec import OPSET_BF16, OPSET_NEW, Precision

NAME = "openvino"
FORM = "portable"
_INSTALL = "pip install 'gmf-edge[openvino]'"


class OpenVinoBackend:
    """See gmf_edge.engines.protocol.Backend."""

    name = NAME

    def missing(self) -> str | None:
        """None where openvino can be imported."""
        if importlib.util.find_spec("openvino") is None:
            return "the package openvino is not installed"
        return None

    def missing_to_build(self) -> str | None:
        """As missing: what is compiled is compiled wherever it is opened."""
        return self.missing()

    def graph_form(self, request: EngineRequest) -> str:
        """Always "portable": there are no plugins, and the CPU's own INT8 graph gains nothing here."""
        return FORM

    def alternatives(self, request: EngineRequest) -> tuple[EngineRequest, ...]:
        """The request and, where OpenVINO would compute it in less than FP32 and nobody chose that, the same in FP32.

        BF16 keeps 8 bits, which may be outside the gate of FP16; FP32 beside INT8 may be as fast. Never raises: `build` says what is wrong.
        """
        try:
            options = OpenVinoOptions.of(request.options)
            if options.arithmetic is not None or request.precision is Precision.FP32:
                return (request,)
            core, _ = openvino_core()
            _require_device(core, options.device)
            capabilities = core.get_property(options.device, "OPTIMIZATION_CAPABILITIES")
            suited = arithmetic_for(request.precision, options.device, capabilities)
        except GmfEdgeError:
            return (request,)
        if suited.hint == FP32 or "FP32" not in capabilities:
            return (request,)
        return request, replace(request, options={**request.options, "arithmetic": FP32})

    def build(self, request: EngineRequest, out: Path, progress: Progress = silent) -> tuple[str, ...]:
        """Nothing to write into `out`: compiled models lie in the cache. Opened once, and held against the precision asked for.

        Raises:
            SpecError: an option that this backend does not have, or a value that it cannot take.
            EngineError: OpenVINO cannot read or compile the graph.
            PrecisionError: it does not run in the precision asked for.
            EnvironmentProblem: openvino is not installed, or it does not see the device.
        """
        progress(None, "compiling the graph with OpenVINO")
        with self.open(request, out, ()) as engine:
            require_precision(request.precision, precision_shares(engine.layers(), WEIGHTED_KINDS), engine.device)
        return ()

    def open(self, request: EngineRequest, folder: Path, files: tuple[str, ...]) -> OpenVinoEngine:
        """Compile the bundle's portable graph for this machine, or take it from the cache.

        Raises:
            SpecError, EngineError, PrecisionError, EnvironmentProblem: see build.
        """
        options = OpenVinoOptions.of(request.options)
        if options.static_only and request.sizes is not None:
            raise EngineError(
                f"{options.device} takes one image size, and the bundle has several", "use --device CPU, or build with one size"
            )
        missing = self.missing()
        if missing is not None:
            raise EnvironmentProblem(missing, _INSTALL)
        core, version = openvino_core()
        _require_device(core, options.device)
        capabilities = tuple(core.get_property(options.device, "OPTIMIZATION_CAPABILITIES"))
        arithmetic = arithmetic_for(request.precision, options.device, capabilities)
        hint = options.arithmetic or arithmetic.hint
        properties, threads = properties_for(options, hint)
        notes = [arithmetic.note] if arithmetic.note and hint == arithmetic.hint else []
        narrow = options.on_cpu and request.precision is Precision.INT8 and saturates()
        if narrow:
            notes.append(NARROWED_NOTE)
        compiler = Compiler(
            core=core,
            graph=request.graphs.path(FORM, OPSET_BF16 if request.precision is Precision.BF16 else OPSET_NEW),
            image_shape=(3, *request.image_size),
            sizes=request.sizes,
            device=options.device,
            properties=_known(core, options.device, properties),
            capabilities=capabilities,
            narrow=narrow,
        )
        execution: dict[str, Any] = {"device": options.device, "streams": options.streams, "arithmetic": NAMES[hint]}
        if threads is not None:
            execution |= {"threads": threads.count, "threads_reason": threads.reason}
        given = {"device": options.device, "threads": options.threads, "streams": options.streams, "arithmetic": hint}
        description = Description(
            backend=NAME,
            version=version,
            device=_device_name(core, options, threads),
            form=FORM,
            notes=tuple(notes),
            options={name: value for name, value in given.items() if value is not None},
            execution=execution,
        )
        return OpenVinoEngine(compiler, request.profile, description, streams=options.streams, static_only=options.static_only)


def openvino_core() -> tuple[Any, str]:
    """(openvino.Core, its version): one Core for the whole process.

    Each Core's CPU plugin gives the thread a signal stack of its own and frees it with the Core. Of two Cores, the one that goes last
    may give back a stack that is gone (SigAltStackSetup of OpenVINO 2026's intel_cpu), and the next signal ends the process at once.

    Raises:
        EnvironmentProblem: it cannot be imported or finds none of its libraries.
    """
    try:
        return _core()
    except (ImportError, RuntimeError, OSError) as error:  # a wheel for another system, or without its plugins
        raise EnvironmentProblem(f"openvino cannot be started: {reason_of(error)}", f"{_INSTALL} again") from error


@cache
def _core() -> tuple[Any, str]:
    import openvino

    return openvino.Core(), str(openvino.__version__).split("-")[0]


def _require_device(core: Any, device: str) -> None:
    """OpenVINO lists "GPU" alone where there is one, else "GPU.0", "GPU.1"; a bare name is the first."""
    seen = list(core.available_devices)
    if device not in seen and f"{device}.0" not in seen:
        raise EnvironmentProblem(
            f"OpenVINO sees no device {device} here, it sees {', '.join(seen) or 'none'}",
            "use --device CPU, or install the device's driver (Intel GPU: intel-opencl-icd, NPU: intel-driver-compiler-npu)",
        )


def _known(core: Any, device: str, properties: dict[str, Any]) -> dict[str, Any]:
    """Those that the device has and lets be set: an NPU knows fewer than a CPU."""
    settable = {str(name) for name, access in core.get_property(device, "SUPPORTED_PROPERTIES").items() if access == "RW"}
    return {name: value for name, value in properties.items() if name in settable}


def _device_name(core: Any, options: OpenVinoOptions, threads: Threads | None) -> str:
    if threads is not None:
        return f"{cpu_name()}, {threads.words}"
    return f"{core.get_property(options.device, 'FULL_DEVICE_NAME')} ({options.device})"


def require_precision(precision: Precision, shares: Mapping[str, float], device: str) -> None:
    """Hold what runs against what was asked for; nothing is held against a device that does not tell.

    Raises:
        PrecisionError: an FP32 engine with layers in less, or an INT8 engine with none in INT8.
    """
    found = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    if shares and precision is Precision.FP32 and set(shares) != {"fp32"}:
        raise PrecisionError(f"FP32 was asked for and {device} runs {found}", "use --precision fp16, or --backend onnxruntime")
    if shares and precision is Precision.INT8 and "int8" not in shares:
        raise PrecisionError(
            f"INT8 was asked for and {device} runs no layer in it: {found}", "use another --precision or --backend"
        )
