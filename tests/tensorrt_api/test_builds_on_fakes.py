"""Builds end well, on each version's API: what is repeated, what is not, what is kept, and what can never stop a build."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trt_bindings
from trt_fake import FakeModel
from trt_machine import MakeMachine

from gmf_edge.engines.tensorrt.backend import TensorRTBackend
from gmf_edge.engines.tensorrt.log import BuildLog, process_logger
from gmf_edge.engines.tensorrt.progress import BuildProgress
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.errors import EngineError, EnvironmentProblem
from gmf_edge.spec import BatchProfile, Precision

every_version = pytest.mark.parametrize("version", trt_bindings.VERSIONS)
with_monitor = pytest.mark.parametrize("version", [version for version in trt_bindings.VERSIONS if not version.startswith("8.")])
OUT_OF_MEMORY = "Error Code 1: Cuda Runtime (out of memory)"


@pytest.fixture
def switching_often() -> Iterator[None]:
    """Threads take turns as often as Python allows."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("switching_often")
def test_four_threads_of_progress_never_stop_a_build() -> None:
    progress = BuildProgress(lambda fraction, message: None)
    progress.phase_start("Building Engine", None, 4)
    failures: list[str] = []

    def tell(thread: int) -> None:
        try:
            for turn in range(600):
                name = f"phase {thread}/{turn}"
                progress.phase_start(name, "Building Engine", 3)
                for step in range(3):
                    if not progress.step_complete(name, step):
                        failures.append("stopped")
                        return
                progress.phase_finish(name)
        except Exception as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert progress.stopped_by is None
    assert set(progress.phases) == {"Building Engine"}


@with_monitor
@pytest.mark.usefixtures("switching_often")
def test_a_builder_that_tells_its_progress_from_many_threads_gives_an_engine(make: MakeMachine, version: str) -> None:
    phases = [("Building Engine", None, 3), *((f"tactics {number}", "Building Engine", 20) for number in range(20))]
    machine = make(version, FakeModel(progress_threads=4, progress_phases=phases))
    assert "engine.plan" in machine.build()


def test_phases_that_contain_themselves_are_no_reason_to_stop() -> None:
    progress = BuildProgress(lambda fraction, message: None)
    progress.phase_start("top", None, 2)
    progress.phase_start("a", "a", 3)
    progress.phase_start("b", "c", 3)
    progress.phase_start("c", "b", 3)
    assert all(progress.step_complete(name, 1) for name in ("top", "a", "b", "c"))


@with_monitor
def test_a_mistake_in_the_progress_is_no_reason_to_stop(make: MakeMachine, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: BuildProgress, name: str, step: int) -> bool:
        raise KeyError(name)

    monkeypatch.setattr(BuildProgress, "step_complete", fails)
    assert "engine.plan" in make(version).build()


@every_version
def test_running_out_of_memory_is_repeated_twice_at_most(make: MakeMachine, version: str) -> None:
    machine = make(version, FakeModel(build_failures=[OUT_OF_MEMORY] * 9))
    with pytest.raises(EngineError, match="even with a workspace of 1024 MiB"):
        machine.build(options={"workspace_mib": 16384})
    assert [config._pools["WORKSPACE"] >> 20 for config in machine.trt.configs] == [16384, 4096, 1024]


@every_version
@pytest.mark.parametrize(
    "messages",
    [
        # a tactic that did not fit is dropped; the build failed for another reason
        [("WARNING", "Out of memory error while finding fastest tactic for conv"), ("ERROR", "Error Code 10: Internal Error")],
        [("ERROR", OUT_OF_MEMORY), *[("ERROR", f"Error Code 4: something else {number}") for number in range(4)]],
        # less workspace cannot help what needs more
        [("ERROR", "OutOfMemory"), ("ERROR", "Could not find any implementation for node x due to insufficient workspace.")],
    ],
)
def test_other_failures_are_not_repeated(make: MakeMachine, version: str, messages: list[tuple[str, str]]) -> None:
    machine = make(version, FakeModel(build_failures=[messages]))
    with pytest.raises(EngineError, match="could not build"):
        machine.build(options={"workspace_mib": 4096})
    assert len(machine.trt.configs) == 1
    assert not list(machine.out.iterdir())


