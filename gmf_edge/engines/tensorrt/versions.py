"""What each TensorRT has, and which row of spec.TARGETS it is.

    TensorRTVersion.of("10.3.0").target.name  -> "tensorrt-10.3"

TensorRTVersion's boolean fields are the only guards in front of an API that some version lacks:

    if version.has_weak_typing:
        config.set_flag(trt.BuilderFlag.FP16)

They are plain attributes in plain `if` statements, because the API oracle (tests/tensorrt_api) reads them: it holds the code under
a guard against the bindings of exactly those versions for which the guard is true, and everything else against all of them.

Sources: NVIDIA's Python bindings 8.6.1, 10.3.0, 10.13.3.9 and 11.4.0.106 (their enums and signatures, read by the oracle), and
the release notes and migration guides for what a version accepts beyond its names.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass, fields
from pathlib import Path

from gmf_edge.errors import EnvironmentProblem
from gmf_edge.spec import TARGETS, Target

INSTALL_REMEDY = (
    "install TensorRT for this CUDA (a Jetson has it with JetPack: 'sudo apt install python3-libnvinfer'; "
    "elsewhere 'pip install gmf-edge[tensorrt]'), or use --backend onnxruntime"
)


@dataclass(frozen=True)
class TensorRTVersion:
    """A TensorRT release and what its Python API has; make it with `of` or `here`.

    Attributes:
        text: as TensorRT writes it, such as "10.13.3.9".
        numbers: (major, minor).
        target: its row of spec.TARGETS.
        has_weak_typing: precision is chosen with BuilderFlag.FP16 and INT8, OBEY_PRECISION_CONSTRAINTS and ILayer.precision.
            10.x still has these names, but builds strongly typed here, as 11 always does.
        has_explicit_batch_flag: networks must be created with NetworkDefinitionCreationFlag.EXPLICIT_BATCH.
        has_profile_sharing_flag: several contexts on one profile need PreviewFeature.PROFILE_SHARING_0806 at build time.
        has_progress_monitor: IProgressMonitor.
        has_strip_plan: BuilderFlag.STRIP_PLAN and REFIT_IDENTICAL, and OnnxParserRefitter to put the weights back.
        has_device_memory_size_v2: ICudaEngine.device_memory_size_v2 and IExecutionContext.set_device_memory, which takes a size; the
            older names, and create_execution_context_without_device_memory, are gone in 11.
        has_external_tactic_sources: TacticSource.CUBLAS, CUBLAS_LT and CUDNN.
        has_same_compute_capability: HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY.
        has_tiling: IBuilderConfig.tiling_optimization_level.
        has_creator_list: IPluginRegistry.plugin_creator_list, before all_creators.
    """

    text: str
    numbers: tuple[int, int]
    target: Target
    has_weak_typing: bool
    has_explicit_batch_flag: bool
    has_profile_sharing_flag: bool
    has_progress_monitor: bool
    has_strip_plan: bool
    has_device_memory_size_v2: bool
    has_external_tactic_sources: bool
    has_same_compute_capability: bool
    has_tiling: bool
    has_creator_list: bool

    @classmethod
    def of(cls, text: str) -> TensorRTVersion:
        """The version written as `text`.

        Raises:
            EnvironmentProblem: no row of spec.TARGETS covers it.
        """
        found = re.match(r"(\d+)\.(\d+)", text)
        numbers = (int(found[1]), int(found[2])) if found else (0, 0)
        if numbers[0] == 8 and numbers >= (8, 6):
            row = "tensorrt-8.6"
        elif (10, 0) <= numbers < (10, 10):
            row = "tensorrt-10.3"
        elif numbers[0] == 10:
            row = "tensorrt-10.13"
        elif numbers[0] == 11:
            row = "tensorrt-11"
        else:
            raise EnvironmentProblem(
                f"TensorRT {text} is not supported",
                "use TensorRT 8.6, 10.x or 11.x (JetPack 6 has 10.3; JetPack 5's 8.5 is too old), or --backend onnxruntime",
            )
        return cls(
            text=text,
            numbers=numbers,
            target=TARGETS[row],
            has_weak_typing=TARGETS[row].typing == "weak",
            has_explicit_batch_flag=numbers < (10, 0),
            has_profile_sharing_flag=numbers < (10, 0),
            has_progress_monitor=numbers >= (10, 0),
            has_strip_plan=numbers >= (10, 0),
            has_device_memory_size_v2=numbers >= (10, 1),
            has_external_tactic_sources=numbers < (11, 0),
            has_same_compute_capability=numbers >= (10, 9),
            has_tiling=numbers >= (10, 9),
            has_creator_list=numbers < (10, 0),
        )

    @classmethod
    def here(cls) -> TensorRTVersion:
        """The version that this Python imports.

        Raises:
            EnvironmentProblem: it cannot be imported, or is not supported.
        """
        try:
            import tensorrt as trt
        except ImportError as error:
            raise EnvironmentProblem(f"TensorRT cannot be imported: {error}", INSTALL_REMEDY) from error
        return cls.of(str(trt.__version__))

    @property
    def library(self) -> str:
        """The version of the libnvinfer that this process has loaded, such as "8.6.0", or "" where it cannot be asked.

        Bindings and library are installed apart from each other on Debian and Jetson, and an engine is tied to the library.
        """
        return loaded_library_version(self.numbers[0])

    @classmethod
    def guards(cls) -> tuple[str, ...]:
        """Names of the fields that guard an API."""
        return tuple(field.name for field in fields(cls) if field.name.startswith("has_"))

    @property
    def missing(self) -> tuple[str, ...]:
        """What this version cannot do that a newer or older one can, one phrase each, for `doctor` and the documentation."""
        lacks = []
        if not self.has_progress_monitor:
            lacks.append("no progress while building (IProgressMonitor came with 10.0)")
        if not self.has_strip_plan:
            lacks.append("no stripped engines (STRIP_PLAN came with 10.0)")
        if not self.has_same_compute_capability:
            lacks.append("hardware compatibility only as ampere+ (same compute capability came with 10.9)")
        if not self.has_external_tactic_sources:
            lacks.append("no cuBLAS, cuBLASLt or cuDNN tactic sources (gone with 11.0)")
        if not self.has_weak_typing:
            lacks.append("precision only as written in the graph (strongly typed)")
        if not self.supports_dla:
            lacks.append("no DLA")
        return tuple(lacks)

    @property
    def supports_dla(self) -> bool:
        """NVIDIA's documentation of 11.3 and 11.4: the last release with DLA was 10.7, and 11.4 has it again on Jetson AGX Orin."""
        return self.numbers <= (10, 7) or self.numbers >= (11, 4)


def loaded_library_version(major: int, maps: Path = Path("/proc/self/maps")) -> str:
    """The version of the loaded libnvinfer.so.<major>, by its own getInferLibVersion; "" where it is not loaded."""
    try:
        found = re.search(rf"(/\S*libnvinfer\.so\.{major}\S*)", maps.read_text())
        number = int(ctypes.CDLL(found[1]).getInferLibVersion()) if found else 0
    except (OSError, AttributeError):
        return ""
    return version_of_number(number) if number else ""


def version_of_number(number: int) -> str:
    """TensorRT's release of a number: major * 1000 + minor * 100 + patch up to 9, major * 10000 + minor * 100 + patch from 10 on."""
    scale = 10000 if number >= 100000 else 1000
    return f"{number // scale}.{number % scale // 100}.{number % 100}"
