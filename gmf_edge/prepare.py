"""The workstation's half: a checkpoint becomes a bundle. The one half that needs torch and onnx.

weights -> 1-plain.onnx -> 2-fused.onnx -> 3-<precision>.onnx -> portable and plugin graphs over one weights.bin, beside golden data
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from gmf_edge import __version__
from gmf_edge.artifact import Stage, library_versions, new_folder
from gmf_edge.bundle import LABELS, RANGES, Bundle, Manifest, is_bundle, open_bundle, seal
from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.errors import BundleError
from gmf_edge.int8_search import quantization_for
from gmf_edge.spec import BuildSpec, Precision
from gmf_edge.stages import fused_stage, lowered_stage, plain_stage, ranges_stage, reference_stage
from gmf_edge.subject import Subject, resolve

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
    refuse_foreign(out)
    with ExitStack() as stack:
        subject = resolve(spec, stack, progress)
        with new_folder(out) as folder:
            write_bundle(subject, spec, folder, progress)
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
        subject = resolve(spec, stack, progress, with_evaluation=False)
        fused = fused_stage(plain_stage(subject, progress), progress)
        ranges = read_ranges(ranges_stage(subject, fused, spec, recipe, progress).folder / RANGES)
    write_ranges(ranges, out)
    return ranges


def write_bundle(subject: Subject, spec: BuildSpec, folder: Path, progress: Progress = silent) -> Bundle:
    """The stages in their order, into a folder that exists and is empty."""
    from gmf_edge.precision.recipe import open_recipe

    plain = plain_stage(subject, progress)
    fused = fused_stage(plain, progress)
    reference = reference_stage(subject, spec, progress)
    quantization = None
    if spec.precision is Precision.INT8:
        recipe = open_recipe(spec.recipe)
        ranges = ranges_stage(subject, fused, spec, recipe, progress)
        _copy_files(ranges, folder)
        quantization = quantization_for(subject, fused, reference, ranges.folder / RANGES, recipe, spec, progress)
    lowered = lowered_stage(subject.spec, fused, reference, spec, quantization, progress)

    for stage in (lowered, reference):
        _copy_files(stage, folder)
    (folder / LABELS).write_text("\n".join(subject.classes) + "\n", encoding="utf-8")
    manifest = Manifest(
        model=subject.spec,
        weights=subject.origin,
        precision=spec.precision,
        profile=spec.profile,
        preprocess=subject.preprocess,
        gate=spec.gate,
        io_dtype=spec.io_dtype,
        classes=subject.classes,
        graphs=lowered.facts["graphs"],
        lowering=lowered.facts["lowering"],
        rewriting=tuple(fused.facts["passes"]),
        versions={"gmf-edge": __version__, **library_versions()},
        evaluation=reference.facts["evaluation"],
    )
    return seal(folder, manifest)


def refuse_foreign(out: Path) -> None:
    """Never replace what gmf-edge did not make.

    Raises:
        BundleError: the output is a file, or a folder with other content.
    """
    if out.exists() and not is_bundle(out) and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out} exists and is not a bundle", "choose another --output, or remove it")


def _copy_files(stage: Stage, folder: Path) -> None:
    for name in stage.files:
        shutil.copyfile(stage.folder / name, folder / name)
