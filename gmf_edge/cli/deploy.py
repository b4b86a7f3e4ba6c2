"""Verbs of the device: deploy, verify, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmf_edge.cli.options import EngineOptions, EvalData, Folder, MaxDrop, ResultOptions, RunOptions, ScreenOptions
from gmf_edge.cli.predictions import MOST_CLASSES, prediction_json, show_predictions
from gmf_edge.cli.screen import out, print_json, progress_shown, show_result
from gmf_edge.errors import DataError, SpecError


def deploy(
    context: typer.Context,
    folder: Folder,
    engine: EngineOptions,
    screen: ResultOptions,
    eval_data: EvalData = None,
    max_drop: MaxDrop = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here.", show_default="into the bundle")] = None,
) -> None:
    """From a bundle to a proved engine, where it will run.

    Options of trtexec that mean the same are taken too, as by build.
    """
    from gmf_edge.bundle import require_replaceable
    from gmf_edge.deploy import deploy_bundle

    if output is not None:
        require_replaceable(output)
    trtexec = engine.request(context.args)
    if (trtexec.profile, trtexec.image_size, trtexec.precision) != (None, None, None):
        raise SpecError("shapes and precision are in the bundle already", "give them to 'gmf-edge build' or 'gmf-edge export'")
    with progress_shown(screen) as progress:
        result = deploy_bundle(
            folder,
            backend=engine.backend.value,
            eval_data=eval_data,
            max_drop_points=max_drop,
            use_plugin=not engine.no_plugin,
            options=trtexec.options,
            out=output,
            progress=progress,
        )
    show_result(result, screen)


def verify(
    folder: Folder,
    engine: RunOptions,
    screen: ResultOptions,
    eval_data: EvalData = None,
    max_drop: MaxDrop = None,
) -> None:
    """Check every byte, prove the engine again; writes nothing."""
    from gmf_edge.deploy import verify_bundle

    with progress_shown(screen) as progress:
        result = verify_bundle(
            folder,
            backend=engine.backend.value,
            options=engine.run_options,
            eval_data=eval_data,
            max_drop_points=max_drop,
            progress=progress,
        )
    show_result(result, screen, written=False)


def predict(
    folder: Folder,
    images: Annotated[list[Path], typer.Argument(help="Pictures, folders, .zip archives or patterns.", show_default=False)],
    engine: RunOptions,
    screen: ScreenOptions,
    top: Annotated[
        int | None, typer.Option(min=1, help="How many classes to show.", show_default="5; of several pictures 1")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="New folder for the pictures with their classes written on them.")] = None,
) -> None:
    """The likeliest classes of pictures."""
    from gmf_edge.deploy import predict as predictions_of

    with progress_shown(screen) as progress:
        predictions = predictions_of(
            folder,
            images,
            top=top or MOST_CLASSES,
            backend=engine.backend.value,
            options=engine.run_options,
            save=save,
            progress=progress,
        )
    if screen.as_json:
        print_json([prediction_json(found) for found in predictions])
    else:
        show_predictions(predictions, top)
        if save is not None:
            out.print(f"saved to {save}", markup=False)
    broken = [found for found in predictions if found.problem is not None]
    if broken and screen.as_json:
        raise typer.Exit(1)  # the list names them
    if broken:
        raise DataError(
            f"{len(broken)} of {len(predictions)} pictures could not be read: {broken[0].problem}", "replace or remove them"
        )
