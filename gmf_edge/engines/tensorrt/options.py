"""How a TensorRT engine is built and opened: one frozen value, and trtexec's spellings of it.

    TensorRTOptions.of({"workspace_mib": 1024, "optimization_level": 5})
    options_from_trtexec(["--memPoolSize=workspace:1024", "--minShapes=images:1x3x224x224", ...])

Precision is no option: it is in the graph (spec.Precision says what to expect of it).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gmf_edge.engines.tensorrt.cuda import Device
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.errors import SpecError
from gmf_edge.spec import IMAGES, BatchProfile, Precision, SizeRange

HARDWARE_COMPATIBILITY = ("none", "ampere+", "same")
EXTERNAL_TACTIC_SOURCES = ("cublas", "cublas_lt", "cudnn")
OWN_TACTIC_SOURCES = ("edge_mask_convolutions", "jit_convolutions")
TACTIC_SOURCES = EXTERNAL_TACTIC_SOURCES + OWN_TACTIC_SOURCES
PRECISION_PROOFS = ("refuse", "warn")
TILING = ("none", "fast", "moderate", "full")

# trtexec's spelling -> option here: of whole numbers, of switches, and of levels
TRTEXEC_INTEGERS = {
    "--builderOptimizationLevel": "optimization_level",
    "--useDLACore": "dla_core",
    "--maxAuxStreams": "max_aux_streams",
    "--infStreams": "streams",
}
TRTEXEC_SWITCHES = {
    "--versionCompatible": "version_compatible",
    "--vc": "version_compatible",
    "--stripWeights": "strip",
    "--refit": "refit",
    "--useCudaGraph": "cuda_graphs",
}
TRTEXEC_COMPATIBILITY = {"none": "none", "ampere+": "ampere+", "sameComputeCapability": "same"}
TRTEXEC_BENCH = {"--warmUp": "warmup_ms", "--duration": "duration_s", "--iterations": "iterations"}
# what is done here in any case, or decided by the command
TRTEXEC_NEEDLESS = ("--noTF32", "--stronglyTyped", "--allowGPUFallback", "--skipInference", "--buildOnly")

# Share of the compute time (of the layers, where nothing was timed) that may stay in FP32 when FP16 or INT8 was asked for.
# GMA keeps softmax over tokens and its product in FP32 on purpose; a request that was ignored leaves nearly everything there.
MAX_FP32_SHARE = 0.5


@dataclass(frozen=True)
class TensorRTOptions:
    """What may be chosen about an engine.

    Attributes:
        workspace_mib: limit of a layer's scratch memory in MiB; None for half of what is free when the build starts.
        timing_cache: file of measured kernel times, reused by later builds; None for one per device and version in the cache
            folder; an empty path for none.
        optimization_level: 0 (fast build) to 5 (searches longest); None for TensorRT's default, 3.
        version_compatible: the engine also runs on later TensorRT versions that allow it (8.6 -> 10, 10 -> 11).
        hardware_compatibility: "none" (this GPU's architecture only), "ampere+" or "same" (any GPU of the same compute capability).
        strip: leave the weights out of the engine file; they are put back from the bundle when it is opened.
        refit: weights can be exchanged later without a build.
        dla_core: run on this deep-learning accelerator of a Jetson, with the GPU for what it cannot do; None for the GPU.
        tactic_sources: where TensorRT may take kernels from: either the whole set ("cublas", "jit_convolutions"; empty for its own
            kernels only), or changes to its default ("-cudnn", "+cublas"); None for its default. Names: TACTIC_SOURCES.
        tiling: search of on-chip memory tiling, of TILING; None for TensorRT's default.
        max_aux_streams: streams that one inference may use beside its own; None for TensorRT's choice.
        max_fp32_share: see MAX_FP32_SHARE.
        precision_proof: what happens to an engine that does not run the precision asked for: "refuse", or "warn" (a note).
        streams: inferences that may be in flight at once.
        cuda_graphs: replay each batch size from a captured CUDA graph.
        plugin_library: shared library with the plugin creators; None to build from the portable graph.

    Raises:
        SpecError: a value that TensorRT cannot take.
    """

    workspace_mib: int | None = None
    timing_cache: str | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    strip: bool = False
    refit: bool = False
    dla_core: int | None = None
    tactic_sources: tuple[str, ...] | None = None
    tiling: str | None = None
    max_aux_streams: int | None = None
    max_fp32_share: float = MAX_FP32_SHARE
    precision_proof: str = "refuse"
    streams: int = 1
    cuda_graphs: bool = True
    plugin_library: str | None = None

    def __post_init__(self) -> None:
        _at_least(self.workspace_mib, 1, "workspace_mib", "--workspace-mib in MiB, such as 1024")
        _at_least(self.dla_core, 0, "dla_core", "--useDLACore a core's number, such as 0")
        _at_least(self.max_aux_streams, 0, "max_aux_streams", "--maxAuxStreams a number of streams")
        _at_least(self.streams, 1, "streams", "--infStreams a number of streams, such as 2")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise SpecError(
                f"optimization_level is {self.optimization_level}",
                "give --builderOptimizationLevel 0 (fast build) to 5 (searches longest)",
            )
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            raise SpecError(
                f"hardware_compatibility is {self.hardware_compatibility!r}", f"use one of {', '.join(HARDWARE_COMPATIBILITY)}"
            )
        sources = self.tactic_sources or ()
        unknown = [source for source in sources if source.lstrip("+-") not in TACTIC_SOURCES]
        if unknown:
            raise SpecError(f"unknown tactic source {unknown[0]!r}", f"use some of {', '.join(TACTIC_SOURCES)}")
        if len({source[0] in "+-" for source in sources}) > 1:
            raise SpecError(
                f"tactic sources {', '.join(sources)} mix a set with changes", "give all of --tacticSources a sign, or none"
            )
        if self.tiling is not None and self.tiling not in TILING:
            raise SpecError(f"tiling is {self.tiling!r}", f"use one of {', '.join(TILING)}")
        if self.precision_proof not in PRECISION_PROOFS:
            raise SpecError(f"precision_proof is {self.precision_proof!r}", f"use {' or '.join(PRECISION_PROOFS)}")
        if not 0 <= self.max_fp32_share <= 1:
            raise SpecError(f"max_fp32_share is {self.max_fp32_share}", "give a share between 0 and 1")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TensorRTOptions:
        """Options from a mapping such as EngineRequest.options; None stands for the default.

        Raises:
            SpecError: an unknown option, a value of another type, or one that TensorRT cannot take.
        """
        known = {field.name: str(field.type) for field in fields(cls)}
        given: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise SpecError(f"TensorRT has no option {name!r} here", f"use some of {', '.join(known)}")
            if value is None:
                continue
            if isinstance(value, Path):
                value = str(value)
            if isinstance(value, list):
                value = tuple(value)
            kind = known[name].removesuffix(" | None")
            wanted: Any = {"int": int, "bool": bool, "str": str, "float": (int, float)}.get(kind, tuple)
            if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool"):
                raise SpecError(f"option {name} is {value!r}", f"give a value of type {kind}")
            given[name] = value
        return cls(**given)

    def check(self, version: TensorRTVersion, profile: BatchProfile, device: Device) -> None:
        """Refuse what this TensorRT version cannot do on this device.

        Raises:
            SpecError: an option needs another version or device, or contradicts the batch profile.
        """
        if self.refit and not version.has_strip_plan:
            raise SpecError(
                f"TensorRT {version.text} cannot exchange weights from an ONNX file",
                "leave out --refit, or use TensorRT 10 or newer",
            )
        if self.hardware_compatibility != "none" and device.integrated:
            raise SpecError(
                f"TensorRT has no hardware compatibility on a Jetson, and {self.hardware_compatibility} was asked for",
                "leave it out, and deploy on each module",
            )
        if self.strip and not version.has_strip_plan:
            raise SpecError(f"TensorRT {version.text} has no stripped engines", "leave out --strip, or use TensorRT 10 or newer")
        if self.hardware_compatibility == "same" and not version.has_same_compute_capability:
            raise SpecError(
                f"TensorRT {version.text} has no hardware compatibility 'same'", "use ampere+, or TensorRT 10.9 or newer"
            )
        if self.tiling is not None and not version.has_tiling:
            raise SpecError(f"TensorRT {version.text} has no tiling level", "leave it out, or use TensorRT 10.9 or newer")
        # taking away what a version does not have is no request
        external = [source for source in self.tactic_sources or () if source.lstrip("+") in EXTERNAL_TACTIC_SOURCES]
        if external and not version.has_external_tactic_sources:
            raise SpecError(
                f"TensorRT {version.text} takes no kernels from {', '.join(external)}",
                f"use some of {', '.join(OWN_TACTIC_SOURCES)}",
            )
        if self.dla_core is not None and not version.supports_dla:
            raise SpecError(
                f"TensorRT {version.text} has no DLA support", "leave out the DLA, or use TensorRT up to 10.7 or from 11.4"
            )
        if self.dla_core is not None and profile.min != profile.max:
            raise SpecError(
                f"the DLA runs one batch size, and {profile.min} to {profile.max} were asked for",
                "give --min-batch, --opt-batch and --max-batch the same value, or leave out the DLA",
            )


def _at_least(value: int | None, least: int, name: str, meaning: str) -> None:
    if value is not None and value < least:
        raise SpecError(f"{name} is {value}", f"give {meaning}")


@dataclass(frozen=True)
class TrtexecRequest:
    """What a line of trtexec options asks for, in this project's words.

    Attributes:
        options: of TensorRTOptions.
        profile: batch sizes, or None where no shapes were given.
        image_size: (H, W) in pixels, or None; of several, the one to tune for.
        sizes: where the shapes have several image sizes.
        precision: what --fp16, --bf16 or --int8 asks the graph to be lowered to, or None.
        bench: warmup_ms, duration_s, iterations, percentiles, for the latency measurement.
    """

    options: dict[str, Any]
    profile: BatchProfile | None
    image_size: tuple[int, int] | None
    precision: Precision | None
    bench: dict[str, Any]
    sizes: SizeRange | None = None


def options_from_trtexec(arguments: Iterable[str]) -> TrtexecRequest:
    """Read trtexec's spellings, for people who have a line that works.

    Known: --minShapes --optShapes --maxShapes --shapes (of "images"), --memPoolSize=workspace:MIB[K|M|G],
    --timingCacheFile (empty for none) --builderOptimizationLevel --hardwareCompatibilityLevel
    --versionCompatible/--vc --stripWeights --refit --useDLACore --tacticSources --tilingOptimizationLevel --maxAuxStreams
    --fp16 --bf16 --int8 --best --noTF32 --stronglyTyped --useCudaGraph --infStreams --plugins/--staticPlugins
    --warmUp --duration --iterations --percentile.

    Raises:
        SpecError: an option that is unknown, malformed, or would mean something else here.
    """
    options: dict[str, Any] = {}
    bench: dict[str, Any] = {}
    shapes: dict[str, tuple[int, int, int, int]] = {}
    precision: Precision | None = None
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in ("--minShapes", "--optShapes", "--maxShapes", "--shapes"):
            shape = _images_shape(argument, value)
            for bound in ("min", "opt", "max") if name == "--shapes" else (name[2:5],):
                shapes[bound] = shape
        elif name == "--memPoolSize":
            options["workspace_mib"] = _workspace_mib(argument, value)
        elif name == "--timingCacheFile":
            options["timing_cache"] = value
        elif name in TRTEXEC_INTEGERS:
            options[TRTEXEC_INTEGERS[name]] = _integer(argument, value)
        elif name in TRTEXEC_SWITCHES:
            options[TRTEXEC_SWITCHES[name]] = True
        elif name == "--hardwareCompatibilityLevel":
            options["hardware_compatibility"] = _one_of(argument, value, TRTEXEC_COMPATIBILITY)
        elif name == "--tacticSources":
            options["tactic_sources"] = _tactic_sources(argument, value)
        elif name == "--tilingOptimizationLevel":
            options["tiling"] = _one_of(argument, value, {str(i): level for i, level in enumerate(TILING)})
        elif name in ("--plugins", "--staticPlugins"):
            options["plugin_library"] = value
        elif name in ("--fp16", "--bf16", "--int8", "--best"):
            wanted = {"--fp16": Precision.FP16, "--bf16": Precision.BF16}.get(name, Precision.INT8)
            if {precision, wanted} == {Precision.FP16, Precision.BF16}:
                raise SpecError("--fp16 and --bf16 were both given", "the graph has one of the two: give one")
            # trtexec's --fp16 --int8 together means "INT8, and FP16 for the rest", which is what INT8 is here
            precision = Precision.INT8 if Precision.INT8 in (precision, wanted) else wanted
        elif name in TRTEXEC_NEEDLESS:
            continue
        elif name in TRTEXEC_BENCH:
            bench[TRTEXEC_BENCH[name]] = _integer(argument, value)
        elif name == "--percentile":
            bench["percentiles"] = tuple(_integer(argument, part) for part in value.split(","))
        else:
            raise SpecError(f"trtexec option {argument!r} has no counterpart here", "leave it out; see 'gmf-edge build --help'")
    profile, sizes = _profile(shapes)
    TensorRTOptions.of(options)
    one_size = sizes is None or sizes.min == sizes.max
    image_size = None if sizes is None else sizes.opt
    return TrtexecRequest(options, profile, image_size, precision, bench, None if one_size else sizes)


def _profile(shapes: Mapping[str, tuple[int, int, int, int]]) -> tuple[BatchProfile | None, SizeRange | None]:
    """Batch and image sizes from the shapes that were given; a missing bound is that of the nearest given one."""
    if not shapes:
        return None, None
    low = shapes.get("min", shapes.get("opt", shapes.get("max")))
    high = shapes.get("max", shapes.get("opt", shapes.get("min")))
    assert low is not None
    assert high is not None
    opt = shapes.get("opt", high)
    return BatchProfile(low[0], opt[0], high[0]), SizeRange(low[2:], opt[2:], high[2:])


def _images_shape(argument: str, value: str) -> tuple[int, int, int, int]:
    found = re.fullmatch(rf"'?{IMAGES}'?:(\d+)x3x(\d+)x(\d+)", value)
    if not found:
        raise SpecError(
            f"cannot read {argument!r}", f"write {argument.partition('=')[0]}={IMAGES}:8x3x224x224; the input is {IMAGES!r}"
        )
    return int(found[1]), 3, int(found[2]), int(found[3])


def _workspace_mib(argument: str, value: str) -> int:
    found = re.fullmatch(r"workspace:(\d+(?:\.\d+)?)([BKMG]?)", value)
    if not found:
        raise SpecError(f"cannot read {argument!r}", "write --memPoolSize=workspace:1024 (MiB); other pools are not limited here")
    scale = {"B": 2**-20, "K": 2**-10, "": 1.0, "M": 1.0, "G": 1024.0}[found[2]]
    return max(1, round(float(found[1]) * scale))


def _integer(argument: str, value: str) -> int:
    if not re.fullmatch(r"\d+", value):
        raise SpecError(f"cannot read {argument!r}", f"write {argument.partition('=')[0]}=N with a whole number")
    return int(value)


def _one_of(argument: str, value: str, words: Mapping[str, str]) -> str:
    if value not in words:
        raise SpecError(f"cannot read {argument!r}", f"use one of {', '.join(words)}")
    return words[value]


def _tactic_sources(argument: str, value: str) -> tuple[str, ...]:
    """trtexec writes changes to TensorRT's default: -CUDNN,+CUBLAS."""
    words = [word for word in value.split(",") if word]
    if any(word[0] not in "+-" or word[1:].lower() not in TACTIC_SOURCES for word in words):
        raise SpecError(f"cannot read {argument!r}", "write --tacticSources=+CUBLAS,-CUDNN")
    return tuple(word.lower() for word in words)
