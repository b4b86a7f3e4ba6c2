"""Deploy, verify and bench prepared bundles with TensorRT, run the tests marked gpu, write one JSON: see gpu_check.sh.

    python benchmarks/gpu_check.py BUNDLES [--results DIR] [--work DIR] [trtexec options ...]

The JSON says of each expected bundle "passed", "failed" or "not run" and why, on which device, in which versions, modes and commit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from gmf_edge import __version__
from gmf_edge.bundle import is_bundle, open_bundle
from gmf_edge.deploy import bench_bundle, deploy_bundle, verify_bundle
from gmf_edge.engines.tensorrt.backend import ENGINE_FILE, inspect_engine, open_engine
from gmf_edge.engines.tensorrt.cuda import Device, free_memory_mib
from gmf_edge.engines.tensorrt.doctor import diagnose
from gmf_edge.engines.tensorrt.options import TensorRTOptions, options_from_trtexec
from gmf_edge.engines.tensorrt.run import TensorRTEngine
from gmf_edge.engines.tensorrt.sidecar import Sidecar
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.errors import BundleError, EnvironmentProblem, GmfEdgeError

REPOSITORY = Path(__file__).resolve().parents[1]
VARIANTS, PRECISIONS = ("pico", "mobile", "small"), ("fp32", "fp16", "int8")
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
STREAMS = 2
STEP_RUNS = 50


def bundles_below(folder: Path) -> Iterator[Path]:
    """Every bundle in a folder, itself included."""
    for path in sorted([folder, *(path for path in folder.rglob("*") if path.is_dir())]):
        if is_bundle(path):
            yield path


def check(
    bundles: Path,
    work: Path,
    options: dict[str, Any],
    show: Callable[[str], None],
    bench_seconds: float = 3.0,
    run_tests: bool = True,
) -> dict[str, Any]:
    """The whole check; the content of the JSON.

    Args:
        bundles: folder of bundles.
        work: folder for deployed copies; emptied of earlier ones by name.
        options: of TensorRTOptions.
        show: told each step.
        bench_seconds: duration of each latency measurement.
        run_tests: run `pytest -m gpu` on the deployed bundles.
    """
    result: dict[str, Any] = {"schema": 1, "gmf-edge": __version__, "commit": os.environ.get("GMF_EDGE_COMMIT", "unknown")}
    result |= {"started": datetime.now(timezone.utc).isoformat(timespec="seconds"), "options": options, **environment()}
    found: dict[tuple[str, str], list[Path]] = {}
    runs: list[dict[str, Any]] = []
    for path in bundles_below(bundles):
        try:
            manifest = open_bundle(path).manifest
            found.setdefault((manifest.model.variant, manifest.precision.value), []).append(path)
        except BundleError as error:
            runs.append({"bundle": path.name, "status": FAILED, "reason": str(error)})
    usable = result["problem"] is None
    expected = [(variant, precision) for variant in VARIANTS for precision in PRECISIONS]
    for key in [*expected, *sorted(set(found) - set(expected))]:
        name = "-".join(key)
        if key not in found:
            runs.append({"bundle": name, "status": NOT_RUN, "reason": f"no bundle of {key[0]} in {key[1]} below {bundles}"})
        for number, path in enumerate(found.get(key, [])):
            if usable:
                show(f"{name}: {path}")
                runs.append(check_bundle(path, work / (name if number == 0 else f"{name}-{number}"), options, show, bench_seconds))
            else:
                runs.append({"bundle": name, "status": NOT_RUN, "reason": result["problem"]})
            show(f"{name}: {runs[-1]['status'].upper()}: {runs[-1]['reason']}")
    result["bundles"] = runs
    result["tests"] = (
        gpu_tests(work, show) if usable and run_tests else {"status": NOT_RUN, "reason": result["problem"] or "not asked for"}
    )
    show(f"tests marked gpu: {result['tests']['status'].upper()}: {result['tests']['reason']}")
    statuses = [run["status"] for run in [*runs, result["tests"]]]
    result["passed"] = FAILED not in statuses and PASSED in [run["status"] for run in runs]
    counted = ", ".join(f"{statuses.count(status)} {status}" for status in (PASSED, FAILED, NOT_RUN))
    result["summary"] = counted if usable else f"{counted}: {result['problem']}"
    return result


def environment() -> dict[str, Any]:
    """The machine: device, modes, versions, and why TensorRT cannot be used, or None."""
    told: dict[str, Any] = {"problem": None, "device": None, "tensorrt": None}
    try:
        told["tensorrt"] = TensorRTVersion.here().text
    except EnvironmentProblem as error:
        told["problem"] = str(error)
    try:
        device = Device.here()
        told["device"] = {**asdict(device), "architecture": device.architecture, "free_memory_mib": free_memory_mib()}
    except EnvironmentProblem as error:
        told["problem"] = str(error)
    told["findings"] = [asdict(finding) for finding in diagnose()]
    told["clocks"] = clocks()
    told["python"] = f"{platform.python_version()} {platform.machine()}"
    told["packages"] = {}
    for name in ("numpy", "polygraphy", "cuda-bindings", "tensorrt", "tensorrt-bindings", "torch", "onnx"):
        try:
            told["packages"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            told["packages"][name] = None
    return told


def clocks() -> dict[str, str] | None:
    """What nvidia-smi tells of clocks, power and temperature now, or None where there is none (Jetson has its own tools)."""
    fields = "clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu,pstate,utilization.gpu"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if answer.returncode:
        return None
    return dict(zip(fields.split(","), [part.strip() for part in answer.stdout.splitlines()[0].split(",")], strict=False))


def check_bundle(
    path: Path, out: Path, options: dict[str, Any], show: Callable[[str], None], bench_seconds: float
) -> dict[str, Any]:
    """Deploy one bundle into `out`, verify it again, measure it."""
    run: dict[str, Any] = {"bundle": out.name, "status": FAILED, "reason": ""}
    step = "deploy"
    try:
        started = time.perf_counter()
        deployed = deploy_bundle(
            path,
            backend="tensorrt",
            options=options,
            out=out,
            progress=lambda fraction, message: show(f"  {message}") if fraction is None else None,
        )
        run["deploy_seconds"] = time.perf_counter() - started
        run["parity"] = deployed.report["parity"]
        step = "inspect"
        told = inspect_engine(out / ENGINE_FILE)
        run["engine"] = {
            key: told[key]
            for key in ("engine", "built_for", "precision_shares", "precision_proof", "memory_mib", "notes", "opened")
        }
        run["engine"]["layers"] = len(told["layers"])
        run["slowest_layers"] = sorted(told["layers"], key=lambda layer: -(layer["time_ms"] or 0))[:10]
        step = "verify"
        verified = verify_bundle(out, backend="tensorrt")
        step = "bench"
        run["latency"] = [
            latency.to_json() for latency in bench_bundle(out, backend="tensorrt", duration_s=bench_seconds).latencies
        ]
        run["steps"] = measure_steps(out)
        run["clocks_after"] = clocks()
    except GmfEdgeError as error:
        run["reason"] = f"{step}: {error}"
        return run
    except Exception as error:  # a crash of one bundle must not hide the others
        run["reason"] = f"{step}: {type(error).__name__}: {error}"
        run["traceback"] = traceback.format_exc()
        return run
    if not deployed.passed or not verified.passed:
        run["reason"] = f"deploy: {deployed.reason}; verify: {verified.reason}"
        return run
    return {**run, "status": PASSED, "reason": verified.reason}


def measure_steps(folder: Path) -> list[dict[str, Any]]:
    """Per batch size: host to device, compute and device to host in milliseconds (medians by CUDA events), and streams together."""
    path = folder / ENGINE_FILE
    sidecar = Sidecar.read(path)
    measured = []
    with open_engine(path, sidecar, TensorRTOptions(streams=STREAMS), folder / sidecar.graph_file) as engine:
        for batch in engine.profile.sizes:
            images = np.random.default_rng(batch).normal(size=(batch, *engine.io.image_shape)).astype(np.float32)
            for _ in range(10):
                engine.infer_timed(images)
            times = [engine.infer_timed(images) for _ in range(STEP_RUNS)]
            compute_only = [engine.infer_timed(images, transfers=False).compute_ms for _ in range(STEP_RUNS)]
            measured.append(
                {
                    "batch": batch,
                    "runs": STEP_RUNS,
                    "h2d_ms": median(t.h2d_ms for t in times),
                    "compute_ms": median(t.compute_ms for t in times),
                    "d2h_ms": median(t.d2h_ms for t in times),
                    "enqueue_ms": median(t.enqueue_ms for t in times),
                    "latency_ms": median(t.latency_ms for t in times),
                    "compute_only_ms": median(compute_only),
                    "streams": STREAMS,
                    "streams_images_per_second": streams_throughput(engine, images),
                    "cuda_graph": not any("no CUDA graph" in note for note in engine.facts.notes),
                }
            )
    return measured


def streams_throughput(engine: TensorRTEngine, images: Any) -> float:
    """Images a second with one batch in flight per stream, transfers included."""
    for _ in engine.infer_many([images] * 2 * STREAMS):
        pass
    started = time.perf_counter()
    for _ in engine.infer_many([images] * STEP_RUNS):
        pass
    return STEP_RUNS * len(images) / (time.perf_counter() - started)


def gpu_tests(work: Path, show: Callable[[str], None]) -> dict[str, Any]:
    """pytest -m gpu on the deployed bundles."""
    if find_spec("pytest") is None:
        return {"status": NOT_RUN, "reason": "pytest is not installed here"}
    show("running pytest -m gpu")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests"]
    environment = {**os.environ, "GMF_EDGE_BUNDLES": str(work.resolve())}
    answer = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    last = (answer.stdout.strip() or answer.stderr.strip() or "no output").splitlines()[-1]
    # 5: no test was collected
    status = {0: PASSED, 5: NOT_RUN}.get(answer.returncode, FAILED)
    if status == PASSED and not re.search(r"\b[1-9]\d* passed", last):
        status = NOT_RUN
    return {"status": status, "reason": last, "output": answer.stdout[-20000:]}


def result_path(results: Path, result: dict[str, Any]) -> Path:
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
    parser.add_argument("--no-tests", action="store_true", help="leave out pytest -m gpu")
    given, rest = parser.parse_known_args(arguments)
    try:
        request = options_from_trtexec(rest)
        if (request.profile, request.image_size, request.precision, request.bench) != (None, None, None, {}):
            parser.error("shapes, precision and durations are not taken here: they are in the bundles")
    except GmfEdgeError as error:
        parser.error(str(error))
    for folder in (given.work, given.results):
        folder.mkdir(parents=True, exist_ok=True)
    result = check(
        given.bundles, given.work, request.options, lambda line: print(line, flush=True), given.seconds, not given.no_tests
    )
    path = result_path(given.results, result)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path}")
    if result["problem"] is not None:
        print(f"NOT RUN: {result['summary']}")
        return EnvironmentProblem.exit_status
    print(f"{'PASSED' if result['passed'] else 'FAILED'}: {result['summary']}")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
