"""Which backends can run a bundle here, and why; a fallback is always said.

A GPU with TensorRT is what the user came for, and no CPU comes near it. Among CPU engines no name is the faster one: which of them is
delivered is measured (deploy.choice), and this file says which of them come into question.
"""

from __future__ import annotations

from collections.abc import Sequence

from gmf_edge.engines.onnxruntime import OnnxRuntimeBackend
from gmf_edge.engines.openvino.backend import OpenVinoBackend
from gmf_edge.engines.protocol import Backend, BackendWithAlternatives, EngineRequest
from gmf_edge.engines.tensorrt.backend import TensorRTBackend
from gmf_edge.errors import EnvironmentProblem, SpecError

# in order of preference, where no speed was measured
BACKENDS: tuple[type[Backend], ...] = (TensorRTBackend, OnnxRuntimeBackend, OpenVinoBackend)


def backend_named(name: str) -> Backend:
    """The backend of that name, usable or not.

    Raises:
        SpecError: there is no such backend.
    """
    for kind in BACKENDS:
        if kind.name == name:
            return kind()
    raise SpecError(f"unknown backend {name!r}", f"use auto, {', '.join(kind.name for kind in BACKENDS)}")


def backends_in_question(wanted: str) -> tuple[Sequence[Backend], str]:
    """The backends of which the fastest is to be delivered, and the sentence that says why these.

    Args:
        wanted: "auto", or a backend's name.

    Raises:
        EnvironmentProblem, SpecError: see choose_backend.
    """
    first, why = choose_backend(wanted, to_build=True)
    if wanted != "auto" or isinstance(first, TensorRTBackend):
        return [first], why
    behind = [kind() for kind in BACKENDS[BACKENDS.index(type(first)) + 1 :]]
    usable = [first, *(backend for backend in behind if backend.missing_to_build() is None)]
    return usable, " and ".join(backend.name for backend in usable) + why.removeprefix(first.name)


def requests_in_question(backend: Backend, request: EngineRequest) -> tuple[EngineRequest, ...]:
    """The request, and others that meet it in another way and may be the better ones here."""
    return backend.alternatives(request) if isinstance(backend, BackendWithAlternatives) else (request,)


def choose_backend(wanted: str, *, to_build: bool = False) -> tuple[Backend, str]:
    """The backend to use, by name and not by speed, and the sentence that says why.

    Args:
        wanted: "auto", or a backend's name.
        to_build: whether it has to build an engine, and not only to run one.

    Raises:
        EnvironmentProblem: the wanted backend, or with "auto" every backend, cannot be used here.
        SpecError: there is no such backend.
    """
    if wanted != "auto":
        backend = backend_named(wanted)
        missing = backend.missing_to_build() if to_build else backend.missing()
        if missing is not None:
            raise EnvironmentProblem(f"backend {wanted} cannot be used: {missing}", "run 'gmf-edge doctor', or use --backend auto")
        return backend, f"{wanted}, as asked"
    reasons: list[str] = []
    for kind in BACKENDS:
        backend = kind()
        missing = backend.missing_to_build() if to_build else backend.missing()
        if missing is None:
            because = f" ({'; '.join(reasons)})" if reasons else ""
            return backend, f"{backend.name}{because}"
        reasons.append(f"not {backend.name}: {missing}")
    raise EnvironmentProblem("no backend can be used: " + "; ".join(reasons), "pip install 'gmf-edge[onnxruntime]'")
