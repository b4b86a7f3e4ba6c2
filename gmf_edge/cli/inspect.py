"""Verbs that only look: inspect, doctor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gmf_edge.cli.options import AsJson
from gmf_edge.cli.screen import out, print_json, show_bundle


def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle, or an engine file.", show_default=False)],
    layers: Annotated[int, typer.Option(min=0, help="Show this many of the slowest layers.")] = 10,
    as_json: AsJson = False,
) -> None:
    """What is in a bundle or an engine: model, weights, precisions, layers, files."""
    from gmf_edge.bundle import open_bundle

    if path.is_file():
        from gmf_edge.engines.tensorrt.backend import inspect_engine

        print_json(inspect_engine(path))
        return
    bundle = open_bundle(path)
    if as_json:
        print_json({"manifest": bundle.manifest.to_json(), "report": bundle.report})
    else:
        show_bundle(bundle, layers)


def doctor(
    plugins: Annotated[str | None, typer.Option(help="A plugin library to try.")] = None,
    as_json: AsJson = False,
) -> None:
    """What this machine has, what it lacks, and what to do about it."""
    from gmf_edge.doctor import examine

    findings = examine(plugins)
    if as_json:
        print_json([asdict(finding) for finding in findings])
        return
    for finding in findings:
        mark = {"ok": "ok     ", "warning": "warning", "missing": "missing"}[finding.state]
        out.print(f"{mark}  {finding.subject}: {finding.detail}", markup=False)
        if finding.remedy:
            out.print(f"           {finding.remedy}", markup=False)
