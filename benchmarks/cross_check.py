"""Our figures against the libraries' own tools, on the same file: OpenVINO's benchmark_app and ONNX Runtime's onnxruntime_test.

    python benchmarks/cross_check.py                      # small at 224 x 224, batch 1, seeded random weights
    python benchmarks/cross_check.py --variant mobile --rounds 5 --out cross-check.json

The plain export is timed by gmf_edge.bench (OnnxRuntimeBaseline, OpenVinoBaseline: mean and median of host latency) and by each tool, in
turn, a process each. Both tools come with the libraries' wheels; onnxruntime_perf_test does not, and onnxruntime_test is the same loop
in Python, which tells an average only. benchmark_app runs synchronously, one inference at a time, as host latency is measured here. Beside
each figure stands its spread: the smallest and the largest result of the rounds.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from gmf_edge.bench.baselines import OnnxRuntimeBaseline, OpenVinoBaseline
from gmf_edge.bench.latency import measure_latency
from gmf_edge.bench.load import machine_facts
from gmf_edge.bench.plain_model import PlainModel
from gmf_edge.spec import ModelSpec
from gmf_edge.weights import WeightsOrigin

ENGINES = {"onnxruntime": OnnxRuntimeBaseline, "openvino": OpenVinoBaseline}


def ours(name: str, graph: Path, size: int, seconds: float) -> dict[str, float]:
    """{"mean_ms", "median_ms"} of gmf_edge.bench, in this process."""
    with ENGINES[name](graph) as engine:
        found = measure_latency(engine, 1, (size, size), duration_s=seconds)
    return {"mean_ms": found.host.mean_ms, "median_ms": found.host.median_ms, "iterations": found.iterations}


def ours_in_a_process(name: str, graph: Path, size: int, seconds: float) -> dict[str, float]:
    """The same in a process of its own, as the tools have."""
    command = [sys.executable, __file__, "--one", name, str(graph), str(size), str(seconds)]
    told: dict[str, float] = json.loads(run(command).splitlines()[-1])
    return told


def tool(name: str, graph: Path, size: int, seconds: float, iterations: int) -> dict[str, float]:
    """What the library's own tool prints."""
    if name == "openvino":
        shape = ["-shape", f"images[1,3,{size},{size}]"]
        how = ["-d", "CPU", "-api", "sync", "-hint", "latency", "-t", str(max(1, round(seconds)))]
        text = run([executable("benchmark_app"), "-m", str(graph), *how, *shape])
        return {
            f"{key}_ms": float(number(rf"{word}:\s+([\d.]+) ms", text)) for key, word in (("mean", "Average"), ("median", "Median"))
        }
    text = run([executable("onnxruntime_test"), str(graph), str(iterations), "--symbolic_dims", "batch=1"])
    return {"mean_ms": float(number(r"avg latency: ([\d.]+) ms", text))}


def executable(name: str) -> str:
    """A program beside this Python."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        sys.exit(f"{name} is not installed beside this Python")
    return found


def run(command: list[str]) -> str:
    """What it prints; ends with its last lines where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def number(pattern: str, text: str) -> str:
    """The group of the pattern."""
    found = re.search(pattern, text)
    if found is None:
        sys.exit(f"no {pattern} in:\n{text[-2000:]}")
    return found[1]


def main() -> None:
    """Measure in turn, print a table."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(ours(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="small")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    size = options.image_size
    spec = ModelSpec.of(options.variant, image_size=(size, size))
    graph = PlainModel(spec, WeightsOrigin.random(0)).graph
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {"gmf-edge": [], "tool": []} for name in ENGINES}
    for _ in range(options.rounds):
        for name, results in found.items():
            results["gmf-edge"].append(ours_in_a_process(name, graph, size, options.seconds))
            results["tool"].append(tool(name, graph, size, options.seconds, int(results["gmf-edge"][-1]["iterations"])))
    facts = machine_facts()
    print(
        f"{options.variant} {size}x{size}, batch 1, plain export; {facts['cpu']}, {facts['cores']} cores; {options.rounds} rounds\n"
    )
    print("| library | figure | gmf-edge bench, ms | its own tool, ms |\n|---|---|---|---|")
    for name, results in found.items():
        for key in ("mean_ms", "median_ms"):
            columns = [[result[key] for result in results[who] if key in result] for who in ("gmf-edge", "tool")]
            if all(columns):
                cells = [f"{statistics.median(c):.1f} ({min(c):.1f}..{max(c):.1f})" for c in columns]
                print(f"| {name} | {key.removesuffix('_ms')} | {cells[0]} | {cells[1]} |")
    if options.out is not None:
        options.out.write_text(json.dumps({"machine": facts, "variant": options.variant, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
