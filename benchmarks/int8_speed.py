"""How much faster INT8 is than FP32 on ONNX Runtime's CPU kernels, and where the time goes.

    python benchmarks/int8_speed.py                                  # small at 224 x 224, batch 1, seeded random weights
    python benchmarks/int8_speed.py --variant mobile --image-size 224 --calibration-data pictures.zip

Four graphs of the same model take turns, A B C D A B C D, in one process: plain (the exporter's FP32 graph), portable (rewritten FP32),
FP32 and INT8 (as a build delivers them for ONNX Runtime). The ratio of a round is of neighbours in time; its median is reported
with its quartiles. CPU time on one thread is printed too: it does not depend on what else the machine does. Then each is profiled.

Latency does not depend on the weights or the pictures. The ranges here are of seeded smooth pictures unless --calibration-data is given.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime as ort
from PIL import Image

from gmf_edge.bench.load import INSTRUCTIONS
from gmf_edge.cpu import cpu_features, cpu_name
from gmf_edge.image import Preprocess, input_array
from gmf_edge.imageset import ImageSet
from gmf_edge.model.export import export_plain
from gmf_edge.model.groupmixformer import random_model
from gmf_edge.precision.activations import observe
from gmf_edge.precision.calibrate import ranges_from
from gmf_edge.precision.calibration_images import draw
from gmf_edge.precision.int8 import insert_qdq
from gmf_edge.precision.integer_gemm import linears_as_gemm
from gmf_edge.precision.ranges import Provenance
from gmf_edge.precision.recipe import RECIPES
from gmf_edge.rewrite.bodies import inline_bodies
from gmf_edge.rewrite.channel_last import channel_last_form
from gmf_edge.rewrite.passes import rewrite_onnx
from gmf_edge.spec import ModelSpec

WARMUP_ROUNDS = 3
PROFILED_RUNS = 10
CALIBRATION_BATCH = 4
KINDS_SHOWN = 12


def opened(path: Path, threads: int, profile: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def times_in_turn(sessions: dict[str, ort.InferenceSession], images: np.ndarray, rounds: int, clock) -> dict[str, list[float]]:
    """Milliseconds of each call, one per round and session."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(WARMUP_ROUNDS + rounds):
        for name, session in sessions.items():
            start = clock()
            session.run(None, {"images": images})
            if turn >= WARMUP_ROUNDS:
                times[name].append(1e3 * (clock() - start))
    return times


def print_times(times: dict[str, list[float]]) -> None:
    print("| graph | median, ms | smallest, ms | times as fast as plain | quartiles |\n|---|---|---|---|---|")
    plain = times["plain"]
    for name, found in times.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(plain, found, strict=True)], n=4)
        print(f"| {name} | {statistics.median(found):.1f} | {min(found):.1f} | {middle:.2f} | {low:.2f}..{high:.2f} |")
    print()


def print_profile(name: str, path: Path, images: np.ndarray, threads: int, folder: Path) -> None:
    """Kernel time by kind of operator: the smallest of PROFILED_RUNS runs of each node, so that a busy machine counts for little."""
    session = opened(path, threads, folder / name)
    for _ in range(PROFILED_RUNS):
        session.run(None, {"images": images})
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes: dict[tuple[str, str], list[int]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"])
    spent: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for (kind, _), durations in nodes.items():
        spent[kind] += min(durations)
        count[kind] += 1
    whole = sum(spent.values())
    print(f"{name}: {whole / 1e3:.1f} ms in {sum(count.values())} kernels\n\n| kind | kernels | ms | share |\n|---|---|---|---|")
    for kind, microseconds in spent.most_common(KINDS_SHOWN):
        print(f"| {kind} | {count[kind]} | {microseconds / 1e3:.2f} | {100 * microseconds / whole:.1f} % |")
    print()


def smooth_pictures(preprocess: Preprocess, count: int) -> list[np.ndarray]:
    """Seeded pictures of soft colours as inputs, in batches: for ranges where there is nothing to lose but time."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        pictures.append(input_array(small.resize((256, 256), Image.Resampling.BICUBIC), preprocess))
    return [np.stack(pictures[start : start + CALIBRATION_BATCH]) for start in range(0, count, CALIBRATION_BATCH)]


def processor() -> str:
    """The CPU's name, and the instructions that matter here."""
    return f"{cpu_name()} ({', '.join(name for name in INSTRUCTIONS if name in cpu_features())})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="small")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0)
    parser.add_argument("--recipe", default="fastest", choices=tuple(RECIPES))
    parser.add_argument("--calibration-data", help="pictures; seeded soft colours where left out")
    parser.add_argument("--calibration-images", type=int, default=32)
    parser.add_argument("--work", type=Path, help="keep the exported graphs here between runs")
    options = parser.parse_args()

    spec = ModelSpec.of(options.variant, image_size=(options.image_size, options.image_size))
    preprocess = Preprocess(spec.image_size)
    recipe = RECIPES[options.recipe]
    with tempfile.TemporaryDirectory(prefix="gmf-edge-") as scratch:
        folder = Path(scratch)
        work = options.work or folder
        work.mkdir(parents=True, exist_ok=True)
        plain = work / f"{options.variant}-{options.image_size}-random-plain.onnx"
        fused_path = work / f"{options.variant}-{options.image_size}-random-fused.onnx"
        if not fused_path.exists():
            export_plain(random_model(spec, seed=0), spec.image_size, plain)
            rewrite_onnx(plain, fused_path)
        fused = onnx_ir.load(fused_path)
        if options.calibration_data:
            with ImageSet.open(options.calibration_data) as images:
                drawn = draw(images, options.calibration_images)
                batches = [batch.inputs for batch in drawn.batches(preprocess, CALIBRATION_BATCH)]
        else:
            batches = smooth_pictures(preprocess, options.calibration_images)
        statistics_found = observe(fused, lambda: batches, images=options.calibration_images, smoothing=recipe.smoothing)
        made = Provenance("", None, "", preprocess.to_json(), recipe.method, 0.0, recipe.smoothing, options.calibration_images, 0)
        int8, linears = linears_as_gemm(insert_qdq(fused, ranges_from(statistics_found, recipe, made), recipe))
        onnx_ir.save(inline_bodies(fused), folder / "portable.onnx")
        onnx_ir.save(channel_last_form(fused), folder / "fp32.onnx")
        onnx_ir.save(channel_last_form(int8), folder / "int8.onnx")
        paths = {"plain": plain, **{name: folder / f"{name.lower()}.onnx" for name in ("portable", "FP32", "INT8")}}

        images = np.concatenate(batches)[np.arange(options.batch) % options.calibration_images]
        load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        print(f"{options.variant} at {options.image_size}, batch {options.batch}, recipe {options.recipe}: {linears} INT8 Linears;")
        print(f"{processor()}; onnxruntime {ort.__version__}, {options.threads} threads{load}, {options.rounds} rounds\n")
        print(f"Wall time, {options.threads} threads:\n")
        print_times(times_in_turn({name: opened(path, options.threads) for name, path in paths.items()}, images, options.rounds,
                                  time.perf_counter))  # fmt: skip
        print("CPU time, 1 thread:\n")
        print_times(
            times_in_turn({name: opened(path, 1) for name, path in paths.items()}, images, options.rounds, time.process_time)
        )
        for name in ("plain", "FP32", "INT8"):
            print_profile(name, paths[name], images, options.threads, folder)


if __name__ == "__main__":
    main()
