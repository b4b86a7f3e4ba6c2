"""The GPU's state, from stand-ins that answer as nvidia-ml-py, nvidia-smi and a Jetson's files do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gmf_edge.bench import device as module
from gmf_edge.bench.device import FIELDS, device_state, reason_names, state_notes


class FakeNvml(ModuleType):
    """The names, arguments and answers of nvidia-ml-py 12 and 13 (pynvml.py), for one GPU."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        """As there: its value is nvmlReturn_t."""

        def __init__(self, value: int) -> None:
            super().__init__(value)
            self.value = value

    def __init__(self, *, lacking: tuple[str, ...] = (), unsupported: tuple[str, ...] = (), no_driver: bool = False) -> None:
        super().__init__("pynvml")
        self.lacking, self.unsupported, self.no_driver = lacking, unsupported, no_driver
        self.open, self.asked = 0, list[tuple[str, tuple[Any, ...]]]()

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlDeviceGetHandleByIndex": "device",
            "nvmlDeviceGetHandleByPciBusId": "device",
            "nvmlDeviceGetHandleByUUID": "device",
            "nvmlDeviceGetName": "NVIDIA H200",
            "nvmlDeviceGetClockInfo": {1: 1980, 2: 3201},
            "nvmlDeviceGetMaxClockInfo": {1: 1980, 2: 3201},
            "nvmlDeviceGetPowerUsage": 345123,
            "nvmlDeviceGetTemperature": {0: 44},
            "nvmlDeviceGetPerformanceState": 0,
            "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4,
        }
        if name not in answers or name in self.lacking:
            raise AttributeError(name)

        def ask(*arguments: Any) -> Any:
            self.asked.append((name, arguments))
            if name in self.unsupported:
                raise self.NVMLError(3)  # NVML_ERROR_NOT_SUPPORTED
            answer = answers[name]
            return answer[arguments[1]] if isinstance(answer, dict) else answer

        return ask

    def nvmlInit(self) -> None:
        if self.no_driver:
            raise self.NVMLError(12)  # NVML_ERROR_LIBRARY_NOT_FOUND
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No NVML, no nvidia-smi, no Jetson, whatever this machine has."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(module, "SYSFS", tmp_path)
    monkeypatch.setattr(module, "power_mode", lambda: "")

    def absent(*arguments: Any, **options: Any) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(module.subprocess, "run", absent)


def nvml(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> FakeNvml:
    fake = FakeNvml(**settings)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def smi(monkeypatch: pytest.MonkeyPatch, line: str, unknown: tuple[str, ...] = ()) -> list[list[str]]:
    """nvidia-smi that prints this line, and refuses a query with one of these fields as it does."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        (query,) = [word.partition("=")[2] for word in command if word.startswith("--query-gpu=")]
        for field in unknown:
            if field in query.split(","):
                return subprocess.CompletedProcess(command, 2, f'Field "{field}" is not a valid field to query.\n\n', "")
        return subprocess.CompletedProcess(command, 0, line + "\n", "")

    monkeypatch.setattr(module.subprocess, "run", run)
    return commands


