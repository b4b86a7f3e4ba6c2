"""What TensorRT makes of a plain ONNX export without this project: `trtexec --onnx=1-plain.onnx [--fp16 | --bf16]`, to be measured against.

TensorRT's own defaults: TF32 on, and with FP16 or BF16 the builder's free choice of layers (weak typing). TensorRT 11 has no such
choice any more: there an FP32 graph is an FP32 engine, and a note says so. TensorRT 8.6 may refuse the export's opset, which is an
EngineError.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gmf_edge.engines.protocol import EngineFacts, Progress, silent
from gmf_edge.engines.tensorrt.build import build_engine
from gmf_edge.engines.tensorrt.config import BuildJob
from gmf_edge.engines.tensorrt.cuda import Device, available_memory_mib
from gmf_edge.engines.tensorrt.load import deserialize
from gmf_edge.engines.tensorrt.log import BuildLog
from gmf_edge.engines.tensorrt.options import TensorRTOptions
from gmf_edge.engines.tensorrt.run import TensorRTEngine
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.spec import BatchProfile, Precision

# from here on a network's types are those of its graph
STRONG_ONLY = (11, 0)


def open_stock_engine(
    graph: Path,
    precision: Precision,
    profile: BatchProfile,
    image_size: tuple[int, int],
    *,
    cuda_graphs: bool = True,
    progress: Progress = silent,
) -> TensorRTEngine:
    """Build the plain graph as trtexec would, and open it; nothing is written or proved.

    Args:
        graph: the plain FP32 export.
        precision: of the bundle that it is measured against; FP16 and BF16 let the builder use them, and so does INT8 with FP16 (it
            needs calibration, which a plain export does not have).
        profile: batch sizes.
        image_size: (H, W) in pixels.
        cuda_graphs: whether it is replayed from CUDA graphs.
        progress: told what is going on.

    Raises:
        EngineError: TensorRT does not take the graph, or cannot build it.
        EnvironmentProblem: this machine cannot build it.
    """
    device = Device.here()
    version = TensorRTVersion.here()
    notes = []
    if version.numbers < STRONG_ONLY:
        # 10.x still builds weakly typed where nothing asks for strong typing
        builder_version = replace(version, has_weak_typing=True)
    else:
        builder_version, precision = version, Precision.FP32
        notes.append(f"TensorRT {version.text} takes precision from the graph alone, so the plain export runs in FP32 with TF32")
    if precision is Precision.INT8:
        precision = Precision.FP16
        notes.append("without calibration the plain export has no INT8; it was built with FP16")
    job = BuildJob(graph, builder_version, precision, profile, image_size, TensorRTOptions(), as_trtexec=True)
    progress(None, f"TensorRT {version.text} on {device.name}: building {graph.name} as trtexec would")
    built = build_engine(job, available_memory_mib(device), progress)
    log = BuildLog()
    runtime, engine = deserialize(built.content, version, TensorRTOptions(), log, None)
    facts = EngineFacts("tensorrt", version.text, device.name, f"plain export, {precision.value}", notes=(*notes, *built.notes))
    return TensorRTEngine(runtime, engine, log, facts, cuda_graphs=cuda_graphs)
