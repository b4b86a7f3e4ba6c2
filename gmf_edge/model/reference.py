"""FP32 PyTorch's logits: the reference that every engine is judged against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from gmf_edge.model.groupmixformer import GroupMixFormer


def reference_logits(model: GroupMixFormer, batches: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """The model's logits of each batch.

    Args:
        model: in evaluation mode, FP32.
        batches: preprocessed images, float32 [B, 3, H, W].
    """
    with torch.inference_mode():
        for batch in batches:
            yield model(torch.from_numpy(np.ascontiguousarray(batch))).numpy()