@every_version
def test_an_attempt_starts_from_the_kernel_times_of_the_one_before(make: MakeMachine, version: str) -> None:
    machine = make(version, FakeModel(build_failures=[OUT_OF_MEMORY]))
    machine.build(options={"timing_cache": "", "workspace_mib": 1024})
    assert machine.calls("IBuilderConfig.create_timing_cache") == [(b"",), (b"timings",)]


PINNED = [
    ("CAST", "to fp32", ["images"], ["f0"], {"to_type": "FLOAT"}),
    ("SOFTMAX", "softmax", ["f0"], ["f1"], {}),
    ("SHUFFLE", "transpose", ["f1"], ["f2"], {}),
    ("SLICE", "half", ["f2"], ["f3"], {}),
    ("CONCATENATION", "both", ["f3", "f3"], ["f4"], {}),
    ("GATHER", "row", ["f4", "f4"], ["f5"], {}),
    ("ELEMENTWISE", "product", ["f5", "f5"], ["logits"], {}),
]


def test_islands_that_cannot_be_obeyed_become_a_preference_and_are_noted(make: MakeMachine) -> None:
    machine = make("8.6.1", FakeModel(layers=PINNED, precision="int8", unobeyable=True))
    machine.build(precision=Precision.INT8, profile=BatchProfile(2, 2, 2), fp32_islands=("product", "softmax"))
    first, second = machine.trt.configs
    assert "OBEY_PRECISION_CONSTRAINTS" in first._flags
    assert "PREFER_PRECISION_CONSTRAINTS" in second._flags
    assert "OBEY_PRECISION_CONSTRAINTS" not in second._flags
    [note] = [note for note in machine.sidecar["notes"] if "as a preference" in note]
    assert "parity" in note


def test_layers_that_move_data_are_never_pinned(make: MakeMachine) -> None:
    machine = make("8.6.1", FakeModel(layers=PINNED))
    machine.build(fp32_islands=tuple(name for _, name, *_ in PINNED))
    assert {layer.name for layer in machine.trt.networks[0]._layers if layer._output_types} == {"softmax", "product"}


