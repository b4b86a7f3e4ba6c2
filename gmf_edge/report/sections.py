"""What stands on the page, section by section, as plain values: from manifest, report.json, measurements and, where given, a benchmark.

Every function returns None where there is nothing to say, and the template leaves the section out.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import gmf_edge.report.charts as charts
from gmf_edge.bundle import PAGE, Manifest
from gmf_edge.report.charts import Chart
from gmf_edge.report.figures import bar, decisive, figure, measure_of, milliseconds, percent, signed_points, size
from gmf_edge.report.measurements import Measurements
from gmf_edge.report.reproduce import commands_of, install_command
from gmf_edge.report.thumbnails import by_weight

Report = Mapping[str, Any]
SLOWEST_LAYERS, NOISIEST_LAYERS = 15, 12
# layers that compute with weights come first among equals, moves of data last
PRECISIONS = ("int8", "fp16", "bf16", "fp32")


def summary(manifest: Manifest, report: Report) -> dict[str, Any]:
    """The verdict, and the few figures that decide."""
    parity, model, engine = report["parity"], manifest.model, report["engine"]
    height, width = model.image_size
    latency = list(report["latency"].values())
    tiles: list[tuple[str, str, str]] = []
    if parity["top1_change_points"] is not None:
        tiles.append(("Top-1", f"{parity['engine_top1']:.2f} %", f"FP32 PyTorch {parity['reference_top1']:.2f} %"))
    if parity.get("maps"):
        tiles.append(("Largest error of a map", figure(parity["relative_l2"]), "relative L2, against FP32 PyTorch"))
    else:
        flips = len(parity["flips"])
        tiles.append(
            ("Same class as FP32 PyTorch", percent(parity["agreement"]), f"{flips:,} of {parity['images']:,} images differ")
        )
    if latency:
        first = latency[0]
        how = f"median {measure_of(first)}{'' if first['steady'] else ', unsteady'}"
        tiles.append((f"Latency, batch {first['batch']}", milliseconds(decisive(first)["median_ms"]), how))
        best = max(latency, key=lambda row: row["throughput"])
        tiles.append(("Throughput", f"{figure(best['throughput'])} images/s", f"at batch {best['batch']}"))
    return {
        "passed": report["passed"],
        "reason": report["reason"],
        "title": f"{model.variant} {height} x {width}, {manifest.precision.value.upper()}",
        "engine": f"{engine['backend']} {engine['version']} on {engine['device']}",
        "statement": manifest.weights.statement,
        "trained": manifest.weights.trained,
        "tiles": tiles,
        "notes": [*engine["notes"], *report.get("notes", ())],
    }


def maps(report: Report) -> dict[str, Any] | None:
    """Of a backbone: each of its maps at each image size and batch size."""
    parity, gate = report["parity"], report["gate"]
    if not parity.get("maps"):
        return None
    rows = [
        {
            "name": row["name"],
            "size": "x".join(map(str, row["image_size"])),
            "batch": row["batch"],
            "relative_l2": figure(row["relative_l2"]),
            "cosine": _cosine(row["cosine"]),
            "error": figure(row["max_abs_error"]),
            "largest": figure(row["largest"]),
        }
        for row in parity["proofs"]
    ]
    return {"images": parity["images"], "rows": rows, "limit": f"{gate['max_relative_l2']:g}", "cosine": f"{gate['min_cosine']:g}"}


def accuracy(report: Report, found: Measurements) -> dict[str, Any] | None:
    """Accuracy with its interval, flipped images, and how far the numbers are apart; None of a backbone."""
    parity, gate = report["parity"], report["gate"]
    if parity.get("maps"):
        return None
    rows: list[tuple[str, str, str]] = []
    if parity["top1_change_points"] is not None:
        low, high = parity["interval_95"]
        rows.append(
            (
                "Top-1 change",
                f"{signed_points(parity['top1_change_points'])} points",
                f"95 % interval {signed_points(low)} to {signed_points(high)}; accepted loss {gate['max_drop_points']:g}",
            )
        )
        lost, gained = parity["discordant"]["lost"], parity["discordant"]["gained"]
        rows.append(
            ("Right in one only", f"{lost} lost, {gained} gained", "images that FP32 PyTorch alone, or the engine alone, has right")
        )
        if parity["reference_top5"] is not None:
            rows.append(("Top-5", f"{parity['engine_top5']:.2f} %", f"FP32 PyTorch {parity['reference_top5']:.2f} %"))
    rows += [
        ("Same top-1 class", percent(parity["agreement"]), f"{percent(parity['clear_agreement'])} when near ties are excused"),
        (
            "Cosine similarity of logits",
            _cosine(parity["cosine"]),
            f"smallest of an image {_cosine(parity['min_cosine'])}, limit {gate['min_cosine']:g}",
        ),
        ("Largest logit error", figure(parity["max_abs_error"]), f"relative L2 error {figure(parity['relative_l2'])}"),
    ]
    if parity["non_finite_images"]:
        rows.append(("Not finite", f"{parity['non_finite_images']} images", "logits of the engine that are NaN or infinite"))
    drawn: list[Chart | None] = []
    if parity["top1_change_points"] is not None:
        low, high = parity["interval_95"]
        drawn.append(charts.interval(parity["top1_change_points"], low, high, gate["max_drop_points"]))
    samples = found.parity
    if samples is not None:
        drawn += [
            charts.scatter(samples.reference, samples.engine, samples.largest),
            charts.error_histogram(samples.errors, samples.margins),
        ]
    batches = [
        {
            "batch": batch,
            "agreement": percent(row["agreement"]),
            "cosine": _cosine(row["min_cosine"]),
            "error": figure(row["max_abs_error"]),
        }
        for batch, row in parity["batches"].items()
    ]
    return {
        "images": parity["images"],
        "rows": rows,
        "charts": [chart for chart in drawn if chart is not None],
        "batches": batches,
        "flips": [_flip(flip, found.thumbnails) for flip in by_weight(parity["flips"])],
        "pictures": len(found.thumbnails),
    }


def _flip(flip: Mapping[str, Any], thumbnails: Mapping[str, bytes]) -> dict[str, Any]:
    jpeg = thumbnails.get(flip["image"])
    return {
        **flip,
        "margin": figure(flip["margin"]),
        "error": figure(flip["error"]),
        "picture": None if jpeg is None else "data:image/jpeg;base64," + base64.b64encode(jpeg).decode(),
    }


def _cosine(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6f}"


def latency(report: Report, found: Measurements) -> dict[str, Any] | None:
    """Times at each batch size, how they are spread, and how they grow with the batch."""
    rows = list(report["latency"].values())
    if not rows:
        return None
    table, drawn = [], []
    for row in rows:
        times = decisive(row)
        percentiles = times["percentiles_ms"]
        late = list(percentiles.items())[-1]
        low, high = times.get("median_low_ms"), times.get("median_high_ms")
        table.append(
            {
                "batch": row["batch"],
                "median": milliseconds(times["median_ms"]),
                "interval": f"{figure(low)} to {figure(high)} ms" if low is not None and high is not None else "too few times",
                "percentiles": [(name, milliseconds(value)) for name, value in percentiles.items()],
                "throughput": figure(row["throughput"]),
                "steady": row["steady"],
            }
        )
        if row["batch"] in found.times_ms:
            drawn.append(
                charts.latency_histogram(found.times_ms[row["batch"]], row["batch"], times["median_ms"], late, measure_of(row))
            )
    drawn.append(charts.sweep([(row["batch"], row["throughput"]) for row in rows], "Images per second", "images/s", figure))
    drawn.append(
        charts.sweep([(row["batch"], decisive(row)["median_ms"]) for row in rows], f"Median {measure_of(rows[0])}", "ms", figure)
    )
    return {
        "measure": measure_of(rows[0]),
        "table": table,
        "charts": [chart for chart in drawn if chart is not None],
        "notes": list(dict.fromkeys(note for row in rows for note in row["notes"])),
    }


def layers(report: Report) -> dict[str, Any] | None:
    """Where the time goes: by kind of layer and precision, and the slowest layers by name."""
    found = report["engine"]["layers"]
    if not found:
        return None
    total = sum(layer["time_ms"] or 0.0 for layer in found)
    kinds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for layer in found:
        kinds[layer["kind"], layer["precision"]].append(layer["time_ms"] or 0.0)
    rows = sorted(
        ((kind, precision, len(times), sum(times)) for (kind, precision), times in kinds.items()),
        key=lambda row: (-row[3], -row[2], row[0]),
    )
    slowest = sorted(found, key=lambda layer: -(layer["time_ms"] or 0.0))[:SLOWEST_LAYERS]
    shares = report["engine"]["precision_shares"]
    return {
        "count": len(found),
        "total": milliseconds(total) if total else None,
        "shares": [(name, round(100 * shares[name], 1)) for name in sorted(shares, key=_precision_order) if shares[name] > 0],
        "kinds": [
            _timed(kind, precision, spent, total, rows[0][3], count) for kind, precision, count, spent in rows[:SLOWEST_LAYERS]
        ],
        "other_kinds": max(0, len(rows) - SLOWEST_LAYERS),
        "slowest": [
            _timed(layer["name"], layer["precision"], layer["time_ms"], total, slowest[0]["time_ms"] or 0.0) for layer in slowest
        ]
        if total
        else [],
    }


def _timed(name: str, precision: str, spent: float | None, total: float, longest: float, count: int = 1) -> dict[str, Any]:
    return {
        "name": name,
        "precision": precision,
        "count": count,
        "time": milliseconds(spent) if spent else "",
        "part": percent(spent / total, 1) if spent and total else "",
        "share": bar(spent, longest),
    }


def _precision_order(name: str) -> int:
    return PRECISIONS.index(name) if name in PRECISIONS else len(PRECISIONS)


def int8(manifest: Manifest) -> dict[str, Any] | None:
    """Which layers are quantised, how much noise that adds to each, and what they were calibrated on."""
    found = manifest.lowering.get("int8")
    if not found:
        return None
    rows = sorted(found["layer_snr"], key=lambda row: float("inf") if row["output_db"] is None else row["output_db"])
    best = max((row["output_db"] for row in rows if row["output_db"] is not None), default=0.0)
    table = [
        {
            "name": row["layer"],
            "kind": row["kind"],
            "output": _decibels(row["output_db"]),
            "activation": _decibels(row["activation_db"]),
            "weight": _decibels(row["weight_db"]),
            "share": bar(row["output_db"], best) if row["output_db"] is not None else 100.0,
        }
        for row in rows
    ]
    calibration = found["calibration"]
    return {
        "layers": len(found["layers"]),
        "exceptions": found["exceptions"],
        "worst": table[:NOISIEST_LAYERS],
        "rest": table[NOISIEST_LAYERS:],
        "provenance": [
            ("Images", f"{calibration['images']:,}"),
            ("Ranges by", calibration["method"]),
            ("Seed of their draw", str(calibration["seed"])),
            ("SHA-256 of the images", calibration["images_sha256"]),
        ],
        "notes": found["notes"],
    }


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f} dB"


def graph(manifest: Manifest) -> dict[str, Any] | None:
    """What each rewrite did."""
    steps = [step for step in manifest.rewriting if "nodes_before" in step]
    if not steps:
        return None
    most = float(steps[0]["nodes_before"])
    rows = [
        {
            "name": step["name"],
            "fired": step["fired"],
            "before": step["nodes_before"],
            "after": step["nodes_after"],
            "share": bar(step["nodes_after"], most),
            "error": figure(step["relative_error"]) if step["fired"] else "not fired",
        }
        for step in steps
    ]
    islands = manifest.lowering.get("islands", {})
    return {
        "rows": rows,
        "before": steps[0]["nodes_before"],
        "after": steps[-1]["nodes_after"],
        "islands": sorted(islands.items()),
    }


def environment(manifest: Manifest, report: Report) -> list[tuple[str, str]]:
    """Where and with what it was made and measured."""
    engine, machine = report["engine"], report.get("machine") or {}
    execution = {name: value for name, value in engine.get("execution", {}).items() if name != "threads_reason"}
    rows = [
        ("Engine", f"{engine['backend']} {engine['version']}, {engine['form']} graph"),
        ("Why this engine", report["backend_reason"]),
        ("Device", engine["device"]),
        ("Runs with", ", ".join(f"{name} {value}" for name, value in execution.items())),
        ("System", machine.get("system") or ""),
        ("Memory", f"{machine['memory_gib']} GiB" if machine.get("memory_gib") else ""),
        ("CPU", _cpu(machine)),
        ("Python", report["python"]),
        ("Made with", ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))),
        ("Written", report["written"]),
    ]
    return [(name, value) for name, value in rows if value]


def _cpu(machine: Mapping[str, Any]) -> str:
    words = [str(machine["cpu"])] if machine.get("cpu") else []
    if machine.get("governor"):
        words.append(f"governor {machine['governor']}")
    if machine.get("virtual"):
        words.append("a virtual machine")
    words += machine.get("instructions") or []
    return ", ".join(words)


def reproduction(manifest: Manifest, report: Report) -> dict[str, Any]:
    """The commands, the versions, and the files with their digests."""
    files: Sequence[tuple[str, Mapping[str, Any]]] = sorted(manifest.files.items())
    return {
        "install": install_command(manifest.versions, report),
        "commands": commands_of(manifest, report) if manifest.request else [],
        # its own digest cannot stand in it
        "files": [(name, size(entry["bytes"]), entry["sha256"]) for name, entry in files if name != PAGE],
        "evaluation": manifest.evaluation,
        "preprocess": manifest.preprocess.to_json(),
    }
