"""Two bundles or two measurements against each other: accuracy, flips, latency, sizes, and what differs in how they were made.

What is compared is a bundle that was deployed (its report.json), or a file that `gmf-edge bench --output` wrote. Latency is compared where
both have it at the same batch size, by GPU compute time where both have that. Figures of different machines or modes say nothing about
what was compared, so they are refused by name unless that is forced.

The change of a latency has bounds, from the 95 % intervals of the two medians. What decides is the medians' ratio; where the limit lies
between the bounds, a note says that a longer measurement could decide otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gmf_edge.artifact import read_json
from gmf_edge.bundle import open_bundle
from gmf_edge.deploy.bench import SCHEMA
from gmf_edge.deploy.summary import bundle_summary
from gmf_edge.errors import BundleError, DataError, SpecError
from gmf_edge.report import BENCH_KIND

# modes that a latency depends on; a CPU has none of the first three
MODES = ("cuda_graph", "transfers", "spin_wait")
# of bench.load.machine_facts and of bench.device.device_state
MACHINE, POWER = ("system", "cpu", "cores", "governor"), ("power_mode",)


@dataclass(frozen=True)
class Limits:
    """What is accepted of B against A.

    Attributes:
        max_regression: share by which a latency may be larger (0.05 for 5 %); None for no limit.
        max_drop_points: points by which top-1 (agreement with FP32 PyTorch, where there is no top-1) may be lower; None for no limit.
    """

    max_regression: float | None = None
    max_drop_points: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("--max-regression", self.max_regression), ("--max-drop", self.max_drop_points)):
            if value is not None and not 0 <= value < float("inf"):
                raise SpecError(f"{name} is {value}", "give a number of at least 0")


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        name: its path as given.
        engine: "backend", "version", "device", "form".
        made: deploy.summary.made_of.
        accuracy: deploy.summary.accuracy_of; None where it is not known.
        bytes: file -> size.
        latency: batch size -> bench.latency.Latency.to_json.
        streams: (batch size, streams) -> bench.latency.Throughput.to_json.
        machine: what figures depend on; fields that are not known are not there.
    """

    name: str
    engine: Mapping[str, Any]
    made: Mapping[str, Any]
    accuracy: Mapping[str, Any] | None
    bytes: Mapping[str, int]
    latency: Mapping[int, Mapping[str, Any]]
    streams: Mapping[tuple[int, int], Mapping[str, Any]]
    machine: Mapping[str, Any]


@dataclass(frozen=True)
class LatencyChange:
    """One batch size.

    Attributes:
        batch: images an inference.
        measure: "GPU compute time" or "host latency".
        a_ms, b_ms: medians.
        change: b over a, less 1.
        low, high: bounds of it; None where a median has no interval.
    """

    batch: int
    measure: str
    a_ms: float
    b_ms: float
    change: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """What compare found.

    Attributes:
        a, b: the two.
        passed: whether B is within the limits.
        reason: why, in one sentence.
        latency: at each batch size that both have.
        throughput: (batch, streams, A's images a second, B's), where both have it.
        accuracy_change_points: of top-1, B less A; None where one of them has none.
        agreement_change_points: of the agreement with FP32 PyTorch, likewise.
        flips_only_in_a, flips_only_in_b: images whose top-1 differs from FP32 PyTorch's in one and not in the other.
        sizes: file -> (A's bytes, B's bytes), None where one has no such file.
        made: what differs in how they were made, one phrase each.
        forced: machines and modes that differ, where that was forced.
        notes: what makes the verdict doubtful.
    """

    a: Side
    b: Side
    passed: bool
    reason: str
    latency: tuple[LatencyChange, ...]
    throughput: tuple[tuple[int, int, float, float], ...]
    accuracy_change_points: float | None
    agreement_change_points: float | None
    flips_only_in_a: tuple[str, ...]
    flips_only_in_b: tuple[str, ...]
    sizes: Mapping[str, tuple[int | None, int | None]]
    made: tuple[str, ...]
    forced: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = asdict(self)
        for side in ("a", "b"):
            values[side] = {"name": values[side]["name"], "engine": values[side]["engine"]}
        return values


