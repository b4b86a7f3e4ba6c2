"""Sensitivity finds the layer that was made hard, the search keeps it and little else, stops in time and goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx_ir
import pytest
from int8_helpers import PREPROCESS, make_harder

from gmf_edge.errors import CalibrationError, DataError
from gmf_edge.precision.calibrate import draw, observe, ranges_from
from gmf_edge.precision.int8 import insert_qdq
from gmf_edge.precision.ranges import Provenance
from gmf_edge.precision.recipe import Recipe
from gmf_edge.precision.sensitivity import (
    Budget,
    SearchState,
    SwitchedGraph,
    Verdict,
    layer_snr,
    mixed_precision,
    search,
    sensitivity,
    table_text,
)

HARD = "groupmixformer_backbone.3.gma_stage.0.mlp.fc1/MatMul"
RECIPE = Recipe(method="minmax", bias_correction=True, keep=("*backbone.[01]*", "*.2.gma_stage.0*"))


@pytest.fixture(scope="module")
def inputs(digits):
    return np.concatenate([batch.inputs for batch in draw(digits, 48, 2).batches(PREPROCESS, 16)])


@pytest.fixture(scope="module")
def hard(fused_path, inputs):
    """(graph, ranges) of a pico whose HARD layer has outlier channels; the function is pico's."""
    graph = onnx_ir.load(fused_path)
    make_harder(graph, HARD)
    statistics = observe(graph, lambda: np.split(inputs, 3), images=len(inputs))
    return graph, ranges_from(statistics, RECIPE, Provenance("", None, "", {}, "minmax", 0.0, 0.0, len(inputs), 0))


def batches_of(inputs):
    return lambda: np.split(inputs, 3)


