"""Methods x recipes: what INT8 costs on a trained model, over several calibration seeds. Prints the tables of calibration/README.md.

    python benchmarks/int8_accuracy.py --calibration-data TRAIN --eval-data VAL --checkpoint mobile.pth --image-size 64
    python benchmarks/int8_accuracy.py                                     # the packaged pico on the packaged digits

Each figure is a mean over the seeds of the calibration's draw, on the graph that a build delivers for ONNX Runtime. top-1 changes
are in percentage points against the FP32 graph on the same images; with few images judge by agreement and relative L2 too.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime as ort

from gmf_edge.artifact import sha256_of
from gmf_edge.image import Preprocess
from gmf_edge.imageset import ImageSet
from gmf_edge.model.checkpoint import load_model
from gmf_edge.model.export import export_plain
from gmf_edge.precision.activations import observe
from gmf_edge.precision.calibrate import ranges_from
from gmf_edge.precision.calibration_images import check_disjoint, check_images, draw
from gmf_edge.precision.int8 import insert_qdq
from gmf_edge.precision.integer_gemm import linears_as_gemm
from gmf_edge.precision.ranges import Provenance
from gmf_edge.precision.recipe import METHODS, RECIPES, Recipe
from gmf_edge.rewrite.bodies import inline_bodies
from gmf_edge.rewrite.passes import rewrite_onnx
from gmf_edge.weights import ASSETS

BATCH_SIZE = 16
BALANCED, FASTEST = RECIPES["balanced"], RECIPES["fastest"]
# every method with each of these
BY_METHOD: dict[str, Recipe] = {
    "balanced: qkv, MLP": BALANCED,
    "fastest: qkv, proj, MLP": FASTEST,
    "and dense convolutions": replace(FASTEST, dense_convolutions=True),
    "and dense, depthwise convolutions": replace(FASTEST, dense_convolutions=True, depthwise=True),
    "and dense convolutions, residual additions": replace(FASTEST, dense_convolutions=True, residual_adds=True),
}
# the best method alone with each of these
HELPS: dict[str, Recipe] = {
    "accurate: balanced, smoothing 0.5": RECIPES["accurate"],
    "balanced, bias correction": replace(BALANCED, bias_correction=True),
    "balanced, smoothing 0.5, bias correction": replace(RECIPES["accurate"], bias_correction=True),
    "fastest, smoothing 1.0 of proj": replace(FASTEST, proj_smoothing=1.0),
    "everything": replace(
        FASTEST,
        dense_convolutions=True,
        first_convolution=True,
        depthwise=True,
        residual_adds=True,
        head=True,
        min_features=1,
    ),
}


def logits_of(graph: onnx_ir.Model, images: ImageSet, preprocess: Preprocess, folder: Path) -> np.ndarray:
    """Of every image, by ONNX Runtime on the portable form."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    onnx_ir.save(inline_bodies(graph), folder / "run.onnx")
    session = ort.InferenceSession(str(folder / "run.onnx"), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: batch.inputs})[0] for batch in images.batches(preprocess, BATCH_SIZE)])


def comparison(reference: np.ndarray, found: np.ndarray, labels: np.ndarray) -> tuple[float, float, float, float]:
    """(top-1 change in points, agreement in %, cosine, relative L2)."""
    hits, reference_hits = found.argmax(1) == labels, reference.argmax(1) == labels
    cosine = (reference * found).sum(1) / np.linalg.norm(reference, axis=1) / np.linalg.norm(found, axis=1)
    change = 100.0 * (int(hits.sum()) - int(reference_hits.sum())) / len(labels)
    agreement = 100.0 * float((found.argmax(1) == reference.argmax(1)).mean())
    return change, agreement, float(cosine.mean()), float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


