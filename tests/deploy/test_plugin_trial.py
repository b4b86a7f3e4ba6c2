"""The plugin is tried in a process of its own: whatever it does there, the engine without it is delivered, and the report says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
sys.path.append(str(Path(__file__).parent))

from plugin_backend import BUILDS, PluginBackend

import gmf_edge
from gmf_edge.bundle import open_bundle
from gmf_edge.deploy import build, plugin_trial
from gmf_edge.deploy.plugin_trial import ANSWER, JOB, TrialJob, without_plugin
from gmf_edge.engines.protocol import EngineRequest, Graphs
from gmf_edge.errors import EngineError
from gmf_edge.spec import GATES, BatchProfile, Precision

pytestmark = pytest.mark.usefixtures("brief_latency")
CHILD = (sys.executable, str(Path(__file__).with_name("plugin_backend.py")))


class Machine:
    """A bundle to deploy with a plugin of some behaviour."""

    def __init__(self, folder: Path, builds: Path, library: Path) -> None:
        self.folder, self.builds_log, self.library = folder, builds, library
        self.said: list[str] = []

    def deploy(self, behaviour: str, **settings: Any) -> gmf_edge.Result:
        self.library.write_text(behaviour)
        options: Mapping[str, Any] = {"plugin_library": str(self.library)}
        return gmf_edge.deploy_bundle(self.folder, options=options, progress=lambda _, what: self.said.append(what), **settings)

    @property
    def engine(self) -> list[str]:
        """(form, behaviour, process id) of the delivered engine."""
        return (self.folder / "engine.plan").read_text().split()

    @property
    def builds(self) -> list[list[str]]:
        """(form, process id) of each build, in their order."""
        return [line.split() for line in self.builds_log.read_text().splitlines()]


@pytest.fixture
def machine(copied: Callable[[Path], Path], pico_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(plugin_trial, "COMMAND", CHILD)
    monkeypatch.setattr("gmf_edge.deploy.backends_in_question", lambda wanted: ([PluginBackend()], "the test's"))
    monkeypatch.setenv(BUILDS, str(tmp_path / "builds.txt"))
    return Machine(copied(pico_export), tmp_path / "builds.txt", tmp_path / "plugin.so")


def assert_portable_was_delivered(machine: Machine, result: gmf_edge.Result, *words: str) -> None:
    """By the one build of it, in this process; the reason has the words."""
    assert result.passed, result.reason
    assert result.report["engine"]["form"] == "portable"
    assert machine.engine == ["portable", "portable", str(os.getpid())]
    assert [form for form, _ in machine.builds] == ["portable", "plugin"]
    plugin = result.report["plugin"]
    assert plugin["accepted"] is False
    assert all(word in plugin["reason"] for word in words), plugin["reason"]
    assert any(plugin["reason"] in said for said in machine.said)
    assert open_bundle(machine.folder).manifest.engine_files == ("engine.plan", "engine.plan.json")
    assert [path.name for path in machine.folder.parent.iterdir() if path.name.startswith(".")] == []


def test_a_plugin_engine_that_is_right_and_faster_is_delivered_as_it_was_timed(machine: Machine) -> None:
    result = machine.deploy("faster")
    assert result.passed
    assert result.report["engine"]["form"] == "plugin", json.dumps(result.report["plugin"], indent=1)
    assert result.report["plugin"]["accepted"] is True
    assert result.report["plugin"]["batches"]["1"]["speedup"] > 1.02
    (_, _), (form, process) = machine.builds
    assert (form, machine.engine) == ("plugin", ["plugin", "faster", process])
    assert int(process) != os.getpid()
    assert open_bundle(machine.folder).report == json.loads(json.dumps(result.report))


def test_a_slower_one_is_not_and_the_engine_without_it_is_built_once(machine: Machine) -> None:
    result = machine.deploy("slower")
    assert_portable_was_delivered(machine, result, "not worth it", "the engine without it stays")


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("wrong", ("the plugin engine is wrong at batch 1",)),
        ("refused", ("it failed: no layer runs in FP16; look at the layers",)),
        pytest.param("surprising", ("ended with status 1", "building the plugin engine"), marks=pytest.mark.slow),
        ("segfault", ("ended by SIGSEGV", "building the plugin engine")),
        pytest.param("abort", ("ended by SIGABRT", "building the plugin engine"), marks=pytest.mark.slow),
        pytest.param("illegal", ("ended by SIGSEGV",), marks=pytest.mark.slow),
    ],
)
def test_whatever_it_does_the_engine_without_it_is_delivered(machine: Machine, behaviour: str, words: tuple[str, ...]) -> None:
    result = machine.deploy(behaviour)
    assert_portable_was_delivered(machine, result, *words)
    if behaviour == "surprising":
        assert result.report["plugin"]["log"][-1] == "ZeroDivisionError: division by zero"


def test_one_that_hangs_is_stopped_and_its_process_is_gone(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "LIMIT_S", 6.0)
    monkeypatch.setattr(build, "LIMIT_BUILDS", 0.0)
    result = machine.deploy("hanging")
    assert_portable_was_delivered(machine, result, "did not end within 0.1 minutes and was stopped")
    with pytest.raises(ProcessLookupError):
        os.kill(int(machine.builds[1][1]), 0)


def test_one_that_fails_only_afterwards_gives_way_too(machine: Machine) -> None:
    result = machine.deploy("fails-later")
    assert_portable_was_delivered(machine, result, "the GPU fell off the bus")


def test_a_library_that_is_not_there_is_an_error_before_anything_is_built(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"absent\.so is missing"):
        gmf_edge.deploy_bundle(machine.folder, options={"plugin_library": str(tmp_path / "absent.so")})
    assert not machine.builds_log.exists()


def test_without_a_plugin_no_process_is_started(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_trial.subprocess, "Popen", lambda *a, **k: pytest.fail("a process was started"))
    assert gmf_edge.deploy_bundle(machine.folder).report["plugin"] is None


def test_a_child_that_cannot_be_started_is_a_reason_too(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plugin_trial, "COMMAND", (str(tmp_path / "no-python"),))
    result = machine.deploy("faster")
    assert (result.passed, result.report["engine"]["form"]) == (True, "portable")
    assert "could not be started (No such file or directory)" in result.report["plugin"]["reason"]


def test_an_interruption_ends_the_child(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(fraction: float | None, message: str) -> None:
        if message == "plugin: building the plugin engine":
            raise KeyboardInterrupt

    machine.library.write_text("hanging")
    with pytest.raises(KeyboardInterrupt):
        gmf_edge.deploy_bundle(machine.folder, options={"plugin_library": str(machine.library)}, progress=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(machine.builds[1][1]), 0)


def test_the_child_ends_when_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    waiting = "import time; from gmf_edge.deploy import plugin_process as p; p.plugin_answer = lambda *a: time.sleep(600)"
    (tmp_path / JOB).write_text(json.dumps(job(tmp_path).to_json()))
    environment = {**os.environ, "PYTHONPATH": str(Path(gmf_edge.__file__).parents[1])}
    child = subprocess.Popen([sys.executable, "-c", f"{waiting}; p.main(['{tmp_path}'])"], stdin=subprocess.PIPE, env=environment)
    time.sleep(0.2)
    assert child.poll() is None
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(60) == 1
    assert not (tmp_path / ANSWER).exists()


def job(folder: Path) -> TrialJob:
    request = EngineRequest(
        graphs=Graphs(folder, {("portable", 20): "portable.onnx", ("plugin", 17): "plugin-opset17.onnx"}),
        precision=Precision.INT8,
        profile=BatchProfile(1, 2, 4),
        image_size=(96, 64),
        fp32_islands=("head/Gemm",),
        quantised_layers=("qkv/MatMul",),
        options={"plugin_library": "lib.so", "workspace_mib": 64},
    )
    return TrialJob("tensorrt", request, folder / "a", ("engine.plan",), folder / "golden.npz", GATES[Precision.INT8], folder / "b")


def test_a_job_survives_its_file(tmp_path: Path) -> None:
    before = job(tmp_path)
    assert TrialJob.from_json(json.loads(json.dumps(before.to_json()))) == before


def test_a_request_without_the_plugin_keeps_everything_else(tmp_path: Path) -> None:
    request = job(tmp_path).request
    portable = without_plugin(request)
    assert (portable.use_plugin, portable.options) == (False, {"workspace_mib": 64})
    assert (portable.graphs, portable.quantised_layers) == (request.graphs, request.quantised_layers)
