"""What a request becomes on a device that has FP16, BF16 or neither, and what OpenVINO is told of threads."""

from __future__ import annotations

import pytest

from gmf_edge.cpu import Threads
from gmf_edge.engines.openvino import settings
from gmf_edge.engines.openvino.settings import AS_GRAPH, BF16, FP32, OpenVinoOptions, arithmetic_for, properties_for
from gmf_edge.errors import PrecisionError
from gmf_edge.spec import Precision

# as OpenVINO 2026.4 lists them: EPYC of the third generation, Sapphire Rapids, Arm with FP16 instructions, an NPU
PLAIN = ("FP32", "INT8", "BIN", "EXPORT_IMPORT")
WITH_BF16 = ("FP32", "BF16", "INT8", "BIN", "EXPORT_IMPORT")
WITH_FP16 = ("FP32", "FP16", "INT8", "BIN", "EXPORT_IMPORT")
WITHOUT_FP32 = ("FP16", "INT8", "EXPORT_IMPORT")


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
@pytest.mark.parametrize(
    ("capabilities", "hint", "words"),
    [(PLAIN, FP32, "computed in FP32"), (WITH_BF16, BF16, "computed in BF16"), (WITH_FP16, AS_GRAPH, "")],
)
def test_half_precision_becomes_what_the_device_multiplies_and_says_so(
    precision: Precision, capabilities: tuple[str, ...], hint: str, words: str
) -> None:
    found = arithmetic_for(precision, "CPU", capabilities)
    assert found.hint == hint
    assert words in found.note
    assert bool(words) == bool(found.note)


@pytest.mark.parametrize(("capabilities", "hint"), [(PLAIN, FP32), (WITH_BF16, BF16), (WITH_FP16, FP32)])
def test_bf16_never_becomes_fp16_whose_range_is_too_short(capabilities: tuple[str, ...], hint: str) -> None:
    found = arithmetic_for(Precision.BF16, "CPU", capabilities)
    assert found.hint == hint
    assert bool(found.note) == (hint == FP32)


@pytest.mark.parametrize("capabilities", [PLAIN, WITH_BF16, WITH_FP16])
def test_fp32_is_never_shortened(capabilities: tuple[str, ...]) -> None:
    assert arithmetic_for(Precision.FP32, "CPU", capabilities) == settings.Arithmetic(FP32)


def test_fp32_on_a_device_without_it_is_refused() -> None:
    with pytest.raises(PrecisionError, match="NPU cannot compute in FP32, it has EXPORT_IMPORT, FP16, INT8") as refusal:
        arithmetic_for(Precision.FP32, "NPU", WITHOUT_FP32)
    assert "--precision fp16" in refusal.value.remedy


@pytest.mark.parametrize("limited", [True, False])
def test_threads_are_tied_to_processors_only_where_the_machine_is_this_processs(
    monkeypatch: pytest.MonkeyPatch, limited: bool
) -> None:
    monkeypatch.setattr(settings, "engine_threads", lambda asked: Threads(3, "3 cores", limited))
    properties, threads = properties_for(OpenVinoOptions(), FP32)
    assert threads == Threads(3, "3 cores", limited)
    assert properties == {
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": 3,
        "ENABLE_CPU_PINNING": not limited,
    }


def test_a_gpu_is_told_nothing_of_threads_and_several_streams_are_for_throughput() -> None:
    properties, threads = properties_for(OpenVinoOptions(device="GPU.1", streams=4), AS_GRAPH)
    assert threads is None
    assert properties == {"INFERENCE_PRECISION_HINT": "dynamic", "NUM_STREAMS": 4, "PERFORMANCE_HINT": "THROUGHPUT"}


def test_only_an_npu_is_limited_to_fixed_shapes() -> None:
    assert OpenVinoOptions(device="NPU").static_only
    assert not any(OpenVinoOptions(device=name).static_only for name in ("CPU", "GPU", "GPU.1"))
