"""What is printed: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as ProgressBar
from rich.progress import Task as BarTask
from rich.table import Column, Table
from rich.text import Text

from gmf_edge.cli.options import ResultOptions, ScreenOptions
from gmf_edge.cli.summary import shortened, summary_lines
from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.errors import AccuracyError, GmfEdgeError, RegressionError
from gmf_edge.spec import Task, words_of_size

if TYPE_CHECKING:
    from gmf_edge.bundle import Bundle
    from gmf_edge.deploy import Result

# a file or a pipe has no width: tables keep their columns whole there, unless COLUMNS says otherwise
HAS_WIDTH = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
out = Console(highlight=False, soft_wrap=True, width=None if HAS_WIDTH else 200)
err = Console(stderr=True, highlight=False, soft_wrap=True)
# of the INT8 layers that `inspect` names
WORST_LAYERS = 3
MOST_FLIPS = 5
# a log gets a line of a long step this often
LOG_EVERY_S = 30.0


class ResultOutsideGate(AccuracyError):
    """A result outside the gate that has been printed already."""


class RegressionShown(RegressionError):
    """A regression that has been printed already."""


class _Time(ProgressColumn):
    """Time left where it can be known, else time since the step began."""

    def render(self, task: BarTask) -> Text:
        if task.total is None:
            return Text(f"{timedelta(seconds=int(task.elapsed or 0))}", style="cyan")
        left = task.time_remaining
        return Text("" if left is None else f"{timedelta(seconds=int(left))} left", style="cyan")


@contextmanager
def progress_shown(screen: ScreenOptions) -> Iterator[Progress]:
    """Steps as lines, long steps as a bar with the time left, on standard error; into a log, a line of a long step now and then."""
    if screen.quiet or screen.as_json:
        yield silent
        return
    if not err.is_terminal:
        yield _log()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=20),
        _Time(),
    )
    with ProgressBar(*columns, console=err, transient=True, expand=True) as bar:
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


def _log() -> Progress:
    begun = told = time.monotonic()
    last = 0.0

    def show(fraction: float | None, message: str) -> None:
        nonlocal begun, told, last
        now = time.monotonic()
        if fraction is None:
            err.print(f"- {message}", markup=False)
            begun, told, last = now, now, 0.0
            return
        if fraction < last:
            begun = now
        last = fraction
        if now - told >= LOG_EVERY_S:
            left = (
                f", {timedelta(seconds=round((now - begun) * (1 - fraction) / fraction))} left" if now > begun and fraction else ""
            )
            err.print(f"- {message}{left}", markup=False)
            told = now

    return show


def show_error(error: GmfEdgeError) -> None:
    """What is wrong, what to do, and the last line."""
    err.print(Text.assemble(("error: ", "red"), error.problem))
    if error.remedy:
        err.print(Text.assemble(("what to do: ", "cyan"), error.remedy))
    show_verdict(False, error.problem)


def show_verdict(passed: bool, reason: str) -> None:
    """The last line."""
    word, style = ("PASSED", "green") if passed else ("FAILED", "red")
    out.print(Text.assemble((f"{word}: ", style), shortened(reason)))


def show_note(note: str) -> None:
    """A choice or fallback that the user should know."""
    out.print(Text.assemble(("note: ", "yellow"), note))


def show_table(table: Table) -> None:
    """A table within the width of the screen: long names break, figures do not."""
    out.print(table, soft_wrap=False)


def print_json(values: Any) -> None:
    """One JSON value on standard output."""
    sys.stdout.write(json.dumps(values, indent=2) + "\n")


def show_result(result: Result, screen: ResultOptions, written: bool = True) -> None:
    """Print how a build, a deployment or a verification ended.

    Args:
        result: how.
        screen: what is wanted on the screen.
        written: whether the result is in its folder.

    Raises:
        ResultOutsideGate: it did not pass; the command line ends with its status.
    """
    if screen.as_json:
        print_json({"folder": str(result.folder), **result.report})
    else:
        report = result.report
        _show_statement(report)
        if screen.verbose:
            show_report(report)
        else:
            if not result.passed:
                _show_flips(report)
            for note in _notes(report):
                show_note(note)
        folder = result.folder if written else None
        steps = _after_failure(folder) if not result.passed else _after_success(report, folder) if folder is not None else []
        for line in summary_lines(report, folder, steps, out.width if HAS_WIDTH else None):
            out.print(line, markup=False)
        show_verdict(result.passed, result.reason)
    if not result.passed:
        raise ResultOutsideGate(result.reason, "")


def _after_success(report: Mapping[str, Any], folder: Path) -> list[str]:
    use = "bench" if report["parity"].get("maps") else "predict"
    return [f"gmf-edge {use} {folder}{' PICTURE...' if use == 'predict' else ''}", f"gmf-edge verify {folder}"]


def _after_failure(folder: Path | None) -> list[str]:
    found = [] if folder is None else [f"what differs, image by image: {folder / 'report.json'}"]
    return [*found, "then: more --eval-data, another --precision, or --max-drop for a loss that you accept"]


def _notes(report: Mapping[str, Any]) -> list[str]:
    """Of the engine, of how it was chosen, and of its latency, each once."""
    groups = [report["engine"]["notes"], report.get("notes", [])]
    groups += [report[name]["notes"] for name in ("plugin", "comparison", "choice") if report.get(name)]
    groups += [value["notes"] for value in report["latency"].values()]
    return list(dict.fromkeys(note for notes in groups for note in notes))


def _show_statement(report: Mapping[str, Any]) -> None:
    weights = report["weights"]
    if weights["trained"]:
        out.print(weights["statement"], markup=False)
    else:
        out.print(Text(f"*** {weights['statement']} ***", style="yellow"))


def _show_flips(report: Mapping[str, Any]) -> None:
    flips = report["parity"]["flips"]
    for flip in flips[:MOST_FLIPS]:
        out.print(f"flipped: {flip['image']}: {flip['reference']} -> {flip['engine']}", markup=False)
    if len(flips) > MOST_FLIPS:
        out.print(f"and {len(flips) - MOST_FLIPS} more flipped images, by name in report.json", markup=False)


def show_report(report: Mapping[str, Any]) -> None:
    """Print what report.json says, without what the weights are and its last line."""
    engine = report["engine"]
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
        show_note(note)
    for note in report.get("notes", ()):
        show_note(note)
    _show_flips(report)
    if report["parity"].get("maps"):
        show_maps(report["parity"]["maps"])
    if report["latency"]:
        show_latency(list(report["latency"].values()))
    if report.get("choice"):
        show_choice(report["choice"])
    for name in ("plugin", "comparison"):
        if report.get(name):
            out.print(f"{name}: {report[name]['reason']}", markup=False)
            for note in report[name]["notes"]:
                show_note(note)
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
    show_table(table)


def show_choice(choice: Mapping[str, Any]) -> None:
    """Print a table of the engines that came into question, and why the delivered one was chosen."""
    table = Table(*_columns("engine", "version", "median ms", ""), box=None, pad_edge=False)
    for name, row in choice["engines"].items():
        median = "" if row["median_ms"] is None else f"{row['median_ms']:.3f}"
        remark = row["reason"] if not row["right"] else "delivered" if name == choice["delivered"] else ""
        table.add_row(name, row["version"] or "", median, remark)
    show_table(table)
    out.print(f"choice: {choice['reason']}", markup=False)


def show_latency(values: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of bench.latency.Latency.to_json rows, and their notes."""
    on_gpu = any(value["gpu_compute"] for value in values)
    traced = any(value.get("enqueue") for value in values)
    has_energy = any(value.get("energy") for value in values)
    named = list(values[0]["percentiles_ms"])
    columns = ["batch", *(["GPU ms"] if on_gpu else []), *(["enqueue", "H2D", "D2H"] if traced else [])]
    columns += ["median ms", "mean", *(f"p{name}" for name in named), "known to", "images/s", *(["J/image"] if has_energy else [])]
    table = Table(*_columns(*columns), box=None, pad_edge=False)
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
    show_table(table)
    for line in dict.fromkeys(mode_words(value["modes"]) for value in values if value.get("modes")):
        out.print(line, markup=False)
    for note in dict.fromkeys(note for value in values for note in value["notes"]):
        show_note(note)


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
    table = Table(*_columns("layer", "kind", "precision", "ms"), box=None, pad_edge=False)
    for layer in slowest:
        time_ms = "" if layer["time_ms"] is None else f"{layer['time_ms']:.3f}"
        table.add_row(*map(Text, (layer["name"], layer["kind"], layer["precision"], time_ms)))
    show_table(table)
    show_verdict(report["passed"], report["reason"])


def _columns(*names: str) -> list[Column]:
    """Names break where they must, at any character; what is measured stays whole."""
    whole = ("ms", "images/s", "variation", "batch", "version", "precision")
    return [Column(name, no_wrap=any(word in name for word in whole), overflow="fold") for name in names]


def _output_db(row: Mapping[str, Any]) -> float:
    """Signal-to-noise ratio of a layer's output; JSON has null for a layer without error."""
    return float("inf") if row["output_db"] is None else float(row["output_db"])


def show_files(files: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the files of a manifest."""
    for name, entry in files.items():
        out.print(f"  {name}  {_size_words(entry['bytes'])}", markup=False)


def _size_words(size: int) -> str:
    return f"{size / 2**20:.2f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
