"""What a user would do without this project, to be measured beside it.

eager         the FP32 PyTorch model
compile       the same through torch.compile
onnxruntime   the plain export in ONNX Runtime, with its defaults
openvino      the plain export in OpenVINO, with its defaults, compiled for each batch size (as benchmark_app -shape does)
stock-trt     the plain export in TensorRT, as trtexec would build it

Each is an Engine; one that cannot run here raises, and whoever measures says so by name. The libraries' defaults are left alone on purpose:
what this project tunes in its own backends must not move what it is measured against.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gmf_edge.bench.plain_model import PlainModel
from gmf_edge.cpu import cpu_name, engine_threads
from gmf_edge.engines.protocol import Engine, EngineFacts, FloatArray, LogitsOnly, Progress, silent
from gmf_edge.errors import EngineError, EnvironmentProblem, SpecError
from gmf_edge.spec import BatchProfile, Precision

BASELINES = ("eager", "compile", "onnxruntime", "openvino", "stock-trt")


@dataclass(frozen=True)
class BaselineRequest:
    """What baselines are opened for.

    Attributes:
        plain: the model and its plain export.
        precision: of the bundle that they are measured against.
        profile: batch sizes.
        on_gpu: PyTorch runs on the GPU.
        threads: of a CPU's libraries; 0 for each one's own choice.
        cuda_graphs: of stock-trt.
    """

    plain: PlainModel
    precision: Precision
    profile: BatchProfile
    on_gpu: bool = False
    threads: int = 0
    cuda_graphs: bool = True


def baseline_names(text: str) -> tuple[str, ...]:
    """ "eager,onnxruntime" -> ("eager", "onnxruntime"); "all" for all of them.

    Raises:
        SpecError: an unknown name.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if names == ("all",):
        return BASELINES
    unknown = [name for name in names if name not in BASELINES]
    if unknown or not names:
        raise SpecError(f"unknown baseline {(unknown or [text])[0]!r}", f"use {', '.join(BASELINES)} with commas between, or all")
    return names


def open_baseline(name: str, request: BaselineRequest, progress: Progress = silent) -> Engine:
    """A baseline, opened.

    Raises:
        EnvironmentProblem: its library, or the checkpoint, is not here.
        CheckpointError, ExportError, EngineError: see gmf_edge.errors.
        SpecError: an unknown name.
    """
    (name,) = baseline_names(name)
    plain, size = request.plain, request.plain.spec.image_size
    if name in ("eager", "compile"):
        model = plain.model
        from gmf_edge.model.torch_engine import TorchEngine

        progress(None, f"PyTorch, {name}")
        return TorchEngine(model, compiled=name == "compile", on_gpu=request.on_gpu, threads=request.threads, device=_cpu())
    if name == "stock-trt":
        from gmf_edge.engines.tensorrt.backend import TensorRTBackend
        from gmf_edge.engines.tensorrt.stock import open_stock_engine

        missing = TensorRTBackend().missing_to_build()
        if missing is not None:
            raise EnvironmentProblem(missing, "run it where TensorRT is")
        return open_stock_engine(
            plain.graph, request.precision, request.profile, size, cuda_graphs=request.cuda_graphs, progress=progress
        )
    if find_spec(name) is None:
        raise EnvironmentProblem(f"the package {name} is not installed", f"pip install {name}")
    return (OnnxRuntimeBaseline if name == "onnxruntime" else OpenVinoBaseline)(plain.graph, request.threads)


def _cpu() -> str:
    return f"{cpu_name()}, {engine_threads().words}"


class _CpuEngine(LogitsOnly):
    """What the two CPU runtimes share: they have no GPU times, and are closed by forgetting them."""

    _run: Any

    def infer(self, images: FloatArray) -> FloatArray:
        """Preprocessed images [B, 3, H, W], FP32 -> logits [B, classes], FP32.

        Raises:
            EngineError: closed, or the runtime failed.
        """
        if self._run is None:
            raise EngineError("the engine is closed", "open it again")
        try:
            logits: FloatArray = self._run(np.ascontiguousarray(images, np.float32))
        except Exception as error:  # both runtimes raise several types of their own
            raise EngineError(
                f"the plain export failed at batch {len(images)}: {str(error).splitlines()[0]}",
                "use smaller batches or free memory",
            ) from error
        return logits

    def compute_times_ms(self, images: FloatArray, count: int) -> None:
        """None: on a CPU the host's clock is the engine's."""

    def close(self) -> None:
        """Release it."""
        self._run = None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class OnnxRuntimeBaseline(_CpuEngine):
    """The plain export in ONNX Runtime's CPU provider with default session options; see engines.protocol.Engine.

    Args:
        graph: 1-plain.onnx.
        threads: of one operator; 0 for its own choice.
    """

    def __init__(self, graph: Path, threads: int = 0) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        self._run = lambda images: session.run(None, {name: images})[0]
        self.facts = EngineFacts("onnxruntime", ort.__version__, _cpu(), "plain export")


class OpenVinoBaseline(_CpuEngine):
    """The plain export in OpenVINO's CPU plugin, compiled for a batch size when it comes; see engines.protocol.Engine.

    Args:
        graph: 1-plain.onnx.
        threads: 0 for its own choice.
    """

    def __init__(self, graph: Path, threads: int = 0) -> None:
        from gmf_edge.engines.openvino.backend import openvino_core

        core, version = openvino_core()
        options = {"INFERENCE_NUM_THREADS": threads} if threads else {}
        requests: dict[tuple[int, ...], Any] = {}

        def run(images: FloatArray) -> FloatArray:
            if images.shape not in requests:
                model = core.read_model(str(graph))
                model.reshape(list(images.shape))
                requests[images.shape] = core.compile_model(model, "CPU", options).create_infer_request()
            request = requests[images.shape]
            request.infer({0: images})
            return np.array(request.get_output_tensor(0).data, np.float32)

        self._run = run
        self.facts = EngineFacts("openvino", version, _cpu(), "plain export")
