"""A few numbers of each image and a few of its logits: enough to draw how far an engine is from FP32 PyTorch.

They are thinned evenly, so that they stay small whatever the data set: at most MOST_IMAGES images, and MOST_LOGITS logits of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.engines.protocol import FloatArray

MOST_IMAGES, MOST_LOGITS = 20_000, 2_000
# of an image's logits where not all are kept: the largest, and others drawn
LOGITS_PER_IMAGE = 4


@dataclass(frozen=True)
class ParitySamples:
    """What ParityReport's figures are computed from, thinned. All float32; NaN where logits are not finite.

    Attributes:
        errors: largest absolute logit difference of each of m images, [m].
        margins: FP32 PyTorch's largest logit less its second largest, of the same images, [m].
        reference, engine: k logits of the same images and classes, [k].
        largest: which of them are FP32 PyTorch's largest of their image, bool [k].
    """

    errors: FloatArray
    margins: FloatArray
    reference: FloatArray
    engine: FloatArray
    largest: NDArray[np.bool_]


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` indices of `count`, evenly spread, ascending."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


@dataclass
class LogitSampler:
    """Picks the logits while batches stream past.

    Attributes:
        images, classes: how many there will be.
    """

    images: int
    classes: int
    _reference: list[NDArray[Any]] = field(default_factory=list)
    _engine: list[NDArray[Any]] = field(default_factory=list)
    _largest: list[NDArray[np.bool_]] = field(default_factory=list)

    def __post_init__(self) -> None:
        whole = self.images * self.classes <= MOST_LOGITS
        self._kept = self.classes if whole else min(self.classes, LOGITS_PER_IMAGE)
        self._chosen = set(evenly(self.images, self.images if whole else max(1, MOST_LOGITS // self._kept)).tolist())
        self._random = np.random.default_rng(0)

    def add(self, first: int, reference: NDArray[Any], engine: NDArray[Any]) -> None:
        """The logits [B, c] of the images from number `first` on."""
        for row in range(len(reference)):
            if first + row not in self._chosen:
                continue
            order = np.argsort(-reference[row], kind="stable")  # [c], the largest first
            others = order[1:] if self._kept == self.classes else self._random.choice(order[1:], self._kept - 1, replace=False)
            classes = np.concatenate([order[:1], others])
            self._reference.append(reference[row, classes].astype(np.float32))
            self._engine.append(engine[row, classes].astype(np.float32))
            self._largest.append(np.arange(len(classes)) == 0)

    def finish(self, errors: NDArray[Any], margins: NDArray[Any]) -> ParitySamples:
        """With the errors and margins [n] of all images."""
        kept = evenly(len(errors), MOST_IMAGES)
        return ParitySamples(
            errors[kept].astype(np.float32),
            margins[kept].astype(np.float32),
            np.concatenate(self._reference),
            np.concatenate(self._engine),
            np.concatenate(self._largest),
        )
