"""A place with an output, a cache and a temporary folder of its own, in which commands run as processes that may be hurt."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gmf_edge.bundle import open_bundle
from gmf_edge.precision.ranges import read_ranges

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class CommandServer:
    """See command_server.py."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("command_server.py")
        # on a busy machine threads that spin while they wait take the time of those that work
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """One order, one answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


class Workshop:
    """Folders below a root, and commands in them.

    Attributes:
        out: folder for results; empty.
        cache: a copy of a warm cache.
        tmp: the temporary folder; empty.
    """

    def __init__(self, root: Path, server: CommandServer, warm_cache: Path) -> None:
        self.root, self._server = root, server
        self.out, self.cache, self.tmp = root / "out", root / "cache", root / "tmp"
        for folder in (self.out, self.tmp, root / "cwd"):
            folder.mkdir()
        stages = self.cache / "stages"
        stages.mkdir(parents=True)
        for folder in warm_cache.iterdir():
            if not folder.name.startswith("."):
                shutil.copytree(folder, stages / folder.name)
        self.environment = {
            "GMF_EDGE_CACHE": str(self.cache),
            "TMPDIR": str(self.tmp),
            "PATH": os.environ["PATH"],
            "HOME": str(root),
        }
        self._log = root / "log"

    def start(self, *arguments: object, **order: Any) -> int:
        """Start a command; its process id. Keywords go to the server."""
        self._log = self.root / f"log-{time.monotonic_ns()}"
        given = {"environment": self.environment, "cwd": str(self.root / "cwd"), "log": str(self._log), **order}
        return int(self._server.ask({"arguments": [str(argument) for argument in arguments], **given})["pid"])

    def wait(self, pid: int) -> int:
        """The exit status, 128 and the signal's number where one killed it."""
        return int(self._server.ask({"wait": pid})["status"])

    def run(self, *arguments: object, **order: Any) -> int:
        """Run a command to its end."""
        return self.wait(self.start(*arguments, **order))

    @property
    def log(self) -> str:
        """What the last command printed."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def hurt(self, pid: int, number: signal.Signals, after_cpu_s: float) -> None:
        """Send a signal once the command has used so much processor time: a moment that a busy machine does not move."""
        while cpu_s(pid) < after_cpu_s and not has_ended(pid):
            time.sleep(0.005)
        os.kill(pid, number)  # its process, ended or not, is there until it is waited for

    def litter(self) -> list[str]:
        """What commands left beside results, in the cache and in the temporary folder."""
        places = (self.out, self.cache, self.cache / "stages", self.cache.parent)
        hidden = [str(path) for place in places if place.is_dir() for path in place.iterdir() if path.name.startswith(".")]
        return sorted(hidden + [str(path) for path in self.tmp.iterdir()])


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()


def cpu_s(pid: int) -> float:
    """Processor time of a process and of its children, ended or not, in seconds."""
    total = sum(int(value) for value in _stat(pid)[11:15])
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            total += sum(int(value) for value in _stat(int(child))[11:13])
    return total / TICKS_A_SECOND


def has_ended(pid: int) -> bool:
    """Whether it waits to be waited for."""
    return _stat(pid)[0] == "Z"


def contents(place: Path) -> dict[str, bytes]:
    """Files of a folder by path, or of a file; empty where there is neither."""
    if place.is_file():
        return {place.name: place.read_bytes()}
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


def require_whole(result: Path) -> None:
    """Raises where a bundle, a package or a file of ranges is not what its own digests say."""
    if result.is_file():
        read_ranges(result)
    elif (result / "package.json").exists():
        stated = json.loads((result / "package.json").read_text())["files"]
        found = {name: hashlib.sha256(content).hexdigest() for name, content in contents(result).items() if name != "package.json"}
        assert found == stated
    else:
        open_bundle(result)


def result_of(name: str, out: Path) -> Path:
    """What a command of that name writes."""
    return out / {"calibrate": "ranges.json", "package": "package"}.get(name, "bundle")


def commands(pico_export: Path, out: Path) -> dict[str, Sequence[object]]:
    """A command of every verb that writes, by name; they write result_of(name, out)."""
    return {
        "export": ("export", "--fp16", "--output", out / "bundle"),
        "build": ("build", "--fp16", "--backend", "onnxruntime", "--output", out / "bundle"),
        "deploy": ("deploy", pico_export, "--backend", "onnxruntime", "--output", out / "bundle"),
        "deploy in place": ("deploy", out / "bundle", "--backend", "onnxruntime"),
        "calibrate": ("calibrate", "--calibration-images", "32", "--output", out / "ranges.json"),
        "package": ("package", pico_export, "--format", "jetson", "--output", out / "package"),
    }
