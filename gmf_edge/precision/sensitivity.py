"""What each INT8 layer costs when it alone is quantised.

layer_snr     one pass: the signal-to-noise ratio of each layer's input, weights and output
sensitivity   a pass a layer: what it does to the logits, worst layers first

SNR = 10 log10(sum x^2 / sum (x - x_q)^2) in dB, over all images; 6 dB are about one bit. Arithmetic of layer_snr and sensitivity
is ONNX Runtime's FP32 on dequantised values, which differs from its integer kernels by rounding alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from gmf_edge.artifact import json_number
from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.errors import DataError
from gmf_edge.ops.graph_parts import new_constant
from gmf_edge.precision.activations import Batches, Float32Array
from gmf_edge.precision.bias_correction import bias_input
from gmf_edge.precision.int8 import dequantized, insert_qdq, quantized_weight
from gmf_edge.precision.int8_layers import QuantizableLayer, chosen_layers, constant_array
from gmf_edge.precision.ranges import Ranges
from gmf_edge.precision.recipe import Recipe
from gmf_edge.precision.search_state import Budget, SearchState
from gmf_edge.precision.smoothing import smooth
from gmf_edge.scratch import scratch_folder


@dataclass(frozen=True)
class LayerSnr:
    """Signal-to-noise ratios of one layer that alone is quantised, its input being FP32's.

    Attributes:
        layer, kind: see QuantizableLayer.
        activation_db, weight_db, output_db: of its input, its weights and its output; infinity without error, and weight_db None
            for a layer without weights.
    """

    layer: str
    kind: str
    activation_db: float
    weight_db: float | None
    output_db: float

    def to_json(self) -> dict[str, Any]:
        """Plain values; null for what is not finite, which JSON cannot say."""
        return {key: json_number(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class LayerCost:
    """One row of the sensitivity table.

    Attributes:
        layer, kind: see QuantizableLayer.
        output_db: see LayerSnr.
        logit_error: relative L2 error of the logits when this layer alone is quantised; None where the time did not suffice.
        flips: images whose top-1 class changes then; None likewise.
        multiply_share: its share of the multiplications of all layers in the table.
        excluded: whether it was left in higher precision.
    """

    layer: str
    kind: str
    output_db: float
    logit_error: float | None
    flips: int | None
    multiply_share: float
    excluded: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values; null for what is not finite, which JSON cannot say."""
        return {key: json_number(value) for key, value in asdict(self).items()}


def layer_snr(
    graph: onnx_ir.Model, ranges: Ranges, recipe: Recipe, batches: Iterable[Float32Array], progress: Progress = silent
) -> tuple[LayerSnr, ...]:
    """Signal-to-noise ratios of every layer that the recipe quantises, the worst output first.

    One FP32 pass, in which each layer is computed a second time on quantised input and weights. Bias correction is left out: it
    only shifts what the noise is measured around.

    Args:
        graph: fused, FP32; left as it is.
        ranges, recipe: as insert_qdq's.
        batches: preprocessed images, float32 [B, 3, H, W]; other than the calibration's, if the ranges are to be judged too.

    Raises:
        DataError: no images.
        CalibrationError: see insert_qdq.
    """
    exact = _smoothed(graph, ranges)
    quantized = insert_qdq(graph, ranges, replace(recipe, bias_correction=False))
    layers = chosen_layers(exact, recipe)
    inputs_of = _quantized_inputs(quantized, layers)
    shadow = quantized
    originals = {str(value.name): value for value in _values(shadow)}
    nodes = {node.name: node for node in shadow.graph}
    wanted: list[str] = []
    for layer in layers:
        node = nodes[layer.name]
        twin = onnx_ir.node(node.op_type, list(node.inputs), attributes=dict(node.attributes), name=f"{layer.name}/twin")
        twin.outputs[0].name, twin.outputs[0].dtype = f"{layer.name}/twin_output", onnx_ir.DataType.FLOAT
        shadow.graph.insert_after(node, twin)
        x, x_quantized = originals[layer.tensor], inputs_of[layer.name]
        node.replace_input_with(layer.input_index, x)
        if layer.weight_axis is not None:
            node.replace_input_with(1, new_constant(shadow, constant_array(layer.node.inputs[1]), f"{layer.name}/weight/exact"))
        for what, signal, noisy in (("x", x, x_quantized), ("y", node.outputs[0], twin.outputs[0])):
            after = node if what == "x" else twin
            wanted += _energies(shadow, after, signal, noisy, f"{layer.name}/{what}")
    energies = dict.fromkeys(wanted, 0.0)
    with scratch_folder() as folder:
        session = _session(shadow, folder)
        seen = 0
        for batch in batches:
            for name, value in zip(wanted, session.run(wanted, {session.get_inputs()[0].name: batch}), strict=True):
                energies[name] += float(value)
            seen += len(batch)
            progress(None, f"signal-to-noise ratios: {seen} images")
    if not seen:
        raise DataError("no images to measure signal-to-noise ratios on", "give at least one")
    rows = []
    for layer in layers:
        weight_db = None
        if layer.weight_axis is not None:
            weight = constant_array(layer.node.inputs[1]).astype(np.float64)
            rounded = dequantized(*quantized_weight(weight, layer.weight_axis), layer.weight_axis)
            weight_db = _decibels(float((weight**2).sum()), float(((weight - rounded) ** 2).sum()))
        activation_db, output_db = (
            _decibels(energies[f"{layer.name}/{what}/signal"], energies[f"{layer.name}/{what}/noise"]) for what in "xy"
        )
        rows.append(LayerSnr(layer.name, layer.kind, activation_db, weight_db, output_db))
    return tuple(sorted(rows, key=lambda row: row.output_db))


