"""Verbs that only look: inspect, doctor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from gmf_edge.cli.options import AsJson
from gmf_edge.cli.screen import out, print_json, show_bundle
from gmf_edge.errors import EnvironmentProblem

MARKS = {"ok": "green", "warning": "yellow", "missing": "red", "optional": "cyan"}


def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle, or an engine file.", show_default=False)],
    layers: Annotated[int, typer.Option(min=0, help="Show this many of the slowest layers.")] = 10,
    as_json: AsJson = False,
) -> None:
    """What is in a bundle or an engine.

    Model, weights, precisions, layers, files.
    """
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
    """What this machine has, what it lacks, and what to do about it.

    Status 4 where it can run no engine.
    """
    from gmf_edge.doctor import examine, readiness

    findings = examine(plugins)
    ready = readiness(findings)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            mark = "optional" if finding.optional else finding.state
            out.print(Text.assemble((f"{mark:<8}", MARKS[mark]), f"  {finding.subject}: {finding.detail}"))
            if finding.remedy:
                out.print(Text(f"            {finding.remedy}"))
        out.print()
        for what, why in ready.lacking.items():
            out.print(Text(f"not ready for {what}: {why}", style=MARKS["optional" if ready.verbs else "missing"]))
        if ready.verbs:
            out.print(Text(f"ready for {', '.join(ready.verbs)}, with {' and '.join(ready.backends)}", style=MARKS["ok"]))
    if not ready.verbs:
        if as_json:
            raise typer.Exit(EnvironmentProblem.exit_status)
        lacking = next(found for found in reversed(findings) if found.state == "missing" and not found.optional)
        raise EnvironmentProblem(f"{lacking.subject}: {lacking.detail}", lacking.remedy)
