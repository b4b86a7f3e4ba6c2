"""Is an engine right on the golden data of a bundle? What is asked of every engine before anything else, whatever comes out of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gmf_edge.engines.protocol import Engine, Progress, silent
from gmf_edge.spec import Gate, MapGate
from gmf_edge.verify.batches import prove_batches
from gmf_edge.verify.golden import Golden
from gmf_edge.verify.judge import batches_failure
from gmf_edge.verify.maps import GoldenMaps, prove_maps


def golden_failure(
    engine: Engine, golden: Path, batches: Iterable[int], gate: Gate | MapGate, progress: Progress = silent
) -> str | None:
    """The first batch size, or map, that is outside the gate, in words; None where all are within it.

    Args:
        engine: opened.
        golden: golden.npz of the bundle.
        batches: batch sizes, such as BatchProfile.sizes.
        gate: of the bundle: what it is of says what the golden data are.
        progress: told what is going on.

    Raises:
        BundleError: not golden data of that kind.
        EngineError: the engine refuses a batch.
    """
    if isinstance(gate, MapGate):
        failure = prove_maps(engine, GoldenMaps.load(golden), batches, progress).failure(gate)
        return None if failure is None else f"in {failure}"
    data = Golden.load(golden)
    return batches_failure(prove_batches(engine, data.images, data.logits, batches, progress), gate)
