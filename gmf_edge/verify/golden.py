"""Golden data: preprocessed images with FP32 PyTorch's logits, so that a device without PyTorch can prove its engine.

golden.npz     images float32 [g, 3, H, W], logits float32 [g, classes], source (what the images are)
reference.npz  of the evaluation images: names, sha256, labels int64 [n] (-1 throughout where there are none), logits float32 [n, classes]
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.errors import BundleError


def in_batches(images: NDArray[np.float32], size: int) -> Iterator[NDArray[np.float32]]:
    """Preprocessed images [n, 3, H, W] in parts of at most `size`, in their order."""
    return (images[start : start + size] for start in range(0, len(images), size))


@dataclass(frozen=True)
class Golden:
    """Images that travel with the bundle, and what FP32 PyTorch makes of them."""

    images: NDArray[np.float32]
    logits: NDArray[np.float32]
    source: str

    def save(self, path: Path) -> None:
        """Write golden.npz."""
        with path.open("wb") as file:
            np.savez(file, images=self.images, logits=self.logits, source=np.array(self.source))

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Read golden.npz.

        Raises:
            BundleError: not such a file.
        """
        arrays = _arrays(path, ("images", "logits", "source"))
        return cls(arrays["images"], arrays["logits"], str(arrays["source"]))


@dataclass(frozen=True)
class Reference:
    """FP32 PyTorch's logits of the evaluation images, which themselves do not travel.

    Attributes:
        names: of the n images.
        sha256: of their files.
        labels: int64 [n], or None.
        logits: float32 [n, classes].
    """

    names: tuple[str, ...]
    sha256: tuple[str, ...]
    labels: NDArray[np.int64] | None
    logits: NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Write reference.npz."""
        labels = self.labels if self.labels is not None else np.full(len(self.names), -1, np.int64)
        with path.open("wb") as file:
            np.savez(file, names=np.array(self.names), sha256=np.array(self.sha256), labels=labels, logits=self.logits)

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read reference.npz.

        Raises:
            BundleError: not such a file.
        """
        arrays = _arrays(path, ("names", "sha256", "labels", "logits"))
        labels = arrays["labels"].astype(np.int64)
        return cls(
            tuple(map(str, arrays["names"])),
            tuple(map(str, arrays["sha256"])),
            None if (labels < 0).all() else labels,
            arrays["logits"],
        )


def _arrays(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise BundleError(f"{path} is not readable as golden data", "build or export the bundle again") from error
