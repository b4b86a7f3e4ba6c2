"""What OpenVINO sees on this machine: for `gmf-edge doctor`. Raises nothing."""

from __future__ import annotations

from gmf_edge.engines.finding import OK, WARNING, Finding
from gmf_edge.engines.openvino.backend import OpenVinoBackend, openvino_core
from gmf_edge.errors import GmfEdgeError

# of OPTIMIZATION_CAPABILITIES, those that are about arithmetic
_ARITHMETIC = ("FP32", "FP16", "BF16", "INT8")


def openvino_devices() -> tuple[Finding, ...]:
    """A finding a device, with the precisions that it multiplies; none where openvino is not installed."""
    if OpenVinoBackend().missing() is not None:
        return ()
    try:
        core, _ = openvino_core()
        return tuple(_device(core, name) for name in core.available_devices)
    except GmfEdgeError as error:
        return (Finding("OpenVINO", WARNING, error.problem, error.remedy),)


def _device(core: object, name: str) -> Finding:
    try:
        ask = core.get_property  # type: ignore[attr-defined]
        full, capabilities = ask(name, "FULL_DEVICE_NAME"), ask(name, "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:  # a driver that does not answer
        return Finding(f"OpenVINO {name}", WARNING, f"it does not answer: {error}", "update the device's driver")
    known = [precision for precision in _ARITHMETIC if precision in capabilities]
    return Finding(f"OpenVINO {name}", OK, f"{full}, multiplies {', '.join(known)}")
