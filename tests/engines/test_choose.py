"""The choice of a backend: a GPU first, a fallback with its reasons, and never silently something else than what was asked."""

from __future__ import annotations

import importlib.util

import pytest

from gmf_edge.engines import choose
from gmf_edge.engines.choose import BACKENDS, backend_named, choose_backend
from gmf_edge.engines.onnxruntime import OnnxRuntimeBackend
from gmf_edge.engines.openvino.backend import OpenVinoBackend
from gmf_edge.engines.tensorrt.backend import TensorRTBackend
from gmf_edge.errors import EnvironmentProblem, SpecError


@pytest.fixture
def without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorRTBackend, "missing", lambda self: "no GPU")


@pytest.fixture
def without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntimeBackend, "missing", lambda self: "not installed")


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVinoBackend, "missing", lambda self: "not here")


def test_tensorrt_is_preferred_where_it_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorRTBackend, "missing", lambda self: None)
    backend, why = choose_backend("auto")
    assert (backend.name, why) == ("tensorrt", "tensorrt")


@pytest.mark.usefixtures("without_tensorrt")
def test_a_fallback_says_what_it_falls_back_from_and_why() -> None:
    backend, why = choose_backend("auto")
    assert backend.name == "onnxruntime"
    assert "not tensorrt: no GPU" in why


@pytest.mark.usefixtures("without_tensorrt")
def test_a_backend_that_was_asked_for_is_not_replaced_by_another() -> None:
    with pytest.raises(EnvironmentProblem, match="tensorrt cannot be used: no GPU") as refusal:
        choose_backend("tensorrt")
    assert refusal.value.exit_status == 4
    assert "doctor" in refusal.value.remedy


def test_what_was_asked_for_is_chosen_and_said() -> None:
    backend, why = choose_backend("onnxruntime")
    assert backend.name == "onnxruntime"
    assert "as asked" in why


@pytest.mark.usefixtures("without_tensorrt", "without_onnxruntime", "without_openvino")
def test_where_nothing_can_be_used_every_reason_is_given() -> None:
    with pytest.raises(EnvironmentProblem, match=r"not tensorrt: no GPU; not onnxruntime: not installed; not openvino: not here"):
        choose_backend("auto")


@pytest.mark.parametrize("call", [choose_backend, backend_named])
def test_an_unknown_backend_is_refused_with_the_known_ones(call: object) -> None:
    with pytest.raises(SpecError, match=r"'cuda'; use auto, tensorrt, onnxruntime, openvino"):
        call("cuda")  # type: ignore[operator]


def test_a_backend_is_found_by_name_usable_or_not() -> None:
    assert [type(backend_named(kind.name)) for kind in BACKENDS] == list(choose.BACKENDS)


def test_asking_what_is_missing_never_raises() -> None:
    for kind in BACKENDS:
        missing = kind().missing()
        assert missing is None or missing.strip()


def test_onnxruntime_is_missing_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert OnnxRuntimeBackend().missing() == "the package onnxruntime is not installed"
