"""ONNX graph -> TensorRT engine bytes, on every supported version.

    network  = parse_graph(graph, version, log)                  trt.INetworkDefinition
    pinned   = pin_fp32_islands(network, ...)                   8.6 only: what the graph says must stay FP32, told to the builder
    config   = profile, workspace, timing cache, flags           by Polygraphy's CreateConfig, which knows the versions' spellings
    engine   = EngineBytesFromNetwork(...)                       again with less workspace where the GPU ran out of memory

TensorRT 10 and 11 build strongly typed: the types in the graph are the types of the engine. 8.6 builds weakly typed: FP16 and
INT8 are allowed by flags, and layers that the graph computes in FP32 between casts are pinned with ILayer.precision and
OBEY_PRECISION_CONSTRAINTS, since a weakly typed builder may otherwise remove the casts.
"""

from __future__ import annotations

import ctypes
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gmf_edge.engines.protocol import Progress
from gmf_edge.engines.tensorrt.options import INPUT_NAME, TensorRTOptions
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.errors import EngineError, EnvironmentProblem
from gmf_edge.spec import BatchProfile, Precision

if TYPE_CHECKING:
    import tensorrt as trt

PLUGIN_OP = "GmfGroupMixAttention"
# below this a build that ran out of memory is not tried again: some layers need more than that to run at all
LEAST_WORKSPACE_MIB = 64
OUT_OF_MEMORY_PATTERN = re.compile(
    r"out ?of ?memory|OutOfMemory|memory .*could not be allocated|cudaErrorMemoryAllocation", re.IGNORECASE
)
TOO_LITTLE_WORKSPACE_PATTERN = re.compile(
    r"insufficient (?:memory|workspace)|try increasing the workspace|Could not find any implementation", re.IGNORECASE
)


class BuildLog:
    """TensorRT's messages during one build or one opened engine: errors and warnings are kept, the rest is dropped.

    `logger` is the trt.ILogger that feeds it; keep it alive as long as any object that was made with it.
    """

    def __init__(self) -> None:
        import tensorrt as trt

        errors: list[str] = []
        warnings: list[str] = []

        class Logger(trt.ILogger):  # type: ignore[misc]  # untyped where TensorRT is not installed
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            # called from C++, also from other threads: it must not raise
            def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
                if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                    errors.append(msg)
                elif severity == trt.ILogger.Severity.WARNING and msg not in warnings:
                    warnings.append(msg)

        self.errors = errors
        self.warnings = warnings
        self.logger = Logger()

    def told(self, pattern: re.Pattern[str]) -> bool:
        """Whether an error or warning matches."""
        return any(pattern.search(message) for message in [*self.errors, *self.warnings])

    @property
    def last_errors(self) -> str:
        """The last errors, or warnings where there are none, in one line, for an exception."""
        told = self.errors or self.warnings
        return " | ".join(message.strip() for message in told[-3:]) or "TensorRT gave no reason"


