"""Which backend runs here, and why; a fallback is always said."""

from __future__ import annotations

from gmf_edge.engines.onnxruntime import OnnxRuntimeBackend
from gmf_edge.engines.openvino.backend import OpenVinoBackend
from gmf_edge.engines.protocol import Backend
from gmf_edge.engines.tensorrt.backend import TensorRTBackend
from gmf_edge.errors import EnvironmentProblem, SpecError

# in order of preference: a GPU that can be used is what the user came for
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


def choose_backend(wanted: str, *, to_build: bool = False) -> tuple[Backend, str]:
    """The backend to use and the sentence that says why.

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
