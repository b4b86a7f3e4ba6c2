"""The plain export as a stage: one key and one maker, for builds and for the baselines of the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmf_edge.artifact import Stage, run_stage
from gmf_edge.engines.protocol import Progress
from gmf_edge.spec import ModelSpec
from gmf_edge.weights import WeightsOrigin

if TYPE_CHECKING:
    from gmf_edge.model.groupmixformer import GroupMixFormer

PLAIN = "1-plain.onnx"


def model_key(spec: ModelSpec, weights: WeightsOrigin) -> dict[str, Any]:
    """What decides the model's function, for the keys of stages."""
    return {"model": spec.to_json(), "weights": weights.to_json()}


def plain_stage(spec: ModelSpec, weights: WeightsOrigin, model: Callable[[], GroupMixFormer], progress: Progress) -> Stage:
    """1-plain.onnx: the model as PyTorch exports it, proved at several batch sizes; from the cache where it lies there.

    Args:
        spec, weights: what the model is, and where its weights come from.
        model: called for it where it has to be exported; see export.export_plain.
        progress: told when it is.

    Raises:
        ExportError: see export.export_plain.
        EnvironmentProblem: the cache cannot be written.
    """

    def make(folder: Path) -> Mapping[str, Any]:
        from gmf_edge.model.export import export_plain

        progress(None, f"exporting {PLAIN}")
        export_plain(model(), spec.image_size, folder / PLAIN)
        return {}

    return run_stage("plain", model_key(spec, weights), make)
