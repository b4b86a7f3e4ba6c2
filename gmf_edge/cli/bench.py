"""Verbs that measure: bench, compare."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from gmf_edge.cli.bench_screen import show_baselines, show_difference, show_throughput
from gmf_edge.cli.options import AsJson, EvalData, Folder, RunOptions, ScreenOptions
from gmf_edge.cli.screen import RegressionShown, out, print_json, progress_shown, show_latency
from gmf_edge.errors import SpecError


def bench(
    folder: Folder,
    engine: RunOptions,
    screen: ScreenOptions,
    batch: Annotated[list[str] | None, typer.Option(help="Batch sizes: 1,2,4,8; repeatable.", show_default="the profile's")] = None,
    warm_up: Annotated[float, typer.Option("--warm-up", "--warmUp", help="Milliseconds of untimed inferences.")] = 200.0,
    duration: Annotated[float, typer.Option(help="Seconds, at least.")] = 3.0,
    iterations: Annotated[int, typer.Option(help="Timed inferences, at least.")] = 10,
    percentile: Annotated[list[str] | None, typer.Option(help="Such as 50,99; repeatable.", show_default="90,95,99")] = None,
    streams: Annotated[
        int, typer.Option("--streams", "--infStreams", min=1, help="Also measure throughput with so many inferences at a time.")
    ] = 1,
    cuda_graph: Annotated[
        bool | None,
        typer.Option("--cuda-graph/--no-cuda-graph", "--useCudaGraph/--noCudaGraph", help="TensorRT.", show_default="as built"),
    ] = None,
    no_transfers: Annotated[
        bool, typer.Option("--no-data-transfers", "--noDataTransfers", help="GPU: leave images and logits where they are.")
    ] = False,
    spin_wait: Annotated[
        bool, typer.Option("--spin-wait", "--useSpinWait", help="GPU: spin on its events instead of sleeping.")
    ] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Measure in turn with eager, compile, onnxruntime, openvino, stock-trt (commas between), or all."),
    ] = None,
    quiet_time: Annotated[float, typer.Option(help="--against: milliseconds of rest before each engine's turn.")] = 100.0,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="--against: the checkpoint that the bundle was made from.", show_default="packaged or random"),
    ] = None,
    eval_data: EvalData = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write everything as JSON, for compare.")] = None,
    export_times: Annotated[
        Path | None, typer.Option("--export-times", "--exportTimes", help="trtexec's JSON of all times.")
    ] = None,
    export_profile: Annotated[
        Path | None, typer.Option("--export-profile", "--exportProfile", help="trtexec's JSON of the layers' times.")
    ] = None,
    export_layers: Annotated[
        Path | None, typer.Option("--export-layer-info", "--exportLayerInfo", help="trtexec's JSON of the layers.")
    ] = None,
) -> None:
    """Latency and throughput of an engine, by trtexec's conventions.

    Also beside what there is without this project: --against.
    """
    from gmf_edge.bench.baselines import baseline_names
    from gmf_edge.bench.in_turn import TurnPlan
    from gmf_edge.bench.latency import BenchPlan
    from gmf_edge.bench.times import PERCENTILES
    from gmf_edge.deploy import BenchRequest, bench_bundle
    from gmf_edge.scratch import write_atomically

    percentiles = tuple(_number(part, "--percentile") for part in _parts(percentile))
    request = BenchRequest(
        batches=tuple(_whole(part, "--batch") for part in _parts(batch)),
        backend=engine.backend.value,
        options=engine.run_options,
        plan=BenchPlan(warm_up, duration, iterations, percentiles or PERCENTILES, not no_transfers, spin_wait),
        streams=streams,
        cuda_graph=cuda_graph,
        against=baseline_names(",".join(against)) if against else (),
        turn=TurnPlan(warmup_s=warm_up / 1000, seconds=duration, quiet_s=quiet_time / 1000),
        checkpoint=checkpoint,
        eval_data=eval_data,
        export_times=export_times,
        export_profile=export_profile,
        export_layers=export_layers,
    )
    with progress_shown(screen) as progress:
        result = bench_bundle(folder, request, progress=progress)
    values = result.to_json()
    if output is not None:
        write_atomically(output, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())
    if screen.as_json:
        print_json(values)
        return
    facts = values["engine"]
    out.print(f"engine: {facts['backend']} {facts['version']} on {facts['device']}, {facts['form']} graph", markup=False)
    show_latency(values["latency"])
    if (no_transfers or spin_wait or cuda_graph is not None) and values["latency"][0]["modes"]["transfers"] is None:
        out.print("note: CUDA graph, transfers and spin-wait mean nothing on a CPU", markup=False)
    show_throughput(values["streams"])
    if values["baselines"] is not None:
        show_baselines(values["baselines"])


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A bundle, or a file of bench --output.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B", help="The one that is held against A.", show_default=False)],
    max_regression: Annotated[
        str | None, typer.Option(help="Largest accepted increase of a latency: 5% or 0.05.", show_default="no limit")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Largest accepted loss of top-1 (or agreement) in percentage points.", show_default="no limit"),
    ] = None,
    force: Annotated[bool, typer.Option(help="Compare although machines, modes or evaluation images differ.")] = False,
    as_json: AsJson = False,
) -> None:
    """Two bundles or two measurements against each other.

    Accuracy, flips, latency, sizes, and what differs in how they were made. Status 5 outside a limit.
    """
    from gmf_edge.deploy import Limits
    from gmf_edge.deploy import compare as difference_of

    found = difference_of(first, second, Limits(None if max_regression is None else _share(max_regression), max_drop), force=force)
    if as_json:
        print_json(found.to_json())
    else:
        show_difference(found)
        out.print(f"{'PASSED' if found.passed else 'FAILED'}: {found.reason}", markup=False)
    if not found.passed:
        raise RegressionShown(found.reason)


def _parts(values: list[str] | None) -> list[str]:
    return [part for value in values or () for part in value.split(",") if part]


def _whole(text: str, option: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise SpecError(f"cannot read {option} {text!r}", f"write {option} 1,2,4,8")
    return int(text)


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise SpecError(f"cannot read {option} {text!r}", f"write {option} 50,90,99") from error


def _share(text: str) -> float:
    """0.05 of "5%" and of "0.05".

    Raises:
        SpecError: neither form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text.strip())
    if found is None:
        raise SpecError(f"cannot read --max-regression {text!r}", "write 5% or 0.05")
    return float(found[1]) / (100 if found[2] else 1)
