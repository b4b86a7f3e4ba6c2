"""The graphs, in their order: 1-plain.onnx as PyTorch exports it, 2-fused.onnx rewritten, and the bundle's, lowered to a precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import gmf_edge.model.plain_stage as model_stage
from gmf_edge.artifact import Stage, sha256_of
from gmf_edge.bundle import GOLDEN
from gmf_edge.engines.protocol import Progress
from gmf_edge.prepare.cached import cached_stage, told_of
from gmf_edge.prepare.source import SourceModel
from gmf_edge.scratch import scratch_folder
from gmf_edge.spec import OPSET_BF16, OPSET_NEW, OPSET_OLD, TARGETS, BuildSpec, ModelSpec, Precision, Task
from gmf_edge.verify.golden import Golden, in_batches
from gmf_edge.verify.maps import GoldenMaps

if TYPE_CHECKING:
    import onnx_ir

    from gmf_edge.precision.lower import Lowered, Quantization

PLAIN, FUSED = model_stage.PLAIN, "2-fused.onnx"
# the range check keeps more activations alive than an inference does
RANGE_BATCH = 2
# file name -> (form, opset): the graphs that the targets of gmf_edge.spec.TARGETS need; see graph_files
GRAPH_FILES = {
    "portable.onnx": ("portable", OPSET_NEW),
    "plugin.onnx": ("plugin", OPSET_NEW),
    "portable-opset17.onnx": ("portable", OPSET_OLD),
    "plugin-opset17.onnx": ("plugin", OPSET_OLD),
}
BF16_FILES = {"portable.onnx": ("portable", OPSET_BF16), "plugin.onnx": ("plugin", OPSET_BF16)}
CPU_GRAPH = {"onnxruntime.onnx": ("onnxruntime", OPSET_NEW)}
# FP16 has no kernels on most CPUs: it runs from portable.onnx, as a trial of the numbers
CPU_PRECISIONS = (Precision.FP32, Precision.INT8, Precision.BF16)


def graph_files(precision: Precision, any_size: bool = False) -> dict[str, tuple[str, int]]:
    """file name -> (form, opset) of a bundle's graphs.

    CPU_PRECISIONS have one of their own for ONNX Runtime, FP32 for the layout of one size alone; TensorRT 8.6 has no BF16; the plugin's
    node has H and W in its attributes, so that there is no plugin form of any size.
    """
    files = BF16_FILES if precision is Precision.BF16 else GRAPH_FILES
    has_cpu_graph = precision in CPU_PRECISIONS and not (any_size and precision is Precision.FP32)
    cpu = CPU_GRAPH if has_cpu_graph else {}
    return {name: key for name, key in {**files, **cpu}.items() if not (any_size and key[0] == "plugin")}


def plain_stage(source: SourceModel, progress: Progress) -> Stage:
    """1-plain.onnx: the model as PyTorch exports it, proved."""

    return told_of(model_stage.plain_stage(source.spec, source.origin, lambda: source.model, progress), PLAIN, progress)


def fused_stage(plain: Stage, progress: Progress) -> Stage:
    """2-fused.onnx: rewritten, each pass proved; facts: "passes"."""

    def make(folder: Path) -> Mapping[str, Any]:
        from gmf_edge.rewrite.passes import rewrite_onnx

        progress(None, "rewriting to 2-fused.onnx")
        return {"passes": [asdict(record) for record in rewrite_onnx(plain.folder / PLAIN, folder / FUSED, progress)]}

    return cached_stage("fused", {"plain": plain.key}, make, FUSED, progress)


def lowered_stage(
    model: ModelSpec, fused: Stage, reference: Stage, spec: BuildSpec, quantization: Quantization | None, progress: Progress
) -> Stage:
    """The bundle's graphs over one weights.bin; facts: "lowering" (precision.lower.Lowered.facts) and "graphs" (key -> file)."""

    def make(folder: Path) -> Mapping[str, Any]:
        import onnx_ir

        from gmf_edge.precision.lower import lower_precision
        from gmf_edge.rewrite.bodies import inline_bodies
        from gmf_edge.rewrite.shared_weights import save_graphs

        progress(None, f"lowering to 3-{spec.precision.value}.onnx")
        golden = golden_images(reference.folder / GOLDEN, spec.task)
        lowered = lower_precision(
            onnx_ir.load(fused.folder / FUSED),
            spec.precision,
            spec.io_dtype,
            inline_bodies,
            in_batches(golden, RANGE_BATCH),
            quantization,
        )
        for sentence in lowered.facts.get("advice", ()):
            progress(None, sentence)
        files = graph_files(spec.precision, spec.sizes is not None)
        graphs = {name: _graph_for(lowered, form, opset, spec) for name, (form, opset) in files.items()}
        kernels: list[Mapping[str, Any]] = []
        if spec.plugin_archs:
            progress(None, f"compiling GPU kernels for {', '.join(spec.plugin_archs)}")
            kernels = _attach_kernels(graphs, model, spec, fused.folder / FUSED)
        save_graphs(graphs, folder)
        parsers = {name: _parsers_of(graphs[name], opset) for name, (form, opset) in files.items() if form != "onnxruntime"}
        return {
            "lowering": {**lowered.facts, "kernels": kernels, "parsers": parsers},
            "graphs": {f"{form}/{opset}": name for name, (form, opset) in files.items()},
        }

    inputs = {
        "fused": fused.key,
        "golden": sha256_of(reference.folder / GOLDEN),
        "precision": spec.precision.value,
        "io_dtype": spec.io_dtype,
        "plugin_archs": list(spec.plugin_archs),
        "any_size": spec.sizes is not None,
        "quantization": None if quantization is None else quantization.to_json(),
    }
    stage = cached_stage("lowered", inputs, make, f"3-{spec.precision.value}.onnx", progress)
    for name, found in stage.facts["lowering"].get("parsers", {}).items():
        progress(None, f"{name}: fit for the ONNX parser of TensorRT {', '.join(found['fit']) or '(none)'}")
        for refused in found["unfit"]:
            progress(None, f"{name}: not fit: {refused}")
    return stage


