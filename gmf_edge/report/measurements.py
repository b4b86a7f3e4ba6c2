"""measurements.npz: what the figures of report.html are drawn from, so that the page can be made again from the bundle alone.

array                            what it is
errors, margins                  float32 [m], see verify.samples.ParitySamples
reference, engine, largest       float32, float32, bool [k], likewise
times_ms_BATCH                   float32 [t]: GPU compute time of each inference where there is a GPU, else host latency; in order
flip_names, flip_0 ...           names [f] of flipped images, and a small JPEG of each, uint8
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gmf_edge.engines.protocol import FloatArray
from gmf_edge.errors import BundleError
from gmf_edge.verify.samples import ParitySamples, evenly

MOST_TIMES = 2_000
_PARITY = ("errors", "margins", "reference", "engine", "largest")
_TIMES, _FLIP, _NAMES = "times_ms_", "flip_", "flip_names"


@dataclass(frozen=True)
class Measurements:
    """The content of measurements.npz.

    Attributes:
        parity: of the evaluation images, or of the golden images where there were none.
        times_ms: batch size -> times in milliseconds, thinned evenly to MOST_TIMES.
        thumbnails: name of a flipped image -> a small JPEG.
    """

    parity: ParitySamples | None = None
    times_ms: Mapping[int, FloatArray] = field(default_factory=dict)
    thumbnails: Mapping[str, bytes] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write measurements.npz."""
        arrays: dict[str, NDArray[np.generic]] = {}
        if self.parity is not None:
            arrays |= {name: getattr(self.parity, name) for name in _PARITY}
        arrays |= {f"{_TIMES}{batch}": times for batch, times in self.times_ms.items()}
        arrays[_NAMES] = np.array(list(self.thumbnails), dtype=np.str_)
        arrays |= {f"{_FLIP}{i}": np.frombuffer(jpeg, np.uint8) for i, jpeg in enumerate(self.thumbnails.values())}
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Measurements:
        """Read measurements.npz.

        Raises:
            BundleError: not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            names = [str(name) for name in arrays[_NAMES]]
            return cls(
                ParitySamples(**{name: arrays[name] for name in _PARITY}) if _PARITY[0] in arrays else None,
                {int(name.removeprefix(_TIMES)): times for name, times in arrays.items() if name.startswith(_TIMES)},
                {name: arrays[f"{_FLIP}{i}"].tobytes() for i, name in enumerate(names)},
            )
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise BundleError(f"{path} is not readable as measurements", "deploy the bundle again") from error


def thinned(times_ms: Sequence[float]) -> FloatArray:
    """At most MOST_TIMES of the times, evenly spread, in their order."""
    return np.asarray(times_ms, np.float32)[evenly(len(times_ms), MOST_TIMES)]
