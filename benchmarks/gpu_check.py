"""Deploy, verify and bench prepared bundles with TensorRT, run the tests marked gpu, write one JSON: see gpu_check.sh.

    python benchmarks/gpu_check.py BUNDLES [--results DIR] [--work DIR] [--budget-minutes N] [trtexec options ...]

The JSON says of each expected bundle "passed", "failed" or "not run" and why, on which device, in which versions, modes and commit. It is
written anew after each step, and every step has a process of its own (gpu_check_job.py): a crash, a hang or an interruption costs that
step. Beside it lies a folder of its name with what else only the device can tell, a folder a bundle: TensorRT's messages while it built,
the engine inspector's answer, the layers' times.

The most telling comes first: doctor's smoke test, pico in all precisions, mobile, the tests, small.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
# run as a script these are there already
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).parent)]

try:
    import gpu_check_job
    from gpu_check_job import FAILED, NOT_RUN, PASSED, Answer, Show

    from gmf_edge import __version__
    from gmf_edge.bundle import is_bundle, open_bundle
    from gmf_edge.engines.tensorrt.options import options_from_trtexec
    from gmf_edge.errors import EnvironmentProblem, GmfEdgeError
    from gmf_edge.scratch import write_atomically
except ImportError as missing:  # NumPy or Pillow
    sys.exit(f"NOT RUN: {missing}; this Python needs numpy, pillow, polygraphy, cuda-bindings and TensorRT")

VARIANTS, PRECISIONS = ("pico", "mobile", "small"), ("fp32", "fp16", "int8")
EXPECTED = tuple((variant, precision) for variant in VARIANTS for precision in PRECISIONS)
TESTS = ("tests", "gpu")
# what tells most a minute comes first: FP32 shows that anything works, FP16 and INT8 what TensorRT makes of them
ORDER = (
    *(("pico", precision) for precision in PRECISIONS),
    ("mobile", "fp16"),
    ("mobile", "int8"),
    TESTS,
    ("small", "fp16"),
    ("small", "int8"),
    ("mobile", "fp32"),
    ("small", "fp32"),
)
# every file with tests marked gpu that needs neither torch nor onnx to be collected; what leaks shows at the end
TEST_FILES = (
    "tests/engines/tensorrt/test_gpu.py",
    "tests/engines/tensorrt/test_gpu_bench.py",
    "tests/engines/tensorrt/test_gpu_streams.py",
    "tests/kernels/test_group_mix_attention_kernels.py",
    "tests/engines/tensorrt/test_gpu_memory.py",
)
PYTEST = ("-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *TEST_FILES)
# a step that takes longer hangs
LIMIT_S = 7200.0
ENVIRONMENT_LIMIT_S = 300.0
LINES_KEPT = 60

# does a job and gives its answer: see in_child
Doing = Callable[[Answer, float, Show], Answer]


def bundles_below(folder: Path) -> Iterator[Path]:
    """Every bundle in a folder, itself included."""
    for path in sorted([folder, *(path for path in folder.rglob("*") if path.is_dir())]):
        if is_bundle(path):
            yield path


def in_this_process(job: Answer, limit_s: float, show: Show) -> Answer:
    """For debuggers and compute-sanitizer: what kills it kills the report."""
    return gpu_check_job.do(job, show)


def in_child(job: Answer, limit_s: float, show: Show) -> Answer:
    """The answer of a job that is done in a process of its own; where that did not end well, how, and what it had found until then."""
    answer = Path(job["answer"])
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        status, lines = run_shown([sys.executable, gpu_check_job.__file__, file.name], limit_s, show)
    told: Answer = json.loads(answer.read_text()) if answer.is_file() else {}
    if status == 0:
        return told
    step = " while ".join(part for part in (told.get("step", ""), told.get("doing", "")) if part) or "starting"
    how = "its process " + ended(status, limit_s)
    return {**told, "status": FAILED if status is not None else NOT_RUN, "reason": f"{step}: {how}", "output": lines}


def ended(status: int | None, limit_s: float) -> str:
    """How a process ended, in words."""
    if status is None:
        return f"was stopped after {limit_s / 60:.3g} minutes"
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def run_shown(command: Sequence[str], limit_s: float, show: Show, **more: Any) -> tuple[int | None, list[str]]:
    """Run a command and show what it prints; (its exit status, None where it was stopped after limit_s, its last lines)."""
    lines: list[str] = []
    is_late = threading.Event()
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    child = subprocess.Popen(command, text=True, errors="replace", start_new_session=True, **streams, **more)

    def stop() -> None:
        is_late.set()
        end_group(child)

    clock = threading.Timer(limit_s, stop)
    clock.start()
    try:
        assert child.stdout is not None
        for line in child.stdout:
            lines = [*lines[-LINES_KEPT:], line.rstrip("\n")]
            show(lines[-1])
        status = child.wait()
    finally:
        clock.cancel()
        end_group(child)
    return None if is_late.is_set() else status, lines


def end_group(child: subprocess.Popen[str]) -> None:
    """The process and what it has started; none of them is left where it has ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


