"""The search excludes the hard layer and little else, stops in time, and goes on where it stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest
from int8_helpers import HARD, HARD_RECIPE

from gmf_edge.errors import CalibrationError
from gmf_edge.precision.int8 import insert_qdq
from gmf_edge.precision.mixed_precision import mixed_precision, search
from gmf_edge.precision.search_state import Budget, SearchState, Verdict


def batches_of(inputs):
    return lambda: np.split(inputs, 3)


def test_auto_keeps_the_hard_layer_and_nothing_else(hard, inputs, logits, test_digits, tmp_path):
    """The gate is the product's: lost top-1 on the packaged test pictures, at most 0.3 points."""
    graph, ranges = hard
    hits = 100 * float((logits(graph, test_digits).argmax(1) == test_digits.labels).mean())
    asked = []

    def gate(exceptions):
        asked.append(exceptions)
        lowered = insert_qdq(graph, ranges, HARD_RECIPE, exceptions=exceptions)
        drop = hits - 100 * float((logits(lowered, test_digits).argmax(1) == test_digits.labels).mean())
        return Verdict(drop <= 0.3, drop, f"{drop:.2f} points lost")

    state = tmp_path / "search.json"

    def auto(words="max-drop 0.3"):
        return mixed_precision(graph, ranges, HARD_RECIPE, batches_of(inputs), gate, gate=words, state_file=state)

    found = auto()
    assert found.exceptions == {HARD}
    assert found.verdict.passed
    assert found.finished
    assert [row.layer for row in found.table if row.excluded] == [HARD]
    assert asked == [frozenset(), frozenset({HARD})]
    assert auto() == found
    assert len(asked) == 2
    json.dumps(found.to_json(), allow_nan=False)
    auto("max-drop 0.2")
    assert len(asked) == 4


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
    exceptions, verdict, finished = search(LAYERS, evaluate)
    assert exceptions == needed
    assert verdict.passed
    assert finished
    assert len(asked) == len(set(asked)) <= 2 * len(LAYERS)


def test_gate_that_nothing_passes_keeps_every_layer_and_says_so():
    exceptions, verdict, finished = search(LAYERS, lambda exceptions: Verdict(False, 1.0, "always"))
    assert exceptions == set(LAYERS)
    assert not verdict.passed
    assert finished


def ticking(step):
    now = [0.0]

    def clock():
        now[0] += step
        return now[0]

    return clock


def test_budget_stops_the_search_at_the_best_choice_so_far():
    evaluate, asked = gate_of(frozenset({"layer2", "layer11"}))
    budget = Budget(seconds=7.5, clock=ticking(1.0))
    exceptions, verdict, finished = search(LAYERS, evaluate, budget=budget)
    assert not finished
    assert verdict.passed
    assert {"layer2", "layer11"} <= exceptions
    assert len(asked) <= 8


def test_budget_of_nothing_asks_once():
    evaluate, asked = gate_of(frozenset({"layer3"}))
    exceptions, verdict, finished = search(LAYERS, evaluate, budget=Budget(seconds=0.0))
    assert (len(asked), finished, verdict.passed) == (1, False, False)
    assert exceptions == set(LAYERS)


def test_search_goes_on_where_it_was_cut_off(tmp_path):
    path = tmp_path / "state.json"
    needed = frozenset({"layer2", "layer11"})
    first_gate, first_asked = gate_of(needed)
    search(LAYERS, first_gate, state=SearchState(path, "k"), budget=Budget(seconds=4.5, clock=ticking(1.0)))
    second_gate, second_asked = gate_of(needed)
    exceptions, _, finished = search(LAYERS, second_gate, state=SearchState(path, "k"))
    assert exceptions == needed
    assert finished
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
