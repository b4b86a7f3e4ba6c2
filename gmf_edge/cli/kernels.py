"""Verbs of the GPU kernels: kernels compile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from gmf_edge.cli.options import AsJson, VariantName
from gmf_edge.cli.screen import out, print_json


def compile_kernels(
    variant: Annotated[VariantName, typer.Option(help="Whose widths to compile for.")] = VariantName.PICO,
    arch: Annotated[str, typer.Option(help="Architectures, separated by commas, such as sm_87,sm_90.")] = "sm_87,sm_90",
    dtype: Annotated[str, typer.Option(help="Type of the activations: fp16, bf16 or fp32.")] = "fp16",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the images and kernels.json.")] = Path("out/kernels"),
    as_json: AsJson = False,
) -> None:
    """Compile them ahead of time, without a GPU: registers, spills and shared memory of each."""
    from gmf_edge.kernels.compile import compile_kernels as compiled
    from gmf_edge.spec import ModelSpec

    table = compiled(ModelSpec.of(variant.value), arch.split(","), output, dtype=dtype)
    if as_json:
        print_json(table.rows)
        return
    columns = list(table.rows[0])
    shown = Table(*columns, box=None, pad_edge=False)
    for row in table.rows:
        shown.add_row(*(str(row[name]) for name in columns))
    out.print(shown)
