"""What a precision does to a trained backbone's maps, picture by picture: the figures behind spec.MAP_GATES and docs/backbone.md.

    python benchmarks/map_errors.py                                        # the packaged pico on its 360 test pictures
    python benchmarks/map_errors.py --checkpoint mobile.pth --image-size 64 --calibration-data TRAIN --eval-data VAL

Each row is the worst map of the worst picture at batch 1, in ONNX Runtime on the CPU, on the graph that a build delivers; INT8 over the
seeds of the calibration's draw.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

import gmf_edge
from gmf_edge.bundle import open_bundle
from gmf_edge.deploy import open_engine
from gmf_edge.model.reference import reference_maps
from gmf_edge.precision.recipe import RECIPES
from gmf_edge.prepare.source import load_source
from gmf_edge.spec import BuildSpec, Precision, Task
from gmf_edge.verify.maps import GoldenMaps, GoldenSize, MapReport, prove_maps

BATCH_SIZE = 16


def pictures_and_maps(spec: BuildSpec) -> GoldenMaps:
    """Every evaluation picture and FP32 PyTorch's maps of it."""
    with ExitStack() as stack:
        source = load_source(spec, stack)
        if source.evaluation is None:
            raise SystemExit("error: give --eval-data\nwhat to do: a zip or a folder of pictures that the model was not trained on")
        images = np.concatenate([batch.inputs for batch in source.evaluation.batches(source.preprocess, BATCH_SIZE)])
    return GoldenMaps((GoldenSize(images, reference_maps(source.model, images)),), "evaluation pictures")


def found(spec: BuildSpec, golden: GoldenMaps) -> MapReport:
    """The maps of a build of that request."""
    with tempfile.TemporaryDirectory() as name:
        bundle = Path(name) / "bundle"
        gmf_edge.export(spec, bundle)
        gmf_edge.deploy_bundle(bundle, backend="onnxruntime")
        with open_engine(open_bundle(bundle)) as engine:
            return prove_maps(engine, golden, (1,))


def row(name: str, report: MapReport) -> str:
    """A line of the table: the worst of each figure, and the map that has it."""
    worst = max(report.rows, key=lambda numerics: numerics.relative_l2)
    angle = min(report.rows, key=lambda numerics: numerics.cosine)
    largest = max(report.rows, key=lambda numerics: numerics.error_share)
    return (
        f"| {name} | {worst.relative_l2:.2e} ({worst.name}) | {1 - angle.cosine:.1e} ({angle.name}) "
        f"| {largest.error_share:.2e} ({largest.name}) |"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--image-size", type=int, default=None, help="pixels; the checkpoint's default without")
    parser.add_argument("--calibration-data", type=Path)
    parser.add_argument("--eval-data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of INT8's calibration")
    given = parser.parse_args()
    size = {} if given.image_size is None else {"image_size": (given.image_size, given.image_size)}
    plain = BuildSpec(task=Task.FEATURES, checkpoint=given.checkpoint, eval_data=given.eval_data, backend="onnxruntime", **size)
    golden = pictures_and_maps(plain)
    print(f"{len(golden.sizes[0].images)} pictures\n")
    print("| precision | relative L2 | 1 - cosine | largest error over largest value |\n|---|---|---|---|")
    for precision in (Precision.FP32, Precision.FP16, Precision.BF16):
        print(row(precision.value.upper(), found(replace(plain, precision=precision), golden)), flush=True)
    for recipe in RECIPES:
        for seed in given.seeds:
            int8 = replace(plain, precision=Precision.INT8, recipe=recipe, seed=seed, calibration_data=given.calibration_data)
            print(row(f"INT8, {recipe}, seed {seed}", found(int8, golden)), flush=True)


if __name__ == "__main__":
    main()
