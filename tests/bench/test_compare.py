"""INT8 is delivered only where it is faster by the margin and within its gate."""

from __future__ import annotations

import json

import pytest

from gmf_edge.bench.compare import WARMUP_ROUNDS, compare
from gmf_edge.errors import SpecError


class Machine:
    """A clock that moves by what each engine takes, and who ran when."""

    def __init__(self, **seconds):
        self.seconds = seconds
        self.now = 0.0
        self.order = []

    def run(self, name):
        def once():
            self.order.append(name)
            taken = self.seconds[name]
            self.now += taken(len(self.order)) if callable(taken) else taken

        return once

    def decide(self, **options):
        return compare(self.run("int8"), self.run("fp16"), clock=lambda: self.now, **options)


def test_faster_pays_and_the_reason_has_the_figures():
    decision = Machine(int8=0.004, fp16=0.006).decide(rounds=5)
    assert decision.accepted
    assert decision.speedup == pytest.approx(1.5)
    assert (decision.candidate_ms, decision.baseline_ms) == (pytest.approx(4.0), pytest.approx(6.0))
    assert decision.reason == "INT8 pays: INT8 4.00 ms, FP16 6.00 ms, 1.50 times (margin 1.05)"
    assert json.loads(json.dumps(decision.to_json()))["accepted"] is True


@pytest.mark.parametrize("fp16", [0.0040, 0.0041, 0.001])
def test_as_fast_or_slower_does_not_pay(fp16):
    decision = Machine(int8=0.004, fp16=fp16).decide(rounds=5)
    assert not decision.accepted
    assert "does not pay on this machine, FP16 is kept" in decision.reason


def test_outside_the_gate_speed_does_not_count():
    decision = Machine(int8=0.001, fp16=0.006).decide(rounds=5, within_gate=False)
    assert not decision.accepted
    assert "outside its accuracy gate" in decision.reason


def test_margin_is_the_callers():
    machine = Machine(int8=0.004, fp16=0.006)
    assert machine.decide(rounds=5, margin=1.45).accepted
    assert not machine.decide(rounds=5, margin=1.55).accepted


def test_engines_take_turns():
    machine = Machine(int8=0.004, fp16=0.006)
    machine.decide(rounds=4)
    assert machine.order == ["fp16", "int8"] * (WARMUP_ROUNDS + 4)


def test_machine_that_slows_down_is_not_read_as_a_difference():
    def slowing(turn):
        return 0.001 * (1 + turn / 10)

    assert not Machine(int8=slowing, fp16=slowing).decide(rounds=30).accepted


def test_a_few_disturbed_rounds_do_not_decide():
    machine = Machine(int8=lambda turn: 0.1 if turn % 14 == 0 else 0.004, fp16=0.006)
    assert machine.decide(rounds=30).accepted


@pytest.mark.parametrize("options", [{"rounds": 2}, {"margin": 0.0}, {"margin": float("nan")}])
def test_nonsense_is_refused(options):
    with pytest.raises(SpecError):
        Machine(int8=1, fp16=1).decide(**options)
