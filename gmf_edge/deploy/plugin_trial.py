"""Is the engine with the plugin right, and worth it? Asked in a process of its own: nothing that the plugin does there is lost here.

A kernel's illegal access takes the CUDA context of its whole process, an abort or a segmentation fault the process itself, and a
kernel that hangs never returns. So a child (plugin_process) builds the plugin engine, runs it, proves it against FP32 PyTorch's logits
and times it against the engine without the plugin, which lies finished on the disk by then. The child is given a job in a file and
leaves its answer in another.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gmf_edge
from gmf_edge.bench.compare import refused
from gmf_edge.engines.protocol import EngineRequest, Graphs, Progress
from gmf_edge.spec import BatchProfile, Gate, MapGate, Precision, SizeRange, Task

COMMAND = (sys.executable or "python3", "-m", "gmf_edge.deploy.plugin_process")
# a library that has to travel must be worth it
PLUGIN_MARGIN = 1.02
NAMES = ("the plugin engine", "the engine without it")
# a build with another set of layers, from cold kernel times, and the comparison
LIMIT_S, LIMIT_BUILDS = 1800.0, 5.0
POLL_S = 0.1
LOG_LINES = 20
JOB, ANSWER, PROGRESS, LOG = "job.json", "answer.json", "progress.jsonl", "log.txt"


@dataclass(frozen=True)
class TrialJob:
    """What the child is asked.

    Attributes:
        backend: its name.
        request: for the engine with the plugin.
        portable_folder, portable_files: the finished engine without it.
        golden: golden.npz of the bundle.
        gate: that the plugin engine must be within at every batch size.
        out: folder for the plugin engine.
    """

    backend: str
    request: EngineRequest
    portable_folder: Path
    portable_files: tuple[str, ...]
    golden: Path
    gate: Gate | MapGate
    out: Path

    @property
    def portable_request(self) -> EngineRequest:
        """The same request for the engine without the plugin."""
        return without_plugin(self.request)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        request = self.request
        return {
            "backend": self.backend,
            "request": {
                "graphs": [str(request.graphs.folder), [[*key, name] for key, name in request.graphs.files.items()]],
                "precision": request.precision.value,
                "profile": vars(request.profile),
                "image_size": list(request.image_size),
                "fp32_islands": list(request.fp32_islands),
                "quantised_layers": list(request.quantised_layers),
                "use_plugin": request.use_plugin,
                "sizes": None if request.sizes is None else request.sizes.to_json(),
                "task": request.task.value,
                "options": {name: str(value) if isinstance(value, Path) else value for name, value in request.options.items()},
            },
            "portable": [str(self.portable_folder), list(self.portable_files)],
            "golden": str(self.golden),
            "gate": vars(self.gate),
            "out": str(self.out),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrialJob:
        """The inverse of to_json."""
        request = values["request"]
        folder, files = request["graphs"]
        height, width = request["image_size"]
        return cls(
            backend=values["backend"],
            request=EngineRequest(
                graphs=Graphs(Path(folder), {(form, opset): name for form, opset, name in files}),
                precision=Precision(request["precision"]),
                profile=BatchProfile(**request["profile"]),
                image_size=(height, width),
                fp32_islands=tuple(request["fp32_islands"]),
                quantised_layers=tuple(request["quantised_layers"]),
                use_plugin=request["use_plugin"],
                options=request["options"],
                sizes=SizeRange.from_json(request["sizes"]),
                task=Task(request["task"]),
            ),
            portable_folder=Path(values["portable"][0]),
            portable_files=tuple(values["portable"][1]),
            golden=Path(values["golden"]),
            gate=(Gate if Task(request["task"]) is Task.CLASSIFY else MapGate)(**values["gate"]),
            out=Path(values["out"]),
        )


@dataclass(frozen=True)
class Trial:
    """How it ended.

    Attributes:
        files: of the plugin engine in the job's out, the engine first; empty where there is none.
        report: bench.compare.Comparison.to_json of the two engines, with "log", the child's last lines, where it failed.
    """

    files: tuple[str, ...]
    report: dict[str, Any]

    @property
    def accepted(self) -> bool:
        """Whether the plugin engine is to be delivered."""
        return bool(self.report["accepted"])


def without_plugin(request: EngineRequest) -> EngineRequest:
    """The same request for an engine that needs no plugin library."""
    options = {name: value for name, value in request.options.items() if name != "plugin_library"}
    return replace(request, use_plugin=False, options=options)


def try_plugin(job: TrialJob, folder: Path, limit_s: float, progress: Progress) -> Trial:
    """Run the child and wait for it; whatever becomes of it, this returns.

    Args:
        job: what to try.
        folder: for the files that parent and child exchange; exists and is empty.
        limit_s: seconds after which the child is stopped.
        progress: told what the child is doing.
    """
    (folder / JOB).write_text(json.dumps(job.to_json()))
    step = "starting"

    def shown(fraction: float | None, message: str) -> None:
        nonlocal step
        step = message
        progress(fraction, f"plugin: {message}")

    try:
        status = _child_status(folder, limit_s, shown)
    except OSError as error:  # no interpreter to start, or no memory for it
        return _failed(folder, f"its process could not be started ({error.strerror or error})")
    if status is None:
        return _failed(folder, f"its process did not end within {limit_s / 60:.3g} minutes and was stopped (last step: {step})")
    if status < 0:
        return _failed(folder, f"its process was ended by {_signal_name(-status)} (last step: {step})")
    if status > 0:
        return _failed(folder, f"its process ended with status {status} (last step: {step})")
    answer = json.loads((folder / ANSWER).read_text())
    if "problem" in answer:
        return _failed(folder, f"it failed: {answer['problem']}")
    return Trial(tuple(answer["files"]), answer["comparison"])


def _child_status(folder: Path, limit_s: float, progress: Progress) -> int | None:
    """The child's exit status, negative for a signal; None where it was stopped after limit_s."""
    package_home = str(Path(gmf_edge.__file__).parents[1])
    paths = [package_home, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    lines = 0
    deadline = time.monotonic() + limit_s
    with (folder / LOG).open("wb") as log:
        # its standard input is how it knows that this process is alive
        child = subprocess.Popen(
            [*COMMAND, str(folder)], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(POLL_S)
                lines = _forward(folder / PROGRESS, lines, progress)
                if child.returncode is not None:
                    return child.returncode
                if time.monotonic() > deadline:
                    return None
        finally:
            child.kill()
            # a process that hangs in the driver does not even end when it is killed
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
            assert child.stdin is not None
            child.stdin.close()


def _forward(file: Path, forwarded: int, progress: Progress) -> int:
    """Hand on the child's progress after its first `forwarded` lines; how many lines there are now."""
    try:
        lines = file.read_text().split("\n")[:-1]
    except OSError:
        return forwarded
    for line in lines[forwarded:]:
        progress(*json.loads(line))
    return len(lines)


def _failed(folder: Path, why: str) -> Trial:
    try:
        lines = (folder / LOG).read_text(errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        lines = []
    report = refused(NAMES, f"the plugin was tried in a process of its own, and {why}", PLUGIN_MARGIN).to_json()
    return Trial((), {**report, "log": lines})


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
