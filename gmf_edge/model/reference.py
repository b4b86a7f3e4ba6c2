"""FP32 PyTorch's logits and maps: the reference that every engine is judged against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from gmf_edge.model.groupmixformer import GroupMixFormer
from gmf_edge.spec import MAPS


def reference_logits(model: GroupMixFormer, batches: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """The model's logits of each batch.

    Args:
        model: in evaluation mode, FP32.
        batches: preprocessed images, float32 [B, 3, H, W].
    """
    with torch.inference_mode():
        for batch in batches:
            yield model(torch.from_numpy(np.ascontiguousarray(batch))).numpy()


def reference_maps(model: GroupMixFormer, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """A backbone's maps of images, one image at a time: a batch of large ones would need its memory at once.

    Args:
        model: a backbone in evaluation mode, FP32.
        images: preprocessed, float32 [B, 3, H, W].

    Returns:
        float32 [B, C, H / stride, W / stride] by the names of spec.MAPS.
    """
    with torch.inference_mode():
        found = [[one.numpy() for one in model(torch.from_numpy(images[i : i + 1].copy()))] for i in range(len(images))]
    return {name: np.concatenate(parts) for name, parts in zip(MAPS, zip(*found, strict=True), strict=True)}
