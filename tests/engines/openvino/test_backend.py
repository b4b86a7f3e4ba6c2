"""The OpenVINO backend, run for real: logits, batches, errors, precisions read from the compiled model, and the model cache."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")

from gmf_edge.artifact import cache_root
from gmf_edge.bundle import open_bundle
from gmf_edge.engines.openvino.backend import OpenVinoBackend, require_precision
from gmf_edge.engines.openvino.compiled import BLOB, Compiler
from gmf_edge.engines.openvino.engine import OpenVinoEngine
from gmf_edge.engines.openvino.layers import WEIGHTED_KINDS
from gmf_edge.engines.protocol import EngineRequest, Graphs
from gmf_edge.errors import EngineError, EnvironmentProblem, PrecisionError, SpecError
from gmf_edge.spec import BatchProfile, Precision
from gmf_edge.verify.golden import Golden

UP_TO_FOUR = BatchProfile(1, 2, 4)


def request_for(folder: Path, profile: BatchProfile = UP_TO_FOUR, **options: Any) -> EngineRequest:
    bundle = open_bundle(folder)
    return EngineRequest(bundle.graphs, bundle.manifest.precision, profile, bundle.manifest.model.image_size, options=options)


def opened(folder: Path, profile: BatchProfile = UP_TO_FOUR, **options: Any) -> OpenVinoEngine:
    return OpenVinoBackend().open(request_for(folder, profile, **options), folder, ())


@pytest.fixture(scope="module")
def engine(pico_fp16: Path) -> Iterator[OpenVinoEngine]:
    """Of the FP16 graph. Closed by no test."""
    with opened(pico_fp16) as found:
        yield found


@pytest.fixture(scope="module")
def golden(pico_fp16: Path) -> Golden:
    return Golden.load(pico_fp16 / "golden.npz")


def test_nothing_is_written_into_the_bundle(pico_fp16: Path, tmp_path: Path) -> None:
    assert OpenVinoBackend().build(request_for(pico_fp16), tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


# 1, 2 and 4 have models of their own, 3 the one for any size
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_logits_are_fp32_and_the_references(engine: OpenVinoEngine, golden: Golden, batch: int) -> None:
    logits = engine.infer(golden.images[:batch])
    assert (logits.dtype, logits.shape) == (np.float32, (batch, 10))
    # measured 4e-4 on logits up to 15, of FP16 weights; FP16 arithmetic keeps 11 bits, BF16 8
    limit = 4e-3 if "bf16" not in engine.facts.precision_shares else 0.2
    assert np.abs(logits - golden.logits[:batch]).max() <= limit


def test_logits_are_the_callers_and_stay(engine: OpenVinoEngine, golden: Golden) -> None:
    first = engine.infer(golden.images[:1])
    kept = first.copy()
    engine.infer(golden.images[1:2])
    assert np.array_equal(first, kept)
    first[:] = 0  # not OpenVINO's memory: the next inference is right
    assert np.array_equal(engine.infer(golden.images[:1]), kept)


def test_images_need_not_be_contiguous_or_fp32(engine: OpenVinoEngine, golden: Golden) -> None:
    wanted = engine.infer(golden.images[:4])
    strided = np.repeat(golden.images[:4], 2, axis=0)[::2].astype(np.float64)
    assert np.array_equal(engine.infer(strided), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [0, 5, 9])
def test_a_batch_outside_the_profile_is_refused(engine: OpenVinoEngine, batch: int) -> None:
    with pytest.raises(EngineError, match=rf"batch size {batch} is outside the profile 1\.\.4"):
        engine.infer(np.zeros((batch, 3, 64, 64), np.float32))


@pytest.mark.parametrize("shape", [(1, 3, 64, 96), (1, 1, 64, 64), (3, 64, 64), (1, 64, 64, 3)])
def test_images_of_another_shape_are_refused(engine: OpenVinoEngine, shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match="3, 64, 64"):
        engine.infer(np.zeros(shape, np.float32))


def test_maps_of_a_classifier_are_refused_before_an_inference_starts(
    engine: OpenVinoEngine, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    monkeypatch.setattr(engine, "_requests_for", started.append)
    with pytest.raises(EngineError, match="gives logits and no maps"):
        engine.infer_maps(golden.images[:1])
    with pytest.raises(EngineError, match="gives logits and no maps"):
        list(engine.infer_many_maps([golden.images[:1]]))
    assert started == []


def test_a_closed_engine_says_so_and_holds_no_model(pico_fp16: Path) -> None:
    found = opened(pico_fp16, BatchProfile(1, 1, 1))
    found.infer(np.zeros((1, 3, 64, 64), np.float32))
    found.close()
    with pytest.raises(EngineError, match="closed"):
        found.infer(np.zeros((1, 3, 64, 64), np.float32))
    with pytest.raises(EngineError, match="closed"):
        found.layers()
    assert found._requests is None
    assert "_first_model" not in vars(found)
    found.close()


def test_as_many_batches_as_streams_are_in_flight_and_come_back_in_order(pico_fp16: Path, golden: Golden) -> None:
    batches = [golden.images[start : start + 2] for start in range(0, 10, 2)]
    with opened(pico_fp16, streams=2, threads=2) as found:
        assert found.facts.execution["streams"] == 2
        together = list(found.infer_many(iter(batches)))
        apart = [found.infer(batch) for batch in batches]
    assert len(together) == len(batches)
    for one, other in zip(together, apart, strict=True):
        assert np.allclose(one, other, atol=1e-4)


def test_facts_come_from_a_profile_of_what_really_ran(engine: OpenVinoEngine) -> None:
    facts = engine.facts
    assert (facts.backend, facts.form) == ("openvino", "portable")
    assert facts.version.startswith("20")
    threads = facts.execution["threads"]
    assert facts.device.endswith(f", {threads} thread{'' if threads == 1 else 's'}")
    weighted = [layer for layer in facts.layers if layer.kind in WEIGHTED_KINDS]
    # pico has 5 blocks with 4 Linears and 10 products or convolutions each, and the stem and the embeddings
    assert len(weighted) > 60
    assert sum(layer.time_ms is not None and layer.time_ms > 0 for layer in weighted) > len(weighted) / 2
    assert sum(facts.precision_shares.values()) == pytest.approx(1)
    untimed = engine.layers()
    assert [layer.name for layer in untimed] == [layer.name for layer in facts.layers]


def test_what_fp16_became_is_read_from_the_device_and_said(engine: OpenVinoEngine) -> None:
    import openvino

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    shares, notes = engine.facts.precision_shares, " ".join(engine.facts.notes)
    if "FP16" in capabilities:
        assert shares["fp16"] > 0.5
    elif "BF16" in capabilities:
        assert shares["bf16"] > 0.5
        assert "computed in BF16" in notes
    else:
        assert dict(shares) == {"fp32": 1.0}
        assert "computed in FP32" in notes


def test_fp32_is_fp32_whatever_the_device_could_do(pico_fp32: Path, golden: Golden) -> None:
    with opened(pico_fp32) as found:
        assert dict(found.facts.precision_shares) == {"fp32": 1.0}
        assert found.facts.notes == ()
        assert found.facts.execution["arithmetic"] == "FP32"
        assert np.abs(found.infer(golden.images[:4]) - golden.logits[:4]).max() <= 1e-4


def test_int8_runs_in_int8_at_every_batch_size(pico_int8: Path, golden: Golden) -> None:
    with opened(pico_int8) as found:
        kinds = {layer.kind for layer in found.layers() if layer.precision == "int8"}
        # qkv, fc1 and fc2 of 5 blocks
        assert sum(layer.precision == "int8" and layer.kind in WEIGHTED_KINDS for layer in found.layers()) >= 15, kinds
        assert found.facts.precision_shares["int8"] > 0
        rows = np.concatenate([found.infer(golden.images[:3]), found.infer(golden.images[3:4])])
    assert np.array_equal(rows.argmax(1), golden.logits[:4].argmax(1))
    cosine = (rows * golden.logits[:4]).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(golden.logits[:4], axis=1)
    # measured 0.99999; sums that saturate give 0.9994
    assert cosine.min() >= 0.9998


def test_a_second_opening_comes_from_the_cache_with_the_same_logits(
    engine: OpenVinoEngine, pico_fp16: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = engine.infer(golden.images[:2])

    def compiled(self: Compiler, *arguments: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(Compiler, "_compiled", compiled)
    with opened(pico_fp16) as again:
        assert np.array_equal(again.infer(golden.images[:2]), wanted)


def test_a_damaged_cache_entry_is_compiled_again(pico_fp16: Path, golden: Golden, own_cache: Path) -> None:
    alone = BatchProfile(1, 1, 1)
    with opened(pico_fp16, alone) as first:
        wanted = first.infer(golden.images[:1])
    (blob,) = own_cache.glob(f"stages/openvino-*/{BLOB}")
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 0xFF
    blob.write_bytes(content)
    with opened(pico_fp16, alone) as again:
        assert np.array_equal(again.infer(golden.images[:1]), wanted)
    assert blob.read_bytes() != bytes(content)


def test_a_cached_model_that_openvino_does_not_take_is_compiled_again(
    pico_fp16: Path, golden: Golden, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Compiler, "_export", lambda self, batches, folder: (folder / BLOB).write_bytes(b"no model") and {})
    with opened(pico_fp16, BatchProfile(1, 1, 1)) as found:
        assert np.abs(found.infer(golden.images[:1]) - golden.logits[:1]).max() <= 0.2


def test_without_a_cache_it_only_takes_longer(pico_fp16: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise EnvironmentProblem("cannot write the cache")

    monkeypatch.setattr("gmf_edge.engines.openvino.compiled.run_stage", refuse)
    with opened(pico_fp16, BatchProfile(1, 1, 1)) as found:
        assert np.abs(found.infer(golden.images[:1]) - golden.logits[:1]).max() <= 0.2


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("GMF_EDGE_CACHE", str(tmp_path / "cache"))
    cache_root.cache_clear()
    yield tmp_path / "cache"
    cache_root.cache_clear()


def test_a_file_that_is_no_graph_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "portable.onnx").write_bytes(b"no graph")
    request = EngineRequest(Graphs(tmp_path, {("portable", 20): "portable.onnx"}), Precision.FP32, BatchProfile(), (64, 64))
    with pytest.raises(EngineError, match=r"cannot compile .*portable\.onnx for CPU") as refusal:
        OpenVinoBackend().build(request, tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workspace_mib": 64}, "no option 'workspace_mib'"),
        ({"device": "TPU"}, "--device is 'TPU'"),
        ({"device": "GPU.x"}, r"--device is 'GPU\.x'"),
        ({"device": "GPU", "threads": 2}, "--threads was given for GPU"),
        ({"threads": 0}, "--threads is 0"),
        ({"streams": 0}, "0 streams"),
        ({"arithmetic": "f8"}, "arithmetic is 'f8'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(pico_fp16: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        opened(pico_fp16, **options)


def test_a_device_that_is_not_there_is_a_problem_of_the_environment(pico_fp16: Path) -> None:
    import openvino

    absent = next(name for name in ("NPU", "GPU.7") if name not in openvino.Core().available_devices)
    with pytest.raises(EnvironmentProblem, match=f"sees no device {absent} here, it sees CPU") as refusal:
        opened(pico_fp16, device=absent)
    assert "--device CPU" in refusal.value.remedy


def test_without_the_package_it_is_a_problem_of_the_environment(pico_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="openvino is not installed") as refusal:
        opened(pico_fp16)
    assert "gmf-edge[openvino]" in refusal.value.remedy


@pytest.mark.parametrize(
    ("precision", "shares", "refused"),
    [
        (Precision.FP32, {"fp32": 1.0}, False),
        (Precision.FP32, {"bf16": 0.1, "fp32": 0.9}, True),
        (Precision.FP16, {"fp32": 1.0}, False),
        (Precision.INT8, {"fp32": 0.7, "int8": 0.3}, False),
        (Precision.INT8, {"fp32": 1.0}, True),
        (Precision.INT8, {}, False),
    ],
)
def test_a_precision_that_was_not_honoured_is_refused(precision: Precision, shares: dict[str, float], refused: bool) -> None:
    if refused:
        with pytest.raises(PrecisionError, match="was asked for"):
            require_precision(precision, shares, "CPU")
    else:
        require_precision(precision, shares, "CPU")


def test_threads_reach_the_compiled_model_and_the_report(pico_fp16: Path) -> None:
    with opened(pico_fp16, BatchProfile(1, 1, 1), threads=1) as found:
        assert found._first_model.get_property("INFERENCE_NUM_THREADS") == 1
        assert found.facts.execution["threads_reason"] == "as asked"
        assert found.facts.options["threads"] == 1


def test_it_runs_without_torch_and_onnx(pico_fp16: Path) -> None:
    script = """
