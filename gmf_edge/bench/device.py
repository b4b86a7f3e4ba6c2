"""State of the GPU while something is measured: clocks, power, temperature, what holds the clocks back, power mode.

nvml     pynvml (the package nvidia-ml-py), where it is installed
smi      nvidia-smi, where it is not
sysfs    a Jetson's: NVML starts there and answers "not supported" to nearly every question, so these files fill its gaps

Sources: nvml.h (bits of nvmlClocksEventReasons), `nvidia-smi --help-query-gpu`, the devfreq, thermal and ina3221 drivers of Jetson Linux.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gmf_edge.engines.tensorrt.cuda import power_mode

FIELDS = (
    "name",
    "sm_clock_mhz",
    "max_sm_clock_mhz",
    "memory_clock_mhz",
    "power_w",
    "temperature_c",
    "performance_state",
    "throttle_reasons",
    "power_mode",
)
# nvml.h, nvmlClocksEventReason* (before driver 535: nvmlClocksThrottleReason*), as nvidia-smi spells them
REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
# an idle GPU, and clocks that somebody has set, are no disturbance
HARMLESS_REASONS = frozenset({"gpu_idle", "applications_clocks_setting", "display_clock_setting"})
# the query as nvidia-smi names it since driver 535, and before
SMI_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
SMI_FIELDS = ("name", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "temperature.gpu", "pstate")
SMI_SECONDS = 20
SYSFS = Path("/sys")
# relative change of a clock between two moments that is more than rounding of the driver's steps
CLOCK_TOLERANCE = 0.03


def device_state() -> Mapping[str, Any] | None:
    """The GPU that this process uses, now; None where there is none to ask.

    Returns:
        FIELDS, each None where it cannot be read: clocks in MHz, power in W (on a Jetson of the rail that feeds the GPU), temperature in
        degrees Celsius, throttle_reasons as a list of REASONS; and "source", which of this module's ways answered.
    """
    driver = {"nvml": _by_nvml()}
    if driver["nvml"] is None:
        driver = {"smi": _by_smi()}
    answers = {source: answer for source, answer in {**driver, "sysfs": _by_sysfs()}.items() if answer is not None}
    state: dict[str, Any] = dict.fromkeys(FIELDS)
    for answer in answers.values():
        state.update({name: value for name, value in answer.items() if state[name] is None})
    return {"source": "+".join(answers), **state} if answers else None


def state_notes(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What makes a measurement between these two states doubtful, one sentence each."""
    if before is None or after is None:
        return ()
    notes = []
    for name, what in (("sm_clock_mhz", "SM clock"), ("memory_clock_mhz", "memory clock")):
        first, last = before[name], after[name]
        if first and last is not None and not abs(last / first - 1) <= CLOCK_TOLERANCE:
            notes.append(
                f"the GPU's {what} went from {first:.0f} to {last:.0f} MHz while this was measured: lock the clocks "
                "(nvidia-smi --lock-gpu-clocks, on a Jetson 'sudo jetson_clocks') and measure again"
            )
    held = [*(before["throttle_reasons"] or ()), *(after["throttle_reasons"] or ())]
    disturbing = [name for name in dict.fromkeys(held) if name not in HARMLESS_REASONS]
    if disturbing:
        notes.append(f"the GPU held its clocks back while this was measured: {', '.join(disturbing)}")
    return tuple(notes)


def reason_names(bits: int) -> list[str]:
    """Names of NVML's bits; an unknown bit is its number."""
    return [REASONS.get(1 << place, hex(1 << place)) for place in range(bits.bit_length()) if bits >> place & 1]


def _by_nvml() -> dict[str, Any] | None:
    with nvml_device() as (ask, device):
        if device is None:
            return None
        import pynvml

        power = ask("nvmlDeviceGetPowerUsage", device)  # milliwatts
        bits = ask("nvmlDeviceGetCurrentClocksEventReasons", device)
        if bits is None:
            bits = ask("nvmlDeviceGetCurrentClocksThrottleReasons", device)
        state = ask("nvmlDeviceGetPerformanceState", device)
        name = ask("nvmlDeviceGetName", device)
        return {
            "name": name.decode() if isinstance(name, bytes) else name,  # bytes before nvidia-ml-py 11.5
            "sm_clock_mhz": ask("nvmlDeviceGetClockInfo", device, pynvml.NVML_CLOCK_SM),
            "max_sm_clock_mhz": ask("nvmlDeviceGetMaxClockInfo", device, pynvml.NVML_CLOCK_SM),
            "memory_clock_mhz": ask("nvmlDeviceGetClockInfo", device, pynvml.NVML_CLOCK_MEM),
            "power_w": None if power is None else power / 1000,
            "temperature_c": ask("nvmlDeviceGetTemperature", device, pynvml.NVML_TEMPERATURE_GPU),
            "performance_state": None if state is None else f"P{state}",
            "throttle_reasons": None if bits is None else reason_names(bits),
        }


