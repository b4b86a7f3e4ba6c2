"""The verb that makes of a bundle what others run: package."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from gmf_edge.cli.options import Folder, ScreenOptions
from gmf_edge.cli.screen import out, print_json, progress_shown


class FormatName(str, Enum):
    """Choices of --format."""

    TRITON = "triton"
    JETSON = "jetson"
    CPP = "cpp"


def package(
    folder: Folder,
    screen: ScreenOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; a package that is there is replaced whole.")],
    form: Annotated[
        FormatName,
        typer.Option("--format", help="A Triton model repository, a folder for a Jetson, or a C++ program with its model."),
    ],
    name: Annotated[
        str | None, typer.Option(help="Triton: the model's name for its clients.", show_default="gmf_ and the variant")
    ] = None,
    instances: Annotated[int, typer.Option(help="Triton: engines that serve at the same time.")] = 1,
    queue_delay: Annotated[int, typer.Option(help="Triton: microseconds that a request may wait for others to fill a batch.")] = 0,
    plugin_library: Annotated[
        Path | None, typer.Option(help="The TensorRT plugin's library, where the engine needs it or the Jetson is to try it.")
    ] = None,
    wheel: Annotated[Path | None, typer.Option(help="Jetson: gmf-edge's wheel.", show_default="built from the source tree")] = None,
) -> None:
    """A bundle as others run it: for Triton, a Jetson, or in C++."""
    from gmf_edge.package import PackageRequest, package_bundle

    request = PackageRequest(
        name=name, instances=instances, max_queue_delay_us=queue_delay, plugin_library=plugin_library, wheel=wheel
    )
    with progress_shown(screen) as progress:
        made = package_bundle(folder, form.value, output, request, progress)
    if screen.as_json:
        print_json({"folder": str(made.folder), "format": made.form, "notes": list(made.notes)})
        return
    for note in made.notes:
        out.print(f"note: {note}", markup=False)
    out.print(f"PASSED: {made.form} package in {made.folder}; its README.md says how to use it", markup=False)