def relative_l2(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_hard_layer_has_the_worst_output_although_its_input_looks_fine(hard, inputs):
    worst, *others = layer_snr(*hard, RECIPE, batches_of(inputs)())
    assert worst.layer == HARD
    assert worst.output_db < min(row.output_db for row in others) - 10
    # the outliers themselves are represented well: the input's own ratio does not show the harm
    assert worst.activation_db > 30


def test_snr_of_a_layer_is_numpys(fused, inputs):
    recipe = Recipe(method="minmax", keep=("*backbone.[123]*", "*.att.*", "*.fc2/*"))
    ranges = ranges_from(
        observe(fused, lambda: [inputs[:8]], images=8), recipe, Provenance("", None, "", {}, "minmax", 0.0, 0.0, 8, 0)
    )
    (row,) = layer_snr(fused, ranges, recipe, [inputs[:8]])
    assert row.kind == "fc1"
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from gmf_edge.precision.calibrate import activation_runner
    from gmf_edge.precision.int8 import dequantized, quantized_weight

    node = next(node for node in fused.graph if node.name == row.layer)
    with TemporaryDirectory() as folder:
        ((name, x),) = activation_runner(fused, (node.inputs[0].name,), Path(folder))(inputs[:8])
    step = ranges.tensors[name].threshold / 127
    rounded = step * np.clip(np.rint(x / step), -128, 127)
    weight = node.inputs[1].const_value.numpy().astype(np.float64)
    weight_rounded = dequantized(*quantized_weight(weight, 1), 1)

    def decibels(signal, noisy):
        return 10 * np.log10((signal**2).sum() / ((signal - noisy) ** 2).sum())

    assert row.activation_db == pytest.approx(decibels(x.astype(np.float64), rounded), abs=0.05)
    assert row.weight_db == pytest.approx(decibels(weight, weight_rounded), abs=1e-6)
    assert row.output_db == pytest.approx(decibels(x @ weight, rounded @ weight_rounded), abs=0.05)


def test_switched_graph_is_both_graphs(hard, inputs, logits, digits):
    graph, ranges = hard
    switched = SwitchedGraph(graph, ranges, RECIPE)
    images = draw(digits, 48, 2)
    all_on = switched.logits(batches_of(inputs)(), frozenset(switched.layers))
    all_off = switched.logits(batches_of(inputs)(), frozenset())
    assert relative_l2(all_off, logits(graph, images)) < 1e-5
    int8 = logits(insert_qdq(graph, ranges, RECIPE), images)
    # integer kernels round elsewhere than FP32 does, and a code that flips at a tie spreads from there
    assert relative_l2(all_on, int8) < 0.1 * relative_l2(int8, all_off)
    spared = switched.logits(batches_of(inputs)(), frozenset(switched.layers) - {HARD})
    assert relative_l2(spared, all_off) < 0.1 * relative_l2(all_on, all_off)


def test_sensitivity_ranks_the_hard_layer_first(hard, inputs):
    table = sensitivity(*hard, RECIPE, batches_of(inputs))
    assert table[0].layer == HARD
    assert table[0].logit_error > 10 * table[1].logit_error
    assert sum(row.multiply_share for row in table) == pytest.approx(1.0)
    assert HARD in table_text(table).splitlines()[2]


def test_auto_keeps_the_hard_layer_and_nothing_else(hard, inputs, logits, test_digits, tmp_path):
    """The gate is the product's: lost top-1 on the packaged test pictures, at most 0.3 points."""
    graph, ranges = hard
    hits = 100 * float((logits(graph, test_digits).argmax(1) == test_digits.labels).mean())
    asked = []

    def gate(exceptions):
        asked.append(exceptions)
        lowered = insert_qdq(graph, ranges, RECIPE, exceptions=exceptions)
        drop = hits - 100 * float((logits(lowered, test_digits).argmax(1) == test_digits.labels).mean())
        return Verdict(drop <= 0.3, drop, f"{drop:.2f} points lost")

    state = tmp_path / "search.json"

    def auto(words="max-drop 0.3"):
        return mixed_precision(graph, ranges, RECIPE, batches_of(inputs), gate, gate=words, state_file=state)

    found = auto()
    assert found.exceptions == {HARD}
    assert found.verdict.passed
    assert found.complete
    assert [row.layer for row in found.table if row.kept] == [HARD]
    assert asked == [frozenset(), frozenset({HARD})]
    assert auto() == found
    assert len(asked) == 2
    json.dumps(found.to_json(), allow_nan=False)
    auto("max-drop 0.2")
    assert len(asked) == 4


# the search by itself


LAYERS = [f"layer{i}" for i in range(20)]


def gate_of(needed):
    asked = []

    def evaluate(exceptions):
        asked.append(exceptions)
        return Verdict(needed <= exceptions)

    return evaluate, asked


@pytest.mark.parametrize(
    "needed", [set(), {"layer0"}, {"layer0", "layer1", "layer2"}, {"layer7"}, {"layer2", "layer11"}, {"layer19"}, set(LAYERS)]
)
def test_search_finds_exactly_what_is_needed(needed):
    evaluate, asked = gate_of(frozenset(needed))
    kept, verdict, complete = search(LAYERS, evaluate)
    assert kept == needed
    assert verdict.passed
    assert complete
    assert len(asked) == len(set(asked)) <= 2 * len(LAYERS)


def test_gate_that_nothing_passes_keeps_every_layer_and_says_so():
    kept, verdict, complete = search(LAYERS, lambda exceptions: Verdict(False, 1.0, "always"))
    assert kept == set(LAYERS)
    assert not verdict.passed
    assert complete


def ticking(step):
    now = [0.0]

    def clock():
        now[0] += step
        return now[0]

    return clock


def test_budget_stops_the_search_at_the_best_choice_so_far():
    evaluate, asked = gate_of(frozenset({"layer2", "layer11"}))
    budget = Budget(seconds=7.5, clock=ticking(1.0))
    kept, verdict, complete = search(LAYERS, evaluate, budget=budget)
    assert not complete
    assert verdict.passed
    assert {"layer2", "layer11"} <= kept
    assert len(asked) <= 8


def test_budget_of_nothing_asks_once():
    evaluate, asked = gate_of(frozenset({"layer3"}))
    kept, verdict, complete = search(LAYERS, evaluate, budget=Budget(seconds=0.0))
    assert (len(asked), complete, verdict.passed) == (1, False, False)
    assert kept == set(LAYERS)


def test_search_goes_on_where_it_was_cut_off(tmp_path):
    path = tmp_path / "state.json"
    needed = frozenset({"layer2", "layer11"})
    first_gate, first_asked = gate_of(needed)
    search(LAYERS, first_gate, state=SearchState(path, "k"), budget=Budget(seconds=4.5, clock=ticking(1.0)))
    second_gate, second_asked = gate_of(needed)
    kept, _, complete = search(LAYERS, second_gate, state=SearchState(path, "k"))
    assert kept == needed
    assert complete
    assert not set(first_asked) & set(second_asked)
    assert first_asked


def test_state_of_another_search_is_not_gone_on_from(tmp_path):
    path = tmp_path / "state.json"
    evaluate, _ = gate_of(frozenset())
    search(LAYERS, evaluate, state=SearchState(path, "mine"))
    other = SearchState(path, "other")
    assert other.verdicts == {}
    assert "state.json is of another" in other.fresh_because
    assert SearchState(path, "mine").verdicts


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": "k", "schema": 1, "costs": [], "verdicts": []}'])
def test_damaged_state_is_refused_by_name(tmp_path, text):
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=r"state\.json is not the state of a search"):
        SearchState(path, "k")
    assert path.read_text() == text


def test_budget_stops_the_measuring_and_the_worst_were_measured_first(hard, inputs):
    # one tick for the question whether to begin, then one a layer
    table = sensitivity(*hard, RECIPE, batches_of(inputs), budget=Budget(seconds=4.5, clock=ticking(1.0)))
    measured = [row for row in table if row.logit_error is not None]
    assert 0 < len(measured) < len(table)
    assert table[0].layer == HARD
    assert min(row.output_db for row in table if row.logit_error is None) >= max(row.output_db for row in measured)
    assert "not measured" in table_text(table)


def test_no_images_are_refused(hard):
    with pytest.raises(DataError, match="no images"):
        layer_snr(*hard, RECIPE, [])
    with pytest.raises(DataError, match="no images"):
        sensitivity(*hard, RECIPE, list)


def test_table_row_is_plain_json(hard, inputs):
    row = dataclasses.replace(sensitivity(*hard, RECIPE, batches_of(inputs), budget=Budget(0.0))[0], output_db=float("inf"))
    assert json.loads(json.dumps(row.to_json(), allow_nan=False))["output_db"] is None