def compare(a: Path, b: Path, limits: Limits | None = None, *, force: bool = False) -> Difference:
    """B against A; what `gmf-edge compare` does.

    Args:
        a: a bundle that was deployed, or a file of `gmf-edge bench --output`.
        b: another; one of each will do.
        limits: what is accepted; None for no limits.
        force: compare latencies of different machines or modes, and accuracy on different images.

    Raises:
        BundleError, DataError: one of them is damaged, or not what can be compared.
        SpecError: different machines or modes, named; or a limit on something that they do not both have.
    """
    limits = limits or Limits()
    first, second = read_side(a), read_side(b)
    differing = [*_other_machine(first, second), *_other_modes(first, second), *_other_images(first, second)]
    if differing and not force:
        raise SpecError(
            f"{a} and {b} are not of the same kind: {'; '.join(differing)}",
            "measure both on one machine in one mode, or compare all the same with --force",
        )
    latency = tuple(_latency_changes(first, second))
    only_a, only_b = _flips(first, second)
    top1, agreement = (_points(first, second, name, scale) for name, scale in (("engine_top1", 1.0), ("agreement", 100.0)))
    failures, notes = _held_against(limits, latency, top1, agreement)
    return Difference(
        a=first,
        b=second,
        passed=not failures,
        reason="; ".join(failures) if failures else _passed_words(limits, latency, top1, agreement),
        latency=latency,
        throughput=tuple(
            (batch, streams, found["images_per_s"], second.streams[batch, streams]["images_per_s"])
            for (batch, streams), found in first.streams.items()
            if (batch, streams) in second.streams
        ),
        accuracy_change_points=top1,
        agreement_change_points=agreement,
        flips_only_in_a=only_a,
        flips_only_in_b=only_b,
        sizes={
            name: (first.bytes.get(name), second.bytes.get(name))
            for name in sorted({*first.bytes, *second.bytes})
            if first.bytes.get(name) != second.bytes.get(name)
        },
        made=tuple(_made_differently(first, second)),
        forced=tuple(differing),
        notes=tuple(notes),
    )


def read_side(path: Path) -> Side:
    """One of the two: see compare.

    Raises:
        BundleError: a damaged bundle, or one that was not deployed.
        DataError: a file that `gmf-edge bench` did not write.
    """
    if path.is_dir() or not path.exists():
        bundle = open_bundle(path)
        report = bundle.report
        if report is None:
            raise BundleError(f"{path} was not deployed: it has no accuracy and no latency yet", "run 'gmf-edge deploy' on it")
        values = {**bundle_summary(bundle), "engine": report["engine"], "latency": list(report["latency"].values())}
    else:
        values = read_json(path, DataError, "give a bundle, or a file that 'gmf-edge bench --output' wrote")
        if not isinstance(values, dict) or values.get("kind") != BENCH_KIND or values.get("schema") != SCHEMA:
            raise DataError(
                f"{path} was not written by 'gmf-edge bench --output' of this version", "measure again, or give a bundle"
            )
    latency = {int(found["batch"]): found for found in values["latency"]}
    states = [found["device"]["before"] for found in latency.values() if (found.get("device") or {}).get("before")]
    known = {
        "device": values["engine"]["device"],
        **{name: (values.get("machine") or {}).get(name) for name in MACHINE},
        **{name: (states[0] if states else {}).get(name) for name in POWER},
    }
    return Side(
        name=str(path),
        engine={name: values["engine"][name] for name in ("backend", "version", "device", "form")},
        made=values["made"],
        accuracy=values["accuracy"],
        bytes=values["bytes"],
        latency=latency,
        streams={(found["batch"], found["streams"]): found for found in values.get("streams", ())},
        machine={name: value for name, value in known.items() if value is not None},
    )


def _other_machine(a: Side, b: Side) -> Iterator[str]:
    for name in a.machine:
        if name in b.machine and a.machine[name] != b.machine[name]:
            yield f"{name.replace('_', ' ')}: {a.machine[name]} and {b.machine[name]}"


def _other_modes(a: Side, b: Side) -> Iterator[str]:
    for batch in sorted(set(a.latency) & set(b.latency)):
        modes = [side.latency[batch].get("modes") or {} for side in (a, b)]
        for name in MODES:
            first, second = (found.get(name) for found in modes)
            if first is not None and second is not None and first != second:
                yield f"{name.replace('_', ' ')} at batch {batch}: {'on' if first else 'off'} and {'on' if second else 'off'}"


def _other_images(a: Side, b: Side) -> Iterator[str]:
    first, second = (side.made["evaluation"] for side in (a, b))
    if first is not None and second is not None and first["sha256"] != second["sha256"]:
        yield f"evaluation images: {first['images']} of {first['name']} and {second['images']} of {second['name']}"


