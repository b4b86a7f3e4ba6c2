"""ranges.json: the activations' ranges that INT8 needs, from pictures or from the file that was given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmf_edge.artifact import Stage, run_stage, sha256_of
from gmf_edge.bundle import RANGES
from gmf_edge.engines.protocol import Progress
from gmf_edge.prepare.cached import cached_stage
from gmf_edge.prepare.graphs import FUSED
from gmf_edge.prepare.source import SourceModel
from gmf_edge.spec import BuildSpec

if TYPE_CHECKING:
    from gmf_edge.precision.recipe import Recipe


def ranges_stage(source: SourceModel, fused: Stage, spec: BuildSpec, recipe: Recipe, progress: Progress) -> Stage:
    """ranges.json: the activations' ranges for INT8, calibrated, or read from the file that was given and held against this build."""
    from gmf_edge.precision.calibrate import calibrate
    from gmf_edge.precision.ranges import read_ranges, write_ranges

    graph = fused.folder / FUSED
    if spec.ranges is not None:
        given = read_ranges(spec.ranges)
        given.require(
            spec.ranges,
            graph_sha256=sha256_of(graph),
            checkpoint_sha256=source.origin.sha256,
            preprocess=source.preprocess.to_json(),
        )

        def copy(folder: Path) -> Mapping[str, Any]:
            write_ranges(given, folder / RANGES)
            return {}

        return run_stage("given-ranges", {"ranges": given.to_json()}, copy)
    images = source.calibration
    assert images is not None, "load_source opens calibration images for INT8"

    def make(folder: Path) -> Mapping[str, Any]:
        progress(None, f"calibrating on {len(images)} images")
        ranges = calibrate(
            graph,
            images,
            source.preprocess,
            recipe,
            out=folder / RANGES,
            count=spec.calibration_images,
            seed=spec.seed,
            checkpoint_sha256=source.origin.sha256,
            progress=progress,
        )
        return {"notes": list(ranges.notes)}

    inputs = {
        "fused": fused.key,
        "images": images.sha256,
        "count": spec.calibration_images,
        "seed": spec.seed,
        "preprocess": source.preprocess.to_json(),
        "recipe": recipe.to_json(),
    }
    return cached_stage("ranges", inputs, make, RANGES, progress)
