"""Which layers INT8 leaves out: none, or as few as the gate allows (`--precision auto`).

The gate is asked with ONNX Runtime on the Q/DQ graph, on the same images and by the same judge as the delivered engine: the
evaluation images where there are any, else the golden images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gmf_edge.artifact import Stage, cache_root, digest_of, sha256_of
from gmf_edge.bundle import GOLDEN, REFERENCE
from gmf_edge.engines.onnxruntime import OnnxRuntimeEngine
from gmf_edge.engines.protocol import Progress
from gmf_edge.errors import CalibrationError
from gmf_edge.prepare.graphs import FUSED, golden_images
from gmf_edge.prepare.source import SourceModel
from gmf_edge.scratch import scratch_folder
from gmf_edge.spec import BuildSpec, MapGate
from gmf_edge.verify.batches import prove_batches
from gmf_edge.verify.golden import Golden, Reference, in_batches
from gmf_edge.verify.judge import judge
from gmf_edge.verify.maps import GoldenMaps, judge_maps, prove_maps
from gmf_edge.verify.parity import ParityReport, measure

if TYPE_CHECKING:
    import onnx_ir

    from gmf_edge.precision.lower import Quantization
    from gmf_edge.precision.recipe import Recipe
    from gmf_edge.precision.search_state import Verdict

SENSITIVITY_BATCH = 8


def quantization_for(
    source: SourceModel, fused: Stage, reference: Stage, ranges_file: Path, recipe: Recipe, spec: BuildSpec, progress: Progress
) -> Quantization:
    """Ranges, recipe and exceptions of one build.

    Raises:
        CalibrationError: ranges that do not fit.
        GmfEdgeError: see gmf_edge.errors.
    """
    import onnx_ir

    from gmf_edge.precision.lower import Quantization
    from gmf_edge.precision.mixed_precision import mixed_precision
    from gmf_edge.precision.ranges import read_ranges

    ranges = read_ranges(ranges_file)
    if not spec.auto:
        return Quantization(ranges, recipe)
    graph = onnx_ir.load(fused.folder / FUSED)
    golden = reference.folder / GOLDEN
    images = golden_images(golden, spec.task)

    def evaluate(exceptions: frozenset[str]) -> Verdict:
        from gmf_edge.precision.int8 import insert_qdq
        from gmf_edge.precision.integer_gemm import linears_as_gemm

        candidate = insert_qdq(graph, ranges, recipe, exceptions=exceptions)
        # the form that ONNX Runtime is given, see gmf_edge.precision.lower
        return _verdict(linears_as_gemm(candidate)[0], source, reference, spec)

    def batches() -> Iterator[NDArray[np.float32]]:
        return in_batches(images, SENSITIVITY_BATCH)

    gate = digest_of({"gate": vars(spec.gate), "reference": sha256_of(golden), "key": reference.key})
    found = mixed_precision(
        graph,
        ranges,
        recipe,
        batches,
        evaluate,
        gate=gate,
        state_file=_intact(cache_root() / f"search-{digest_of([fused.key, gate, recipe.to_json()])[:24]}.json"),
        budget_minutes=spec.budget_minutes,
        progress=progress,
    )
    return Quantization(ranges, recipe, found.exceptions, found.to_json())


def _intact(state_file: Path) -> Path:
    """The file of the cache, which goes where it is damaged: it is measured again."""
    from gmf_edge.precision.search_state import SearchState

    try:
        SearchState(state_file, "")
    except CalibrationError:
        state_file.unlink(missing_ok=True)
    return state_file


def _verdict(candidate: onnx_ir.Model, source: SourceModel, reference: Stage, spec: BuildSpec) -> Verdict:
    """What the gate says of a graph, at the image size that it was exported at."""
    from gmf_edge.precision.search_state import Verdict
    from gmf_edge.rewrite.bodies import inline_bodies
    from gmf_edge.rewrite.shared_weights import save_graphs

    with scratch_folder() as folder:
        save_graphs({"candidate.onnx": inline_bodies(candidate)}, folder)
        with OnnxRuntimeEngine(folder / "candidate.onnx", spec.profile) as engine:
            if isinstance(spec.gate, MapGate):
                golden = GoldenMaps.load(reference.folder / GOLDEN)
                own = GoldenMaps(golden.sizes[:1], golden.source)
                passed, reason = judge_maps(prove_maps(engine, own, [spec.profile.max]), spec.gate)
                return Verdict(passed, None, reason)
            report = _classifier_parity(engine, source, reference, spec)
    passed, reason = judge(report, spec.gate, source.origin.trained)
    change = report.top1_change_points
    return Verdict(passed, None if change is None else -change, reason)


def _classifier_parity(engine: OnnxRuntimeEngine, source: SourceModel, reference: Stage, spec: BuildSpec) -> ParityReport:
    """On the evaluation images where there are any, else on the golden ones."""
    golden = Golden.load(reference.folder / GOLDEN)
    numerics = prove_batches(engine, golden.images, golden.logits, [spec.profile.max])
    trained = source.origin.trained
    if REFERENCE not in reference.files or source.evaluation is None:
        return measure(
            engine,
            [golden.images],
            golden.logits,
            names=[f"golden {index}" for index in range(len(golden.images))],
            trained=trained,
            profile=spec.profile,
            batch_numerics=numerics,
        )
    evaluation = Reference.load(reference.folder / REFERENCE)
    batch = min(SENSITIVITY_BATCH, spec.profile.max)
    return measure(
        engine,
        (part.inputs for part in source.evaluation.batches(source.preprocess, batch)),
        evaluation.logits,
        names=evaluation.names,
        labels=evaluation.labels,
        trained=trained,
        profile=spec.profile,
        batch_numerics=numerics,
    )
