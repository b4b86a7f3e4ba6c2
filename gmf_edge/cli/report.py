"""The verb report: the page of a bundle, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmf_edge.cli.options import AsJson, Folder
from gmf_edge.cli.screen import out, print_json


def report(
    folder: Folder,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.", show_default="report.html in the bundle")
    ] = None,
    bench: Annotated[
        Path | None, typer.Option(help="What 'gmf-edge bench --output' wrote: its baselines come on the page.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """All about a bundle on one page, to open offline.

    Verdict, accuracy, latency, layers, how it was made. build and deploy write it too.
    """
    from gmf_edge.report import write_report_page

    written = write_report_page(folder, output, bench)
    if as_json:
        print_json({"file": str(written)})
    else:
        out.print(f"wrote {written}", markup=False)
