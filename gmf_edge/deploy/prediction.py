"""Classes of pictures, by a bundle's engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gmf_edge.bundle import open_bundle
from gmf_edge.deploy.engine import open_or_build
from gmf_edge.deploy.pictures import Picture, pictures_at
from gmf_edge.engines.protocol import FloatArray, Progress, silent
from gmf_edge.errors import BundleError, DataError
from gmf_edge.spec import BatchProfile, Task
from gmf_edge.verify.inference import served_logits

if TYPE_CHECKING:
    from gmf_edge.image import Preprocess


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one picture.

    Attributes:
        image: as given, or its path below the folder or archive that was given.
        classes: (class name, softmax probability), likeliest first; empty where it could not be read.
        ids: WordNet ids of these classes; empty where they are not ImageNet's.
        problem: why it could not be read, or None.
    """

    image: str
    classes: tuple[tuple[str, float], ...]
    ids: tuple[str, ...] = ()
    problem: str | None = None


def predict(
    folder: Path,
    images: list[Path],
    *,
    top: int = 5,
    backend: str = "auto",
    options: Mapping[str, Any] | None = None,
    save: Path | None = None,
    progress: Progress = silent,
) -> list[Prediction]:
    """Classify pictures with a bundle's engine; what `gmf-edge predict` does.

    Pictures are turned as their EXIF orientation says. Memory stays at one batch, whatever their number.

    Args:
        folder: a bundle.
        images: picture files, folders, .zip archives or patterns.
        top: classes of each picture.
        backend: "auto" or a backend's name.
        options: the backend's own.
        save: folder for copies of the pictures with their classes written on them; made where it is not there.
        progress: told what is going on.

    Returns:
        One prediction a picture, in their order. Of several pictures a broken one has a problem instead of classes.

    Raises:
        BundleError: a backbone's bundle.
        DataError: the only picture cannot be read, or there is none.
        SpecError: `save` exists already.
        GmfEdgeError: see gmf_edge.errors.
    """
    from gmf_edge.deploy.captions import require_new, save_captioned

    bundle = open_bundle(folder)
    if bundle.manifest.model.task is Task.FEATURES:
        raise BundleError(
            f"{folder} is a backbone: it gives the maps of four stages and knows no classes",
            "feed Engine.infer_maps to a detector or segmenter (examples/feature_pyramid.py), or build with --task classify",
        )
    manifest = bundle.manifest
    if save is not None:
        require_new(save)
    with ExitStack() as stack:
        pictures = pictures_at(images, stack)
        inputs = _readable(pictures, manifest.preprocess, manifest.profile)
        first = next(inputs)
        if len(pictures) == 1 and first[0][1] is not None:
            raise first[0][1]
        engine, _ = open_or_build(bundle, backend, stack, progress, options)
        predictions: list[Prediction] = []
        for batch in _then(first, inputs):
            good = [pixels for pixels, _ in batch if pixels is not None]
            logits = iter(served_logits(engine, np.stack(good), len(manifest.classes), manifest.profile) if good else ())
            for pixels, error in batch:
                name = pictures[len(predictions)].name
                if pixels is None:
                    predictions.append(Prediction(name, (), problem=str(error)))
                else:
                    predictions.append(_ranked(name, next(logits), manifest.classes, manifest.class_ids, top))
            progress(len(predictions) / len(pictures), f"{len(predictions)} of {len(pictures)} pictures")
        if save is not None:
            captions = [[f"{100 * share:5.1f} %  {name}" for name, share in found.classes] for found in predictions]
            save_captioned(pictures, captions, save)
    return predictions


_Inputs = list[tuple[FloatArray | None, DataError | None]]


def _readable(pictures: list[Picture], preprocess: Preprocess, profile: BatchProfile) -> Iterator[_Inputs]:
    """Inputs [3, H, W] of at most profile.max pictures at a time, or why there is none."""
    from concurrent.futures import ThreadPoolExecutor

    from gmf_edge.image import default_workers, input_from_file

    def read(picture: Picture) -> tuple[FloatArray | None, DataError | None]:
        try:
            return input_from_file(picture.content, preprocess, picture.name, upright=True), None
        except DataError as error:
            return None, error

    with ThreadPoolExecutor(default_workers()) as pool:
        for start in range(0, len(pictures), profile.max):
            yield list(pool.map(read, pictures[start : start + profile.max]))


def _then(first: _Inputs, others: Iterator[_Inputs]) -> Iterator[_Inputs]:
    yield first
    yield from others


def _ranked(name: str, logits: FloatArray, classes: tuple[str, ...], ids: tuple[str, ...], top: int) -> Prediction:
    exact = logits.astype(np.float64)
    weights = np.exp(exact - exact.max())
    order = np.argsort(-exact, kind="stable")[:top]
    ranked = tuple((classes[index], float(weights[index] / weights.sum())) for index in order)
    return Prediction(name, ranked, tuple(ids[index] for index in order) if ids else ())