def jetson(root: Path, monkeypatch: pytest.MonkeyPatch, gpu: str = "17000000.gpu") -> None:
    files = {
        f"class/devfreq/{gpu}/cur_freq": "1300500000",
        f"class/devfreq/{gpu}/max_freq": "1300500000",
        "class/devfreq/15340000.vic/cur_freq": "729600000",
        "class/thermal/thermal_zone0/type": "cpu-thermal",
        "class/thermal/thermal_zone0/temp": "50031",
        "class/thermal/thermal_zone1/type": "gpu-thermal",
        "class/thermal/thermal_zone1/temp": "47625",
        "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in1_label": "VDD_GPU_SOC",
        "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in1_input": "19976",
        "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr1_input": "512",
        "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in2_label": "VDD_CPU_CV",
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    monkeypatch.setattr(module, "power_mode", lambda: "MAXN")


def test_a_machine_without_a_gpu_has_no_state() -> None:
    assert device_state() is None


def test_nvml_answers_every_field_and_is_shut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = nvml(monkeypatch)
    assert device_state() == {
        "source": "nvml",
        "name": "NVIDIA H200",
        "sm_clock_mhz": 1980,
        "max_sm_clock_mhz": 1980,
        "memory_clock_mhz": 3201,
        "power_w": 345.123,
        "temperature_c": 44,
        "performance_state": "P0",
        "throttle_reasons": ["sw_power_cap"],
        "power_mode": None,
    }
    assert fake.open == 0


def test_an_nvml_without_the_newer_name_is_asked_by_the_older(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(monkeypatch, lacking=("nvmlDeviceGetCurrentClocksEventReasons",))
    state = device_state()
    assert state is not None
    assert state["throttle_reasons"] == ["sw_power_cap"]


def test_a_driver_without_nvml_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(monkeypatch, no_driver=True)
    assert device_state() is None


def test_nvidia_smi_answers_where_there_is_no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = smi(monkeypatch, "NVIDIA H200, 1980, 1980, 3201, 345.12, 44, P0, 0x0000000000000044")
    state = device_state()
    assert state is not None
    assert set(state) == {"source", *FIELDS}
    assert (state["source"], state["sm_clock_mhz"], state["power_w"]) == ("smi", 1980.0, 345.12)
    assert state["throttle_reasons"] == ["sw_power_cap", "hw_thermal_slowdown"]
    assert commands[0][0] == "nvidia-smi"
    assert {"--id=0", "--format=csv,noheader,nounits"} <= set(commands[0])


def test_an_older_nvidia_smi_is_asked_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "Tesla T4, 585, 1590, 5000, 26.80, 41, P0, 0x0000000000000001"
    commands = smi(monkeypatch, line, unknown=("clocks_event_reasons.active",))
    state = device_state()
    assert state is not None
    assert (state["name"], state["throttle_reasons"], len(commands)) == ("Tesla T4", ["gpu_idle"], 2)


def test_what_nvidia_smi_cannot_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    smi(monkeypatch, "Orin (nvgpu), [N/A], [N/A], [N/A], [N/A], [Not Supported], [N/A], [N/A]")
    state = device_state()
    assert state is not None
    assert {name for name in FIELDS if state[name] is not None} == {"name"}


def test_an_nvidia_smi_without_a_driver_is_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    monkeypatch.setattr(module.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess([], 9, sentence, ""))
    assert device_state() is None


def test_a_jetsons_files_fill_what_nvml_does_not_support(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # as on Orin: NVML starts, knows the name, and supports nothing else
    questions = ("ClockInfo", "MaxClockInfo", "PowerUsage", "Temperature", "PerformanceState")
    reasons = ("CurrentClocksEventReasons", "CurrentClocksThrottleReasons")
    nvml(monkeypatch, unsupported=tuple(f"nvmlDeviceGet{name}" for name in (*questions, *reasons)))
    jetson(tmp_path, monkeypatch)
    assert device_state() == {
        "source": "nvml+sysfs",
        "name": "NVIDIA H200",
        "sm_clock_mhz": 1300.5,
        "max_sm_clock_mhz": 1300.5,
        "memory_clock_mhz": None,
        "power_w": pytest.approx(19.976 * 0.512),
        "temperature_c": 47.625,
        "performance_state": None,
        "throttle_reasons": None,
        "power_mode": "MAXN",
    }


@pytest.mark.parametrize("gpu", ["17000000.gpu", "17000000.gv11b", "gpu-gpc-0"])
def test_a_jetson_without_nvml_is_read_from_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu: str) -> None:
    jetson(tmp_path, monkeypatch, gpu)
    state = device_state()
    assert state is not None
    assert (state["source"], state["sm_clock_mhz"], state["power_mode"]) == ("sysfs", 1300.5, "MAXN")


@pytest.mark.parametrize(
    ("visible", "function", "argument"),
    [("3,1", "nvmlDeviceGetHandleByIndex", 3), ("GPU-b9f9e81b", "nvmlDeviceGetHandleByUUID", b"GPU-b9f9e81b")],
)
def test_the_visible_gpu_is_asked(monkeypatch: pytest.MonkeyPatch, visible: str, function: str, argument: Any) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    fake = nvml(monkeypatch)
    device_state()
    assert fake.asked[0] == (function, (argument,))


def test_the_gpu_that_cuda_runs_on_is_asked_by_its_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    # cuda.bindings: the buffer of the asked length, with the C string and what was behind it
    cudart = SimpleNamespace(
        cudaGetDevice=lambda: (0, 1), cudaDeviceGetPCIBusId=lambda length, index: (0, b"0000:65:00.0\0".ljust(length))
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cudart)  # type: ignore[arg-type]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    fake = nvml(monkeypatch)
    device_state()
    assert fake.asked[0] == ("nvmlDeviceGetHandleByPciBusId", (b"0000:65:00.0",))


def test_unknown_bits_are_named_by_their_number() -> None:
    assert reason_names(0x1 | 0x20 | 0x8000) == ["gpu_idle", "sw_thermal_slowdown", "0x8000"]
    assert reason_names(0) == []


STEADY = {"sm_clock_mhz": 1980.0, "memory_clock_mhz": 3201.0, "throttle_reasons": ["applications_clocks_setting"]}


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({}, []),
        ({"sm_clock_mhz": 1965.0}, []),
        ({"sm_clock_mhz": 1410.0}, ["SM clock went from 1980 to 1410 MHz"]),
        ({"memory_clock_mhz": 2619.0}, ["memory clock went from 3201 to 2619 MHz"]),
        ({"throttle_reasons": ["gpu_idle"]}, []),
        ({"throttle_reasons": ["sw_power_cap", "hw_slowdown"]}, ["sw_power_cap, hw_slowdown"]),
        ({"sm_clock_mhz": None, "throttle_reasons": None}, []),
    ],
)
def test_clocks_that_moved_and_throttling_are_noted(after: dict[str, Any], words: list[str]) -> None:
    notes = state_notes(STEADY, {**STEADY, **after})
    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words, notes, strict=True))


def test_no_state_has_no_notes() -> None:
    assert state_notes(None, None) == state_notes(STEADY, None) == ()


def test_the_stand_in_has_the_names_of_the_real_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pynvml")
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    fake = nvml(monkeypatch)
    device_state()
    names = {name for name, _ in fake.asked} | {
        "nvmlInit",
        "nvmlShutdown",
        "NVML_CLOCK_SM",
        "NVML_CLOCK_MEM",
        "NVML_TEMPERATURE_GPU",
    }
    assert {name for name in names if not hasattr(real, name)} == set()
    assert (real.NVML_CLOCK_SM, real.NVML_CLOCK_MEM, real.NVML_TEMPERATURE_GPU) == (1, 2, 0)
    for bit, name in module.REASONS.items():
        spelled = "nvmlClocksThrottleReason" + "".join(word.capitalize() for word in name.split("_"))
        assert getattr(real, spelled, bit) == bit
