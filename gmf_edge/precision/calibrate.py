"""Pictures -> ranges of the activations that may be quantised, with their provenance: ranges.json."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import onnx_ir

from gmf_edge import __version__
from gmf_edge.artifact import sha256_of
from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.image import Preprocess
from gmf_edge.imageset import ImageSet
from gmf_edge.precision.activations import Float32Array, Statistics, observe
from gmf_edge.precision.calibration_images import DEFAULT_IMAGES, check_images, draw
from gmf_edge.precision.ranges import Provenance, Ranges, TensorRange, read_ranges, write_ranges
from gmf_edge.precision.recipe import Recipe
from gmf_edge.precision.thresholds import threshold

BATCH_SIZE = 4
PACKAGES = ("onnxruntime", "numpy", "pillow")


def calibrate(
    graph: Path,
    images: ImageSet,
    preprocess: Preprocess,
    recipe: Recipe,
    *,
    out: Path,
    count: int = DEFAULT_IMAGES,
    seed: int = 0,
    checkpoint_sha256: str | None = None,
    progress: Progress = silent,
) -> Ranges:
    """Ranges of a fused graph's activations on pictures, written to `out` with their provenance.

    A file that is already there and was made from the same graph, checkpoint, pictures, preprocessing, method and versions is read
    instead; one that differs in any of them is replaced, and one that is no ranges file is refused.

    Args:
        graph: 2-fused.onnx, FP32.
        images: of the kind that the model will see, from the training split.
        preprocess: how they become inputs.
        recipe: its method, percentile and smoothings.
        out: ranges.json.
        count: pictures to draw, spread over the classes; all of them where there are fewer.
        seed: of the draw.
        checkpoint_sha256: of the weights' file, for the provenance.
        progress: called after each batch.

    Raises:
        CalibrationError: too few pictures, random or empty ones, activations that are not finite, or `out` is another file.
        DataError: a picture that cannot be read.
        SpecError: a count below FEWEST_IMAGES.
    """
    drawn = draw(images, count, seed)
    notes = check_images(drawn, wanted=count)
    provenance = Provenance(
        graph_sha256=sha256_of(graph),
        checkpoint_sha256=checkpoint_sha256,
        images_sha256=drawn.sha256,
        preprocess=preprocess.to_json(),
        method=recipe.method,
        percentile=recipe.percentile if recipe.method == "percentile" else 0.0,
        smoothing=recipe.smoothing,
        images=len(drawn),
        seed=seed,
        versions=_versions(),
        proj_smoothing=recipe.proj_smoothing,
    )
    if out.exists():
        known = read_ranges(out)
        changed = provenance.differences(known.provenance)
        if not changed:
            progress(1.0, f"{out.name} is up to date")
            return known
        progress(None, f"calibrating again: {' and '.join(changed)} changed")

    def batches() -> Iterator[Float32Array]:
        return (batch.inputs for batch in drawn.batches(preprocess, BATCH_SIZE))

    statistics = observe(
        onnx_ir.load(graph),
        batches,
        images=len(drawn),
        smoothing=recipe.smoothing,
        proj_smoothing=recipe.proj_smoothing,
        progress=progress,
    )
    ranges = ranges_from(statistics, recipe, provenance, tuple(item.name for item in drawn.items), notes)
    write_ranges(ranges, out)
    return ranges


def ranges_from(
    statistics: Statistics,
    recipe: Recipe,
    provenance: Provenance,
    pictures: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Ranges:
    """The ranges that the recipe's method draws from the statistics, whose smoothing must be the recipe's."""
    return Ranges(
        provenance=provenance,
        tensors={
            name: TensorRange(
                threshold=threshold(found, recipe.method, recipe.percentile),
                largest=found.largest,
                channel_largest=tuple(map(float, found.channel_largest)),
                # nine significant digits are all that FP32 has, and half of the file
                channel_mean=tuple(float(f"{mean:.9g}") for mean in found.channel_mean),
            )
            for name, found in statistics.tensors.items()
        },
        smoothing={name: tuple(map(float, factors)) for name, factors in statistics.smoothing.items()},
        pictures=pictures,
        notes=notes,
    )


def _versions() -> dict[str, str]:
    found = {"gmf-edge": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
