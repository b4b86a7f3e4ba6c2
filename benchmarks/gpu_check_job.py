"""The work of gpu_check.py in a process of its own, so that whatever a driver or a kernel does there costs one bundle and not the report.

    python benchmarks/gpu_check_job.py JOB.json

JOB.json: {"kind": "environment", "answer": FILE} or {"kind": "bundle", "bundle", "out", "files", "options", "seconds", "verbose",
"answer": FILE}. The answer is written again after every step: what was found survives whatever comes after.
"""

from __future__ import annotations

import json
import platform
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from gmf_edge.bench.device import device_state
from gmf_edge.bench.trtexec_files import inspector_layers_json, profile_json
from gmf_edge.deploy import bench_bundle, deploy_bundle, verify_bundle
from gmf_edge.engines.tensorrt.backend import ENGINE_FILE, inspect_engine, open_engine
from gmf_edge.engines.tensorrt.cuda import Device, free_memory_mib
from gmf_edge.engines.tensorrt.doctor import diagnose
from gmf_edge.engines.tensorrt.inspect import read_inspector_json
from gmf_edge.engines.tensorrt.log import recorded
from gmf_edge.engines.tensorrt.options import TensorRTOptions
from gmf_edge.engines.tensorrt.run import TensorRTEngine
from gmf_edge.engines.tensorrt.sidecar import Sidecar
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.errors import GmfEdgeError
from gmf_edge.scratch import write_atomically

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
STREAMS = 2
STEP_RUNS = 50
PROFILED_RUNS = 10
BUILD_LOG, LAYERS, PROFILE = "build.log", "layers.json", "profile.json"

Answer = dict[str, Any]
Show = Callable[[str], None]


