"""The pictures to calibrate on: drawn evenly over the classes, and refused where nothing can be learnt from them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.errors import CalibrationError, SpecError
from gmf_edge.image import rgb_image
from gmf_edge.imageset import ImageItem, ImageSet

DEFAULT_IMAGES = 500
FEWEST_IMAGES = 32
# neighbouring pixels of noise are unrelated; those of pictures are not, see looks_random
NOISE_CORRELATION = 0.25
# more pictures than this share that carry nothing make a set unusable
UNUSABLE_SHARE = 0.5
NAMES_SHOWN = 5


def draw(images: ImageSet, count: int = DEFAULT_IMAGES, seed: int = 0) -> ImageSet:
    """The pictures to calibrate on: spread over the classes, the same for the same seed; all where there are fewer than count.

    Raises:
        SpecError: a count below FEWEST_IMAGES.
        CalibrationError: fewer than FEWEST_IMAGES pictures.
    """
    if count < FEWEST_IMAGES:
        raise SpecError(
            f"calibration on {count} images", f"give --calibration-images at least {FEWEST_IMAGES}; {DEFAULT_IMAGES} is the default"
        )
    if len(images) < FEWEST_IMAGES:
        raise CalibrationError(
            f"{images.address} holds {len(images)} images, too few to calibrate on",
            f"give --calibration-data with at least {FEWEST_IMAGES}, better {DEFAULT_IMAGES}",
        )
    return images.spread(min(count, len(images)), seed)


def check_disjoint(calibration: ImageSet, evaluation: ImageSet) -> None:
    """Calibration and evaluation share no picture, by content.

    Raises:
        CalibrationError: they do; names up to five files of each.
    """
    known: dict[str, str] = {item.sha256: item.name for item in calibration.items}
    shared = [(known[item.sha256], item.name) for item in evaluation.items if item.sha256 in known]
    if shared:
        pairs = ", ".join(a if a == b else f"{a} = {b}" for a, b in shared[:NAMES_SHOWN])
        more = f" and {len(shared) - NAMES_SHOWN} more" if len(shared) > NAMES_SHOWN else ""
        words = f"{len(shared)} of {len(evaluation)} evaluation images in {evaluation.address} are calibration images too"
        raise CalibrationError(f"{words}: {pairs}{more}", "calibrate on images of the training split, and evaluate on others")


def check_images(drawn: ImageSet, wanted: int | None = None) -> tuple[str, ...]:
    """What the user should know of a drawn set, one sentence each.

    Args:
        drawn: by draw.
        wanted: how many were asked for.

    Raises:
        CalibrationError: fewer than FEWEST_IMAGES different pictures, or most of them are random or of one colour.
        DataError: a picture that cannot be read.
    """
    different = len({item.sha256 for item in drawn.items})
    if different < FEWEST_IMAGES:
        raise CalibrationError(
            f"only {different} of the {len(drawn)} images drawn from {drawn.address} differ",
            f"give at least {FEWEST_IMAGES} different ones",
        )
    kinds = [_picture_kind(item) for item in drawn.items]
    for kind, words in (("random", "look like random noise"), ("blank", "are of one colour")):
        found = [item.name for item, its in zip(drawn.items, kinds, strict=True) if its == kind]
        if len(found) > UNUSABLE_SHARE * len(drawn):
            raise CalibrationError(
                f"{len(found)} of {len(drawn)} images in {drawn.address} {words} (the first: {found[0]})",
                "calibrate on real images of the kind that the model will see",
            )
    notes = []
    if wanted is not None and len(drawn) < wanted:
        notes.append(f"calibrated on {len(drawn)} images, all there are; {wanted} were wanted")
    present = {item.label for item in drawn.items}
    if not drawn.labelled:
        notes.append("the calibration images lie in no class folders: they could not be spread over the classes")
    elif len(present) == 1:
        (label,) = present
        assert label is not None
        notes.append(f"all calibration images are of one class, {drawn.classes[label]}: other classes may leave the ranges")
    return tuple(notes)


def looks_random(grey: NDArray[Any]) -> bool:
    """Whether neighbouring pixels are unrelated, as in noise and in hardly any photograph or drawing (3 of 4,950 tried).

    The larger of the correlations of a pixel with its right and with its lower neighbour is below NOISE_CORRELATION. Noise that
    was blurred, enlarged or strongly compressed is related to its neighbours and passes.

    Args:
        grey: [H, W] of any numeric type, not all of one value.
    """
    values = np.asarray(grey, np.float64)
    correlations = []
    for axis in (0, 1):
        if values.shape[axis] < 2:
            continue
        count = values.shape[axis]
        first, second = values.take(range(count - 1), axis), values.take(range(1, count), axis)
        first, second = first - first.mean(), second - second.mean()
        norm = math.sqrt(float((first**2).sum() * (second**2).sum()))
        # stripes: constant along one axis, so that nothing but that axis can speak
        correlations.append(float((first * second).sum()) / norm if norm > 0 else 1.0)
    return not correlations or not max(correlations) >= NOISE_CORRELATION


def _picture_kind(item: ImageItem) -> str:
    """ "random", "blank" or "picture"."""
    grey = np.asarray(rgb_image(item.read(), item.name).convert("L"))
    if grey.min() == grey.max():
        return "blank"
    return "random" if looks_random(grey) else "picture"
