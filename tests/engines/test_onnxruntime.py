"""The ONNX Runtime backend: it opens what a bundle holds, takes what the profile allows, and reads its precisions from a profile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from gmf_edge.bundle import open_bundle
from gmf_edge.engines.onnxruntime import WEIGHTED_KINDS, OnnxRuntimeBackend, OnnxRuntimeEngine, _precision_of
from gmf_edge.engines.protocol import EngineRequest, Graphs
from gmf_edge.errors import EngineError, EnvironmentProblem, SpecError
from gmf_edge.spec import BatchProfile, Precision
from gmf_edge.verify.golden import Golden

UP_TO_FOUR = BatchProfile(1, 2, 4)


def request_for(folder: Path, profile: BatchProfile = UP_TO_FOUR, **options: Any) -> EngineRequest:
    bundle = open_bundle(folder)
    return EngineRequest(bundle.graphs, bundle.manifest.precision, profile, bundle.manifest.model.image_size, options=options)


@pytest.fixture
def engine(pico_fp16: Path) -> Iterator[OnnxRuntimeEngine]:
    with OnnxRuntimeBackend().open(request_for(pico_fp16), pico_fp16, ()) as opened:
        yield opened


@pytest.fixture(scope="module")
def golden(pico_fp16: Path) -> Golden:
    return Golden.load(pico_fp16 / "golden.npz")


def test_there_is_nothing_to_build(pico_fp16: Path, tmp_path: Path) -> None:
    assert OnnxRuntimeBackend().build(request_for(pico_fp16), tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_logits_are_fp32_and_the_references(engine: OnnxRuntimeEngine, golden: Golden, batch: int) -> None:
    logits = engine.infer(golden.images[:batch])
    assert (logits.dtype, logits.shape) == (np.float32, (batch, 10))
    # measured 8e-4 on logits up to 15; FP16 keeps 11 bits
    assert np.abs(logits - golden.logits[:batch]).max() <= 4e-3


def test_images_need_not_be_contiguous_or_fp32(engine: OnnxRuntimeEngine, golden: Golden) -> None:
    wanted = engine.infer(golden.images[:4])
    strided = np.repeat(golden.images[:4], 2, axis=0)[::2].astype(np.float64)
    assert np.array_equal(engine.infer(strided), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [0, 5, 9])
def test_a_batch_outside_the_profile_is_refused(engine: OnnxRuntimeEngine, batch: int) -> None:
    with pytest.raises(EngineError, match=rf"batch size {batch} is outside the profile 1\.\.4"):
        engine.infer(np.zeros((batch, 3, 64, 64), np.float32))


def test_a_batch_below_the_profile_is_refused(pico_fp16: Path) -> None:
    request = request_for(pico_fp16, BatchProfile(2, 2, 4))
    with OnnxRuntimeBackend().open(request, pico_fp16, ()) as engine, pytest.raises(EngineError, match=r"batch size 1 .*2\.\.4"):
        engine.infer(np.zeros((1, 3, 64, 64), np.float32))


@pytest.mark.parametrize("shape", [(1, 3, 64, 96), (1, 1, 64, 64), (3, 64, 64), (1, 64, 64, 3)])
def test_images_of_another_shape_are_refused(engine: OnnxRuntimeEngine, shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match="3, 64, 64"):
        engine.infer(np.zeros(shape, np.float32))


def test_a_closed_engine_says_so(engine: OnnxRuntimeEngine) -> None:
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.infer(np.zeros((1, 3, 64, 64), np.float32))
    engine.close()


def test_a_file_that_is_no_graph_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "portable.onnx").write_bytes(b"no graph")
    request = EngineRequest(Graphs(tmp_path, {("portable", 20): "portable.onnx"}), Precision.FP32, BatchProfile(), (64, 64))
    with pytest.raises(EngineError, match=r"cannot open .*portable\.onnx"):
        OnnxRuntimeBackend().build(request, tmp_path)


def test_an_option_of_another_backend_is_refused_by_name(pico_fp16: Path) -> None:
    with pytest.raises(SpecError, match="'workspace_mib'"):
        OnnxRuntimeBackend().open(request_for(pico_fp16, workspace_mib=64), pico_fp16, ())


def test_threads_can_be_set(pico_fp16: Path, golden: Golden) -> None:
    with OnnxRuntimeBackend().open(request_for(pico_fp16, threads=1), pico_fp16, ()) as engine:
        assert np.abs(engine.infer(golden.images[:2]) - golden.logits[:2]).max() <= 4e-3
        assert engine._session.get_session_options().intra_op_num_threads == 1
        assert (engine.facts.options, engine.facts.execution) == ({"threads": 1}, {"threads": 1, "threads_reason": "as asked"})


def test_without_the_package_it_is_a_problem_of_the_environment(pico_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntimeBackend, "missing", lambda self: "the package onnxruntime is not installed")
    with pytest.raises(EnvironmentProblem, match="onnxruntime is not installed"):
        OnnxRuntimeBackend().open(request_for(pico_fp16), pico_fp16, ())


def test_facts_come_from_a_profile_of_what_really_ran(engine: OnnxRuntimeEngine) -> None:
    facts = engine.facts
    assert (facts.backend, facts.form) == ("onnxruntime", "portable")
    assert facts.version
    threads = facts.execution["threads"]
    assert facts.device.endswith(f", {threads} thread{'' if threads == 1 else 's'}")
    # pico has 5 blocks with 3 dense aggregators, 4 Linears each, and the convolutions of the stem and the embeddings
    weighted = [layer for layer in facts.layers if layer.kind in WEIGHTED_KINDS]
    assert len(weighted) > 40
    assert all(layer.time_ms is not None and layer.time_ms >= 0 for layer in facts.layers)
    assert sum(facts.precision_shares.values()) == pytest.approx(1)


def test_an_fp16_graph_computed_in_fp32_is_not_called_fp16(engine: OnnxRuntimeEngine) -> None:
    facts = engine.facts
    if facts.precision_shares.get("fp32", 0) > 0:
        assert any("rounds to FP16" in note for note in facts.notes)
    else:
        assert set(facts.precision_shares) == {"fp16"}


def test_an_fp32_engine_computes_in_fp32_and_needs_no_note(pico_fp32: Path) -> None:
    with OnnxRuntimeBackend().open(request_for(pico_fp32), pico_fp32, ()) as engine:
        assert dict(engine.facts.precision_shares) == {"fp32": 1.0}
        assert engine.facts.notes == ()


@pytest.mark.parametrize(
    ("types", "precision"),
    [
        (["float", "float"], "fp32"),
        (["float16", "float"], "fp16"),
        (["float", "int8"], "int8"),
        (["uint8", "float"], "int8"),
        (["int64"], "other"),
        (["int64", "float16"], "fp16"),
        ([], "other"),
    ],
)
def test_a_kernels_precision_is_read_from_its_inputs(types: list[str], precision: str) -> None:
    assert _precision_of({"input_type_shape": [{name: [1]} for name in types]}) == precision


def test_the_profile_of_the_request_is_the_engines(pico_fp16: Path) -> None:
    request = replace(request_for(pico_fp16), profile=BatchProfile(1, 1, 1))
    with OnnxRuntimeBackend().open(request, pico_fp16, ()) as engine, pytest.raises(EngineError, match=r"1\.\.1"):
        engine.infer(np.zeros((2, 3, 64, 64), np.float32))