class SwitchedGraph:
    """A graph whose INT8 layers are switched on and off by name at every run, without building it again.

    Args:
        graph: fused, FP32; left as it is.
        ranges, recipe: as insert_qdq's.

    Raises:
        CalibrationError: see insert_qdq.
    """

    def __init__(self, graph: onnx_ir.Model, ranges: Ranges, recipe: Recipe) -> None:
        exact = _smoothed(graph, ranges)
        switched = insert_qdq(graph, ranges, recipe)
        layers = chosen_layers(exact, recipe)
        self.layers = tuple(layer.name for layer in layers)
        inputs_of = _quantized_inputs(switched, layers)
        originals = {str(value.name): value for value in _values(switched)}
        nodes = {node.name: node for node in switched.graph}
        for layer in layers:
            flag = onnx_ir.Value(name=_flag(layer.name), type=onnx_ir.TensorType(onnx_ir.DataType.BOOL), shape=onnx_ir.Shape([]))
            switched.graph.inputs.append(flag)
            node = nodes[layer.name]
            _switch(switched, node, layer.input_index, flag, inputs_of[layer.name], originals[layer.tensor])
            if layer.weight_axis is not None:
                weight = new_constant(switched, constant_array(layer.node.inputs[1]), f"{layer.name}/weight/exact")
                _switch(switched, node, 1, flag, node.inputs[1], weight)
            place = bias_input(layer) if recipe.bias_correction else None
            if place is not None:
                owner, index = nodes[place[0].name], place[1]
                bias = new_constant(switched, constant_array(place[0].inputs[index]), f"{layer.name}/bias/exact")
                _switch(switched, owner, index, flag, owner.inputs[index], bias)
        self._images = str(switched.graph.inputs[0].name)
        self._logits = str(switched.graph.outputs[0].name)
        with scratch_folder() as folder:
            self._session = _session(switched, folder)

    def logits(self, batches: Iterable[Float32Array], quantized: frozenset[str]) -> Float32Array:
        """Logits [n, classes] of the images with exactly these layers quantised."""
        flags = {_flag(name): np.asarray(name in quantized) for name in self.layers}
        rows = [self._session.run([self._logits], {self._images: batch, **flags})[0] for batch in batches]
        if not rows:
            raise DataError("no images to measure sensitivity on", "give at least one")
        return np.concatenate(rows)


def sensitivity(
    graph: onnx_ir.Model,
    ranges: Ranges,
    recipe: Recipe,
    batches: Batches,
    *,
    state: SearchState | None = None,
    budget: Budget | None = None,
    progress: Progress = silent,
) -> tuple[LayerCost, ...]:
    """What quantising each layer alone does, the most sensitive first.

    Layers are measured in the order of their output's SNR, so that the time, where it ends early, went to the worst ones;
    unmeasured layers follow the measured ones in that order.

    Args:
        graph: fused, FP32; left as it is.
        ranges, recipe: as insert_qdq's.
        batches: a few dozen preprocessed images, called once a layer.
        state: measurements of an earlier run are taken from it and new ones saved to it.
        budget: measuring stops when it is over.

    Raises:
        DataError: no images.
        CalibrationError: see insert_qdq.
    """
    state = state or SearchState(None, "")
    budget = budget or Budget()
    ratios = layer_snr(graph, ranges, recipe, batches(), progress)
    missing = [row.layer for row in ratios if row.layer not in state.costs]
    if missing and not budget.over():
        switched = SwitchedGraph(graph, ranges, recipe)
        reference = switched.logits(batches(), frozenset())
        for done, layer in enumerate(missing):
            if budget.over():
                break
            logits = switched.logits(batches(), frozenset({layer}))
            flips = int((logits.argmax(axis=1) != reference.argmax(axis=1)).sum())
            state.costs[layer] = (_relative_l2(reference, logits), flips)
            state.save()
            progress((done + 1) / len(missing), f"sensitivity of {done + 1} of {len(missing)} layers")
    shares = _multiply_shares(graph, recipe)
    rows = []
    for row in ratios:
        error, flips_alone = state.costs.get(row.layer, (None, None))
        rows.append(LayerCost(row.layer, row.kind, row.output_db, error, flips_alone, shares[row.layer]))
    # a stable sort: what was not measured stays in the order of its SNR
    return tuple(sorted(rows, key=lambda row: -math.inf if row.logit_error is None else row.logit_error, reverse=True))


