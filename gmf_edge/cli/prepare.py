"""Verbs that start from a checkpoint: build, export, calibrate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gmf_edge.cli.options import BundleOptions, CalibrationOptions, EngineOptions, Output, ResultOptions, ScreenOptions
from gmf_edge.cli.screen import out, print_json, progress_shown, show_files, show_result

KeepInt8 = Annotated[bool, typer.Option("--keep-int8", help="Deliver INT8 although it is no faster on this machine.")]


def build(
    context: typer.Context,
    request: BundleOptions,
    engine: EngineOptions,
    screen: ResultOptions,
    keep_int8: KeepInt8 = False,
    output: Output = Path("out/bundle"),
) -> None:
    """From a checkpoint to a verified and measured engine.

    Options of trtexec that mean the same are taken too, such as --memPoolSize=workspace:1024 or --builderOptimizationLevel=5.
    """
    from gmf_edge.pipeline import build as build_bundle

    spec = request.spec(engine.backend, keep_int8)
    trtexec = engine.request(context.args)
    given = {
        "profile": trtexec.profile,
        "image_size": trtexec.image_size,
        "sizes": trtexec.sizes,
        "precision": trtexec.precision,
    }
    spec = replace(spec, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    with progress_shown(screen) as progress:
        result = build_bundle(spec, output, use_plugin=not engine.no_plugin, options=trtexec.options, progress=progress)
    show_result(result, screen)


def export(request: BundleOptions, screen: ScreenOptions, output: Output = Path("out/bundle")) -> None:
    """From a checkpoint to a bundle, to deploy on the device."""
    from gmf_edge.prepare import export as export_bundle

    spec = request.spec()
    with progress_shown(screen) as progress:
        bundle = export_bundle(spec, output, progress)
    if screen.as_json:
        print_json({"folder": str(output), "manifest": bundle.manifest.to_json()})
        return
    out.print(bundle.manifest.weights.statement)
    show_files(bundle.manifest.files)
    out.print(f"exported {output}; next: gmf-edge deploy {output}, on the device")


def calibrate(
    request: CalibrationOptions,
    screen: ScreenOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("out/ranges.json"),
) -> None:
    """Ranges of the activations for INT8, from pictures.

    `build --ranges` and `export --ranges` take them.
    """
    from gmf_edge.prepare import calibrate as write_ranges

    with progress_shown(screen) as progress:
        ranges = write_ranges(request.calibration_spec(), output, progress)
    origin = ranges.provenance
    if screen.as_json:
        print_json({"file": str(output), "images": origin.images, "method": origin.method, "notes": list(ranges.notes)})
        return
    for note in ranges.notes:
        out.print(f"note: {note}", markup=False)
    out.print(f"wrote {output}: {len(ranges.tensors)} ranges by {origin.method} on {origin.images} images", markup=False)
