"""Classes of pictures, by a bundle's engine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gmf_edge.bundle import open_bundle
from gmf_edge.deploy.engine import open_or_build
from gmf_edge.engines.protocol import Progress, silent


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one picture.

    Attributes:
        image: as given.
        classes: (class name, softmax probability), likeliest first.
    """

    image: str
    classes: tuple[tuple[str, float], ...]


def predict(
    folder: Path,
    images: list[Path],
    *,
    top: int = 5,
    backend: str = "auto",
    options: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> list[Prediction]:
    """Classify pictures with a bundle's engine; what `gmf-edge predict` does.

    Raises:
        DataError: a picture that cannot be read.
        GmfEdgeError: see gmf_edge.errors.
    """
    from gmf_edge.image import input_from_file

    bundle = open_bundle(folder)
    with ExitStack() as stack:
        inputs = [input_from_file(image, bundle.manifest.preprocess, str(image)) for image in images]
        engine, _ = open_or_build(bundle, backend, stack, progress, options)
        predictions = []
        for image, pixels in zip(images, inputs, strict=True):
            # the profile's smallest batch: one picture, repeated where the engine takes no single one
            logits = engine.infer(np.repeat(pixels[None], bundle.manifest.profile.min, axis=0))[0].astype(np.float64)
            weights = np.exp(logits - logits.max())
            order = np.argsort(-logits, kind="stable")[:top]
            ranked = tuple((bundle.manifest.classes[index], float(weights[index] / weights.sum())) for index in order)
            predictions.append(Prediction(str(image), ranked))
    return predictions
