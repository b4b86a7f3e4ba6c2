"""The table of results in benchmarks/README.md, made from the JSON files in benchmarks/results/.

    python benchmarks/results_table.py            # print it
    python benchmarks/results_table.py --write    # put it into benchmarks/README.md, between its two marks

A file is what `gmf-edge bench --output FILE` writes; of other files in that folder (gpu_check.sh's) the bundles that passed are taken.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, README = HERE / "results", HERE / "README.md"
BEGIN, END = "<!-- results: made by results_table.py -->", "<!-- end of results -->"
KIND = "gmf-edge bench"

LATENCY_HEAD = "| device | model | precision | engine | batch | median, ms (95 % interval) | p99, ms | images/s | day |"
TURN_HEAD = "| device | model | batch | engine | median, ms | gmf-edge is times as fast | quartiles | parity with FP32 PyTorch |"


def read_results(folder: Path = RESULTS) -> dict[str, Any]:
    """File name -> content, of every JSON file in the folder."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def table(results: Mapping[str, Any]) -> str:
    """The Markdown of both tables."""
    latency = [row for values in results.values() for row in latency_rows(values)]
    turn = [row for values in results.values() if values.get("kind") == KIND for row in turn_rows(values)]
    if not latency:
        return "None yet.\n"
    lines = [LATENCY_HEAD, rule(LATENCY_HEAD), *latency]
    if turn:
        lines += [
            "",
            "In turn, in one run, with what there is without this project (plain FP32 export, each library's defaults):",
            "",
        ]
        lines += [TURN_HEAD, rule(TURN_HEAD), *turn]
    return "\n".join(lines) + "\n"


def rule(head: str) -> str:
    """The line below a table's head."""
    return "|" + "---|" * (head.count("|") - 1)


def latency_rows(values: Mapping[str, Any]) -> Iterator[str]:
    """One row a batch size."""
    if values.get("kind") == KIND:
        runs = [(values["engine"], model_words(values["made"]["model"]), values["made"]["precision"], values["latency"])]
        day = values["written"]
    else:
        runs = [
            (gpu_engine(run["engine"]["built_for"]), *run["bundle"].split("-")[:2], run["latency"])
            for run in values.get("bundles", ())
            if run["status"] == "passed"
        ]
        day = values.get("started", "")
    for engine, model, precision, latencies in runs:
        for found in latencies:
            times = found["gpu_compute"] or found
            what = "GPU compute" if found["gpu_compute"] else "host"
            yield row(
                engine["device"],
                model,
                precision.upper(),
                f"{engine['backend']} {engine['version']}",
                str(found["batch"]),
                f"{times['median_ms']:.2f}{interval(times)} {what}" + ("" if found["steady"] else ", unsteady"),
                f"{times['percentiles_ms']['99']:.2f}" if "99" in times["percentiles_ms"] else "",
                f"{found['throughput']:.1f}",
                day[:10],
            )


def turn_rows(values: Mapping[str, Any]) -> Iterator[str]:
    """One row an engine of each batch size; of those that did not run, one with the reason."""
    baselines = values["baselines"]
    if baselines is None:
        return
    device, model = values["engine"]["device"], f"{model_words(values['made']['model'])}, {values['made']['precision'].upper()}"
    for batch, found in baselines["batches"].items():
        for name, part in found["engines"].items():
            engine = baselines["engines"][name]
            yield row(
                device,
                model,
                batch,
                f"{name}: {engine['backend']} {engine['version']}, {engine['form']}",
                f"{part['times']['median_ms']:.2f}",
                f"{part['ratio']:.2f}",
                f"{part['ratio_low']:.2f}..{part['ratio_high']:.2f}",
                f"agreement {100 * engine['accuracy']['agreement']:.2f} %, relative L2 {engine['accuracy']['relative_l2']:.1e}",
            )


def gpu_engine(built_for: Mapping[str, Any]) -> dict[str, str]:
    """Of gpu_check.sh's words for an engine, those of bench."""
    return {"device": built_for["device"]["name"], "backend": "tensorrt", "version": built_for["tensorrt"]}


def model_words(model: Mapping[str, Any]) -> str:
    """ "small 224x224"."""
    height, width = model["image_size"]
    return f"{model['variant']} {height}x{width}"


def interval(times: Mapping[str, Any]) -> str:
    """ " (1.23..1.25)", or nothing where there is none."""
    low, high = times.get("median_low_ms"), times.get("median_high_ms")
    return "" if low is None or high is None else f" ({low:.2f}..{high:.2f})"


def row(*cells: str) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def with_table(readme: str, text: str) -> str:
    """The README with this table between its marks; ValueError where it has none."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"benchmarks/README.md lacks {BEGIN} or {END}")
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def main() -> None:
    """Print the table, or write it into the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/README.md")
    text = table(read_results())
    if parser.parse_args().write:
        README.write_text(with_table(README.read_text(encoding="utf-8"), text), encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
