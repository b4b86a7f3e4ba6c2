"""The fewest layers to leave in higher precision so that a gate holds (`--precision auto`).

search            asks a gate: no exception, then the most sensitive 1, 2, 4, ... layers, halving back, then taking back one by one
mixed_precision   sensitivity and search within one time budget, resumable from a JSON file
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir

from gmf_edge.artifact import json_number
from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.precision.activations import Batches
from gmf_edge.precision.ranges import Ranges
from gmf_edge.precision.recipe import Recipe
from gmf_edge.precision.search_state import Budget, SearchState, Verdict
from gmf_edge.precision.sensitivity import LayerCost, sensitivity

# share of the time budget that measuring layers may take; the rest is the search's
SENSITIVITY_SHARE = 0.5

# asks the gate about the INT8 graph with these layers left in higher precision
Evaluate = Callable[[frozenset[str]], Verdict]


@dataclass(frozen=True)
class MixedPrecision:
    """What the search decided.

    Attributes:
        exceptions: layers to leave in higher precision.
        verdict: of the gate, with them.
        finished: whether the search ended by itself; False where the time did and fewer exceptions might do.
        table: every layer's cost, the most sensitive first.
        evaluations: how often the gate was asked, earlier runs included.
    """

    exceptions: frozenset[str]
    verdict: Verdict
    finished: bool
    table: tuple[LayerCost, ...]
    evaluations: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a report."""
        return {
            "exceptions": sorted(self.exceptions),
            "verdict": {key: json_number(value) for key, value in asdict(self.verdict).items()},
            "finished": self.finished,
            "table": [row.to_json() for row in self.table],
            "evaluations": self.evaluations,
        }


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
    finished = True
    while passing - failing > 1:
        middle = (failing + passing) // 2
        verdict = ask(middle)
        if verdict is None:
            finished = False
            break
        failing, passing = (failing, middle) if verdict.passed else (middle, passing)
    exceptions = frozenset(layers[:passing])
    # the least sensitive of them first: it is the likeliest to be there only for its rank
    for name in reversed(layers[:passing]):
        if len(exceptions) == 1 or not finished:
            break
        verdict = ask(exceptions - {name})
        if verdict is None:
            finished = False
        elif verdict.passed:
            exceptions -= {name}
    return exceptions, state.verdicts[exceptions], finished


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
    exceptions, verdict, finished = search([row.layer for row in table], evaluate, state=state, budget=budget, progress=progress)
    marked = tuple(replace(row, excluded=row.layer in exceptions) for row in table)
    return MixedPrecision(exceptions, verdict, finished, marked, len(state.verdicts))
