"""What is printed: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from gmf_edge.cli.options import ScreenOptions
from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.errors import AccuracyError, RegressionError
from gmf_edge.spec import Task, words_of_size

if TYPE_CHECKING:
    from gmf_edge.bundle import Bundle
    from gmf_edge.deploy import Result

# a file or a pipe has no width: tables keep their columns whole there
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False, soft_wrap=True)
# of the INT8 layers that `inspect` names
WORST_LAYERS = 3


class ResultOutsideGate(AccuracyError):
    """A result outside the gate that has been printed already."""


class RegressionShown(RegressionError):
    """A regression that has been printed already."""


@contextmanager
def progress_shown(screen: ScreenOptions) -> Iterator[Progress]:
    """Steps as lines, long steps as a bar with the time left, on standard error."""
    if screen.quiet or screen.as_json:
        yield silent
        return
    if not err.is_terminal:
        yield lambda fraction, message: err.print(f"- {message}", markup=False) if fraction is None else None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with ProgressBar(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(fraction: float | None, message: str) -> None:
            if fraction is None:
                bar.reset(task, total=None, description=message)
                bar.console.print(f"- {message}", markup=False)
            else:
                if fraction <= bar.tasks[0].completed:
                    bar.reset(task)
                bar.update(task, total=1.0, completed=fraction, description=message)

        yield show


def print_json(values: Any) -> None:
    """One JSON value on standard output."""
    sys.stdout.write(json.dumps(values, indent=2) + "\n")


def show_result(result: Result, as_json: bool) -> None:
    """Print how a build, a deployment or a verification ended.

    Raises:
        ResultOutsideGate: it did not pass; the command line ends with its status.
    """
    if as_json:
        print_json({"folder": str(result.folder), **result.report})
    else:
        show_report(result.report)
        out.print(f"{'PASSED' if result.passed else 'FAILED'}: {result.reason}", markup=False)
    if not result.passed:
        raise ResultOutsideGate(result.reason, "")


def show_report(report: Mapping[str, Any]) -> None:
    """Print what report.json says, without its last line."""
    weights, engine = report["weights"], report["engine"]
    if not weights["trained"]:
        out.print(f"*** {weights['statement']} ***", markup=False)
    else:
        out.print(weights["statement"], markup=False)
    out.print(f"engine: {engine['backend']} {engine['version']} on {engine['device']}, {engine['form']} graph", markup=False)
    execution = {name: value for name, value in engine.get("execution", {}).items() if name != "threads_reason"}
    if execution:
        reason = engine["execution"].get("threads_reason")
        words = [f"{name} {value}{f' ({reason})' if name == 'threads' and reason else ''}" for name, value in execution.items()]
        out.print(f"runs with {', '.join(words)}", markup=False)
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in engine["precision_shares"].items())
    if shares:
        out.print(f"asked for {report['precision']}; computed in: {shares} (share of the weighted layers' time)", markup=False)
    for note in engine["notes"]:
        out.print(f"note: {note}", markup=False)
    parity = report["parity"]
    for flip in parity["flips"][:5]:
        out.print(f"flipped: {flip['image']}: {flip['reference']} -> {flip['engine']}", markup=False)
    if len(parity["flips"]) > 5:
        out.print(f"and {len(parity['flips']) - 5} more flipped images, by name in report.json", markup=False)
    if parity.get("maps"):
        show_maps(parity["maps"])
    if report["latency"]:
        show_latency(list(report["latency"].values()))
    if report.get("choice"):
        show_choice(report["choice"])
    for name in ("plugin", "comparison"):
        if report.get(name):
            out.print(f"{name}: {report[name]['reason']}", markup=False)
            for note in report[name]["notes"]:
                out.print(f"note: {note}", markup=False)
    if report.get("alternative"):
        other = report["alternative"]
        out.print(f"{report['precision']} was delivered; beside it {other['precision']}: {other['reason']}", markup=False)


def show_maps(maps: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a backbone's maps, each with its worst image over all batch and image sizes."""
    table = Table("map", "relative L2", "cosine", "largest error", "of values up to", "at", box=None, pad_edge=False)
    for name, worst in maps.items():
        numbers = [worst[key] for key in ("relative_l2", "cosine", "max_abs_error", "largest")]
        shown = [
            "not finite" if number is None else f"{number:.6f}" if key == 1 else f"{number:.3g}"
            for key, number in enumerate(numbers)
        ]
        table.add_row(name, *shown, f"{words_of_size(worst['image_size'])}, batch {worst['batch']}")
    out.print(table)


def show_choice(choice: Mapping[str, Any]) -> None:
    """Print a table of the engines that came into question, and why the delivered one was chosen."""
    table = Table("engine", "version", "median ms", "", box=None, pad_edge=False)
    for name, row in choice["engines"].items():
        median = "" if row["median_ms"] is None else f"{row['median_ms']:.3f}"
        remark = row["reason"] if not row["right"] else "delivered" if name == choice["delivered"] else ""
        table.add_row(name, row["version"] or "", median, remark)
    out.print(table)
    out.print(f"choice: {choice['reason']}", markup=False)