def golden_images(path: Path, task: Task) -> NDArray[np.float32]:
    """The golden images of the size that the model is exported at, float32 [g, 3, H, W]."""
    return Golden.load(path).images if task is Task.CLASSIFY else GoldenMaps.load(path).sizes[0].images


def _attach_kernels(graphs: dict[str, onnx_ir.Model], model: ModelSpec, spec: BuildSpec, fused: Path) -> list[Mapping[str, Any]]:
    """Put the compiled kernels of the model's widths into the plugin graphs; what was compiled, for the manifest."""
    import onnx_ir

    from gmf_edge.kernels.archive import attach_kernels, widths_by_type
    from gmf_edge.kernels.compile import compile_kernels, compile_widths

    dtype = {Precision.FP32: "fp32", Precision.BF16: "bf16"}.get(spec.precision, "fp16")
    files = graph_files(spec.precision)
    weights = onnx_ir.load(fused).graph.initializers.items()
    exact = {name: value.const_value.numpy() for name, value in weights if value.const_value is not None}
    plugin_graphs = {name: onnx_ir.to_proto(graphs[name]) for name, (form, _) in files.items() if form == "plugin"}
    # INT8 for weak typing is an FP32 graph of which the builder makes FP16 what is not INT8, the plugin's tensors among it
    converted = {name for name in plugin_graphs if spec.precision is Precision.INT8 and files[name][1] == OPSET_OLD}
    with scratch_folder() as folder:
        table = compile_kernels(model, spec.plugin_archs, folder, dtype=dtype)
        typed = (graph for name, graph in plugin_graphs.items() if name not in converted)
        in_fp32 = sorted(set().union(*(widths_by_type(graph).get("fp32", set()) for graph in typed)))
        if dtype != "fp32" and in_fp32:
            # attention that stays in FP32 has FP32 tensors, which FP16 kernels would misread
            wide = compile_widths(in_fp32, spec.plugin_archs, folder, dtype="fp32")
            table = replace(table, images=(*table.images, *wide.images))
        for name, graph in plugin_graphs.items():
            builder_type = dtype if name in converted else None
            graphs[name] = onnx_ir.from_proto(attach_kernels(graph, table, builder_type=builder_type, exact=exact))
        return list(table.rows)


def _opsets_of(target: str) -> tuple[int, ...]:
    """Of the graphs that a target is given."""
    row = TARGETS[target]
    return (row.opset, OPSET_BF16) if row.has_bf16 else (row.opset,)


def _parsers_of(graph: onnx_ir.Model, opset: int) -> dict[str, list[str]]:
    """Which of the TensorRT versions that take graphs of this opset take this one, and what the others refuse."""
    from gmf_edge.parsers.check import unfit
    from gmf_edge.parsers.operators import PARSERS

    refused = {target: unfit(graph, target) for target in PARSERS if opset in _opsets_of(target)}
    return {
        "fit": [PARSERS[target].version for target, found in refused.items() if not found],
        # the first of a kind: one cause is often in every block
        "unfit": list({(f.target, f.rule): str(f) for found in refused.values() for f in reversed(found)}.values()),
    }


def _graph_for(lowered: Lowered, form: str, opset: int, spec: BuildSpec) -> onnx_ir.Model:
    from gmf_edge.precision.bf16 import with_fp32_kernels
    from gmf_edge.rewrite.bodies import drop_bodies, inline_bodies
    from gmf_edge.rewrite.channel_last import channel_last_form
    from gmf_edge.rewrite.image_sizes import with_any_size
    from gmf_edge.rewrite.opset import for_target

    def portable(fused: onnx_ir.Model) -> onnx_ir.Model:
        graph = inline_bodies(fused)
        return graph if spec.sizes is None else with_any_size(graph)

    precision = spec.precision
    if form == "onnxruntime":
        if precision is Precision.BF16:
            graph = with_fp32_kernels(portable(lowered.cpu))
        else:
            graph = channel_last_form(lowered.cpu) if spec.sizes is None else portable(lowered.cpu)
        return for_target(graph, TARGETS["onnxruntime"])
    target = next(
        t for t in TARGETS.values() if (t.has_bf16 or precision is not Precision.BF16) and t.opset_for(precision) == opset
    )
    fused = lowered.weak if opset == OPSET_OLD else lowered.strong
    return for_target(drop_bodies(fused) if form == "plugin" else portable(fused), target, precision)