@every_version
def test_a_timing_cache_in_a_new_folder_is_made_before_the_build(make: MakeMachine, version: str, tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "t.cache"
    make(version).build(options={"timing_cache": str(path)})
    assert path.read_bytes() == b"timings"
    assert [found.name for found in path.parent.iterdir()] == ["t.cache"]


@every_version
def test_a_place_that_cannot_hold_a_timing_cache_is_refused_before_the_build(
    make: MakeMachine, version: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    machine = make(version)
    with pytest.raises(EnvironmentProblem, match=r"t\.cache"):
        machine.build(options={"timing_cache": str(tmp_path / "file" / "t.cache")})
    assert not machine.trt.configs
    with pytest.raises(EnvironmentProblem, match="folder"):
        machine.build(options={"timing_cache": str(tmp_path)})


def test_kernel_times_that_cannot_be_written_cost_no_engine(
    make: MakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise EnvironmentProblem(f"cannot write {path}: No space left on device", "free some")

    monkeypatch.setattr("gmf_edge.engines.tensorrt.build.write_atomically", full)
    machine = make("10.3.0")
    assert "engine.plan" in machine.build(options={"timing_cache": str(tmp_path / "t.cache")})
    assert any("No space left on device" in note for note in machine.sidecar["notes"])


@with_monitor
@pytest.mark.parametrize("core", [0, 1])
def test_a_strongly_typed_build_for_the_dla_has_no_precision_flags(make: MakeMachine, version: str, core: int) -> None:
    if not TensorRTVersion.of(version).supports_dla:
        pytest.skip("this version has no DLA")
    machine = make(version)
    machine.trt.types["Builder"].num_DLA_cores = property(lambda owner: 2)
    machine.build(options={"dla_core": core}, profile=BatchProfile(2, 2, 2))
    [config] = machine.trt.configs
    assert (config.default_device_type.name, config.DLA_core) == ("DLA", core)
    assert "GPU_FALLBACK" in config._flags
    assert not {"PREFER_PRECISION_CONSTRAINTS", "OBEY_PRECISION_CONSTRAINTS", "FP16", "INT8"} & config._flags


def test_a_weakly_typed_build_for_the_dla_has_one_word_on_pinned_layers(make: MakeMachine) -> None:
    """NvInfer.h of 8.6, kOBEY_PRECISION_CONSTRAINTS: not with kPREFER_PRECISION_CONSTRAINTS."""
    machine = make("8.6.1", FakeModel(layers=PINNED))
    machine.trt.types["Builder"].num_DLA_cores = property(lambda owner: 1)
    machine.build(options={"dla_core": 0}, profile=BatchProfile(2, 2, 2), fp32_islands=("softmax",))
    [config] = machine.trt.configs
    assert config.default_device_type.name == "DLA"
    assert {flag for flag in config._flags if "CONSTRAINTS" in flag} == {"OBEY_PRECISION_CONSTRAINTS"}


@pytest.mark.parametrize(("version", "is_told"), [("11.0.0", True), ("11.3.0", True), ("11.4.0.106", False)])
def test_refittable_engines_of_11_0_to_11_3_are_warned_of(make: MakeMachine, version: str, is_told: bool) -> None:
    machine = make("11.4.0.106")
    machine.trt.__version__ = version
    machine.build(options={"refit": True})
    assert any("may compute wrong numbers in refittable engines" in note for note in machine.sidecar["notes"]) is is_told


@every_version
def test_all_builds_and_engines_of_a_process_share_one_logger(make: MakeMachine, version: str) -> None:
    machine = make(version)
    files = machine.build()
    with machine.open(files), machine.open(files):
        pass
    loggers = {id(logger) for logger in machine.trt.loggers}
    assert loggers == {id(process_logger(machine.trt))}


@every_version
def test_messages_go_to_the_log_that_listens(make: MakeMachine, version: str) -> None:
    machine = make(version)
    severity = machine.trt.types["ILogger.Severity"]
    first, second = BuildLog(), BuildLog()
    logger = process_logger(machine.trt)
    logger.log(severity.ERROR, "of the second")
    first.listen()
    logger.log(severity.WARNING, "of the first")
    logger.log(severity.WARNING, "of the first")
    logger.log(severity.INFO, "of nobody")
    assert (first.errors, first.warnings, second.errors, second.warnings) == ([], ["of the first"], ["of the second"], [])


def test_an_interrupt_that_tensorrt_swallows_is_raised_after_the_build(make: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    # 8.6 has no progress monitor: Ctrl-C lands in the logger, whose exceptions the bindings only print
    machine = make("8.6.1")

    class Interrupting(list[str]):
        def append(self, message: str) -> None:
            raise KeyboardInterrupt

    def build(builder: Any, network: Any, config: Any) -> Any:
        severity = machine.trt.types["ILogger.Severity"]
        from gmf_edge.engines.tensorrt import log

        log._listening[0].errors = Interrupting()
        builder._logger.log(severity.ERROR, "any message")
        return usual(builder, network, config)

    usual = machine.trt.behaviours["Builder.build_serialized_network"]
    machine.trt.behaviours["Builder.build_serialized_network"] = build
    with pytest.raises(KeyboardInterrupt):
        TensorRTBackend().build(machine.request, machine.out)
    assert not list(machine.out.iterdir())


def test_8_6_says_that_int8_wants_one_batch_size(make: MakeMachine) -> None:
    machine = make("8.6.1", FakeModel(precision="int8"))
    machine.build(precision=Precision.INT8)
    assert any("same value for the fastest INT8" in note for note in machine.sidecar["notes"])
    machine.build(precision=Precision.INT8, profile=BatchProfile(2, 2, 2))
    assert not any("same value for the fastest INT8" in note for note in machine.sidecar["notes"])
