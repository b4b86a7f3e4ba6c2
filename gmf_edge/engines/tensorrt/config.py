"""The builder's configuration for one build: Polygraphy's CreateConfig knows the versions' spellings, the rest is set here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmf_edge.engines.tensorrt.options import TensorRTOptions
from gmf_edge.engines.tensorrt.progress import BuildProgress, progress_monitor
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.errors import EngineError
from gmf_edge.scratch import scratch_folder
from gmf_edge.spec import IMAGES, BatchProfile, Precision, SizeRange

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class BuildJob:
    """What to build.

    Attributes:
        graph: ONNX file with the input "images" [batch, 3, H, W], batch dynamic.
        version: the TensorRT that builds.
        precision: what the graph was lowered to.
        profile: batch sizes.
        image_size: (H, W) in pixels, fixed in the engine where sizes is None.
        options: see TensorRTOptions.
        fp32_islands: ONNX node names that must stay FP32, beside what the graph's casts say.
        timing_cache: file to read measured kernel times from and to add new ones to, or None.
        sizes: the image sizes that the engine takes, or None for image_size alone.
        as_trtexec: build as trtexec does by itself: TF32 on, and no layer is pinned to FP32.
    """

    graph: Path
    version: TensorRTVersion
    precision: Precision
    profile: BatchProfile
    image_size: tuple[int, int]
    options: TensorRTOptions
    fp32_islands: tuple[str, ...] = ()
    timing_cache: Path | None = None
    sizes: SizeRange | None = None
    as_trtexec: bool = False


@dataclass(frozen=True)
class Attempt:
    """What may change from one attempt at a build to the next.

    Attributes:
        workspace_mib: limit of a layer's scratch memory.
        constraints: what weakly typed builders do with pinned layers: "obey" (or fail), "prefer", or None where none is pinned.
        timings: kernel times that were measured so far, serialised, or None.
    """

    workspace_mib: int
    constraints: str | None = None
    timings: bytes | None = None


def builder_config(
    job: BuildJob, builder: trt.Builder, network: trt.INetworkDefinition, attempt: Attempt, progress: BuildProgress
) -> trt.IBuilderConfig:
    """The builder's configuration of one attempt.

    Raises:
        EngineError: there is no such DLA core.
    """
    import tensorrt as trt
    from polygraphy.backend.trt import CreateConfig, Profile

    version, options = job.version, job.options
    shapes = {
        bound: (getattr(job.profile, bound), 3, *(job.image_size if job.sizes is None else getattr(job.sizes, bound)))
        for bound in ("min", "opt", "max")
    }
    # only what was asked for: Polygraphy's defaults know what each version lacks
    wanted: dict[str, Any] = {
        "profiles": [Profile().add(IMAGES, **shapes)],
        "tf32": job.as_trtexec,
        "memory_pool_limits": {trt.MemoryPoolType.WORKSPACE: attempt.workspace_mib << 20},
        # without the details nobody can prove which precision runs
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
        "version_compatible": options.version_compatible,
        "refittable": options.refit,
    }
    if options.optimization_level is not None:
        wanted["builder_optimization_level"] = options.optimization_level
    if options.max_aux_streams is not None:
        wanted["max_aux_streams"] = options.max_aux_streams
    if options.hardware_compatibility == "ampere+":
        wanted["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if version.has_same_compute_capability and options.hardware_compatibility == "same":
        wanted["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    if version.has_weak_typing:
        wanted["fp16"] = job.precision in (Precision.FP16, Precision.INT8)
        # of a plain export alone: the bundle's own BF16 graphs are built strongly typed
        wanted["bf16"] = job.precision is Precision.BF16
        wanted["int8"] = job.precision is Precision.INT8
        if attempt.constraints is not None:
            wanted["precision_constraints"] = attempt.constraints
    if version.has_progress_monitor:
        wanted["progress_monitor"] = progress_monitor(progress, version)
    with scratch_folder() as folder:
        if attempt.timings is not None:
            # Polygraphy reads a path only, and locks a file beside it: the user's own may be shared, or in a place without locks
            timings = folder / "timings"
            timings.write_bytes(attempt.timings)
            wanted["load_timing_cache"] = str(timings)
        config: trt.IBuilderConfig = CreateConfig(**wanted)(builder, network)

    if options.dla_core is not None:
        if options.dla_core >= builder.num_DLA_cores:
            raise EngineError(f"there is no DLA core {options.dla_core} here ({builder.num_DLA_cores} found)", "leave out the DLA")
        # not by Polygraphy's use_dla: it adds PREFER_PRECISION_CONSTRAINTS, which strongly typed networks and DLA builds must not have
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
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
