"""Small pictures of the images whose class changed: the clear ones first, then those with the widest margin."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gmf_edge.errors import DataError
from gmf_edge.image import rgb_image

if TYPE_CHECKING:
    from gmf_edge.imageset import ImageItem

MOST_THUMBNAILS = 24
SIDE = 96
JPEG_QUALITY = 80


def by_weight(flips: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Flips of report.json, those that say most first: no near tie, then by FP32 PyTorch's margin."""
    return sorted(flips, key=lambda flip: (flip["near_tie"], -(flip["margin"] or 0.0)))


def thumbnails(flips: Sequence[Mapping[str, Any]], pictures: Mapping[str, ImageItem]) -> dict[str, bytes]:
    """Name -> JPEG of at most SIDE pixels a side, of at most MOST_THUMBNAILS flips.

    Args:
        flips: of report.json's parity.
        pictures: by the names in `flips`; one that lacks, or cannot be read, is passed over.
    """
    found: dict[str, bytes] = {}
    for flip in by_weight(flips)[:MOST_THUMBNAILS]:
        item = pictures.get(flip["image"])
        if item is None:
            continue
        try:
            picture = rgb_image(item.read(), item.name)
        except DataError:
            continue
        picture.thumbnail((SIDE, SIDE))
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=JPEG_QUALITY)
        found[flip["image"]] = content.getvalue()
    return found
