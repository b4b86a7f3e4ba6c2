"""The tables of plugins/README.md: what the kernels cost by count, what was predicted, what was measured. Needs no GPU.

    python benchmarks/kernel_cost.py count --out benchmarks/results/kernel-cost-after.json       compiles every width, some minutes
    python benchmarks/kernel_cost.py tables --write plugins/README.md                           from the JSON files in results/

`tables` reads kernel-cost-before.json and, where they are, kernel-cost-after.json, kernel-predictions.json and kernels-*.json (what
kernels.py measured), and puts the tables between the two marks of the file; without --write it prints them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from gmf_edge.errors import KernelError

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
ARCHS = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90")
# architectures of the table in the text; the others are in the JSON files
SHOWN_ARCHS = ("sm_80", "sm_87", "sm_90")
BEGIN, END = "<!-- kernel cost: made by benchmarks/kernel_cost.py -->", "<!-- kernel cost: end -->"
# what the text shows of the launches: variant, device, batch
SHOWN_LAUNCHES = (("small", "H200", 1), ("small", "H200", 64), ("small", "Orin", 1), ("base", "H200", 64))


def count(archs: Sequence[str]) -> dict[str, Any]:
    """Costs of every width of every variant, and of the launches of all variants.

    Raises:
        KernelError, EnvironmentProblem: see gmf_edge.kernels.
    """
    from gmf_edge.kernels.compile import compile_widths
    from gmf_edge.kernels.cost import cost_of, total_rows
    from gmf_edge.spec import VARIANTS, ModelSpec

    specs = [ModelSpec.of(variant) for variant in VARIANTS]
    widths = sorted({width for spec in specs for width in spec.segment_dims})
    found: dict[str, Any] = {"kernels": [], "launches": [], "models": []}
    for arch in archs:
        with tempfile.TemporaryDirectory() as folder:
            costs = cost_of(compile_widths(widths, (arch,), Path(folder)), specs)
        found["kernels"] += costs["kernels"]
        found["launches"] += costs["launches"]
        found["models"].append(costs["model"])
    found["totals"] = total_rows(found["launches"])
    commit = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return {"commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(), **found}


def write_costs(costs: dict[str, Any], path: Path) -> None:
    """JSON with a row a line, so that a change of it can be read; the single loops stay out."""
    parts = []
    for name, value in costs.items():
        if isinstance(value, list):
            rows = [{key: item for key, item in row.items() if key != "loops"} for row in value]
            parts.append(f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]")
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(value)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    unfinished.replace(path)


def tables(folder: Path) -> str:
    """The text between the marks.

    Raises:
        KernelError: no kernel-cost-before.json in `folder`.
    """
    before, after = _read(folder / "kernel-cost-before.json"), _read(folder / "kernel-cost-after.json")
    if before is None:
        raise KernelError(
            f"{folder} has no kernel-cost-before.json", "make it with 'kernel_cost.py count' at the commit to compare with"
        )
    measured = [content for path in sorted(folder.glob("kernels-*.json")) if (content := _read(path)) is not None]
    return "\n\n".join((*_counted(before, after), *_predicted(_read(folder / "kernel-predictions.json")), *_measured(measured)))


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _counted(before: dict[str, Any], after: dict[str, Any] | None) -> Iterable[str]:
    yield "### Counted"
    made = f"Before: commit {before['commit']}." + (f" After: commit {after['commit']}." if after else "")
    yield (
        f"{made} By kernel, width and architecture: registers a thread, spilled bytes, shared KB of a block, blocks a multiprocessor; "
        "instructions and loads a multiply-add of the depthwise loops."
    )
    yield _kernel_table(before, after)
    yield (
        "By launch, for one attention block: programs, busy multiprocessors, waves; the longest program in thousands of cycles with all "
        "its loads in L1 and in L2. For the block: instructions a token, bytes moved over the floor (qkv once, output once)."
    )
    yield _launch_table(before, after)
    yield (
        "All blocks of a model one after the other, before / after: the longest chains in thousands of cycles (L1, L2), the fewest busy "
        "multiprocessors of a launch, the least time to issue all instructions, the floor of the bytes at peak bandwidth."
    )
    yield _total_table(before, after)


def _kernel_table(before: dict[str, Any], after: dict[str, Any] | None) -> str:
    def kernels(costs: dict[str, Any] | None) -> dict[tuple[int, str, str], list[dict[str, Any]]]:
        found: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
        for row in costs["kernels"] if costs else ():
            if row["arch"] in SHOWN_ARCHS:
                found.setdefault((row["segment_dim"], row["kernel"], row["arch"]), []).append(row)
        return found

    def cell(row: dict[str, Any]) -> str:
        shared = f"{row['shared_bytes'] / 1024:.3g}"
        counts = f"{row['registers']}, {row['spill_bytes']}, {shared}, {row['blocks_per_multiprocessor']}"
        ratios = ", ".join(_number(row[name]) for name in ("instructions_per_fma", "loads_per_fma"))
        return f"{counts}; {ratios}"

    old, new = kernels(before), kernels(after)
    rows = []
    for width, kernel in sorted({key[:2] for key in (*old, *new)}):
        for when, costs in (("before", old), ("after", new)):
            # after: one image a tiling
            most = max((len(costs.get((width, kernel, arch), [])) for arch in SHOWN_ARCHS), default=0)
            for index in range(most):
                held = [costs.get((width, kernel, arch), [])[index : index + 1] for arch in SHOWN_ARCHS]
                name = next((row[0].get("tiling", "") for row in held if row), "")
                cells = [cell(row[0]) if row else "" for row in held]
                rows.append([str(width), kernel, f"{when} {name}".strip(), *cells])
    return _markdown(("S", "kernel", "", *SHOWN_ARCHS), rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _launch_table(before: dict[str, Any], after: dict[str, Any] | None) -> str:
    rows = []
    for shown in SHOWN_LAUNCHES:
        for when, costs in (("before", before), ("after", after)):
            for row in costs["launches"] if costs else ():
                if (row["variant"], row["device"], row["batch"]) != shown:
                    continue
                launches = []
                for launch in row["launches"]:
                    place = f"{launch['programs']}, {launch['busy_multiprocessors']}, {launch['waves']:.2f}"
                    launches.append(f"{place}; {launch['chain_l1'] / 1e3:.1f}, {launch['chain_l2'] / 1e3:.1f}")
                cells = [f"{row['stage']}: S {row['segment_dim']}, {row['height']} x {row['width']}", when, *launches]
                more = [str(row["instructions_per_token"]), f"{row['bytes'] / row['floor_bytes']:.2f}"]
                rows.append([" ".join(map(str, shown)), *cells, *more])
    # a variant's stages side by side: before and after of one stage follow each other
    rows.sort(
        key=lambda cells: ([" ".join(map(str, shown)) for shown in SHOWN_LAUNCHES].index(cells[0]), cells[1], cells[2] == "after")
    )
    return _markdown(("model, device, batch", "stage", "", "aggregate", "attend", "instructions a token", "bytes / floor"), rows)


def _total_table(before: dict[str, Any], after: dict[str, Any] | None) -> str:
    new = {(row["variant"], row["device"], row["batch"]): row for row in (after["totals"] if after else ())}
    rows = []
    for row in before["totals"]:
        key = (row["variant"], row["device"], row["batch"])
        if row["device"] not in ("H200", "Orin") or row["variant"] == "pico":
            continue
        pair = [row, *([new[key]] if key in new else [])]

        def both(name: str, scale: float, digits: int, pair: list[dict[str, Any]] = pair) -> str:
            return " / ".join(f"{costs[name] / scale:.{digits}f}" for costs in pair)

        chains = [both(name, 1e3, 0) for name in ("chain_l1", "chain_l2")]
        rows.append([*map(str, key), *chains, both("least_busy", 1, 0), both("issue_us", 1, 0), f"{row['floor_us']:.1f}"])
    return _markdown(("model", "device", "batch", "chain, L1", "chain, L2", "least busy", "issue us", "floor us"), rows)


def _predicted(predictions: dict[str, Any] | None) -> Iterable[str]:
    yield "### Predicted"
    if predictions is None:
        yield "Nothing."
        return
    yield str(predictions["text"])
    yield _markdown(predictions["columns"], predictions["rows"])


def _measured(results: list[dict[str, Any]]) -> Iterable[str]:
    yield "### Measured"
    if not results:
        yield "Nothing: no kernel has run on a GPU yet. `benchmarks/kernels.py` and `benchmarks/kernel_experiments.sh` are the commands."
        return
    rows = []
    for result in results:
        machine = result["machine"]
        for row in result["rows"]:
            shape = f"C {row['channels']}, {row['height']} x {row['width']}, batch {row['batch']}"
            for name, times in row["times"].items():
                cells = [f"{times[f'{k}_ms']:.4f} ({row[f'over_kernels_{k}'][name]:.2f})" for k in ("warm", "cold")]
                rows.append([f"{machine['device']}, {machine['commit']}", shape, name, *cells])
    yield "One attention core; milliseconds, and in brackets how many times the kernels' own."
    yield _markdown(("device, commit", "shape", "what", "warm L2", "cold L2"), rows)


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def put_between_marks(path: Path, text: str) -> None:
    """Replaces what stands between the marks of a file.

    Raises:
        KernelError: the file does not have both marks, once each and in order.
    """
    content = path.read_text()
    if content.count(BEGIN) != 1 or content.count(END) != 1 or content.index(BEGIN) > content.index(END):
        raise KernelError(f"{path} has no place for the tables", f"put the lines '{BEGIN}' and '{END}' there")
    head, tail = content[: content.index(BEGIN) + len(BEGIN)], content[content.index(END) :]
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(f"{head}\n\n{text}\n\n{tail}")
    unfinished.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    counting = verbs.add_parser("count", help="compile and count")
    counting.add_argument("--out", type=Path, required=True, help="JSON file")
    counting.add_argument("--arch", default=",".join(ARCHS), help="architectures, separated by commas")
    writing = verbs.add_parser("tables", help="Markdown from the JSON files")
    writing.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    writing.add_argument("--write", type=Path, help="file between whose marks the tables go")
    options = parser.parse_args()
    try:
        if options.verb == "count":
            write_costs(count(options.arch.split(",")), options.out)
        elif options.write:
            put_between_marks(options.write, tables(options.results))
        else:
            print(tables(options.results))
    except KernelError as error:
        raise SystemExit(f"error: {error.problem}\nwhat to do: {error.remedy}") from error


if __name__ == "__main__":
    main()