def row_text(name: str, method: str, runs: list[tuple[float, float, float, float]]) -> str:
    change, agreement, cosine, error = np.mean(runs, axis=0)
    by_seed = ", ".join(f"{run[0]:+.2f}" for run in runs)
    return f"| {name} | {method} | {change:+.2f} | {by_seed} | {agreement:.2f} | {cosine:.5f} | {error:.4f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=ASSETS / "pico.safetensors")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--calibration-data", default=str(ASSETS / "pico-digits-calibration.zip"))
    parser.add_argument("--eval-data", default=str(ASSETS / "pico-digits-test.zip"))
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, help="keep the exported graph here between runs")
    parser.add_argument("--only", default="", help="only the rows whose name contains this")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()

    preprocess = Preprocess((options.image_size, options.image_size))
    started = time.monotonic()
    figures: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="gmf-edge-") as scratch:
        folder = Path(scratch)
        work = options.work or folder
        work.mkdir(parents=True, exist_ok=True)
        fused_path = work / f"{options.checkpoint.stem}-{options.image_size}-{sha256_of(options.checkpoint)[:12]}-fused.onnx"
        if not fused_path.exists():
            model, _ = load_model(options.checkpoint, image_size=preprocess.image_size)
            export_plain(model, preprocess.image_size, folder / "plain.onnx")
            rewrite_onnx(folder / "plain.onnx", fused_path)
        fused = onnx_ir.load(fused_path)
        with ImageSet.open(options.calibration_data) as calibration, ImageSet.open(options.eval_data) as evaluation:
            labels = evaluation.labels
            assert labels is not None, "the evaluation needs class folders"
            reference = logits_of(fused, evaluation, preprocess, folder)
            top1 = 100 * float((reference.argmax(1) == labels).mean())
            print(
                f"{options.checkpoint.name} at {options.image_size}: FP32 top-1 {top1:.2f} % on {len(evaluation)} images;", end=" "
            )
            print(
                f"{options.images} calibration images, seeds {options.seeds}; onnxruntime {ort.__version__}, {platform.machine()}"
            )
            print()
            drawn = {seed: draw(calibration, options.images, seed) for seed in options.seeds}
            for images in drawn.values():
                check_images(images)
                check_disjoint(images, evaluation)
            rows = [(name, replace(recipe, method=method)) for name, recipe in BY_METHOD.items() for method in METHODS]
            rows = [(name, recipe) for name, recipe in (*rows, *HELPS.items()) if options.only in name]
            statistics = {
                (seed, exponents): observe(
                    fused,
                    lambda images=images: (batch.inputs for batch in images.batches(preprocess, BATCH_SIZE)),
                    images=len(images),
                    smoothing=exponents[0],
                    proj_smoothing=exponents[1],
                )
                for seed, images in drawn.items()
                for exponents in {(recipe.smoothing, recipe.proj_smoothing) for _, recipe in rows}
            }

            def measured(name: str, recipe: Recipe) -> None:
                runs = []
                for seed in options.seeds:
                    exponents = recipe.smoothing, recipe.proj_smoothing
                    made = Provenance(
                        "", None, "", preprocess.to_json(), recipe.method, 0.0, recipe.smoothing, options.images, seed
                    )
                    made = replace(made, proj_smoothing=recipe.proj_smoothing)
                    ranges = ranges_from(statistics[seed, exponents], recipe, made)
                    lowered, _ = linears_as_gemm(insert_qdq(fused, ranges, recipe))
                    runs.append(comparison(reference, logits_of(lowered, evaluation, preprocess, folder), labels))
                figures.append({"recipe": name, "method": recipe.method, "runs": runs})
                print(row_text(name, recipe.method, runs), flush=True)

            print(
                "| quantised | method | change, points | by seed | agreement, % | cosine | relative L2 |\n|---|---|---|---|---|---|---|"
            )
            for name, recipe in rows:
                measured(name, recipe)
    print(f"\n{time.monotonic() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps({"figures": figures, "onnxruntime": ort.__version__, "seeds": options.seeds}, indent=1))


if __name__ == "__main__":
    main()
