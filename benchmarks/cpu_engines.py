"""Every way to run GroupMixFormer on this CPU, in turn, with its parity beside its speed; the table in benchmarks/README.md.

    python benchmarks/cpu_engines.py --prepare                              # exports, calibrates, compiles; nothing is timed
    python benchmarks/cpu_engines.py --variants small --batch 1             # one part of the table; run the others when it suits
    python benchmarks/cpu_engines.py --table                                # the table of all parts that the results file has

eager, compile    FP32 PyTorch, as it is and through torch.compile
ort-plain         ONNX Runtime on the exporter's graph            ov-plain      OpenVINO on the same
ort-fp32          ONNX Runtime on the FP32 bundle                 ov-fp32       OpenVINO on the same, ov-bf16 in BF16
ort-int8          ONNX Runtime on the INT8 bundle                 ov-int8       OpenVINO on the same, ov-int8-bf16 with BF16 beside

The bundles are those that 'gmf-edge export' writes, opened by the backends that 'gmf-edge deploy' uses. A round gives every engine
one turn: a pause (the threads of the engine before go on spinning for a while), one untimed inference, then --repeats timed ones,
whose median is the turn's time. A ratio is of two turns of one round. The images and the logits that parity is held against are the
bundle's golden ones; without --calibration-data and --eval-data all pictures are seeded soft colours, which latency does not depend on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gmf_edge import export
from gmf_edge.artifact import cache_root
from gmf_edge.bench.load import INSTRUCTIONS
from gmf_edge.bundle import GOLDEN, open_bundle
from gmf_edge.cpu import cpu_features, cpu_name, engine_threads
from gmf_edge.engines.choose import backend_named
from gmf_edge.engines.protocol import EngineRequest, Graphs
from gmf_edge.errors import GmfEdgeError
from gmf_edge.prepare.graphs import PLAIN, plain_stage
from gmf_edge.prepare.source import load_source
from gmf_edge.spec import OPSET_NEW, BatchProfile, BuildSpec, Precision
from gmf_edge.verify.golden import Golden
from gmf_edge.verify.metrics import cosines, same_top1

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
LIBRARIES = ("torch", "onnxruntime", "openvino", "numpy")
SOFT_PICTURES = 32
# engine -> (backend, bundle, backend's options); None: PyTorch. A bundle "plain" is the exporter's graph
ENGINES: dict[str, tuple[str, str, dict[str, Any]] | None] = {
    "eager": None,
    "compile": None,
    "ort-plain": ("onnxruntime", "plain", {}),
    "ort-fp32": ("onnxruntime", "fp32", {}),
    "ort-int8": ("onnxruntime", "int8", {}),
    "ov-plain": ("openvino", "plain", {"arithmetic": "f32"}),
    "ov-fp32": ("openvino", "fp32", {"arithmetic": "f32"}),
    "ov-bf16": ("openvino", "fp32", {"arithmetic": "bf16"}),
    "ov-int8": ("openvino", "int8", {"arithmetic": "f32"}),
    "ov-int8-bf16": ("openvino", "int8", {"arithmetic": "bf16"}),
}
# what the ratios are of, in this order
BASELINES = ("eager", "ort-plain", "ov-plain")


class NotHere(Exception):
    """This machine cannot run an engine; the message says why."""


@dataclass(frozen=True)
class Opened:
    """An engine that is ready: images -> logits, what it computes in, and how to release it."""

    infer: Callable[[np.ndarray], np.ndarray]
    precision: Mapping[str, float]
    close: Callable[[], None]


def soft_pictures(folder: Path) -> Path:
    """Seeded pictures of soft colours, for ranges where there is nothing to lose but time."""
    rng = np.random.default_rng(0)
    for index in range(SOFT_PICTURES):
        path = folder / "soft" / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        colours.resize((256, 256), Image.Resampling.BICUBIC).save(path)
    return folder


def build_spec(options: argparse.Namespace, variant: str, precision: Precision) -> BuildSpec:
    """The request behind a bundle of this benchmark."""
    calibration: dict[str, Any] = {}
    if precision is Precision.INT8:
        data = options.calibration_data or soft_pictures(options.work / "pictures")
        calibration = {"calibration_data": data, "calibration_images": options.calibration_images, "recipe": options.recipe}
    checkpoint = options.checkpoint if variant == options.checkpoint_variant else None
    return BuildSpec(
        precision=precision,
        variant=variant,
        checkpoint=checkpoint,
        image_size=(options.image_size, options.image_size),
        eval_data=options.eval_data,
        eval_images=options.eval_images if options.eval_data else None,
        **calibration,
    )


def bundle(options: argparse.Namespace, variant: str, precision: Precision) -> Path:
    """The bundle's folder, exported where it is not there yet."""
    folder: Path = options.work / f"{variant}-{options.image_size}-{precision.value}"
    if not folder.exists():
        print(f"exporting {folder.name}", file=sys.stderr)
        export(build_spec(options, variant, precision), folder)
    return folder


