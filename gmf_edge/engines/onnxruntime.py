"""ONNX Runtime on the CPU: runs the portable graph as it is, anywhere, without a GPU.

There is nothing to build. What is computed in which precision is not assumed from the graph but read from ONNX Runtime's own
profile of one inference: on x86 it has no FP16 kernels for most ops, so an FP16 graph is stored and rounded in FP16 but computed in FP32,
and the report says so. Of BF16 it has none that computes, and does not convert by itself: BF16 bundles carry a graph with the casts.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gmf_edge.cpu import cpu_name, engine_threads
from gmf_edge.engines.protocol import (
    EngineFacts,
    EngineRequest,
    FloatArray,
    LayerRecord,
    Progress,
    precision_shares,
    require_images,
    require_task,
    silent,
)
from gmf_edge.engines.trace import LayerRuns
from gmf_edge.errors import EngineError, EnvironmentProblem, SpecError
from gmf_edge.scratch import scratch_folder
from gmf_edge.spec import LOGITS, OPSET_NEW, BatchProfile, SizeRange, Task

NAME = "onnxruntime"
OPTIONS = ("threads",)
# ops that carry weights: the ones whose precision a request for FP16 or INT8 is about
WEIGHTED_KINDS = frozenset(
    [
        "Conv",
        "FusedConv",
        "NhwcFusedConv",
        "MatMul",
        "FusedMatMul",
        "Gemm",
        "FusedGemm",
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "ConvInteger",
        "NchwcConv",
    ]
)
_TYPES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "uint8": "int8", "double": "fp64"}


class OnnxRuntimeBackend:
    """Backend that runs portable.onnx with ONNX Runtime's CPU execution provider."""

    name = NAME

    def missing(self) -> str | None:
        """None where onnxruntime can be imported."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "the package onnxruntime is not installed"
        return None

    def missing_to_build(self) -> str | None:
        """As missing: there is nothing to build."""
        return self.missing()

    def graph_form(self, request: EngineRequest) -> str:
        """Always "portable": there are no plugins."""
        return "portable"

    def build(self, request: EngineRequest, out: Path, progress: Progress = silent) -> tuple[str, ...]:
        """Nothing to write: the graph in the bundle is what runs. Opened once, so that a graph that cannot run fails here."""
        progress(None, "loading the graph into ONNX Runtime")
        with self.open(request, out, ()):
            return ()

    def open(self, request: EngineRequest, folder: Path, files: tuple[str, ...]) -> OnnxRuntimeEngine:
        """Open the bundle's portable graph.

        Raises:
            EngineError: ONNX Runtime refuses the graph.
            EnvironmentProblem: onnxruntime is not installed.
            SpecError: an option that this backend does not have.
        """
        unknown = sorted(set(request.options) - set(OPTIONS))
        if unknown:
            raise SpecError(
                f"ONNX Runtime has no option {unknown[0]!r}", f"it has {', '.join(OPTIONS)}; the others need --backend tensorrt"
            )
        missing = self.missing()
        if missing is not None:
            raise EnvironmentProblem(missing, "pip install 'gmf-edge[onnxruntime]'")
        # FP32, INT8 and BF16 bundles carry a graph of their own for the CPU, see gmf_edge.prepare.graphs
        form = "onnxruntime" if ("onnxruntime", OPSET_NEW) in request.graphs.files else "portable"
        return OnnxRuntimeEngine(
            request.graphs.path(form, OPSET_NEW), request.profile, request.options.get("threads"), form, request.sizes
        )


class OnnxRuntimeEngine:
    """An ONNX Runtime session over one graph; see gmf_edge.engines.protocol.Engine."""

    def __init__(
        self,
        graph: Path,
        profile: BatchProfile,
        threads: int | None = None,
        form: str = "portable",
        sizes: SizeRange | None = None,
    ) -> None:
        self._graph, self._profile, self._asked_threads, self._form, self._sizes = graph, profile, threads, form, sizes
        self._threads = engine_threads(threads)
        self._session: Any = self._new_session()
        image = self._session.get_inputs()[0]
        self._input = image.name
        # a graph of several sizes has names for its height and width
        self._shape = (3, *(sizes.opt if sizes is not None else image.shape[2:]))
        self._outputs = tuple(output.name for output in self._session.get_outputs())
        self._half = image.type == "tensor(float16)"

    def _new_session(self, profile_prefix: str | None = None) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        # 0, its own default, is a thread a core as well, and ties them to the cores; a machine that is shared must not
        options.intra_op_num_threads = self._threads.count if self._threads.limited else 0
        if profile_prefix is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile_prefix
        try:
            return ort.InferenceSession(str(self._graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises several types of its own; each means that this graph cannot be opened
            reason = str(error).splitlines()[0]
            raise EngineError(f"ONNX Runtime cannot open {self._graph}: {reason}", "export the bundle again") from error

    @property
    def task(self) -> Task:
        """By the graph's outputs."""
        return Task.CLASSIFY if self._outputs == (LOGITS,) else Task.FEATURES

    def infer(self, images: FloatArray) -> FloatArray:
        """Preprocessed images [B, 3, H, W], FP32 -> logits [B, classes], FP32.

        Raises:
            EngineError: closed, wrong shape, a batch size outside the profile, or a backbone.
        """
        require_task(self.task, Task.CLASSIFY)
        return self._outputs_of(images)[LOGITS]

    def infer_maps(self, images: FloatArray) -> Mapping[str, FloatArray]:
        """Preprocessed images [B, 3, H, W], FP32 -> a backbone's maps by name, [B, C, H / stride, W / stride], FP32.

        Raises:
            EngineError: closed, wrong shape, a batch or image size outside the profile, or a classifier.
        """
        require_task(self.task, Task.FEATURES)
        return self._outputs_of(images)

    def _outputs_of(self, images: FloatArray) -> dict[str, FloatArray]:
        if self._session is None:
            raise EngineError("the engine is closed", "open it again")
        require_images(images.shape, self._shape, self._sizes, self._profile)
        return self._run(self._session, images)

    def compute_times_ms(self, images: FloatArray, count: int) -> None:
        """None: on a CPU the host's clock is the engine's."""

    def _run(self, session: Any, images: FloatArray) -> dict[str, FloatArray]:
        given = np.ascontiguousarray(images, np.float16 if self._half else np.float32)
        try:
            found = session.run(None, {self._input: given})
        except Exception as error:  # see _new_session
            reason = str(error).splitlines()[0]
            raise EngineError(
                f"ONNX Runtime failed at batch {len(images)}: {reason}", "use smaller batches or free memory"
            ) from error
        return {name: output.astype(np.float32, copy=False) for name, output in zip(self._outputs, found, strict=True)}

    @functools.cached_property
    def facts(self) -> EngineFacts:
        """Layers, their precisions and times as ONNX Runtime profiled them in one inference at the optimal batch."""
        import onnxruntime as ort

        layers = self._profiled_layers()
        notes = []
        if self._half or any(layer.precision == "fp16" for layer in layers):
            notes.append(
                "this CPU backend stores FP16 tensors and rounds to FP16 where it has no FP16 kernel to compute with; "
                "its latency says nothing about FP16 on a GPU"
            )
        if any(layer.precision == "bf16" for layer in layers):
            notes.append(
                "this CPU backend stores tensors and rounds them as BF16 and computes in FP32: it has no BF16 kernel that computes; "
                "its latency says nothing about BF16 elsewhere"
            )
        return EngineFacts(
            backend=NAME,
            version=ort.__version__,
            device=f"{cpu_name()}, {self._threads.words}",
            form=self._form,
            layers=tuple(layers),
            precision_shares=precision_shares(layers, WEIGHTED_KINDS),
            notes=tuple(notes),
            options={} if self._asked_threads is None else {"threads": self._asked_threads},
            execution={"threads": self._threads.count, "threads_reason": self._threads.reason},
        )

    def _profiled_layers(self) -> list[LayerRecord]:
        # the first inference allocates; the second is the one that is read
        return [
            LayerRecord(name, events[-1]["args"]["op_name"], _precision_of(events[-1]["args"]), events[-1]["dur"] / 1000)
            for name, events in self._kernel_events(2).items()
        ]

    def layer_runs(self, runs: int) -> list[LayerRuns]:
        """Each kernel's times in `runs` inferences at the opt batch size, in execution order: see gmf_edge.engines.trace."""
        return [
            LayerRuns(name, tuple(event["dur"] / 1000 for event in events[1:]))
            for name, events in self._kernel_events(1 + runs).items()
        ]

    def _kernel_events(self, runs: int) -> dict[str, list[Mapping[str, Any]]]:
        """Kernel -> its entry in ONNX Runtime's profile of each of `runs` inferences, the first of which allocates."""
        with scratch_folder() as folder:
            session = self._new_session(str(folder / "profile"))
            images = np.zeros((self._profile.opt, *self._shape), np.float32)
            for _ in range(runs):
                self._run(session, images)
            events = json.loads(Path(session.end_profiling()).read_text())
        kernels: dict[str, list[Mapping[str, Any]]] = {}
        for event in events:
            if event.get("cat") == "Node" and "_kernel_time" in event["name"]:
                kernels.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event)
        return kernels

    def close(self) -> None:
        """Release the session."""
        self._session = None

    def __enter__(self) -> OnnxRuntimeEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _precision_of(arguments: Mapping[str, Any]) -> str:
    """Of a kernel, by the types of its inputs as profiled: INT8 where any is, else the first float type."""
    types = [next(iter(entry)) for entry in arguments.get("input_type_shape", []) if entry]
    known = [_TYPES[name] for name in types if name in _TYPES]
    return "int8" if "int8" in known else next(iter(known), "other")
