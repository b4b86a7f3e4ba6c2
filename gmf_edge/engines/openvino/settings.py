"""Options of the OpenVINO backend, and the properties that a device gets from them.

Properties are OpenVINO's, by name: ov::hint::inference_precision is INFERENCE_PRECISION_HINT, and so on (openvino/runtime/properties.hpp).
The arithmetic is always told: left to itself, OpenVINO computes an FP32 graph in BF16 or FP16 wherever the device has it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from gmf_edge.cpu import Threads, engine_threads
from gmf_edge.errors import PrecisionError, SpecError
from gmf_edge.spec import Precision

CPU = "CPU"
# what a compiled model is told of the floating-point layers: OpenVINO's type names. "dynamic" leaves each layer the type of the graph
FP32, BF16, AS_GRAPH = "f32", "bf16", "dynamic"
NAMES = {FP32: "FP32", BF16: "BF16", AS_GRAPH: "the graph's own types"}
MOST_STREAMS = 64


@dataclass(frozen=True)
class OpenVinoOptions:
    """What a user may choose.

    Attributes:
        device: as OpenVINO names it: CPU, GPU, GPU.1, NPU.
        threads: of the CPU, for all streams together; None for one a core.
        streams: inferences that OpenVINO keeps in flight at the same time, for engine.infer_many.
        arithmetic: FP32, BF16 or AS_GRAPH; None for what suits the precision asked for, see arithmetic_for.
    """

    device: str = CPU
    threads: int | None = None
    streams: int = 1
    arithmetic: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> OpenVinoOptions:
        """From a request's options.

        Raises:
            SpecError: an option that this backend does not have, or a value that it cannot take.
        """
        names = tuple(cls.__dataclass_fields__)
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise SpecError(
                f"OpenVINO has no option {unknown[0]!r}", f"it has {', '.join(names)}; the others need another --backend"
            )
        options = cls(**given)
        base, _, number = options.device.partition(".")
        if base not in (CPU, "GPU", "NPU") or (number and not number.isdigit()):
            raise SpecError(f"--device is {options.device!r}", "give CPU, GPU, NPU or one of several, such as GPU.1")
        if options.threads is not None and base != CPU:
            raise SpecError(f"--threads was given for {options.device}", "it is about the CPU: leave it out")
        if options.threads is not None and options.threads < 1:
            raise SpecError(f"--threads is {options.threads}", "give at least 1, or leave it out")
        if not 1 <= options.streams <= MOST_STREAMS:
            raise SpecError(f"{options.streams} streams", f"give --infStreams 1 to {MOST_STREAMS}")
        if options.arithmetic not in (None, *NAMES):
            raise SpecError(f"arithmetic is {options.arithmetic!r}", f"give one of {', '.join(NAMES)}")
        return options

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU computes."""
        return self.device == CPU

    @property
    def static_only(self) -> bool:
        """Whether the device takes models of fixed shapes alone."""
        return self.device.startswith("NPU")


@dataclass(frozen=True)
class Arithmetic:
    """What floating-point layers are computed in, of FP32, BF16 and AS_GRAPH, and why: a note for the report, empty for none."""

    hint: str
    note: str = ""


def arithmetic_for(precision: Precision, device: str, capabilities: Collection[str]) -> Arithmetic:
    """What a request for this precision becomes on a device.

    FP16 is the graph's own types where the device has FP16, so that FP32 islands stay; else BF16, which is as short, where the device
    multiplies it; else FP32. The layers that INT8 leaves in floating point get the same. BF16 is BF16 where the device multiplies it,
    else FP32: FP16 has not its range.

    Args:
        precision: asked for.
        device: OpenVINO's name.
        capabilities: the device's OPTIMIZATION_CAPABILITIES, such as FP32, FP16, BF16, INT8.

    Raises:
        PrecisionError: FP32 on a device that has none.
    """
    if precision is Precision.FP32:
        if "FP32" not in capabilities:
            raise PrecisionError(
                f"{device} cannot compute in FP32, it has {', '.join(sorted(capabilities))}", "use --precision fp16"
            )
        return Arithmetic(FP32)
    if precision is Precision.BF16:
        if "BF16" in capabilities:
            return Arithmetic(BF16)
        return Arithmetic(FP32, f"BF16 was asked for: this {device} does not multiply it, so the layers are computed in FP32")
    subject = "FP16 was asked for" if precision is Precision.FP16 else "floating-point layers beside INT8"
    if "FP16" in capabilities:
        return Arithmetic(AS_GRAPH)
    if "BF16" in capabilities:
        return Arithmetic(BF16, f"{subject}: this {device} multiplies BF16 and not FP16, so they are computed in BF16")
    return Arithmetic(FP32, f"{subject}: this {device} multiplies neither FP16 nor BF16, so they are computed in FP32")


def properties_for(options: OpenVinoOptions, arithmetic: str) -> tuple[dict[str, Any], Threads | None]:
    """(OpenVINO's properties for compile_model and import_model, the threads of a CPU or None).

    Raises:
        SpecError: fewer than one thread.
    """
    properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": arithmetic, "NUM_STREAMS": options.streams}
    properties["PERFORMANCE_HINT"] = "LATENCY" if options.streams == 1 else "THROUGHPUT"
    if not options.on_cpu:
        return properties, None
    threads = engine_threads(options.threads)
    properties["INFERENCE_NUM_THREADS"] = threads.count
    # tied to the first processors, the engines of several processes would share those and leave the others idle
    properties["ENABLE_CPU_PINNING"] = not threads.limited
    return properties, threads
