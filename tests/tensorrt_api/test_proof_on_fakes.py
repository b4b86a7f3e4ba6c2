"""The proof of precision in a build, on each version's API: what is refused, what is kept aside, what is delivered with a note."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trt_bindings
from inspector_answers import engine_answer, quantised_nodes
from trt_fake import FakeModel
from trt_machine import MakeMachine

from gmf_edge.errors import PrecisionError, SpecError
from gmf_edge.spec import BatchProfile, Precision

every_version = pytest.mark.parametrize("version", trt_bindings.VERSIONS)
NODES = quantised_nodes(2)
ONE_BATCH = BatchProfile(2, 2, 2)


@every_version
def test_int8_is_proved_against_the_layers_that_were_quantised(make: MakeMachine, version: str) -> None:
    machine = make(version, FakeModel(precision="int8"))
    machine.build(precision=Precision.INT8, quantised_layers=NODES, profile=ONE_BATCH)
    proof = machine.sidecar["precision_proof"]
    assert (proof["verdict"], proof["in_int8"], proof["quantised"]) == ("proved", list(NODES), 6)


@every_version
def test_int8_that_became_fp16_is_refused_and_kept_aside(make: MakeMachine, version: str, tmp_path: Path) -> None:
    machine = make(version, FakeModel(inspector=engine_answer(version, "fp16", with_qdq=True)))
    with pytest.raises(PrecisionError, match=r"0 of 6 quantised layers run in INT8") as refusal:
        machine.build(precision=Precision.INT8, quantised_layers=NODES, profile=ONE_BATCH)
    assert not list(machine.out.iterdir())
    assert "--precision-proof warn" in refusal.value.remedy
    [aside] = (tmp_path / "cache" / "refused").iterdir()
    assert str(aside) in refusal.value.remedy
    assert sorted(path.name for path in aside.iterdir()) == ["engine.plan", "engine.plan.layers.json"]
    assert json.loads((aside / "engine.plan.layers.json").read_text()) == machine.model.inspector


@every_version
def test_warn_delivers_it_with_a_note(make: MakeMachine, version: str) -> None:
    machine = make(version, FakeModel(inspector=engine_answer(version, "fp16", with_qdq=True)))
    options = {"precision_proof": "warn"}
    assert "engine.plan" in machine.build(precision=Precision.INT8, quantised_layers=NODES, profile=ONE_BATCH, options=options)
    assert any(note.startswith("precision refuted: int8 was asked for") for note in machine.sidecar["notes"])
    assert machine.sidecar["precision_proof"]["verdict"] == "refuted"


def test_what_8_6_does_not_tell_is_delivered_with_a_note(make: MakeMachine) -> None:
    machine = make("8.6.1", FakeModel(inspector=engine_answer("8.6.1", "int8", myelin=True)))
    machine.build(precision=Precision.INT8, quantised_layers=NODES, profile=ONE_BATCH)
    assert any("of 6 this TensorRT does not tell" in note for note in machine.sidecar["notes"])


@every_version
def test_the_inspectors_answer_is_kept_beside_the_engine(make: MakeMachine, version: str) -> None:
    machine = make(version)
    files = machine.build()
    assert files[-1] == "engine.plan.layers.json"
    assert json.loads((machine.out / files[-1]).read_text()) == machine.trt.inspected()


def test_only_refuse_and_warn_are_taken(make: MakeMachine) -> None:
    with pytest.raises(SpecError, match="use refuse or warn"):
        make("10.3.0").build(options={"precision_proof": "ignore"})
