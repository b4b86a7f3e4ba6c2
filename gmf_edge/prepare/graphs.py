"""The graphs, in their order: 1-plain.onnx as PyTorch exports it, 2-fused.onnx rewritten, and the bundle's, lowered to a precision."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmf_edge.artifact import Stage, sha256_of
from gmf_edge.bundle import GOLDEN
from gmf_edge.engines.protocol import Progress
from gmf_edge.prepare.cached import cached_stage
from gmf_edge.prepare.source import SourceModel
from gmf_edge.spec import OPSET_NEW, OPSET_OLD, TARGETS, BuildSpec, ModelSpec, Precision
from gmf_edge.verify.golden import Golden, in_batches

if TYPE_CHECKING:
    import onnx_ir

    from gmf_edge.precision.lower import Lowered, Quantization

PLAIN, FUSED = "1-plain.onnx", "2-fused.onnx"
# the range check keeps more activations alive than an inference does
RANGE_BATCH = 2
# file name -> (form, opset): the graphs that the targets of gmf_edge.spec.TARGETS need; INT8 adds CPU_GRAPH
GRAPH_FILES = {
    "portable.onnx": ("portable", OPSET_NEW),
    "plugin.onnx": ("plugin", OPSET_NEW),
    "portable-opset17.onnx": ("portable", OPSET_OLD),
    "plugin-opset17.onnx": ("plugin", OPSET_OLD),
}
CPU_GRAPH = {"onnxruntime.onnx": ("onnxruntime", OPSET_NEW)}


def plain_stage(source: SourceModel, progress: Progress) -> Stage:
    """1-plain.onnx: the model as PyTorch exports it, proved."""

    def make(folder: Path) -> Mapping[str, Any]:
        from gmf_edge.model.export import export_plain

        progress(None, "exporting 1-plain.onnx")
        export_plain(source.model, source.spec.image_size, folder / PLAIN)
        return {}

    return cached_stage("plain", source.key, make, PLAIN, progress)


def fused_stage(plain: Stage, progress: Progress) -> Stage:
    """2-fused.onnx: rewritten, each pass proved; facts: "passes"."""

    def make(folder: Path) -> Mapping[str, Any]:
        from gmf_edge.rewrite.passes import rewrite_onnx

        progress(None, "rewriting to 2-fused.onnx")
        return {"passes": [asdict(record) for record in rewrite_onnx(plain.folder / PLAIN, folder / FUSED)]}

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
        golden = Golden.load(reference.folder / GOLDEN).images
        lowered = lower_precision(
            onnx_ir.load(fused.folder / FUSED),
            spec.precision,
            spec.io_dtype,
            inline_bodies,
            in_batches(golden, RANGE_BATCH),
            quantization,
        )
        files = GRAPH_FILES | (CPU_GRAPH if spec.precision is Precision.INT8 else {})
        graphs = {name: _graph_for(lowered, form, opset) for name, (form, opset) in files.items()}
        kernels: list[Mapping[str, Any]] = []
        if spec.plugin_archs:
            progress(None, f"compiling GPU kernels for {', '.join(spec.plugin_archs)}")
            kernels = _attach_kernels(graphs, model, spec, fused.folder / FUSED)
        save_graphs(graphs, folder)
        return {
            "lowering": {**lowered.facts, "kernels": kernels},
            "graphs": {f"{form}/{opset}": name for name, (form, opset) in files.items()},
        }

    inputs = {
        "fused": fused.key,
        "golden": sha256_of(reference.folder / GOLDEN),
        "precision": spec.precision.value,
        "io_dtype": spec.io_dtype,
        "plugin_archs": list(spec.plugin_archs),
        "quantization": None if quantization is None else quantization.to_json(),
    }
    return cached_stage("lowered", inputs, make, f"3-{spec.precision.value}.onnx", progress)


def _attach_kernels(graphs: dict[str, onnx_ir.Model], model: ModelSpec, spec: BuildSpec, fused: Path) -> list[Mapping[str, Any]]:
    """Put the compiled kernels of the model's widths into the plugin graphs; what was compiled, for the manifest."""
    import onnx_ir

    from gmf_edge.kernels.archive import attach_kernels, widths_by_type
    from gmf_edge.kernels.compile import compile_kernels, compile_widths

    dtype = "fp32" if spec.precision is Precision.FP32 else "fp16"
    weights = onnx_ir.load(fused).graph.initializers.items()
    exact = {name: value.const_value.numpy() for name, value in weights if value.const_value is not None}
    plugin_graphs = {name: onnx_ir.to_proto(graphs[name]) for name, (form, _) in GRAPH_FILES.items() if form == "plugin"}
    # INT8 for weak typing is an FP32 graph of which the builder makes FP16 what is not INT8, the plugin's tensors among it
    converted = {name for name in plugin_graphs if spec.precision is Precision.INT8 and GRAPH_FILES[name][1] == OPSET_OLD}
    with tempfile.TemporaryDirectory(prefix="gmf-edge-") as folder:
        table = compile_kernels(model, spec.plugin_archs, Path(folder), dtype=dtype)
        typed = (graph for name, graph in plugin_graphs.items() if name not in converted)
        in_fp32 = sorted(set().union(*(widths_by_type(graph).get("fp32", set()) for graph in typed)))
        if dtype != "fp32" and in_fp32:
            # attention that stays in FP32 has FP32 tensors, which FP16 kernels would misread
            wide = compile_widths(in_fp32, spec.plugin_archs, Path(folder), dtype="fp32")
            table = replace(table, images=(*table.images, *wide.images))
        for name, graph in plugin_graphs.items():
            builder_type = dtype if name in converted else None
            graphs[name] = onnx_ir.from_proto(attach_kernels(graph, table, builder_type=builder_type, exact=exact))
        return list(table.rows)


def _graph_for(lowered: Lowered, form: str, opset: int) -> onnx_ir.Model:
    from gmf_edge.rewrite.bodies import drop_bodies, inline_bodies
    from gmf_edge.rewrite.opset import for_target

    target = next(target for target in TARGETS.values() if target.opset == opset)
    if form == "onnxruntime":
        return for_target(inline_bodies(lowered.cpu), target)
    fused = lowered.weak if opset == OPSET_OLD else lowered.strong
    return for_target(drop_bodies(fused) if form == "plugin" else inline_bodies(fused), target)