def open_engine(name: str, options: argparse.Namespace, variant: str, batch: int, source: Any) -> Opened:
    """Open one of ENGINES.

    Raises:
        NotHere: the processor or the machine lacks what it needs.
        GmfEdgeError: see gmf_edge.errors.
    """
    kind = ENGINES[name]
    if kind is None:
        return open_torch(source.model, name == "compile", options.threads)
    backend_name, which, given = kind
    if given.get("arithmetic") == "bf16" and not {"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_features()):
        raise NotHere("this processor has no BF16")
    backend = backend_named(backend_name)
    missing = backend.missing()
    if missing is not None:
        raise NotHere(missing)
    if which == "plain":
        folder = plain_stage(source, lambda *_: None).folder
        graphs = Graphs(folder, {("portable", OPSET_NEW): PLAIN})
    else:
        folder = bundle(options, variant, Precision(which))
        graphs = open_bundle(folder).graphs
    precision = Precision.INT8 if which == "int8" else Precision.FP32
    profile = BatchProfile(batch, batch, batch)
    size = (options.image_size, options.image_size)
    request = EngineRequest(graphs, precision, profile, size, options={**given, "threads": options.threads})
    engine = backend.open(request, folder, ())
    return Opened(engine.infer, engine.facts.precision_shares, engine.close)


def open_torch(model: Any, compiled: bool, threads: int) -> Opened:
    """FP32 PyTorch, in inference mode."""
    import torch

    torch.set_num_threads(threads)
    called = torch.compile(model) if compiled else model

    def infer(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = called(torch.from_numpy(images)).numpy()
        return logits

    return Opened(infer, {"fp32": 1.0}, lambda: None)


def parity(opened: Opened, golden: Golden, batch: int) -> dict[str, Any]:
    """The smallest cosine and the share of equal top-1 over the golden images, in batches of the size that is timed."""
    count = len(golden.images) - len(golden.images) % batch
    logits = np.concatenate([opened.infer(golden.images[start : start + batch]) for start in range(0, count, batch)])
    reference = golden.logits[:count]
    return {
        "images": count,
        "cosine": float(cosines(reference, logits).min()),
        "agreement": float(same_top1(reference, logits).mean()),
    }


def turn_ms(opened: Opened, images: np.ndarray, pause_s: float, repeats: int) -> float:
    """One turn: a pause, an untimed inference, then the median of `repeats` timed ones."""
    time.sleep(pause_s)
    opened.infer(images)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        opened.infer(images)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def quartiles(values: list[float]) -> list[float]:
    """[lower quartile, median, upper quartile]."""
    return [round(value, 4) for value in statistics.quantiles(values, n=4, method="inclusive")]


def busy_seconds() -> float | None:
    """CPU time that the whole machine has spent so far, in seconds; None where the kernel does not tell."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    ticks = [int(field) for field in fields]
    return float(sum(ticks[:8]) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def measure(options: argparse.Namespace, variant: str, batch: int) -> dict[str, Any]:
    """One part of the table: every engine that was asked for, at one batch size of one variant."""
    with ExitStack() as stack:
        source = load_source(build_spec(options, variant, Precision.FP32), stack)
        golden = Golden.load(bundle(options, variant, Precision.FP32) / GOLDEN)
        images = np.ascontiguousarray(golden.images[np.arange(batch) % len(golden.images)])
        engines: dict[str, Opened] = {}
        found: dict[str, dict[str, Any]] = {}
        for name in options.engines:
            try:
                engines[name] = opened = open_engine(name, options, variant, batch, source)
            except (NotHere, GmfEdgeError) as error:
                found[name] = {"not_run": str(error)}
                continue
            stack.callback(opened.close)
            shares = {kind: round(share, 4) for kind, share in opened.precision.items()}
            found[name] = {"precision": shares, **parity(opened, golden, batch)}
        turns: dict[str, list[float]] = {name: [] for name in engines}
        before, own = busy_seconds(), time.process_time()
        start = time.perf_counter()
        for _ in range(0 if options.prepare else options.rounds):
            for name, opened in engines.items():
                turns[name].append(turn_ms(opened, images, options.pause, options.repeats))
        wall = time.perf_counter() - start
        after = busy_seconds()
        others = None if before is None or after is None else (after - before - (time.process_time() - own)) / max(wall, 1e-9)
    for name, times in turns.items():
        if len(times) > 1:
            found[name]["ms"] = quartiles(times)
            found[name]["times_as_fast_as"] = {
                base: quartiles([a / b for a, b in zip(turns[base], times, strict=True)]) for base in BASELINES if base in turns
            }
    return {
        "variant": variant,
        "batch": batch,
        "image_size": options.image_size,
        "weights": "random" if options.checkpoint is None or variant != options.checkpoint_variant else options.checkpoint.name,
        "recipe": options.recipe,
        "machine": {
            "cpu": cpu_name(),
            "features": [name for name in INSTRUCTIONS if name in cpu_features()],
            "threads": options.threads,
        },
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rounds": options.rounds,
        "repeats": options.repeats,
        "pause_s": options.pause,
        "cores_busy_with_other_work": None if others is None else round(max(others, 0.0), 2),
        "engines": found,
    }


def commit() -> str:
    """Of the repository, with + where files differ from it."""
    try:
        say = ["git", "-C", str(REPOSITORY)]
        name = subprocess.run([*say, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*say, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed.strip() else "")


def table(parts: list[dict[str, Any]]) -> str:
    """Markdown: a row an engine, of every part."""
    lines = []
    for part in parts:
        machine, versions = part["machine"], part["versions"]
        lines += [
            f"**{part['variant']}, {part['image_size']} x {part['image_size']}, batch {part['batch']}**: {machine['cpu']} "
            f"({', '.join(machine['features'])}), {machine['threads']} threads; "
            + ", ".join(f"{name} {version}" for name, version in versions.items())
            + f"; commit {part['commit']}, {part['date'][:10]}, {part['rounds']} rounds, "
            f"other work kept {part['cores_busy_with_other_work']} cores busy",
            "",
            "| engine | ms (quartiles) | x eager | x ONNX Runtime plain | x OpenVINO plain | smallest cosine | same top-1 |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, row in part["engines"].items():
            if "ms" not in row:
                lines.append(f"| {name} | not run: {row.get('not_run', 'not timed')} | | | | | |")
                continue
            ratios = [row["times_as_fast_as"].get(base) for base in BASELINES]
            lines.append(
                f"| {name} | {row['ms'][1]:.1f} ({row['ms'][0]:.1f}..{row['ms'][2]:.1f}) | "
                + " | ".join("" if r is None else f"{r[1]:.2f} ({r[0]:.2f}..{r[2]:.2f})" for r in ratios)
                + f" | {row['cosine']:.5f} | {100 * row['agreement']:.1f} % of {row['images']} |"
            )
        lines.append("")
    return "\n".join(lines)


def merged(path: Path, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the file has, with parts of the same variant, size and batch replaced."""

    def key(part: dict[str, Any]) -> tuple[Any, ...]:
        return part["variant"], part["image_size"], part["batch"]

    kept = json.loads(path.read_text())["parts"] if path.exists() else []
    new = {key(part) for part in parts}
    return sorted([*(part for part in kept if key(part) not in new), *parts], key=key)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["small", "mobile"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=15, help="turns of every engine, at least 2")
    parser.add_argument("--repeats", type=int, default=3, help="timed inferences a turn")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds before every turn")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=engine_threads().count)
    parser.add_argument("--recipe", default="balanced")
    parser.add_argument("--calibration-data", type=Path)
    parser.add_argument("--calibration-images", type=int, default=SOFT_PICTURES)
    parser.add_argument("--eval-data", type=Path, help="pictures whose first become the golden images")
    parser.add_argument("--eval-images", type=int, default=16)
    parser.add_argument("--checkpoint", type=Path, help="trained weights of one variant; the others stay random")
    parser.add_argument("--checkpoint-variant", default="mobile")
    parser.add_argument("--work", type=Path, default=cache_root() / "cpu-engines", help="bundles are kept here between runs")
    parser.add_argument("--out", type=Path, default=RESULTS / f"cpu-engines-{datetime.now(timezone.utc):%Y-%m-%d}.json")
    parser.add_argument("--prepare", action="store_true", help="export and open everything, time nothing, write nothing")
    parser.add_argument("--table", action="store_true", help="print the table of the results file and end")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds is less than 2")
    if options.table:
        print(table(json.loads(options.out.read_text())["parts"]))
        return 0
    parts = [measure(options, variant, batch) for variant in options.variants for batch in options.batch]
    if options.prepare:
        return 0
    options.out.parent.mkdir(parents=True, exist_ok=True)
    new = options.out.with_suffix(".new")
    new.write_text(json.dumps({"parts": merged(options.out, parts)}, indent=1) + "\n")
    new.replace(options.out)
    print(table(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
