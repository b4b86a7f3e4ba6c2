"""What every engine is held against: FP32 PyTorch's logits of the golden and evaluation images, or a backbone's maps of golden ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.artifact import Stage, digest_of
from gmf_edge.bundle import GOLDEN, REFERENCE
from gmf_edge.engines.protocol import Progress
from gmf_edge.errors import DataError
from gmf_edge.image import Preprocess
from gmf_edge.imageset import ImageSet
from gmf_edge.prepare.cached import cached_stage
from gmf_edge.prepare.source import SourceModel
from gmf_edge.spec import BuildSpec, Task, words_of_size
from gmf_edge.verify.golden import Golden, Reference, in_batches
from gmf_edge.verify.maps import GoldenMaps, GoldenSize

GOLDEN_IMAGES = 16
# of a backbone, at each image size: two are the fewest among which rows can be mixed up, and their maps are large
FEWEST_GOLDEN, GOLDEN_MAP_BYTES = 2, 16 << 20
REFERENCE_BATCH = 8


def reference_stage(source: SourceModel, spec: BuildSpec, progress: Progress) -> Stage:
    """golden.npz and reference.npz: FP32 PyTorch's logits or maps; facts: "evaluation"."""
    images = source.evaluation
    inputs = {
        **source.key,
        "preprocess": source.preprocess.to_json(),
        "images": None if images is None else images.sha256,
        "seed": spec.seed,
        "sizes": None if spec.sizes is None else spec.sizes.to_json(),
    }
    if spec.task is Task.FEATURES:
        return cached_stage(
            "reference", inputs, lambda folder: _golden_maps(source, spec, folder, progress), "FP32 PyTorch's maps", progress
        )

    def make(folder: Path) -> Mapping[str, Any]:
        from gmf_edge.model.reference import reference_logits

        if images is None:
            golden_inputs, described = _synthetic_inputs(source.preprocess, spec.seed), "synthetic pictures"
        else:
            try:
                _evaluation_reference(source, images, progress).save(folder / REFERENCE)
                chosen = images.spread(min(GOLDEN_IMAGES, len(images)), spec.seed)
                golden_inputs = np.concatenate([batch.inputs for batch in chosen.batches(source.preprocess, REFERENCE_BATCH)])
            except DataError:
                # one broken picture stops the stream; name all of them before giving up
                images.require_readable()
                raise
            described = f"{len(chosen)} images of {Path(images.address).name}"
        logits = np.concatenate(list(reference_logits(source.model, in_batches(golden_inputs, REFERENCE_BATCH))))
        Golden(golden_inputs, logits, described).save(folder / GOLDEN)
        return {"evaluation": _described(images)}

    return cached_stage("reference", inputs, make, "FP32 PyTorch's logits", progress)


def _described(images: ImageSet | None) -> dict[str, Any] | None:
    """Where the evaluation images came from, for the manifest."""
    if images is None:
        return None
    return {"name": Path(images.address).name, "images": len(images), "sha256": digest_of(images.sha256)}


def _golden_maps(source: SourceModel, spec: BuildSpec, folder: Path, progress: Progress) -> Mapping[str, Any]:
    """golden.npz of a backbone: a few images at each size at which parity is proved, evaluation images where there are any."""
    from gmf_edge.model.reference import reference_maps

    sizes = []
    images = source.evaluation
    for number, image_size in enumerate(spec.sizes.proved if spec.sizes is not None else (source.spec.image_size,)):
        preprocess = replace(source.preprocess, image_size=image_size)
        map_bytes = sum(4 * math.prod(shape) for shape in source.spec.map_shapes(image_size).values())
        count = max(FEWEST_GOLDEN, min(GOLDEN_IMAGES, GOLDEN_MAP_BYTES // map_bytes) if number == 0 else FEWEST_GOLDEN)
        if images is None or len(images) < FEWEST_GOLDEN:
            inputs, described = _synthetic_inputs(preprocess, spec.seed + number, count), "synthetic pictures"
        else:
            chosen = images.spread(min(count, len(images)), spec.seed)
            inputs = np.concatenate([batch.inputs for batch in chosen.batches(preprocess, REFERENCE_BATCH)])
            described = f"images of {Path(images.address).name}"
        progress(None, f"FP32 PyTorch's maps of {len(inputs)} images of {words_of_size(image_size)}")
        sizes.append(GoldenSize(inputs, reference_maps(source.model, inputs)))
    GoldenMaps(tuple(sizes), described).save(folder / GOLDEN)
    return {"evaluation": _described(images)}


def _evaluation_reference(source: SourceModel, images: ImageSet, progress: Progress) -> Reference:
    from gmf_edge.model.reference import reference_logits

    def inputs() -> Iterator[NDArray[np.float32]]:
        done = 0
        for batch in images.batches(source.preprocess, REFERENCE_BATCH):
            yield batch.inputs
            done += len(batch.inputs)
            progress(done / len(images), f"FP32 PyTorch on {done} of {len(images)} images")

    logits = np.concatenate(list(reference_logits(source.model, inputs())))
    return Reference(
        tuple(item.name for item in images.items),
        tuple(item.sha256 for item in images.items),
        images.labels if source.origin.trained else None,
        logits,
    )


def _synthetic_inputs(preprocess: Preprocess, seed: int, count: int = GOLDEN_IMAGES) -> NDArray[np.float32]:
    """Pictures drawn with the 1/f spectrum of natural images, preprocessed: for numerics where no images were given.

    Source of the spectrum: Field, Relations between the statistics of natural images, JOSA A 4 (1987).
    """
    height, width = preprocess.image_size
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    spectrum = rng.standard_normal((count, 3, height, width)) + 1j * rng.standard_normal((count, 3, height, width))
    pictures = np.fft.ifft2(spectrum / frequency).real
    pictures /= pictures.std(axis=(1, 2, 3), keepdims=True)
    # ImageNet's pixels have about these moments on the 0..1 scale
    pixels = np.clip(0.45 + 0.25 * pictures, 0, 1)
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return np.ascontiguousarray((pixels - mean) / std, np.float32)