def environment() -> Answer:
    """The machine: device, state, versions, what doctor finds, and why TensorRT cannot be used, or None. Raises nothing."""
    told: Answer = {
        "problem": None,
        "device": None,
        "tensorrt": None,
        "python": f"{platform.python_version()} {platform.machine()}",
    }

    def ask(question: Callable[[], Answer]) -> None:
        try:
            told.update(question())
        except GmfEdgeError as error:
            told["problem"] = str(error)
        except Exception as error:  # a broken installation may fail in any way
            told["problem"] = f"{type(error).__name__}: {error}"

    def version() -> Answer:
        found = TensorRTVersion.here()
        return {"tensorrt": found.text, "tensorrt_library": found.library}

    def device() -> Answer:
        found = Device.here()
        return {"device": {**asdict(found), "architecture": found.architecture, "free_memory_mib": free_memory_mib()}}

    ask(version)
    ask(device)
    ask(lambda: {"findings": [asdict(finding) for finding in diagnose()]})
    ask(lambda: {"state": device_state()})
    told["packages"] = {}
    for name in (
        "numpy",
        "polygraphy",
        "cuda-bindings",
        "nvidia-ml-py",
        "tensorrt",
        "tensorrt-bindings",
        "pytest",
        "torch",
        "onnx",
    ):
        try:
            told["packages"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            told["packages"][name] = None
    return told


def check_bundle(
    bundle: Path,
    out: Path,
    files: Path,
    options: Answer,
    show: Show,
    seconds: float = 3.0,
    verbose: bool = False,
    save: Callable[[Answer], None] = lambda run: None,
) -> Answer:
    """Deploy one bundle into `out`, look into its engine, verify it again, measure it.

    Args:
        bundle: to deploy.
        out: for the deployed bundle.
        files: folder for what only this machine can tell: build.log, layers.json and profile.json (as trtexec exports them).
        options: of TensorRTOptions. An engine that does not run its precision is measured all the same, and fails.
        show: told each step.
        seconds: duration of each latency measurement.
        verbose: also TensorRT's verbose messages in build.log.
        save: given the answer so far, before each step.
    """
    run: Answer = {"bundle": out.name, "status": FAILED, "reason": "", "step": "", "files": str(files), "seconds": {}}
    started = time.perf_counter()

    def begin(step: str) -> None:
        nonlocal started
        now = time.perf_counter()
        if run["step"]:
            run["seconds"][run["step"]] = now - started
        started, run["step"] = now, step
        show(f"  {step}")
        save(run)

    def progress(fraction: float | None, message: str) -> None:
        if fraction is None:
            show(f"    {message}")
            run["doing"] = message
            save(run)

    try:
        begin("deploy")
        with recorded(files / BUILD_LOG, verbose):
            deployed = deploy_bundle(
                bundle, backend="tensorrt", options={"precision_proof": "warn", **options}, out=out, progress=progress
            )
        run["parity"] = deployed.report["parity"]
        begin("inspect")
        told = inspect_engine(out / ENGINE_FILE)
        run["engine"] = {name: told[name] for name in ("engine", "built_for", "precision_shares", "memory_mib", "notes", "opened")}
        run["engine"] |= {"precision_proof": told["precision_proof"], "layers": len(told["layers"])}
        run["slowest_layers"] = sorted(told["layers"], key=lambda layer: -(layer["time_ms"] or 0))[:10]
        begin("layers")
        run["kernels"] = save_layers(out, files)
        begin("verify")
        verified = verify_bundle(out, backend="tensorrt")
        begin("bench")
        run["state_before"] = device_state()
        run["latency"] = [latency.to_json() for latency in bench_bundle(out, backend="tensorrt", duration_s=seconds).latencies]
        begin("steps")
        run["steps"] = measure_steps(out)
        run["state_after"] = device_state()
        begin("")
    except GmfEdgeError as error:
        return {**run, "reason": f"{run['step']}: {error}"}
    except Exception as error:  # a crash of one bundle must not hide the others
        return {**run, "reason": f"{run['step']}: {type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    proof = run["engine"]["precision_proof"]
    problems = [f"precision: {proof['reason']}"] if proof["verdict"] == "refuted" else []
    if not (deployed.passed and verified.passed):
        problems.append(f"deploy: {deployed.reason}; verify: {verified.reason}")
    return {**run, "status": FAILED if problems else PASSED, "reason": "; ".join(problems) or verified.reason}


def save_layers(folder: Path, files: Path) -> list[Answer]:
    """Write layers.json and profile.json of a deployed bundle's engine; its kernels by name with what they take, slowest first."""
    path = folder / ENGINE_FILE
    sidecar = Sidecar.read(path)
    with open_engine(path, sidecar, TensorRTOptions(cuda_graphs=False), folder / sidecar.graph_file) as engine:
        inspected, layers = engine.inspector_json(), engine.layer_runs(PROFILED_RUNS)
    (files / LAYERS).write_text(inspector_layers_json(inspected))
    (files / PROFILE).write_text(profile_json(layers))
    milliseconds: Counter[str] = Counter()
    for layer in layers:
        milliseconds[layer.name] += sum(layer.times_ms) / PROFILED_RUNS
    kernels: dict[tuple[str, str, str], list[str]] = {}
    for told_layer in read_inspector_json(inspected).layers:
        key = (told_layer.tactic or told_layer.name, told_layer.kind, told_layer.precision)
        kernels.setdefault(key, []).append(told_layer.name)
    told = [
        {"kernel": kernel, "kind": kind, "precision": precision, "layers": len(names), "ms": sum(milliseconds[n] for n in {*names})}
        for (kernel, kind, precision), names in kernels.items()
    ]
    return sorted(told, key=lambda kernel: -kernel["ms"])


def measure_steps(folder: Path) -> list[Answer]:
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
            measured.append(
                {
                    "batch": batch,
                    "runs": STEP_RUNS,
                    "h2d_ms": median(t.h2d_ms for t in times),
                    "compute_ms": median(t.compute_ms for t in times),
                    "d2h_ms": median(t.d2h_ms for t in times),
                    "enqueue_ms": median(t.enqueue_ms for t in times),
                    "latency_ms": median(t.latency_ms for t in times),
                    "compute_only_ms": float(np.median(engine.compute_times_ms(images, STEP_RUNS))),
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


def do(job: Answer, show: Show) -> Answer:
    """Do a job and write its answer, which is also returned."""
    answer = Path(job["answer"])

    def save(told: Answer) -> None:
        write_atomically(answer, json.dumps(told).encode())

    if job["kind"] == "environment":
        told = environment()
    else:
        paths = [Path(job[name]) for name in ("bundle", "out", "files")]
        told = check_bundle(*paths, job["options"], show, job["seconds"], job["verbose"], save)
    save(told)
    return told


def main(arguments: Sequence[str]) -> int:
    """Do the job that a file names; 0 where an answer was left, whatever it says."""
    do(json.loads(Path(arguments[0]).read_text()), lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
