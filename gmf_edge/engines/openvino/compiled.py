"""A bundle's graph compiled by OpenVINO for one device and one batch size, from the model cache where it lies there.

The cache is a stage of gmf_edge.artifact: a compiled model lies under a digest of everything that it depends on, with its own digest
beside it. A damaged entry is compiled again; a cache that cannot be written costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmf_edge.artifact import run_stage, sha256_of
from gmf_edge.cpu import cpu_features
from gmf_edge.engines.openvino.saturation import halve_weights
from gmf_edge.errors import EngineError, EnvironmentProblem
from gmf_edge.spec import SizeRange

BLOB = "model.blob"
IMPORTABLE = "EXPORT_IMPORT"


@dataclass(frozen=True)
class Compiler:
    """One graph on one device.

    Attributes:
        core: openvino.Core.
        graph: the ONNX file.
        image_shape: (3, H, W); of a graph of several sizes, those of sizes.opt.
        device: OpenVINO's name.
        properties: for compile_model.
        capabilities: the device's OPTIMIZATION_CAPABILITIES.
        sizes: the image sizes that a model takes, or None for that of image_shape alone.
        narrow: whether INT8 weights are given 7 bits, see saturation.
    """

    core: Any
    graph: Path
    image_shape: tuple[int, ...]
    device: str
    properties: Mapping[str, Any]
    capabilities: tuple[str, ...]
    sizes: SizeRange | None = None
    narrow: bool = False

    def model(self, batches: tuple[int, int], **more: Any) -> Any:
        """The compiled model for batch sizes from the first to the second; a fixed shape where they are equal.

        Args:
            batches: smallest and largest.
            more: properties beside the compiler's that change nothing of what is computed, such as PERF_COUNT.

        Raises:
            EngineError: OpenVINO cannot read or compile the graph.
        """
        if IMPORTABLE in self.capabilities:
            try:
                stage = run_stage("openvino", self._identity(batches), lambda folder: self._export(batches, folder))
                return self._imported((stage.folder / BLOB).read_bytes(), more)
            except (EnvironmentProblem, OSError, _NotImported):
                pass  # no cache here, or one whose content this OpenVINO does not take
        return self._compiled(batches, more)

    def _compiled(self, batches: tuple[int, int], more: Mapping[str, Any]) -> Any:
        import openvino

        bounds = [batches, *((side, side) for side in self.image_shape)]
        if self.sizes is not None:
            bounds[2:] = zip(self.sizes.min, self.sizes.max, strict=True)
        try:
            model = self.core.read_model(str(self.graph))
            model.reshape([low if low == high else openvino.Dimension(low, high) for low, high in bounds])
            if self.narrow:
                halve_weights(model)
            return self.core.compile_model(model, self.device, {**self.properties, **more})
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO cannot compile {self.graph} for {self.device}: {reason_of(error)}", "export the bundle again"
            ) from error

    def _export(self, batches: tuple[int, int], folder: Path) -> dict[str, Any]:
        content = io.BytesIO()
        self._compiled(batches, {}).export_model(content)
        (folder / BLOB).write_bytes(content.getvalue())
        return {}

    def _imported(self, content: bytes, more: Mapping[str, Any]) -> Any:
        try:
            return self.core.import_model(io.BytesIO(content), self.device, {**self.properties, **more})
        except RuntimeError as error:
            raise _NotImported from error

    def _identity(self, batches: tuple[int, int]) -> dict[str, Any]:
        import openvino

        weights = sorted(self.graph.parent.glob("*.bin"))
        return {
            "openvino": openvino.__version__,
            "device": self.core.get_property(self.device, "FULL_DEVICE_NAME"),
            "capabilities": sorted(self.capabilities),
            # virtual machines call processors of several generations by one name
            "cpu_features": hashlib.sha256(" ".join(cpu_features()).encode()).hexdigest(),
            "files": [sha256_of(path) for path in (self.graph, *weights)],
            "properties": {name: str(value) for name, value in sorted(self.properties.items())},
            "narrow": self.narrow,
            "batches": list(batches),
            "image_shape": list(self.image_shape),
            "sizes": None if self.sizes is None else self.sizes.to_json(),
        }


class _NotImported(Exception):
    """OpenVINO does not take a compiled model that was exported before."""


def reason_of(error: Exception) -> str:
    """The last line of OpenVINO's message: those above say where in its source it arose."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
