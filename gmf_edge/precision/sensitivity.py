"""What each INT8 layer costs, and the fewest layers to leave in higher precision so that a gate holds.

layer_snr        one pass: the signal-to-noise ratio of each layer's input, weights and output when it alone is quantised
sensitivity      a pass a layer: what quantising it alone does to the logits, worst layers first
search           asks a gate: no exception, then the most sensitive 1, 2, 4, ... layers, halving back, then taking back one by one
mixed_precision  all three within one time budget, resumable from a JSON file

SNR = 10 log10(sum x^2 / sum (x - x_q)^2) in dB, over all images; 6 dB are about one bit. Arithmetic of layer_snr and sensitivity
is ONNX Runtime's FP32 on dequantised values, which differs from its integer kernels by rounding alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from gmf_edge.errors import CalibrationError, DataError
from gmf_edge.precision.bias_correction import bias_input
from gmf_edge.precision.calibrate import Batches, Float32Array, Progress, silent
from gmf_edge.precision.int8 import dequantized, insert_qdq, quantized_weight
from gmf_edge.precision.int8_layers import QuantizableLayer, chosen_layers, constant_array
from gmf_edge.precision.ranges import Ranges
from gmf_edge.precision.recipe import Recipe
from gmf_edge.precision.smoothing import smooth

STATE_SCHEMA = 1
# share of the time budget that measuring layers may take; the rest is the search's
SENSITIVITY_SHARE = 0.5


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
        return {key: _json_number(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class LayerCost:
    """One row of the sensitivity table.

    Attributes:
        layer, kind: see QuantizableLayer.
        output_db: see LayerSnr.
        logit_error: relative L2 error of the logits when this layer alone is quantised; None where the time did not suffice.
        flips: images whose top-1 class changes then; None likewise.
        multiply_share: its share of the multiplications of all layers in the table.
        kept: whether it was left in higher precision.
    """

    layer: str
    kind: str
    output_db: float
    logit_error: float | None
    flips: int | None
    multiply_share: float
    kept: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values; null for what is not finite, which JSON cannot say."""
        return {key: _json_number(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Verdict:
    """What a gate says of one choice of exceptions.

    Attributes:
        passed: whether it holds.
        drop_points: lost top-1 in percentage points; None where there are no labels.
        reason: the gate's sentence.
    """

    passed: bool
    drop_points: float | None = None
    reason: str = ""


# asks the gate about the INT8 graph with these layers left in higher precision
Evaluate = Callable[[frozenset[str]], Verdict]


@dataclass(frozen=True)
class MixedPrecision:
    """What the search decided.

    Attributes:
        exceptions: layers to leave in higher precision.
        verdict: of the gate, with them.
        complete: whether the search ended by itself; False where the time did and fewer exceptions might do.
        table: every layer's cost, the most sensitive first.
        evaluations: how often the gate was asked, earlier runs included.
    """

    exceptions: frozenset[str]
    verdict: Verdict
    complete: bool
    table: tuple[LayerCost, ...]
    evaluations: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a report."""
        return {
            "exceptions": sorted(self.exceptions),
            "verdict": {key: _json_number(value) for key, value in asdict(self.verdict).items()},
            "complete": self.complete,
            "table": [row.to_json() for row in self.table],
            "evaluations": self.evaluations,
        }


@dataclass
class Budget:
    """Time that may be spent, from the moment that it is made.

    Attributes:
        seconds: infinity for no limit.
        clock: monotonic seconds.
    """

    seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def spent(self) -> float:
        """Seconds since it was made."""
        return self.clock() - self.started

    def over(self, share: float = 1.0) -> bool:
        """Whether that share of it is spent; written so that NaN is over."""
        return not self.spent < share * self.seconds


class SearchState:
    """What a search has measured so far, in a JSON file that a later run goes on from.

    A file of another model, recipe, gate or of other images is not gone on from, and `fresh_because` says so.

    Args:
        path: of the file; None keeps all in memory.
        key: digest of everything that the measurements depend on.

    Raises:
        CalibrationError: the file is another kind of file.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path = path
        self.key = key
        self.fresh_because: str | None = None
        self.costs: dict[str, tuple[float, int]] = {}
        self.verdicts: dict[frozenset[str], Verdict] = {}
        if path is None or not path.exists():
            return
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            stored_key, schema = content["key"], content["schema"]
            costs = {str(name): (float(error), int(flips)) for name, (error, flips) in content["costs"].items()}
            verdicts = {frozenset(entry["exceptions"]): Verdict(**entry["verdict"]) for entry in content["verdicts"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = "name another file for the search's state, or remove it"
            raise CalibrationError(f"{path} is not the state of a search ({error!r})", remedy) from error
        if schema != STATE_SCHEMA or stored_key != key:
            self.fresh_because = f"{path.name} is of another model, recipe, gate or image set"
            return
        self.costs, self.verdicts = costs, verdicts

    def save(self) -> None:
        """Write the file whole or not at all."""
        if self.path is None:
            return
        content = {
            "schema": STATE_SCHEMA,
            "key": self.key,
            "costs": {name: list(cost) for name, cost in self.costs.items()},
            "verdicts": [{"exceptions": sorted(names), "verdict": asdict(verdict)} for names, verdict in self.verdicts.items()],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(unfinished, self.path)


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
            node.replace_input_with(1, _constant(shadow, constant_array(layer.node.inputs[1]), f"{layer.name}/weight/exact"))
        for what, signal, noisy in (("x", x, x_quantized), ("y", node.outputs[0], twin.outputs[0])):
            after = node if what == "x" else twin
            wanted += _energies(shadow, after, signal, noisy, f"{layer.name}/{what}")
    energies = dict.fromkeys(wanted, 0.0)
    with tempfile.TemporaryDirectory(prefix="gmf-edge-") as folder:
        session = _session(shadow, Path(folder))
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
                weight = _constant(switched, constant_array(layer.node.inputs[1]), f"{layer.name}/weight/exact")
                _switch(switched, node, 1, flag, node.inputs[1], weight)
            place = bias_input(layer) if recipe.bias_correction else None
            if place is not None:
                owner, index = nodes[place[0].name], place[1]
                bias = _constant(switched, constant_array(place[0].inputs[index]), f"{layer.name}/bias/exact")
                _switch(switched, owner, index, flag, owner.inputs[index], bias)
        self._images = str(switched.graph.inputs[0].name)
        self._logits = str(switched.graph.outputs[0].name)
        with tempfile.TemporaryDirectory(prefix="gmf-edge-") as folder:
            self._session = _session(switched, Path(folder))

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


def search(
    ranked: Sequence[str],
    evaluate: Evaluate,
    *,
    state: SearchState | None = None,
    budget: Budget | None = None,
    progress: Progress = silent,
) -> tuple[frozenset[str], Verdict, bool]:
    """The fewest exceptions that keep a gate, as far as a bounded search can tell.

    Args:
        ranked: names of the INT8 layers, the most sensitive first.
        evaluate: the gate; asked once for each choice of exceptions, and never again for one that `state` knows.
        state: verdicts of an earlier run are taken from it and new ones saved to it.
        budget: no new question once it is over; the question without exceptions is always asked.

    Returns:
        (exceptions, the gate's verdict with them, whether the search ended by itself). Where nothing that was asked passed, every
        layer is an exception, and the verdict is what the gate says of that, or that the time was over before it was asked.
    """
    state = state or SearchState(None, "")
    budget = budget or Budget()
    layers = list(ranked)

    def ask(count_or_names: int | frozenset[str]) -> Verdict | None:
        """None once the time is over, unless the answer is known."""
        names = frozenset(layers[:count_or_names]) if isinstance(count_or_names, int) else count_or_names
        if names not in state.verdicts:
            if names and budget.over():
                return None
            progress(None, f"asking the gate with {len(names)} of {len(layers)} layers in higher precision")
            state.verdicts[names] = evaluate(names)
            state.save()
        return state.verdicts[names]

    first = ask(0)
    assert first is not None
    if first.passed or not layers:
        return frozenset(), first, True
    failing, passing = 0, None
    count = 1
    while passing is None:
        verdict = ask(count)
        if verdict is None:
            return frozenset(layers), Verdict(False, None, "the time was over before any choice of exceptions passed"), False
        if verdict.passed:
            passing = count
        elif count == len(layers):
            return frozenset(layers), verdict, True
        else:
            failing, count = count, min(2 * count, len(layers))
    complete = True
    while passing - failing > 1:
        middle = (failing + passing) // 2
        verdict = ask(middle)
        if verdict is None:
            complete = False
            break
        failing, passing = (failing, middle) if verdict.passed else (middle, passing)
    kept = frozenset(layers[:passing])
    # the least sensitive of them first: it is the likeliest to be there only for its rank
    for name in reversed(layers[:passing]):
        if len(kept) == 1 or not complete:
            break
        verdict = ask(kept - {name})
        if verdict is None:
            complete = False
        elif verdict.passed:
            kept -= {name}
    return kept, state.verdicts[kept], complete


def mixed_precision(
    graph: onnx_ir.Model,
    ranges: Ranges,
    recipe: Recipe,
    batches: Batches,
    evaluate: Evaluate,
    *,
    gate: str,
    state_file: Path | None = None,
    budget_minutes: float = math.inf,
    progress: Progress = silent,
) -> MixedPrecision:
    """The fewest exceptions that keep a gate, and what each layer costs.

    Args:
        graph: fused, FP32; left as it is.
        ranges, recipe: as insert_qdq's.
        batches: a few dozen preprocessed images for the sensitivity, called once a layer.
        evaluate: the gate, on the engine that will be delivered, for insert_qdq with these exceptions.
        gate: digest or description of everything that evaluate depends on beside the model: limits, images, engine.
        state_file: JSON; a run that was cut off goes on from it.
        budget_minutes: no new measurement once they are over.

    Raises:
        CalibrationError: see insert_qdq and SearchState.
        DataError: no images.
    """
    key = hashlib.sha256(json.dumps([ranges.to_json(), recipe.to_json(), gate], sort_keys=True).encode()).hexdigest()
    state = SearchState(state_file, key)
    if state.fresh_because:
        progress(None, f"{state.fresh_because}: starting anew")
    budget = Budget(60.0 * budget_minutes)
    measured_for = Budget(SENSITIVITY_SHARE * 60.0 * budget_minutes)
    table = sensitivity(graph, ranges, recipe, batches, state=state, budget=measured_for, progress=progress)
    kept, verdict, complete = search([row.layer for row in table], evaluate, state=state, budget=budget, progress=progress)
    marked = tuple(replace(row, kept=row.layer in kept) for row in table)
    return MixedPrecision(kept, verdict, complete, marked, len(state.verdicts))


def table_text(rows: Sequence[LayerCost]) -> str:
    """The sensitivity table as Markdown."""
    lines = [
        "| layer | kind | output SNR, dB | logit error alone | flips alone | multiplications | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        error = "not measured" if row.logit_error is None else f"{row.logit_error:.4f}"
        flips = "" if row.flips is None else str(row.flips)
        kept = "yes" if row.kept else ""
        share = f"{100 * row.multiply_share:.1f} %"
        lines.append(f"| {row.layer} | {row.kind} | {row.output_db:.1f} | {error} | {flips} | {share} | {kept} |")
    return "\n".join(lines)


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


def _constant(graph: onnx_ir.Model, array: NDArray[Any], name: str) -> onnx_ir.Value:
    tensor = onnx_ir.tensor(array, name=name)
    value = onnx_ir.Value(name=name, type=onnx_ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.graph.register_initializer(value)
    return value


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


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
