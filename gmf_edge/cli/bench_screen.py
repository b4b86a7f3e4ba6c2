"""What bench and compare print beyond latency tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from gmf_edge.cli.screen import out

if TYPE_CHECKING:
    from gmf_edge.deploy import Difference

# flips and other lists that a screen shows of each kind
SHOWN = 5


def show_throughput(values: Sequence[Mapping[str, Any]]) -> None:
    """Print bench.latency.Throughput.to_json rows."""
    if not values:
        return
    table = Table("batch", "streams", "in flight", "images/s", "median ms under load", box=None, pad_edge=False)
    for value in values:
        table.add_row(
            str(value["batch"]),
            str(value["streams"]),
            str(value["modes"]["in_flight"]),
            f"{value['images_per_s']:.1f}",
            "" if value["latency"] is None else f"{value['latency']['median_ms']:.3f}",
        )
    out.print(table)


def show_baselines(values: Mapping[str, Any]) -> None:
    """Print deploy.bench.Baselines.to_json: each batch size's engines in turn, each with its parity."""
    for batch, found in values["batches"].items():
        out.print(f"in turn at batch {batch}, {found['rounds']} rounds, {found['measure']}:", markup=False)
        columns = ("engine", "median ms", "95 % interval", "images/s", "gmf-edge is x times as fast", "quartiles", "accuracy")
        table = Table(*columns, box=None, pad_edge=False)
        for name, part in found["engines"].items():
            engine, times = values["engines"][name], part["times"]
            low, high = times["median_low_ms"], times["median_high_ms"]
            table.add_row(
                f"{name} ({engine['backend']} {engine['version']}, {engine['form']})",
                f"{times['median_ms']:.3f}",
                "" if low is None else f"{low:.3f}..{high:.3f}",
                f"{1000 * int(batch) / times['median_ms']:.1f}",
                f"{part['ratio']:.2f}",
                f"{part['ratio_low']:.2f}..{part['ratio_high']:.2f}",
                accuracy_words(engine["accuracy"]) + ("" if engine["within_gate"] else " (outside the gate)"),
            )
        out.print(table)
    for name, reason in values["not_run"].items():
        out.print(f"not run: {name}: {reason}", markup=False)


def accuracy_words(accuracy: Mapping[str, Any]) -> str:
    """Top-1 where it is known, agreement with FP32 PyTorch and the logits' error: one engine's in a few words."""
    words = [] if accuracy["engine_top1"] is None else [f"top-1 {accuracy['engine_top1']:.2f} %"]
    words.append(f"agreement {100 * accuracy['agreement']:.2f} %")
    if accuracy["relative_l2"] is not None:
        words.append(f"relative L2 {accuracy['relative_l2']:.1e}")
    return ", ".join(words)


def show_difference(found: Difference) -> None:
    """Print deploy.difference.Difference, without its last line."""
    for letter, side in (("A", found.a), ("B", found.b)):
        engine = side.engine
        out.print(
            f"{letter}: {side.name} ({side.made['model']['variant']} {side.made['precision']}, {engine['backend']} "
            f"{engine['version']} on {engine['device']})",
            markup=False,
        )
    for line in found.forced:
        out.print(f"differs, compared all the same: {line}", markup=False)
    table = Table("", "A", "B", "B against A", box=None, pad_edge=False)
    for change in found.latency:
        bounds = "" if change.low is None or change.high is None else f" ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
        table.add_row(
            f"batch {change.batch}, {change.measure}, ms",
            f"{change.a_ms:.3f}",
            f"{change.b_ms:.3f}",
            f"{100 * change.change:+.1f} %{bounds}",
        )
    for batch, streams, first, second in found.throughput:
        table.add_row(
            f"batch {batch}, {streams} streams, images/s", f"{first:.1f}", f"{second:.1f}", f"{100 * (second / first - 1):+.1f} %"
        )
    for name, key, scale, change_points in (
        ("top-1, %", "engine_top1", 1.0, found.accuracy_change_points),
        ("agreement with FP32 PyTorch, %", "agreement", 100.0, found.agreement_change_points),
    ):
        if change_points is not None and found.a.accuracy is not None and found.b.accuracy is not None:
            table.add_row(
                name,
                f"{scale * found.a.accuracy[key]:.2f}",
                f"{scale * found.b.accuracy[key]:.2f}",
                f"{change_points:+.2f} points",
            )
    for name, (before, after) in found.sizes.items():
        if name.endswith(".json"):
            continue  # a report's length says nothing
        change_words = "" if before is None or after is None else f"{100 * (after / before - 1):+.1f} %"
        table.add_row(f"{name}, MiB", _mib(before), _mib(after), change_words)
    out.print(table)
    for letter, flips in (("A", found.flips_only_in_a), ("B", found.flips_only_in_b)):
        if flips:
            more = f" and {len(flips) - SHOWN} more" if len(flips) > SHOWN else ""
            out.print(f"flipped only in {letter}: {', '.join(flips[:SHOWN])}{more}", markup=False)
    if found.made:
        out.print("made differently:")
        for line in found.made:
            out.print(f"  {line}", markup=False)
    for note in found.notes:
        out.print(f"note: {note}", markup=False)


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.2f}"