import sys
for name in ("torch", "onnx", "onnxruntime", "onnxscript", "onnx_ir"):
    sys.modules[name] = None
from pathlib import Path
from gmf_edge.deploy import verify_bundle
result = verify_bundle(Path(sys.argv[1]), backend="openvino")
print(result.passed, result.report["engine"]["backend"])
"""
    done = subprocess.run([sys.executable, "-c", script, str(pico_fp16)], capture_output=True, text=True, timeout=300)
    assert done.stdout == "True openvino\n", done.stderr


def test_a_signal_is_survived_after_engines_were_closed_in_the_order_of_their_opening(pico_fp16: Path) -> None:
    """Each of OpenVINO's Cores gives signals a stack of its own, and what the last one leaves behind may be unmapped memory."""
    script = """
import gc, os, signal, sys
from pathlib import Path
from gmf_edge.bench.baselines import OpenVinoBaseline
from gmf_edge.bundle import open_bundle
from gmf_edge.engines.openvino.backend import OpenVinoBackend
from gmf_edge.engines.protocol import EngineRequest
from gmf_edge.spec import BatchProfile
import numpy as np
folder = Path(sys.argv[1])
bundle = open_bundle(folder)
request = EngineRequest(bundle.graphs, bundle.manifest.precision, BatchProfile(1, 1, 1), bundle.manifest.model.image_size)
engines = [OpenVinoBackend().open(request, folder, ()) for _ in range(2)]
baseline = OpenVinoBaseline(bundle.path("portable.onnx"))
baseline.infer(np.zeros((1, 3, *request.image_size), np.float32))
while engines:
    engines.pop(0).close()
    gc.collect()
del baseline
gc.collect()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", script, str(pico_fp16)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