class BuildProgress:
    """Turns the builder's nested phases into a fraction and the time left.

    A phase of n steps may contain phases of its own; each running phase stands for one step of its parent. Calls may come from
    several threads of the builder; the fraction that is shown never goes back.
    """

    def __init__(self, show: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self.show = show
        self.clock = clock
        self.started = clock()
        self.phases: dict[str, tuple[str | None, int]] = {}
        self.done_steps: dict[str, int] = {}
        self.fraction = 0.0
        self.stopped_by: BaseException | None = None

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins within its parent, or at the top where parent is None."""
        self.phases[name] = (parent, max(1, steps))
        self.done_steps[name] = 0
        self._show(name)

    def step_complete(self, name: str, step: int) -> bool:
        """Steps 0..step of the phase are done; False asks the builder to stop."""
        if name in self.phases:
            self.done_steps[name] = max(self.done_steps[name], step + 1)
        return self._show(name)

    def phase_finish(self, name: str) -> None:
        """The phase is over, whether all its steps were told or not."""
        if name in self.phases:
            self.done_steps[name] = self.phases[name][1]
            self._show(name)
            del self.phases[name], self.done_steps[name]

    def _fraction_of(self, name: str) -> float:
        steps = self.phases[name][1]
        inside = [self._fraction_of(child) for child, (parent, _) in self.phases.items() if parent == name]
        return min(1.0, (self.done_steps[name] + min(1.0, sum(inside))) / steps)

    def _show(self, name: str) -> bool:
        tops = [phase for phase, (parent, _) in self.phases.items() if parent not in self.phases]
        if tops:
            # the builder has one phase at the top; later ones start again from 0, which must not be shown
            self.fraction = max(self.fraction, max(self._fraction_of(phase) for phase in tops))
        try:
            self.show(self.fraction, f"building the TensorRT engine: {name}{self._time_left()}")
        except BaseException as error:  # also KeyboardInterrupt: an exception cannot pass through the builder's C++
            self.stopped_by = error
        return self.stopped_by is None

    def _time_left(self) -> str:
        elapsed = self.clock() - self.started
        if elapsed < 3 or self.fraction < 0.02:
            return ""
        left = elapsed * (1 - self.fraction) / self.fraction
        return f", about {math.ceil(left)} s left" if left < 90 else f", about {math.ceil(left / 60)} min left"


def _progress_monitor(progress: BuildProgress, version: TensorRTVersion) -> Any:
    """TensorRT's callback interface over BuildProgress, or None where the version has none."""
    if version.has_progress_monitor:
        import tensorrt as trt

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # untyped where TensorRT is not installed
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                progress.phase_start(phase_name, parent_phase, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return progress.step_complete(phase_name, step)

            def phase_finish(self, phase_name: str) -> None:
                progress.phase_finish(phase_name)

        return Monitor()
    return None


@dataclass(frozen=True)
class BuiltEngine:
    """What a build gives.

    Attributes:
        content: the engine's raw bytes.
        workspace_mib: the limit that it was built with.
        pinned_layers: layers that were told to stay FP32 (weakly typed builds).
        notes: what the user should know, one sentence each.
    """

    content: bytes
    workspace_mib: int
    pinned_layers: tuple[str, ...]
    notes: tuple[str, ...]


def parse_graph(
    graph: Path, version: TensorRTVersion, log: BuildLog, plugin_library: str | None = None
) -> tuple[trt.Builder, trt.INetworkDefinition, trt.OnnxParser]:
    """A builder, the network of an ONNX file, and the parser, which owns the weights until the engine is built.

    Raises:
        EngineError: TensorRT does not take the graph.
        EnvironmentProblem: TensorRT cannot start on this machine.
    """
    import tensorrt as trt

    try:
        builder = trt.Builder(log.logger)
    except TypeError as error:  # pybind11's way to say that the factory returned a null pointer
        raise EnvironmentProblem(
            f"TensorRT {version.text} cannot start: {log.last_errors}", "check the GPU driver with 'nvidia-smi'"
        ) from error
    flags = 0
    if version.has_explicit_batch_flag:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if not version.has_weak_typing:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    if plugin_library is not None:
        load_plugin_library(plugin_library, builder.get_plugin_registry(), version, log)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log.logger)
    # by path, not bytes: the weights lie in a file beside it
    if not parser.parse_from_file(str(graph)):
        problems = [parser.get_error(index) for index in range(parser.num_errors)]
        listed = " | ".join(f"{problem.desc()} (node {problem.node()})" for problem in problems) or log.last_errors
        raise EngineError(
            f"TensorRT {version.text} does not take {graph.name}: {listed}",
            f"export the bundle again for this version (opset {version.target.opset}); "
            f"where the node is {PLUGIN_OP}, give the plugin library or use the portable graph",
        )
    return builder, network, parser


def pin_fp32_islands(
    network: trt.INetworkDefinition, version: TensorRTVersion, precision: Precision, names: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tell a weakly typed builder which layers stay FP32; (layers pinned, names that matched no layer).

    An FP16 graph says it by its types: pinned is what it computes in FP32, between a cast to FP32 and a cast back, or from an FP32
    input. An INT8 graph for a weakly typed builder is FP32 with Q/DQ (casts would part them from their GEMM) and says nothing by its
    types: pinned is a softmax over tokens, through the product that it feeds. In both, every layer whose ONNX node is among the names.
    Left free: layers fed by DequantizeLinear, which TensorRT fuses into INT8 kernels, and shape arithmetic.
    """
    if not version.has_weak_typing:
        return (), ()
    import tensorrt as trt

    types: dict[str, str] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        typed = {trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16"} if precision is Precision.FP16 else {}
        types[tensor.name] = typed.get(tensor.dtype, "free")
    pinned: list[str] = []
    unmatched = set(names)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(number) for number in range(layer.num_outputs)]
        kind = _computed_type(layer, types)
        named = {name for name in names if _is_node(layer, name)}
        unmatched -= named
        for output in outputs:
            types[output.name] = kind
        arithmetic = layer.type not in (
            trt.LayerType.CAST,
            trt.LayerType.CONSTANT,
            trt.LayerType.IDENTITY,
            trt.LayerType.SHAPE,
            trt.LayerType.QUANTIZE,
            trt.LayerType.DEQUANTIZE,
        )
        in_island = kind in ("fp32", "softmax") or (
            layer.type == trt.LayerType.MATRIX_MULTIPLY and "softmax" in _read_types(layer, types)
        )
        if arithmetic and (in_island or named) and outputs and _is_float(outputs[0]):
            layer.precision = trt.DataType.FLOAT
            for number in range(layer.num_outputs):
                layer.set_output_type(number, trt.DataType.FLOAT)
            pinned.append(layer.name)
    return tuple(pinned), tuple(sorted(unmatched))


def _is_float(tensor: trt.ITensor) -> bool:
    import tensorrt as trt

    return tensor.dtype in (trt.DataType.FLOAT, trt.DataType.HALF)


def _is_node(layer: trt.ILayer, node: str) -> bool:
    """The parser names layers after their ONNX node, sometimes with a suffix, and always writes the node into the metadata."""
    return layer.name == node or f"[ONNX Layer: {node}]" in layer.metadata


def _computed_type(layer: trt.ILayer, types: dict[str, str]) -> str:
    """What the graph makes of this layer's outputs.

    "fp32", "fp16", "free" (neither is asked for), "constant" (asks for nothing), or "softmax" (a softmax, or moved from one).
    """
    import tensorrt as trt

    if layer.type == trt.LayerType.CAST:
        # pybind11 hands out the base class of every layer
        layer.__class__ = trt.ICastLayer
        target = cast("trt.ICastLayer", layer).to_type
        return {trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16"}.get(target, "free")
    if layer.type == trt.LayerType.CONSTANT:
        # FP32 scales and epsilons stand beside FP16 activations
        return "constant"
    if layer.type in (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE, trt.LayerType.SHAPE):
        return "free"
    read = _read_types(layer, types)
    if "fp32" in read:
        return "fp32"
    if layer.type == trt.LayerType.SOFTMAX:
        return "softmax"
    if "softmax" in read:
        return "free" if layer.type == trt.LayerType.MATRIX_MULTIPLY else "softmax"
    for kind in ("fp16", "free"):
        if kind in read:
            return kind
    return "constant" if read else "free"


def _read_types(layer: trt.ILayer, types: dict[str, str]) -> list[str]:
    """The kinds of the layer's inputs; optional inputs that are not given are None in the bindings."""
    inputs = [layer.get_input(number) for number in range(layer.num_inputs)]
    return [types.get(tensor.name, "free") for tensor in inputs if tensor is not None]


def creators_in(registry: trt.IPluginRegistry, version: TensorRTVersion) -> tuple[str, ...]:
    """Names of the plugin creators in one registry, without those of its parents."""
    if version.has_creator_list:
        creators: Sequence[Any] = registry.plugin_creator_list
    else:
        creators = registry.all_creators
    return tuple(sorted({str(creator.name) for creator in creators}))


def registered_plugins(version: TensorRTVersion) -> tuple[str, ...]:
    """Names of the plugin creators in TensorRT's global registry: what was linked in, or registered from Python."""
    import tensorrt as trt

    return creators_in(trt.get_plugin_registry(), version)


def check_plugin_library(path: str, version: TensorRTVersion) -> None:
    """Whether a library can be loaded and exports plugin creators for this TensorRT; works without a GPU.

    Raises:
        EngineError: it is missing, cannot be loaded, or was built for another version.
    """
    if not Path(path).is_file():
        raise EngineError(
            f"plugin library {path} is missing", "build it (plugins/README.md) or leave it out: the portable graph needs none"
        )
    try:
        library = ctypes.CDLL(str(Path(path).resolve()))
    except OSError as error:
        raise EngineError(f"plugin library {path} cannot be loaded: {error}", f"'ldd {path}' shows missing libraries") from error
    # 8.6 asks for the first; 10 and 11 for the second, and still take the first
    symbols = ("getPluginCreators",) if version.has_creator_list else ("getCreators", "getPluginCreators")
    if not any(hasattr(library, symbol) for symbol in symbols):
        raise EngineError(
            f"{path} gives no plugin creators to TensorRT {version.text}: it exports no {' or '.join(symbols)}",
            f"build it for this version ({version.target.plugin_interface}), see plugins/README.md",
        )


def load_plugin_library(path: str, registry: trt.IPluginRegistry, version: TensorRTVersion, log: BuildLog) -> None:
    """Load a library of plugin creators into the registry of a builder or a runtime, and make sure that ours is in it.

    TensorRT 8.6 loads no library into the global registry (it answers None); trtexec uses the builder's and the runtime's as well.

    Raises:
        EngineError: it cannot be loaded, or has no creator for the fused GMA operator.
    """
    check_plugin_library(path, version)
    if PLUGIN_OP in registered_plugins(version):
        return
    registry.load_library(str(Path(path).resolve()))
    if PLUGIN_OP not in creators_in(registry, version):
        raise EngineError(
            f"{path} gives no creator of {PLUGIN_OP} to TensorRT {version.text}: {log.last_errors}",
            f"build it for this version ({version.target.plugin_interface}), see plugins/README.md",
        )


@dataclass(frozen=True)
class BuildJob:
    """What to build.

    Attributes:
        graph: ONNX file with the input "images" [batch, 3, H, W], batch dynamic.
        version: the TensorRT that builds.
        precision: what the graph was lowered to.
        profile: batch sizes.
        image_size: (H, W) in pixels, fixed in the engine.
        options: see TensorRTOptions.
        fp32_islands: ONNX node names that must stay FP32, beside what the graph's casts say.
        timing_cache: file to read measured kernel times from and to add new ones to, or None.
    """

    graph: Path
    version: TensorRTVersion
    precision: Precision
    profile: BatchProfile
    image_size: tuple[int, int]
    options: TensorRTOptions
    fp32_islands: tuple[str, ...] = ()
    timing_cache: Path | None = None


def build_engine(job: BuildJob, free_memory_mib: int, progress: Progress) -> BuiltEngine:
    """Build the engine of an ONNX graph; see the head of this file.

    Args:
        free_memory_mib: what the GPU has free now, in MiB; half of it is the default workspace.

    Raises:
        EngineError: TensorRT does not take the graph, or ran out of memory with the smallest workspace.
        EnvironmentProblem: TensorRT cannot start.
    """
    workspace_mib = job.options.workspace_mib or max(LEAST_WORKSPACE_MIB, free_memory_mib // 2)
    notes: list[str] = []
    while True:
        log = BuildLog()
        try:
            content, pinned, unmatched = _build_once(job, workspace_mib, log, progress)
            break
        except EngineError:
            if not log.told(OUT_OF_MEMORY_PATTERN):
                raise
            if workspace_mib <= LEAST_WORKSPACE_MIB:
                raise EngineError(
                    f"TensorRT ran out of GPU memory even with a workspace of {workspace_mib} MiB: {log.last_errors}",
                    f"lower --max-batch (now {job.profile.max}) or the optimization level, and close other programs; "
                    "on a Jetson also add swap and stop the desktop",
                ) from None
            smaller = max(LEAST_WORKSPACE_MIB, workspace_mib // 2)
            notes.append(
                f"the build ran out of GPU memory with a workspace of {workspace_mib} MiB and was repeated with {smaller} MiB"
            )
            progress(None, notes[-1])
            workspace_mib = smaller
    if unmatched:
        more = f" and {len(unmatched) - 5} more" if len(unmatched) > 5 else ""
        notes.append(f"FP32 islands that are no layer of this network: {', '.join(unmatched[:5])}{more}")
    return BuiltEngine(content, workspace_mib, pinned, tuple(notes))


def _build_once(job: BuildJob, workspace_mib: int, log: BuildLog, show: Progress) -> tuple[bytes, tuple[str, ...], tuple[str, ...]]:
    """One attempt; (engine bytes, pinned layers, unmatched island names)."""
    from polygraphy.backend.trt import EngineBytesFromNetwork
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    builder, network, parser = parse_graph(job.graph, job.version, log, job.options.plugin_library)
    pinned: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    if job.precision is not Precision.FP32:
        pinned, unmatched = pin_fp32_islands(network, job.version, job.precision, job.fp32_islands)
    progress = BuildProgress(show)
    if not job.version.has_progress_monitor:
        show(None, f"building the TensorRT engine (TensorRT {job.version.text} does not tell its progress)")
    try:
        # our own words go to the user; Polygraphy's are for its command line
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            config = builder_config(job, builder, network, workspace_mib, obey_pins=bool(pinned), progress=progress)
            save_to = None if job.timing_cache is None else str(job.timing_cache)
            loader = EngineBytesFromNetwork((builder, network, parser), config=config, save_timing_cache=save_to)
            content = bytes(loader())
    except PolygraphyException as error:
        if progress.stopped_by is not None:
            raise progress.stopped_by from None
        remedy = "see TensorRT's messages; 'gmf-edge inspect BUNDLE' shows the graph"
        if log.told(TOO_LITTLE_WORKSPACE_PATTERN) and not log.told(OUT_OF_MEMORY_PATTERN):
            remedy = f"give more workspace than {workspace_mib} MiB"
        raise EngineError(
            f"TensorRT {job.version.text} could not build {job.graph.name}: {log.last_errors} ({error})", remedy
        ) from error
    return content, pinned, unmatched


def builder_config(
    job: BuildJob,
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    workspace_mib: int,
    obey_pins: bool,
    progress: BuildProgress,
) -> trt.IBuilderConfig:
    """The builder's configuration; obey_pins where layers were pinned to FP32.

    Raises:
        EngineError: there is no such DLA core.
    """
    import tensorrt as trt
    from polygraphy.backend.trt import CreateConfig, Profile

    version, options = job.version, job.options
    shapes = {bound: (getattr(job.profile, bound), 3, *job.image_size) for bound in ("min", "opt", "max")}
    # only what was asked for: Polygraphy's defaults know what each version lacks
    wanted: dict[str, Any] = {
        "profiles": [Profile().add(INPUT_NAME, **shapes)],
        "tf32": False,
        "memory_pool_limits": {trt.MemoryPoolType.WORKSPACE: workspace_mib << 20},
        # without the details nobody can prove which precision runs
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
        "version_compatible": options.version_compatible,
        "refittable": options.refit,
    }
    if job.timing_cache is not None and job.timing_cache.is_file():
        wanted["load_timing_cache"] = str(job.timing_cache)
    if options.optimization_level is not None:
        wanted["builder_optimization_level"] = options.optimization_level
    if options.max_aux_streams is not None:
        wanted["max_aux_streams"] = options.max_aux_streams
    if options.hardware_compatibility == "ampere+":
        wanted["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if version.has_same_compute_capability and options.hardware_compatibility == "same":
        wanted["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    if version.has_weak_typing:
        wanted["fp16"] = job.precision is not Precision.FP32
        wanted["int8"] = job.precision is Precision.INT8
        if obey_pins:
            wanted["precision_constraints"] = "obey"
    if version.has_progress_monitor:
        wanted["progress_monitor"] = _progress_monitor(progress, version)
    if options.dla_core is not None:
        if options.dla_core >= builder.num_DLA_cores:
            raise EngineError(f"there is no DLA core {options.dla_core} here ({builder.num_DLA_cores} found)", "leave out the DLA")
        wanted["use_dla"], wanted["allow_gpu_fallback"] = True, True
    config: trt.IBuilderConfig = CreateConfig(**wanted)(builder, network)

    if options.dla_core is not None:
        config.DLA_core = options.dla_core
    if version.has_profile_sharing_flag:
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    if version.has_strip_plan and options.strip:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        if not options.refit:
            # the same weights come back when it is opened, so TensorRT may optimise as if it knew them
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    if version.has_tiling and options.tiling is not None:
        levels = {
            "none": trt.TilingOptimizationLevel.NONE,
            "fast": trt.TilingOptimizationLevel.FAST,
            "moderate": trt.TilingOptimizationLevel.MODERATE,
            "full": trt.TilingOptimizationLevel.FULL,
        }
        config.tiling_optimization_level = levels[options.tiling]
    if options.tactic_sources is not None:
        config.set_tactic_sources(tactic_source_mask(options.tactic_sources, config.get_tactic_sources(), version))
    return config


def tactic_source_mask(sources: Sequence[str], default: int, version: TensorRTVersion) -> int:
    """TensorRT's bit mask of tactic sources, from names (the whole set) or signed names (changes to the default mask)."""
    import tensorrt as trt

    bits = {
        "edge_mask_convolutions": 1 << int(trt.TacticSource.EDGE_MASK_CONVOLUTIONS),
        "jit_convolutions": 1 << int(trt.TacticSource.JIT_CONVOLUTIONS),
    }
    if version.has_external_tactic_sources:
        bits["cublas"] = 1 << int(trt.TacticSource.CUBLAS)
        bits["cublas_lt"] = 1 << int(trt.TacticSource.CUBLAS_LT)
        bits["cudnn"] = 1 << int(trt.TacticSource.CUDNN)
    mask = default if any(source[0] in "+-" for source in sources) else 0
    for source in sources:
        bit = bits.get(source.lstrip("+-"), 0)
        mask = mask & ~bit if source[0] == "-" else mask | bit
    return mask
