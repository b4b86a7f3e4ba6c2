"""Sensitivity finds the layer that was made hard, measures what NumPy measures, and stops in time."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from int8_helpers import HARD, HARD_RECIPE

from gmf_edge.errors import DataError
from gmf_edge.precision.activations import observe
from gmf_edge.precision.calibrate import ranges_from
from gmf_edge.precision.calibration_images import draw
from gmf_edge.precision.int8 import insert_qdq
from gmf_edge.precision.ranges import Provenance
from gmf_edge.precision.recipe import Recipe
from gmf_edge.precision.search_state import Budget
from gmf_edge.precision.sensitivity import SwitchedGraph, layer_snr, sensitivity


def batches_of(inputs):
    return lambda: np.split(inputs, 3)


def relative_l2(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_hard_layer_has_the_worst_output_although_its_input_looks_fine(hard, inputs):
    worst, *others = layer_snr(*hard, HARD_RECIPE, batches_of(inputs)())
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

    from gmf_edge.precision.activations import activation_runner
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
    switched = SwitchedGraph(graph, ranges, HARD_RECIPE)
    images = draw(digits, 48, 2)
    all_on = switched.logits(batches_of(inputs)(), frozenset(switched.layers))
    all_off = switched.logits(batches_of(inputs)(), frozenset())
    assert relative_l2(all_off, logits(graph, images)) < 1e-5
    int8 = logits(insert_qdq(graph, ranges, HARD_RECIPE), images)
    # integer kernels round elsewhere than FP32 does, and a code that flips at a tie spreads from there
    assert relative_l2(all_on, int8) < 0.1 * relative_l2(int8, all_off)
    spared = switched.logits(batches_of(inputs)(), frozenset(switched.layers) - {HARD})
    assert relative_l2(spared, all_off) < 0.1 * relative_l2(all_on, all_off)


def test_sensitivity_ranks_the_hard_layer_first(hard, inputs):
    table = sensitivity(*hard, HARD_RECIPE, batches_of(inputs))
    assert table[0].layer == HARD
    assert table[0].logit_error > 10 * table[1].logit_error
    assert sum(row.multiply_share for row in table) == pytest.approx(1.0)


def ticking(step):
    now = [0.0]

    def clock():
        now[0] += step
        return now[0]

    return clock


def test_budget_stops_the_measuring_and_the_worst_were_measured_first(hard, inputs):
    # one tick for the question whether to begin, then one a layer
    table = sensitivity(*hard, HARD_RECIPE, batches_of(inputs), budget=Budget(seconds=4.5, clock=ticking(1.0)))
    measured = [row for row in table if row.logit_error is not None]
    assert 0 < len(measured) < len(table)
    assert table[0].layer == HARD
    assert min(row.output_db for row in table if row.logit_error is None) >= max(row.output_db for row in measured)


def test_no_images_are_refused(hard):
    with pytest.raises(DataError, match="no images"):
        layer_snr(*hard, HARD_RECIPE, [])
    with pytest.raises(DataError, match="no images"):
        sensitivity(*hard, HARD_RECIPE, list)


def test_table_row_is_plain_json(hard, inputs):
    row = dataclasses.replace(sensitivity(*hard, HARD_RECIPE, batches_of(inputs), budget=Budget(0.0))[0], output_db=float("inf"))
    assert json.loads(json.dumps(row.to_json(), allow_nan=False))["output_db"] is None