class Check:
    """The whole check; `result` is the content of the JSON, and `save` writes what there is of it.

    Args:
        bundles: folder of bundles.
        work: folder for deployed copies; emptied of earlier ones by name.
        results: folder for the JSON and the folder beside it.
        options: of TensorRTOptions.
        show: told each step.
        seconds: duration of each latency measurement.
        run_tests: run `pytest -m gpu` on the deployed bundles.
        budget_s: no step begins after that many seconds, and one that is running is stopped.
        verbose: keep TensorRT's verbose messages too.
        do: does a job.
    """

    def __init__(
        self,
        bundles: Path,
        work: Path,
        results: Path,
        options: Answer,
        show: Show,
        seconds: float = 3.0,
        run_tests: bool = True,
        budget_s: float | None = None,
        verbose: bool = False,
        do: Doing = in_child,
    ) -> None:
        self.bundles, self.work, self.results, self.options, self.show = bundles, work, results, options, show
        self.seconds, self.run_tests, self.budget_s, self.verbose, self.do = seconds, run_tests, budget_s, verbose, do
        self.started = time.monotonic()
        self.result: Answer = {"schema": 2, "gmf-edge": __version__, "commit": os.environ.get("GMF_EDGE_COMMIT", "unknown")}
        self.result |= {"started": datetime.now(timezone.utc).isoformat(timespec="seconds"), "options": options}
        self.result |= {"budget_minutes": None if budget_s is None else budget_s / 60}
        self.result |= {"problem": "it was ended before the machine was asked", "device": None, "tensorrt": None}
        self.result |= {"bundles": [], "tests": {"status": NOT_RUN, "reason": "not reached"}, "passed": False}
        self.result["summary"] = "unfinished"
        self.path: Path | None = None

    def run(self) -> Answer:
        """Do everything, the most telling first; raises nothing but what ends the process."""
        scratch = self.work / "environment.json"
        told = self.do({"kind": "environment", "answer": str(scratch)}, ENVIRONMENT_LIMIT_S, self.show)
        # a machine on which even the questions crash cannot be used
        self.result |= {"problem": f"doctor: {told['reason']}", "output": told["output"]} if "reason" in told else told
        self.save()
        found = self.found()
        order = [*ORDER, *sorted(set(found) - set(ORDER))]
        if self.budget_s is None:
            # with time for all bundles the tests see all of them
            order = [*(key for key in order if key != TESTS), TESTS]
        for key in order:
            if key == TESTS:
                self.result["tests"] = self.tests()
                self.show(f"tests marked gpu: {self.result['tests']['status'].upper()}: {self.result['tests']['reason']}")
            else:
                self.of_key(key, found.get(key, []))
            self.save()
        self.conclude()
        self.save()
        return self.result

    def found(self) -> dict[tuple[str, str], list[Path]]:
        """The bundles by variant and precision; damaged ones are listed as failed at once."""
        found: dict[tuple[str, str], list[Path]] = {}
        for path in bundles_below(self.bundles):
            try:
                manifest = open_bundle(path).manifest
                found.setdefault((manifest.model.variant, manifest.precision.value), []).append(path)
            except (GmfEdgeError, OSError) as error:
                self.result["bundles"].append({"bundle": path.name, "status": FAILED, "reason": str(error)})
        return found

    def of_key(self, key: tuple[str, str], paths: Sequence[Path]) -> None:
        """Check the bundles of one variant and precision, or say why not."""
        name = "-".join(key)
        if not paths:
            reason = f"no bundle of {key[0]} in {key[1]} below {self.bundles}"
            self.result["bundles"].append({"bundle": name, "status": NOT_RUN, "reason": reason})
        for number, path in enumerate(paths):
            run = {"bundle": name, "status": NOT_RUN, "reason": self.result["problem"] or self.over()}
            if not run["reason"]:
                self.show(f"{name}: {path}")
                run = self.of_bundle(path, name if number == 0 else f"{name}-{number}")
            self.show(f"{name}: {run['status'].upper()}: {run['reason']}")
            self.result["bundles"].append(run)

    def of_bundle(self, path: Path, name: str) -> Answer:
        """Check one bundle."""
        files = self.files / name
        files.mkdir(parents=True, exist_ok=True)
        answer = files / "answer.json"
        answer.unlink(missing_ok=True)
        job = {"kind": "bundle", "bundle": str(path), "out": str(self.work / name), "files": str(files), "options": self.options}
        job |= {"seconds": self.seconds, "verbose": self.verbose, "answer": str(answer)}
        run = {"bundle": name, **self.do(job, self.left_s(), self.show)}
        answer.unlink(missing_ok=True)  # it is in the JSON
        return {**run, "files": f"{files.parent.name}/{name}"}

    def tests(self) -> Answer:
        """pytest -m gpu on the deployed bundles."""
        problem = self.result["problem"] or self.over()
        if problem or not self.run_tests:
            return {"status": NOT_RUN, "reason": problem or "not asked for"}
        if find_spec("pytest") is None:
            return {"status": NOT_RUN, "reason": "pytest is not installed here"}
        environment = {**os.environ, "GMF_EDGE_BUNDLES": str(self.work.resolve())}
        left_s = self.left_s()
        status, lines = run_shown([sys.executable, *PYTEST], left_s, self.show, cwd=REPOSITORY, env=environment)
        return {**outcome(status, lines, left_s), "output": lines}

    def left_s(self) -> float:
        """Seconds for the next step."""
        return LIMIT_S if self.budget_s is None else max(1.0, self.budget_s - (time.monotonic() - self.started))

    def over(self) -> str:
        """Why no step may begin any more, or nothing."""
        if self.budget_s is None or time.monotonic() - self.started < self.budget_s:
            return ""
        return f"the {self.budget_s / 60:.3g} minutes are over"

    def conclude(self) -> None:
        """Count."""
        runs = self.result["bundles"]
        statuses = [run["status"] for run in [*runs, self.result["tests"]]]
        self.result["passed"] = FAILED not in statuses and PASSED in [run["status"] for run in runs]
        counted = ", ".join(f"{statuses.count(status)} {status}" for status in (PASSED, FAILED, NOT_RUN))
        self.result["summary"] = f"{counted}: {self.result['problem']}" if self.result["problem"] else counted

    @property
    def files(self) -> Path:
        """The folder beside the JSON."""
        assert self.path is not None, "the name is not known before the machine"
        return self.path.with_suffix("")

    def save(self) -> Path:
        """Write the JSON as it is now; its path."""
        self.path = self.path or result_path(self.results, self.result)
        write_atomically(self.path, (json.dumps(self.result, indent=1, default=str) + "\n").encode())
        return self.path