def show_latency(values: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of bench.Latency.to_json rows, and their notes."""
    on_gpu = any(value["gpu_compute"] for value in values)
    traced = any(value.get("enqueue") for value in values)
    has_energy = any(value.get("energy") for value in values)
    named = list(values[0]["percentiles_ms"])
    columns = ["batch", *(["GPU ms"] if on_gpu else []), *(["enqueue", "H2D", "D2H"] if traced else [])]
    columns += ["median ms", "mean", *(f"p{name}" for name in named), "known to", "images/s", *(["J/image"] if has_energy else [])]
    table = Table(*columns, box=None, pad_edge=False)
    for value in values:
        gpu, energy = value["gpu_compute"], value.get("energy")
        known = (gpu or value).get("uncertainty")
        table.add_row(
            str(value["batch"]),
            *([f"{gpu['median_ms']:.3f}"] if gpu else []),
            *([f"{value[name]['median_ms']:.3f}" for name in ("enqueue", "h2d", "d2h")] if traced else []),
            f"{value['median_ms']:.3f}",
            f"{value['mean_ms']:.3f}",
            *(f"{value['percentiles_ms'][name]:.3f}" for name in named),
            ("?" if known is None else f"±{100 * known:.1f} %") + ("" if value["steady"] else " (unsteady)"),
            f"{value['throughput']:.1f}",
            *(["" if energy is None else f"{energy['joules_per_image']:.3f}"] if has_energy else []),
        )
    out.print(table)
    for line in dict.fromkeys(mode_words(value["modes"]) for value in values if value.get("modes")):
        out.print(line, markup=False)
    for note in dict.fromkeys(note for value in values for note in value["notes"]):
        out.print(f"note: {note}", markup=False)


def mode_words(modes: Mapping[str, Any]) -> str:
    """What was on and off, in one line."""
    if modes["cuda_graph"] is None:
        return "median, mean and percentiles: host latency, end to end; images/s: one inference at a time"
    words = (
        (name, modes[key]) for name, key in (("CUDA graph", "cuda_graph"), ("transfers", "transfers"), ("spin-wait", "spin_wait"))
    )
    return (
        ", ".join(f"{name} {'on' if is_on else 'off'}" for name, is_on in words)
        + f"; images/s: {modes['in_flight']} inferences in flight; median, mean and percentiles: host latency, end to end"
    )


def show_bundle(bundle: Bundle, layers: int) -> None:
    """Print what is in a bundle, with this many of its engine's slowest layers."""
    manifest, report = bundle.manifest, bundle.report
    model = manifest.model
    size = words_of_size(model.image_size)
    if manifest.sizes is not None:
        size = f"{words_of_size(manifest.sizes.min)} to {words_of_size(manifest.sizes.max)}, tuned for {size}"
    gives = f"{model.num_classes} classes" if model.task is Task.CLASSIFY else "backbone: maps of strides 4, 8, 16, 32"
    out.print(f"{model.variant} {size}, {gives}, {manifest.precision.value}")
    out.print(manifest.weights.statement, markup=False)
    profile = manifest.profile
    out.print(f"batch {profile.min}..{profile.max}, tuned for {profile.opt}; {manifest.io_dtype} input and output")
    islands = manifest.lowering.get("islands", {})
    for name, reason in islands.items():
        out.print(f"FP32 island: {name} ({reason})", markup=False)
    for sentence in manifest.lowering.get("advice", ()):
        out.print(f"note: {sentence}", markup=False)
    for key in ("near", "beyond"):
        for name, size in manifest.lowering.get("ranges", {}).get(key, {}).items():
            out.print(f"activation {key} FP16's range: {name} reaches {size:.0f}", markup=False)
    for row in sorted(manifest.lowering.get("int8", {}).get("layer_snr", []), key=_output_db)[:WORST_LAYERS]:
        out.print(f"INT8 layer with the largest error: {row['layer']}, {_output_db(row):.1f} dB", markup=False)
    for name, found in manifest.lowering.get("parsers", {}).items():
        out.print(f"{name}: fit for the ONNX parser of TensorRT {', '.join(found['fit']) or '(none)'}", markup=False)
        for refused in found["unfit"]:
            out.print(f"{name}: not fit: {refused}", markup=False)
    show_files(manifest.files)
    if report is None:
        out.print("not deployed yet")
        return
    show_report(report)
    slowest = sorted(report["engine"]["layers"], key=lambda layer: -(layer["time_ms"] or 0.0))[:layers]
    table = Table("layer", "kind", "precision", "ms", box=None, pad_edge=False)
    for layer in slowest:
        table.add_row(
            layer["name"], layer["kind"], layer["precision"], "" if layer["time_ms"] is None else f"{layer['time_ms']:.3f}"
        )
    out.print(table)
    out.print(f"{'PASSED' if report['passed'] else 'FAILED'}: {report['reason']}", markup=False)


def _output_db(row: Mapping[str, Any]) -> float:
    """Signal-to-noise ratio of a layer's output; JSON has null for a layer without error."""
    return float("inf") if row["output_db"] is None else float(row["output_db"])


def show_files(files: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the files of a manifest."""
    for name, entry in files.items():
        out.print(f"  {name}  {entry['bytes'] / 2**20:.2f} MiB", markup=False)
