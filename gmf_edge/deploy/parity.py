"""Parity of an engine with the FP32 PyTorch logits that travel in its bundle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmf_edge.bundle import GOLDEN, REFERENCE, Bundle, Manifest
from gmf_edge.engines.protocol import Engine, Progress
from gmf_edge.errors import BundleError, DataError, SpecError
from gmf_edge.spec import Gate, MapGate, Task
from gmf_edge.verify.batches import prove_batches
from gmf_edge.verify.golden import Golden, Reference, in_batches
from gmf_edge.verify.maps import GoldenMaps, MapReport, prove_maps
from gmf_edge.verify.parity import ParityReport, measure

if TYPE_CHECKING:
    from gmf_edge.imageset import ImageItem, ImageSet

EVALUATION_BATCH = 8


def gate_of(manifest: Manifest, max_drop_points: float | None) -> Gate | MapGate:
    """The bundle's gate, with another, strict limit on top-1 where one is given, in percentage points.

    Raises:
        SpecError: a limit on top-1 for a backbone.
    """
    if max_drop_points is None:
        return manifest.gate
    if isinstance(manifest.gate, MapGate):
        raise SpecError(
            "--max-drop is in points of top-1, which a backbone has not", "leave it out: each map has limits of its own"
        )
    return Gate(max_drop_points, manifest.gate.min_agreement, manifest.gate.min_cosine, strict=True)


def evaluation_images(bundle: Bundle, eval_data: Path | str | None, stack: ExitStack) -> ImageSet | None:
    """The images whose FP32 logits the bundle carries, in their order; other images in the set are left out."""
    if eval_data is None:
        return None
    from gmf_edge.imageset import ImageSet

    if bundle.manifest.model.task is Task.FEATURES:
        raise BundleError(f"{bundle.folder} is a backbone: its golden images travel with their maps", "leave out --eval-data")
    if REFERENCE not in bundle.manifest.files:
        raise BundleError(f"{bundle.folder} was built without evaluation images", "build it again with --eval-data")
    images = stack.enter_context(ImageSet.open(eval_data))
    by_digest = {item.sha256: item for item in images.items}
    reference = Reference.load(bundle.path(REFERENCE))
    lacking = [name for name, digest in zip(reference.names, reference.sha256, strict=True) if digest not in by_digest]
    if lacking:
        raise DataError(
            f"{eval_data} lacks {len(lacking)} of the {len(reference.names)} images that the bundle was evaluated on, such as {lacking[0]}",
            "give the images that it was built with, or build it again with these",
        )
    return images.subset([by_digest[digest] for digest in reference.sha256])


def pictures_by_name(bundle: Bundle, images: ImageSet | None) -> dict[str, ImageItem]:
    """The evaluation images by the names that the bundle has for them, which are those of flips; none without images."""
    if images is None:
        return {}
    return dict(zip(Reference.load(bundle.path(REFERENCE)).names, images.items, strict=True))


def parity_of(engine: Engine, bundle: Bundle, images: ImageSet | None, progress: Progress) -> ParityReport | MapReport:
    """The engine at every batch size and on the evaluation images (evaluation_images), or on the golden images where there are none.

    Of a backbone: each map of the golden images at every batch size and image size.
    """
    manifest = bundle.manifest
    if manifest.model.task is Task.FEATURES:
        return prove_maps(engine, GoldenMaps.load(bundle.path(GOLDEN)), manifest.profile.sizes, progress)
    golden = Golden.load(bundle.path(GOLDEN))
    numerics = prove_batches(engine, golden.images, golden.logits, manifest.profile.sizes, progress)
    if images is None:
        return measure(
            engine,
            in_batches(golden.images, EVALUATION_BATCH),
            golden.logits,
            names=[f"golden {index}" for index in range(len(golden.images))],
            class_names=manifest.classes,
            trained=manifest.weights.trained,
            profile=manifest.profile,
            batch_numerics=numerics,
            progress=progress,
        )
    reference = Reference.load(bundle.path(REFERENCE))
    batch = min(EVALUATION_BATCH, manifest.profile.max)

    def inputs() -> Iterator[Any]:
        for part in images.batches(manifest.preprocess, batch):
            yield part.inputs

    return measure(
        engine,
        inputs(),
        reference.logits,
        names=reference.names,
        labels=reference.labels,
        class_names=manifest.classes,
        trained=manifest.weights.trained,
        profile=manifest.profile,
        batch_numerics=numerics,
        progress=progress,
    )
