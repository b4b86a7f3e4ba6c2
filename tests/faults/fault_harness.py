"""A bad input, the frame in which it runs, and what counts as mishandled.

Handled well is: the documented exit status; one line of what is wrong and one of what to do; FAILED at the end; no traceback and no
"unexpected"; no other program started and no pickled code run; nothing new, gone or changed beside the input, in the working folder
or in the temporary folder; and all of that within TIME_LIMIT_S.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gmf_edge import cli
from gmf_edge.artifact import cache_root

TIME_LIMIT_S = 120
CANARY = "code-was-run"
SEED = 20240


@dataclass(frozen=True)
class Material:
    """Good inputs: a bundle, the packaged weights in both formats, and two pictures of each class by name."""

    bundle: Path
    state: Mapping[str, Any]
    safetensors: bytes
    pth: bytes
    pictures: Mapping[str, bytes]


@dataclass(frozen=True)
class BadInput:
    """One input that must be refused.

    Attributes:
        name: what is bad about it.
        make: writes its files into the folder that it is given and returns the command line.
        statuses: the exit statuses that are right.
        environment: variables to set.
    """

    name: str
    make: Callable[[Path], Sequence[object]]
    statuses: frozenset[int] = frozenset([1])
    environment: Mapping[str, str] = field(default_factory=dict)


Family = Callable[[Material, random.Random], Iterator[BadInput]]


def bad(name: str, make: Callable[[Path], Sequence[object]], *statuses: int, **environment: str) -> BadInput:
    """A BadInput; status 1 where none is given."""
    return BadInput(name, make, frozenset(statuses or (1,)), environment)


def sample(cases: Sequence[BadInput], count: int) -> list[BadInput]:
    """`count` of them, always the same."""
    return random.Random(SEED).sample(list(cases), min(count, len(cases)))


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: object
    out: str
    err: str


class Arena:
    """Runs bad inputs one after the other, each in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.canary = root / CANARY

    def mishandled(self, case: BadInput) -> str | None:
        """What is wrong with how the command line took it, or None."""
        here = self.root / "case"
        (here / "cwd").mkdir(parents=True)
        os.environ["GMF_EDGE_CANARY"] = str(self.canary)
        arguments = [str(argument) for argument in case.make(here)]
        before = _snapshot(here)
        ended, programs = self._run(arguments, here / "cwd", case.environment)
        after = _snapshot(here)
        left = sorted(os.listdir(self.root / "tmp"))
        problems = [
            *_problems(ended, case.statuses),
            *([f"programs were started: {programs}"] if programs else []),
            *(["its code was run"] if self.canary.exists() else []),
            *([f"left in the temporary folder: {left}"] if left else []),
            *([f"changed beside the input: {sorted(set(before.items()) ^ set(after.items()))[:4]}"] if before != after else []),
        ]
        self.canary.unlink(missing_ok=True)
        shutil.rmtree(here)
        for name in left:
            shutil.rmtree(self.root / "tmp" / name, ignore_errors=True)
        return f"{case.name}: {'; '.join(problems)} ({ended})"[:1500] if problems else None

    def _run(self, arguments: list[str], cwd: Path, environment: Mapping[str, str]) -> tuple[Ended, list[str]]:
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict", write_through=True) for _ in range(2))
        kept = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        if environment:
            cache_root.cache_clear()
        os.chdir(cwd)
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(TIME_LIMIT_S)
        try:
            with _programs_noted() as programs, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status: object
                try:
                    status = cli.run(arguments)
                except BaseException as error:
                    status = f"{type(error).__name__} escaped: {error}"
        finally:
            signal.alarm(0)
            os.chdir(self.root)
            for name, value in kept.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
            if environment:
                cache_root.cache_clear()
        texts = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
        return Ended(status, *texts), programs


def _problems(ended: Ended, statuses: frozenset[int]) -> Iterator[str]:
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    remedies = [line for line in ended.err.splitlines() if line.startswith("what to do: ")]
    if ended.status not in statuses:
        yield f"status {ended.status}, not {sorted(statuses)}"
    if len(errors) != 1 or len(remedies) != 1:
        yield f"{len(errors)} lines of what and {len(remedies)} of what to do"
    if "Traceback" in ended.err + ended.out or any(line.startswith("error: unexpected ") for line in errors):
        yield "a traceback or a fault of ours"
    if not (ended.out.splitlines() or [""])[-1].startswith("FAILED: "):
        yield "no FAILED at the end"


def _snapshot(folder: Path) -> dict[str, tuple[int, ...]]:
    """Everything below a folder: its kind, size, time and place on the disk."""
    found = {}
    for place, folders, files in os.walk(os.fsencode(folder)):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            status = os.lstat(path)
            size = 0 if os.path.isdir(path) else status.st_size
            found[repr(path)] = (status.st_mode, size, status.st_mtime_ns if size else 0, status.st_ino)
    return found


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"not refused within {TIME_LIMIT_S} s")


_noted: list[list[str]] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if _noted and event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"):
        _noted[-1].append(f"{event} {arguments[:2]}")


sys.addaudithook(_note)


@contextlib.contextmanager
def _programs_noted() -> Iterator[list[str]]:
    """Every program that is started in this block."""
    _noted.append([])
    try:
        yield _noted[-1]
    finally:
        _noted.pop()