def _smoothed(graph: onnx_ir.Model, ranges: Ranges) -> onnx_ir.Model:
    exact = graph.clone()
    smooth(exact, ranges.smoothing)
    return exact


def _quantized_inputs(quantized: onnx_ir.Model, layers: Sequence[QuantizableLayer]) -> dict[str, onnx_ir.Value]:
    """The dequantised activation that each layer reads, by layer."""
    nodes = {node.name: node for node in quantized.graph}
    found = {}
    for layer in layers:
        value = nodes[layer.name].inputs[layer.input_index]
        assert value is not None
        found[layer.name] = value
    return found


def _values(graph: onnx_ir.Model) -> list[onnx_ir.Value]:
    return [*graph.graph.inputs, *(value for node in graph.graph for value in node.outputs)]


def _switch(
    graph: onnx_ir.Model, node: onnx_ir.Node, index: int, flag: onnx_ir.Value, on: onnx_ir.Value | None, off: onnx_ir.Value
) -> None:
    """Let an input of a node be `on` where the flag is set, and `off` elsewhere."""
    chosen = onnx_ir.node("Where", (flag, on, off), name=f"{node.name}/switch_{index}")
    chosen.outputs[0].name, chosen.outputs[0].dtype = f"{node.name}/switch_{index}/output", onnx_ir.DataType.FLOAT
    graph.graph.insert_before(node, chosen)
    node.replace_input_with(index, chosen.outputs[0])


def _energies(graph: onnx_ir.Model, after: onnx_ir.Node, signal: onnx_ir.Value, noisy: onnx_ir.Value, name: str) -> list[str]:
    """Adds sum x^2 and sum (x - x_q)^2 as outputs; their names."""
    difference = onnx_ir.node("Sub", (signal, noisy), name=f"{name}/difference")
    added = [difference]
    names = []
    for what, value in (("signal", signal), ("noise", difference.outputs[0])):
        total = onnx_ir.node("ReduceSumSquare", (value,), attributes={"keepdims": 0}, name=f"{name}/{what}")
        out = total.outputs[0]
        out.name, out.dtype, out.shape = f"{name}/{what}", onnx_ir.DataType.FLOAT, onnx_ir.Shape([])
        graph.graph.outputs.append(out)
        added.append(total)
        names.append(f"{name}/{what}")
    difference.outputs[0].name = f"{name}/difference/output"
    graph.graph.insert_after(after, added)
    return names


def _session(graph: onnx_ir.Model, folder: Path) -> Any:
    import onnxruntime as ort

    path = folder / "measured.onnx"
    onnx_ir.save(graph, path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # the error of the codes alone, not of this processor's integer kernels, of which some saturate
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _flag(layer: str) -> str:
    return f"{layer}/is_int8"


def _multiply_shares(graph: onnx_ir.Model, recipe: Recipe) -> dict[str, float]:
    """Multiplications of each layer over those of all; outputs per channel are taken from the layer's own output shape."""
    counts: dict[str, float] = {}
    for layer in chosen_layers(graph, recipe):
        summed, channels = layer.features
        value = layer.node.inputs[layer.input_index] if layer.node.op_type == "MatMul" else layer.node.outputs[0]
        sizes = [] if value is None or value.shape is None else [size for size in value.shape if isinstance(size, int)]
        # tokens of a Linear [batch, N, C], pixels of a map [batch, C, H, W]
        places = math.prod(sizes[:-1]) if layer.node.op_type == "MatMul" else math.prod(sizes[1:])
        counts[layer.name] = float(summed * channels * places)
    whole = sum(counts.values())
    return {name: count / whole if whole > 0 else 0.0 for name, count in counts.items()}


def _decibels(signal: float, noise: float) -> float:
    if not noise > 0:
        return math.inf if noise == 0 else math.nan
    return 10.0 * math.log10(signal / noise) if signal > 0 else -math.inf


def _relative_l2(reference: NDArray[Any], logits: NDArray[Any]) -> float:
    """Norm of the difference over the norm of the reference; infinity where anything is not finite."""
    exact = reference.astype(np.float64)
    whole, error = float((exact**2).sum()), float(((logits.astype(np.float64) - exact) ** 2).sum())
    return math.sqrt(error / whole) if whole > 0 and math.isfinite(error) else math.inf
