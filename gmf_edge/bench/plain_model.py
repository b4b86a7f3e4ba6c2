"""The FP32 PyTorch model that a bundle was made from, and its plain ONNX export, again: what baselines run.

A bundle does not carry them. Packaged and seeded random weights are made again from what its manifest says; for a checkpoint's the
file is needed, and it is held against the digest in the manifest. The export comes from the cache where it lies there. Needs torch
and onnx, which are imported when the model is asked for; everything else in this room works without them.
"""

from __future__ import annotations

import functools
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gmf_edge.artifact import sha256_of
from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.errors import CheckpointError, EnvironmentProblem, SpecError
from gmf_edge.model.plain_stage import PLAIN, plain_stage
from gmf_edge.spec import ModelSpec
from gmf_edge.weights import ASSETS, WeightsOrigin

if TYPE_CHECKING:
    from gmf_edge.model.groupmixformer import GroupMixFormer


class PlainModel:
    """A bundle's model before this project changed anything.

    Args:
        spec: the bundle's model.
        weights: where the bundle's weights come from.
        checkpoint: the file, where they come from one.
        progress: told what is going on.
    """

    def __init__(
        self, spec: ModelSpec, weights: WeightsOrigin, checkpoint: Path | None = None, progress: Progress = silent
    ) -> None:
        self.spec, self.weights, self.checkpoint, self._progress = spec, weights, checkpoint, progress

    @functools.cached_property
    def model(self) -> GroupMixFormer:
        """In evaluation mode.

        Raises:
            EnvironmentProblem: torch is not installed, or the weights are of a file that was not given.
            CheckpointError: the file given is another one.
        """
        _require("torch")
        from gmf_edge.model.checkpoint import load_model
        from gmf_edge.model.groupmixformer import random_model

        if self.weights.kind == "random":
            found = re.fullmatch(r"seed (\d+)", self.weights.detail)
            if found is None:
                raise SpecError(f"random weights of {self.weights.detail!r}", "export the bundle again")
            return random_model(self.spec, int(found[1]))
        path = ASSETS / str(self.weights.file) if self.weights.kind == "packaged" else self.checkpoint
        if path is None:
            raise EnvironmentProblem(
                f"the bundle does not carry the checkpoint {self.weights.file} that it was made from", "give it with --checkpoint"
            )
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist", f"give {self.weights.file}")
        if sha256_of(path) != self.weights.sha256:
            raise CheckpointError(
                f"{path} is not the checkpoint that the bundle was made from (SHA-256 {(self.weights.sha256 or '')[:12]}...)",
                f"give {self.weights.file}",
            )
        model, _ = load_model(path, num_classes=self.spec.num_classes, image_size=self.spec.image_size, kind=self.weights.kind)
        return model

    @functools.cached_property
    def graph(self) -> Path:
        """1-plain.onnx as PyTorch exports it, proved at several batch sizes.

        Raises:
            EnvironmentProblem: torch, onnx or onnxscript is not installed, or see `model`.
            CheckpointError, ExportError: see gmf_edge.errors.
        """
        _require("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime")
        return plain_stage(self.spec, self.weights, lambda: self.model, self._progress).folder / PLAIN


def _require(*packages: str) -> None:
    lacking = [name for name in packages if find_spec(name) is None]
    if lacking:
        raise EnvironmentProblem(f"{', '.join(lacking)} is not installed", "pip install 'gmf-edge[workstation]'")