def outcome(status: int | None, lines: Sequence[str], limit_s: float) -> Answer:
    """What a run of pytest says: passed only where a test has."""
    last = next((line for line in reversed(lines) if line.strip()), "no output")
    if status is None or status < 0:
        return {"status": NOT_RUN if status is None else FAILED, "reason": f"pytest {ended(status, limit_s)}: {last}"}
    # 5: no test was collected
    told = {0: PASSED, 5: NOT_RUN}.get(status, FAILED)
    if told == PASSED and not re.search(r"\b[1-9]\d* passed", last):
        told = NOT_RUN
    return {"status": told, "reason": last}


def result_path(results: Path, result: Answer) -> Path:
    """<device>-tensorrt<version>-<date>.json."""
    device = result["device"]["name"] if result["device"] else "no-gpu"
    words = f"{device}-tensorrt{result['tensorrt'] or '-none'}-{result['started'][:16]}"
    return results / (re.sub(r"[^A-Za-z0-9.]+", "-", words) + ".json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, help="folder of bundles made by gmf-edge export")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "out" / "gpu_check", help="folder for the deployed copies")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each latency measurement")
    parser.add_argument("--budget-minutes", type=float, help="stop after that time; the most telling steps come first")
    parser.add_argument(
        "--verbose-log", action="store_true", help="keep TensorRT's verbose messages too: tens of megabytes a build"
    )
    parser.add_argument("--no-tests", action="store_true", help="leave out pytest -m gpu")
    parser.add_argument("--in-process", action="store_true", help="no processes of their own, for debuggers")
    given, rest = parser.parse_known_args(arguments)
    try:
        request = options_from_trtexec(rest)
        if (request.profile, request.image_size, request.precision, request.bench) != (None, None, None, {}):
            parser.error("shapes, precision and durations are not taken here: they are in the bundles")
    except GmfEdgeError as error:
        parser.error(str(error))
    if given.budget_minutes is not None and not given.budget_minutes > 0:
        parser.error("--budget-minutes must be above 0")
    check = Check(
        given.bundles,
        given.work,
        given.results,
        request.options,
        lambda line: print(line, flush=True),
        given.seconds,
        not given.no_tests,
        None if given.budget_minutes is None else 60 * given.budget_minutes,
        given.verbose_log,
        in_this_process if given.in_process else in_child,
    )
    return concluded(check)


def concluded(check: Check) -> int:
    """Run a check to its end, whatever that is: the JSON is written, its place is printed last but one, the verdict last."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        for folder in (check.work, check.results):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"NOT RUN: {error}")
        return EnvironmentProblem.exit_status
    try:
        result = check.run()
    except BaseException as error:
        check.conclude()
        check.result |= {"passed": False, "summary": f"ended by {type(error).__name__}; {check.result['summary']}"}
        print(f"wrote {check.save()}\nFAILED: {check.result['summary']}", flush=True)
        if isinstance(error, KeyboardInterrupt):
            return 130
        raise
    print(f"wrote {check.path}" + (f" and {check.files.name}/ beside it" if check.files.is_dir() else ""))
    if result["problem"] is not None:
        print(f"NOT RUN: {result['summary']}")
        return EnvironmentProblem.exit_status
    print(f"{'PASSED' if result['passed'] else 'FAILED'}: {result['summary']}")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
