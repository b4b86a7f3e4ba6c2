"""Verbs of the GPU kernels: kernels compile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from gmf_edge.cli.options import AsJson, VariantName
from gmf_edge.cli.screen import out, print_json


def compile_kernels(
    variant: Annotated[VariantName, typer.Option(help="Whose widths to compile for.")] = VariantName.PICO,
    arch: Annotated[str, typer.Option(help="Architectures, separated by commas, such as sm_87,sm_90.")] = "sm_87,sm_90",
    dtype: Annotated[str, typer.Option(help="Type of the activations: fp16, bf16 or fp32.")] = "fp16",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the images and kernels.json.")] = Path("out/kernels"),
    cost: Annotated[
        bool, typer.Option("--cost", help="Count what the machine code and its launches cost; needs nvdisasm.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compile them ahead of time, without a GPU: registers, spills and shared memory of each."""
    from gmf_edge.kernels.compile import compile_kernels as compiled
    from gmf_edge.kernels.cost import cost_of, total_rows
    from gmf_edge.kernels.cost_sass import find_nvdisasm
    from gmf_edge.spec import ModelSpec

    spec, archs = ModelSpec.of(variant.value), arch.split(",")
    if cost:
        for name in archs:
            find_nvdisasm(name)  # before minutes of compilation
    table = compiled(spec, archs, output, dtype=dtype)
    if cost:
        costs = cost_of(table, [spec], dtype=dtype)
        costs["totals"] = total_rows(costs["launches"])
        if as_json:
            print_json(costs)
        else:
            show_cost(costs)
        return
    if as_json:
        print_json(table.rows)
        return
    columns = list(table.rows[0])
    _show(columns, ([str(row[name]) for name in columns] for row in table.rows))


def show_cost(costs: Mapping[str, Any]) -> None:
    """Print what cost_of counted: kernels, launches, blocks and whole models, each within 80 columns."""
    out.print("Kernels: registers a thread, spilled bytes, shared KB of a block, blocks a")
    out.print("multiprocessor; instructions and loads a multiply-add of the depthwise loops.")
    _show(
        ("arch", "S", "kernel", "T", "warps", "regs", "spill", "KB", "blk", "MMA", "i/FMA", "ld/FMA", "worst"),
        (
            [
                *(str(row[name]) for name in ("arch", "segment_dim", "kernel", "tile_tokens", "warps", "registers", "spill_bytes")),
                f"{row['shared_bytes'] / 1024:.1f}",
                *(str(row[name]) for name in ("blocks_per_multiprocessor", "tensor_instructions")),
                *(_number(row[name]) for name in ("instructions_per_fma", "loads_per_fma", "worst_instructions_per_fma")),
            ]
            for row in costs["kernels"]
        ),
    )
    if not costs["launches"]:
        out.print("No device is known for these architectures, so no launch was counted.")
        return
    out.print("\nLaunches of one block: kcycles of the longest program, loads in L1 and in L2,")
    out.print("and how often it waits for loads.")
    _show(
        ("device", "batch", "stage", "launch", "programs", "busy", "waves", "L1 kcyc", "L2 kcyc", "rounds"),
        (
            [
                *(str(row[name]) for name in ("device", "batch", "stage")),
                *(str(launch[name]) for name in ("kernel", "programs", "busy_multiprocessors")),
                "none" if launch["waves"] is None else f"{launch['waves']:.2f}",
                *(f"{launch[name] / 1e3:.1f}" for name in ("chain_l1", "chain_l2")),
                str(launch["load_rounds"]),
            ]
            for row in costs["launches"]
            for launch in row["launches"]
        ),
    )
    out.print("\nOne block: instructions a token, the least time to issue them, bytes and floor.")
    _show(
        ("device", "batch", "stage", "n", "S", "instr/token", "issue us", "MB", "floor MB", "floor us"),
        (
            [
                *(str(row[name]) for name in ("device", "batch", "stage", "blocks", "segment_dim", "instructions_per_token")),
                f"{row['issue_us']:.2f}",
                *(f"{row[name] / 1e6:.2f}" for name in ("bytes", "floor_bytes")),
                f"{row['floor_us']:.2f}",
            ]
            for row in costs["launches"]
        ),
    )
    out.print("\nAll blocks of the model, one after the other. Counted, not timed.")
    _show(
        ("variant", "device", "batch", "L1 kcyc", "L2 kcyc", "busy", "issue us", "floor us", "MB", "floor MB"),
        (
            [
                *(str(row[name]) for name in ("variant", "device", "batch")),
                *(f"{row[name] / 1e3:.0f}" for name in ("chain_l1", "chain_l2")),
                str(row["least_busy"]),
                *(f"{row[name]:.1f}" for name in ("issue_us", "floor_us")),
                *(f"{row[name] / 1e6:.1f}" for name in ("bytes", "floor_bytes")),
            ]
            for row in costs["totals"]
        ),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _show(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    shown = Table(*columns, box=None, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for row in rows:
        shown.add_row(*row)
    out.print(shown)