@contextlib.contextmanager
def nvml_device() -> Iterator[tuple[Callable[..., Any], Any]]:
    """(ask, device): NVML's handle of the GPU that this process uses, None where there is none.

    ask(function, ...) calls NVML, and is None for what it does not tell.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        yield lambda *_: None, None
        return
    except pynvml.NVMLError:  # no driver, or one without NVML
        yield lambda *_: None, None
        return

    def ask(name: str, *arguments: Any) -> Any:
        """None for what this device or this version does not tell."""
        try:
            return getattr(pynvml, name)(*arguments)
        except (pynvml.NVMLError, AttributeError):
            return None

    try:
        yield ask, _nvml_handle(ask)
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _nvml_handle(ask: Any) -> Any:
    bus_id, chosen = _pci_bus_id(), _visible_device()
    if bus_id is not None:
        return ask("nvmlDeviceGetHandleByPciBusId", bus_id.encode())
    if chosen.isdigit():
        return ask("nvmlDeviceGetHandleByIndex", int(chosen))
    return ask("nvmlDeviceGetHandleByUUID", chosen.encode())


def _by_smi() -> dict[str, Any] | None:
    """One line of nvidia-smi's CSV, such as "NVIDIA H200, 1980, 1980, 3201, 345.12, 44, P0, 0x0000000000000000"."""
    for reasons in SMI_REASONS:
        command = ["nvidia-smi", f"--id={_pci_bus_id() or _visible_device()}"]
        command += [f"--query-gpu={','.join((*SMI_FIELDS, reasons))}", "--format=csv,noheader,nounits"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS)
        except (OSError, subprocess.SubprocessError):
            return None
        parts = [part.strip() for part in answer.stdout.strip().split("\n")[0].split(",")]
        # a field that it does not know ends it with a status and a sentence
        if answer.returncode == 0 and len(parts) == len(SMI_FIELDS) + 1:
            name, sm_clock, max_sm_clock, memory_clock, power, temperature, state, bits = parts
            return {
                "name": _text(name),
                "sm_clock_mhz": _number(sm_clock),
                "max_sm_clock_mhz": _number(max_sm_clock),
                "memory_clock_mhz": _number(memory_clock),
                "power_w": _number(power),
                "temperature_c": _number(temperature),
                "performance_state": _text(state),
                "throttle_reasons": reason_names(int(bits, 16)) if bits.startswith("0x") else None,
            }
    return None


def _by_sysfs() -> dict[str, Any] | None:
    """A Jetson's GPU; None on other machines."""
    # 17000000.gpu (Orin), 17000000.gv11b (Xavier), gpu-gpc-0 (Thor)
    clocks = [path for path in sorted(SYSFS.glob("class/devfreq/*")) if "gpu" in path.name or path.name.endswith("gv11b")]
    if not clocks:
        return None
    hertz, most_hertz = (_number(_content(clocks[0] / name)) for name in ("cur_freq", "max_freq"))
    zones = [zone for zone in sorted(SYSFS.glob("class/thermal/thermal_zone*")) if "gpu" in _content(zone / "type").lower()]
    millidegrees = _number(_content(zones[0] / "temp")) if zones else None
    return {
        "name": None,
        "sm_clock_mhz": None if hertz is None else hertz / 1e6,
        "max_sm_clock_mhz": None if most_hertz is None else most_hertz / 1e6,
        "memory_clock_mhz": None,  # debugfs has it, for root alone
        "power_w": rail_watts(),
        "temperature_c": None if millidegrees is None else millidegrees / 1000,
        "performance_state": None,
        "throttle_reasons": None,
        "power_mode": power_mode() or None,
    }


def rail_watts() -> float | None:
    """Power of a Jetson's rail that feeds the GPU, by the board's ina3221: VDD_GPU_SOC, VDD_CPU_GPU_CV or VDD_GPU."""
    for label in sorted(SYSFS.glob("bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label")):
        if "GPU" in _content(label):
            channel = label.name.removeprefix("in").removesuffix("_label")
            millivolts, milliamperes = (_number(_content(label.with_name(f"{kind}{channel}_input"))) for kind in ("in", "curr"))
            if millivolts is not None and milliamperes is not None:
                return millivolts * milliamperes / 1e6
    return None


def _pci_bus_id() -> str | None:
    """Of the GPU that CUDA runs on here, such as "0000:65:00.0"; None where this process does not use CUDA.

    NVML and nvidia-smi count GPUs otherwise than CUDA does (by bus, and regardless of CUDA_VISIBLE_DEVICES).
    """
    cudart = sys.modules.get("cuda.bindings.runtime") or sys.modules.get("cuda.cudart")
    if cudart is None:
        return None
    try:
        error, index = cudart.cudaGetDevice()
        if int(error):
            return None
        error, bus_id = cudart.cudaDeviceGetPCIBusId(32, index)
    except (RuntimeError, AttributeError, ValueError):  # no driver library
        return None
    # a C string in a buffer of the length asked for
    return None if int(error) else bytes(bus_id).split(b"\0")[0].decode().strip()


def _visible_device() -> str:
    """The first of CUDA_VISIBLE_DEVICES: a number or a UUID."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"


def _content(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # a sensor that is switched off answers with an error
        return ""


def _number(text: str) -> float | None:
    """None for what is no number: "[N/A]", "[Not Supported]", "[Unknown Error]"."""
    try:
        return float(text)
    except ValueError:
        return None


def _text(text: str) -> str | None:
    return None if text.startswith("[") or text == "N/A" else text