def _latency_changes(a: Side, b: Side) -> Iterator[LatencyChange]:
    for batch in sorted(set(a.latency) & set(b.latency)):
        first, second = a.latency[batch], b.latency[batch]
        on_gpu = bool(first.get("gpu_compute") and second.get("gpu_compute"))
        if on_gpu:
            first, second = first["gpu_compute"], second["gpu_compute"]
        stated = [found.get(name) for found in (first, second) for name in ("median_low_ms", "median_high_ms")]
        bounds = [float(bound) for bound in stated if bound is not None and bound > 0]
        low = high = None
        if len(bounds) == 4:
            low, high = bounds[2] / bounds[1] - 1, bounds[3] / bounds[0] - 1
        yield LatencyChange(
            batch,
            "GPU compute time" if on_gpu else "host latency",
            first["median_ms"],
            second["median_ms"],
            second["median_ms"] / first["median_ms"] - 1,
            low,
            high,
        )


def _flips(a: Side, b: Side) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = [{flip["image"] for flip in (side.accuracy or {}).get("flips") or ()} for side in (a, b)]
    return tuple(sorted(names[0] - names[1])), tuple(sorted(names[1] - names[0]))


def _points(a: Side, b: Side, name: str, scale: float) -> float | None:
    first, second = ((side.accuracy or {}).get(name) for side in (a, b))
    return None if first is None or second is None else scale * (second - first)


def _held_against(
    limits: Limits, latency: Sequence[LatencyChange], top1: float | None, agreement: float | None
) -> tuple[list[str], list[str]]:
    """(what is outside, what is doubtful).

    Raises:
        SpecError: a limit on something that the two do not both have.
    """
    failures, notes = [], []
    most = limits.max_regression
    if most is not None:
        if not latency:
            raise SpecError(
                "--max-regression was given, but there is no batch size at which both were measured",
                "measure both at the same sizes",
            )
        for change in latency:
            if not change.change <= most:
                failures.append(f"batch {change.batch} is {_percent(change.change)} slower, more than {_percent(most)}")
            if change.low is None or change.high is None:
                notes.append(
                    f"batch {change.batch}: too few inferences for an interval, a longer measurement could decide otherwise"
                )
            elif change.low <= most < change.high:
                notes.append(
                    f"batch {change.batch}: the change lies between {_percent(change.low)} and {_percent(change.high)}, "
                    "a longer measurement could decide otherwise"
                )
    if limits.max_drop_points is not None:
        change_points, what = (top1, "top-1") if top1 is not None else (agreement, "agreement with FP32 PyTorch")
        if change_points is None:
            raise SpecError("--max-drop was given, but one of the two has no accuracy", "give bundles that were deployed")
        # a share of whole images, computed in binary
        if not -change_points <= limits.max_drop_points + 1e-9:
            failures.append(f"{what} is {-change_points:.2f} points lower, more than {limits.max_drop_points:g}")
    return failures, notes


def _passed_words(limits: Limits, latency: Sequence[LatencyChange], top1: float | None, agreement: float | None) -> str:
    if limits == Limits():
        return "compared, without limits"
    words = []
    if limits.max_regression is not None:
        worst = max(latency, key=lambda change: change.change)
        words.append(f"batch {worst.batch} changes by {_percent(worst.change)} (limit {_percent(limits.max_regression)})")
    if limits.max_drop_points is not None:
        points, what = (top1, "top-1") if top1 is not None else (agreement, "agreement with FP32 PyTorch")
        words.append(f"{what} changes by {points or 0.0:+.2f} points (limit -{limits.max_drop_points:g})")
    return "; ".join(words)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _made_differently(a: Side, b: Side) -> Iterator[str]:
    """One phrase a difference: "precision: fp32 -> int8"; of lists, what only one of them has."""
    yield from _differences("", {"engine": dict(a.engine), **a.made}, {"engine": dict(b.engine), **b.made})


def _differences(name: str, a: Any, b: Any) -> Iterator[str]:
    if a == b:
        return
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from _differences(f"{name}.{key}" if name else str(key), a.get(key), b.get(key))
    elif isinstance(a, list) and isinstance(b, list) and all(isinstance(entry, str) for entry in (*a, *b)):
        for side, more in (("A", [entry for entry in a if entry not in b]), ("B", [entry for entry in b if entry not in a])):
            if more:
                others = f" and {len(more) - 3} more" if len(more) > 3 else ""
                yield f"{name} only in {side}: {', '.join(more[:3])}{others}"
    else:
        yield f"{name}: {_shown(a)} -> {_shown(b)}"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
