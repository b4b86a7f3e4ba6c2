"""The workstation's half: a checkpoint becomes a bundle. The one half that needs torch and onnx.

source         weights, preprocessing, data sets              the FP32 PyTorch model
classes        what they are called
graphs         1-plain.onnx -> 2-fused.onnx -> the bundle's   exported, rewritten, lowered to a precision, over one weights.bin
reference      golden.npz, reference.npz                      FP32 PyTorch's logits
calibration    ranges.json                                    INT8: the activations' ranges
quantization   which layers INT8 leaves out                   INT8: none, or as few as the gate allows

Each step is `cached`: a function of content that is skipped where equal inputs have been through it.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from gmf_edge import __version__
from gmf_edge.artifact import Stage, library_versions
from gmf_edge.bundle import LABELS, RANGES, Bundle, Manifest, open_bundle, require_replaceable, seal
from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.prepare.calibration import ranges_stage
from gmf_edge.prepare.graphs import fused_stage, lowered_stage, plain_stage
from gmf_edge.prepare.quantization import quantization_for
from gmf_edge.prepare.reference import reference_stage
from gmf_edge.prepare.source import SourceModel, load_source
from gmf_edge.report import write_script
from gmf_edge.report.commands import request_of
from gmf_edge.scratch import new_folder
from gmf_edge.spec import BuildSpec, Precision, Task

if TYPE_CHECKING:
    from gmf_edge.precision.ranges import Ranges


def export(spec: BuildSpec, out: Path, progress: Progress = silent) -> Bundle:
    """Make a bundle, without an engine: what `gmf-edge export` does.

    Args:
        spec: the request.
        out: folder to write; a bundle that is there is replaced whole.
        progress: told what is going on.

    Raises:
        GmfEdgeError: see gmf_edge.errors; nothing is left behind.
    """
    require_replaceable(out)
    with ExitStack() as stack:
        source = load_source(spec, stack, progress)
        with new_folder(out) as folder:
            write_bundle(source, spec, folder, progress)
    return open_bundle(out)


def calibrate(spec: BuildSpec, out: Path, progress: Progress = silent) -> Ranges:
    """Write ranges.json for an INT8 build: what `gmf-edge calibrate` does.

    Args:
        spec: an INT8 request.
        out: file to write.
        progress: told what is going on.

    Raises:
        GmfEdgeError: see gmf_edge.errors; nothing is left behind.
    """
    from gmf_edge.precision.ranges import read_ranges, write_ranges
    from gmf_edge.precision.recipe import open_recipe

    recipe = open_recipe(spec.recipe)
    with ExitStack() as stack:
        # evaluation images are the build's business, which holds them against these
        source = load_source(spec, stack, progress, with_evaluation=False)
        fused = fused_stage(plain_stage(source, progress), progress)
        ranges = read_ranges(ranges_stage(source, fused, spec, recipe, progress).folder / RANGES)
    write_ranges(ranges, out)
    return ranges


def write_bundle(source: SourceModel, spec: BuildSpec, folder: Path, progress: Progress = silent) -> Bundle:
    """The stages in their order, into a folder that exists and is empty."""
    from gmf_edge.precision.recipe import open_recipe

    plain = plain_stage(source, progress)
    fused = fused_stage(plain, progress)
    reference = reference_stage(source, spec, progress)
    quantization = None
    if spec.precision is Precision.INT8:
        recipe = open_recipe(spec.recipe)
        ranges = ranges_stage(source, fused, spec, recipe, progress)
        _copy_files(ranges, folder)
        quantization = quantization_for(source, fused, reference, ranges.folder / RANGES, recipe, spec, progress)
    lowered = lowered_stage(source.spec, fused, reference, spec, quantization, progress)

    for stage in (lowered, reference):
        _copy_files(stage, folder)
    if spec.task is Task.CLASSIFY:
        (folder / LABELS).write_text("\n".join(source.classes.names) + "\n", encoding="utf-8")
    manifest = Manifest(
        model=source.spec,
        weights=source.origin,
        precision=spec.precision,
        profile=spec.profile,
        preprocess=source.preprocess,
        gate=spec.gate,
        io_dtype=spec.io_dtype,
        classes=source.classes.names,
        class_ids=source.classes.ids,
        graphs=lowered.facts["graphs"],
        lowering=lowered.facts["lowering"],
        rewriting=tuple(fused.facts["passes"]),
        versions={"gmf-edge": __version__, **library_versions()},
        evaluation=reference.facts["evaluation"],
        request=request_of(
            spec, source.origin, reference.facts["evaluation"], lowered.facts["lowering"].get("int8", {}).get("calibration")
        ),
        sizes=spec.sizes,
    )
    write_script(folder, manifest, None)
    return seal(folder, manifest)


def _copy_files(stage: Stage, folder: Path) -> None:
    for name in stage.files:
        shutil.copyfile(stage.folder / name, folder / name)
