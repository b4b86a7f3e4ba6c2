"""The smoke test of CUDA: what a machine must do before an engine, each step by its name where it fails, nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trt_machine import Machine, MakeMachine

from gmf_edge.engines.finding import MISSING, OK, Finding
from gmf_edge.engines.tensorrt.build import BuildLog
from gmf_edge.engines.tensorrt.doctor import diagnose
from gmf_edge.engines.tensorrt.log import process_logger, recorded
from gmf_edge.engines.tensorrt.smoke import STEPS, smoke_test


@pytest.fixture
def machine(make: MakeMachine) -> Machine:
    return make("10.3.0")


def at_work() -> Finding:
    [found] = [finding for finding in diagnose() if finding.subject == "CUDA at work"]
    return found


def left_on(machine: Machine) -> list[object]:
    return [machine.cuda.memory, machine.cuda.streams, machine.cuda.events, machine.cuda.graphs]


def test_every_step_is_done_and_nothing_is_left(machine: Machine) -> None:
    done: list[str] = []
    assert smoke_test(done.append) > 0
    assert tuple(done) == STEPS
    assert [machine.cuda.log.count(name) for name in ("capture", "instantiate", "launch")] == [1, 1, 1]
    assert left_on(machine) == [{}] * 4
    assert at_work().state == OK


@pytest.mark.parametrize(
    ("function", "step"),
    [
        ("cudaMalloc", "allocate"),
        ("cudaMallocHost", "pin"),
        ("cudaMemcpyAsync", "copy"),
        ("cudaEventRecord", "event"),
        ("cudaStreamBeginCapture", "capture"),
        ("cudaGraphLaunch", "launch"),
    ],
)
@pytest.mark.parametrize("how", ["code", "symbol"])
def test_the_step_that_fails_is_named_with_a_remedy(machine: Machine, function: str, step: str, how: str) -> None:
    def fails(*arguments: Any) -> Any:
        if how == "symbol":
            raise RuntimeError(f'Function "{function}" not found')
        return (801, None)  # cudaErrorNotSupported

    setattr(machine.cuda, function, fails)
    found = at_work()
    assert found.state == MISSING
    assert found.detail.startswith(f"{step}: ")
    assert function in found.detail
    assert left_on(machine) == [{}] * 4


def test_bytes_that_do_not_arrive_are_found(machine: Machine) -> None:
    copy = machine.cuda.cudaMemcpyAsync
    to_host = machine.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
    machine.cuda.cudaMemcpyAsync = lambda dst, src, count, kind, handle: copy(  # type: ignore[method-assign]
        dst, src, count - 4 if kind == to_host else count, kind, handle
    )
    found = at_work()
    assert (found.state, found.detail) == (MISSING, "copy: a copy to the GPU and back brought back other bytes than it was given")


def test_without_a_gpu_no_smoke_test_is_made(make: MakeMachine) -> None:
    make("10.3.0", device_error=100)
    assert not [finding for finding in diagnose() if finding.subject == "CUDA at work"]


def test_tensorrts_messages_can_be_recorded(machine: Machine, tmp_path: Path) -> None:
    log, severity = BuildLog(), machine.trt.types["ILogger.Severity"]
    logger = process_logger(machine.trt)
    with recorded(tmp_path / "some.log"), recorded(tmp_path / "all.log", verbose=True):
        for kind in ("VERBOSE", "INFO", "WARNING", "ERROR"):
            logger.log(severity[kind], f"a message of {kind}")
            # it is on the disk before the next one comes: the process may end any time
            assert f"{kind} a message of {kind}" in (tmp_path / "all.log").read_text()
    logger.log(severity.ERROR, "too late")
    assert [line.split(" ", 1)[1] for line in (tmp_path / "some.log").read_text().splitlines()] == [
        f"{kind} a message of {kind}" for kind in ("INFO", "WARNING", "ERROR")
    ]
    assert log.errors == ["a message of ERROR", "too late"]
