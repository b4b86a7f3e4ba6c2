"""Engine bytes -> trt.ICudaEngine, with its plugins loaded and its weights put back where it has none of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gmf_edge.engines.tensorrt.log import BuildLog
from gmf_edge.engines.tensorrt.options import TensorRTOptions
from gmf_edge.engines.tensorrt.plugins import load_plugin_library
from gmf_edge.engines.tensorrt.sidecar import REBUILD
from gmf_edge.engines.tensorrt.versions import INSTALL_REMEDY, TensorRTVersion
from gmf_edge.errors import EngineError, EnvironmentProblem

if TYPE_CHECKING:
    import tensorrt as trt


def deserialize(
    content: bytes, version: TensorRTVersion, options: TensorRTOptions, log: BuildLog, refit_from: Path | None
) -> tuple[trt.Runtime, trt.ICudaEngine]:
    """The engine of its raw bytes, with its plugins loaded and its weights put back from an ONNX file where it was stripped.

    Call it only where CUDA works: TensorRT 8.6 crashes the process otherwise.

    Raises:
        EngineError: TensorRT does not take the bytes, or the weights do not fit.
        EnvironmentProblem: TensorRT cannot be used here.
    """
    import tensorrt as trt

    try:
        runtime = trt.Runtime(log.logger)
    except TypeError as error:
        # pybind11's word for a null pointer: the library found no driver that fits it, or is of another version than the bindings
        raise EnvironmentProblem(f"TensorRT {version.text} could not be started: {log.last_errors}", INSTALL_REMEDY) from error
    if options.version_compatible:
        # a version-compatible engine carries host code of the version that built it
        runtime.engine_host_code_allowed = True
    if options.dla_core is not None:
        runtime.DLA_core = options.dla_core
    if options.plugin_library is not None:
        load_plugin_library(options.plugin_library, runtime.get_plugin_registry(), version, log)
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise EngineError(f"TensorRT {version.text} does not take the engine: {log.last_errors}", REBUILD)
    if refit_from is not None:
        refit(engine, version, refit_from, log)
    return runtime, engine


def refit(engine: trt.ICudaEngine, version: TensorRTVersion, graph: Path, log: BuildLog) -> None:
    """Exchange an engine's weights for those of an ONNX file of the same architecture; it must have been built stripped or refittable.

    Raises:
        EngineError: this TensorRT cannot do it from an ONNX file, or the weights do not fit.
    """
    if version.has_strip_plan:
        import tensorrt as trt

        refitter = trt.Refitter(engine, log.logger)
        if not trt.OnnxParserRefitter(refitter, log.logger).refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
            raise EngineError(f"the weights of {graph.name} do not fit the engine: {log.last_errors}", REBUILD)
    else:
        raise EngineError(f"TensorRT {version.text} cannot refit from an ONNX file", REBUILD)
