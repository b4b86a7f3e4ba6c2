"""ranges.json: what calibration found, with its provenance, so that a stale or foreign file can be refused by name.

A file holds, for each tensor that may be quantised, the largest magnitude, the range of the chosen method, and per channel the
largest magnitude and the mean; the smoothing factors; and the digests of everything that they depend on. Its own content has a
digest too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gmf_edge.errors import CalibrationError
from gmf_edge.scratch import write_atomically, write_failure

SCHEMA = 1
MAX_FILE_BYTES = 256 << 20


@dataclass(frozen=True)
class Provenance:
    """Everything that the numbers depend on.

    Attributes:
        graph_sha256: of the fused graph's file.
        checkpoint_sha256: of the weights' file; None for random weights.
        images_sha256: of the drawn set: names, classes and contents.
        preprocess: Preprocess.to_json.
        method: one of recipe.METHODS.
        percentile: in percent; 0 for the methods that have none.
        smoothing: exponent; 0 without.
        images: how many were drawn.
        seed: of the draw.
        versions: package -> version.
        proj_smoothing: exponent; 0 without.
    """

    graph_sha256: str
    checkpoint_sha256: str | None
    images_sha256: str
    preprocess: Mapping[str, Any]
    method: str
    percentile: float
    smoothing: float
    images: int
    seed: int
    versions: Mapping[str, str] = field(default_factory=dict)
    proj_smoothing: float = 0.0

    def differences(self, other: Provenance) -> tuple[str, ...]:
        """What differs, in words; empty where both are the same."""
        mine, theirs = asdict(self), asdict(other)
        return tuple(_WORDS[name] for name in mine if mine[name] != theirs[name])


_WORDS = {
    "graph_sha256": "the graph",
    "checkpoint_sha256": "the checkpoint",
    "images_sha256": "the images",
    "preprocess": "the preprocessing",
    "method": "the method",
    "percentile": "the percentile",
    "smoothing": "the smoothing",
    "images": "the number of images",
    "seed": "the seed",
    "versions": "package versions",
    "proj_smoothing": "the smoothing of proj",
}


@dataclass(frozen=True)
class TensorRange:
    """One tensor on the calibration images.

    Attributes:
        threshold: magnitudes up to this are representable, larger ones clip; after smoothing, where there is any.
        largest: largest magnitude seen, after smoothing.
        channel_largest, channel_mean: before smoothing, per channel [C].
    """

    threshold: float
    largest: float
    channel_largest: tuple[float, ...]
    channel_mean: tuple[float, ...]


@dataclass(frozen=True)
class Ranges:
    """What calibration found.

    Attributes:
        provenance: what it depends on.
        tensors: by the tensor's name in the fused graph.
        smoothing: factors by the name of a Linear's input: that tensor is divided by them, per channel [C].
        pictures: names of the drawn images.
        notes: what the user should know, one sentence each.
    """

    provenance: Provenance
    tensors: Mapping[str, TensorRange]
    smoothing: Mapping[str, tuple[float, ...]]
    pictures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {
            "schema": SCHEMA,
            "provenance": asdict(self.provenance),
            "tensors": {name: asdict(found) for name, found in self.tensors.items()},
            "smoothing": {name: list(factors) for name, factors in self.smoothing.items()},
            "pictures": list(self.pictures),
            "notes": list(self.notes),
        }

    def tensor(self, name: str, layer: str) -> TensorRange:
        """The range of a tensor that `layer` reads.

        Raises:
            CalibrationError: calibration did not see it.
        """
        found = self.tensors.get(name)
        if found is None:
            raise CalibrationError(f"the ranges have none for {name}, which {layer} reads", "calibrate again with this graph")
        return found

    def require(self, path: Path | str, *, graph_sha256: str, checkpoint_sha256: str | None, preprocess: Mapping[str, Any]) -> None:
        """Refuse ranges that were made for something else.

        Args:
            path: where they lie, for the message.
            graph_sha256, checkpoint_sha256, preprocess: of the build at hand; see Provenance.

        Raises:
            CalibrationError: another checkpoint, graph or preprocessing.
        """
        made = self.provenance
        if made.checkpoint_sha256 != checkpoint_sha256:
            theirs, ours = _short(made.checkpoint_sha256), _short(checkpoint_sha256)
            raise CalibrationError(f"{path} was calibrated on another checkpoint ({theirs}, not {ours})", _AGAIN)
        if made.graph_sha256 != graph_sha256:
            theirs, ours = _short(made.graph_sha256), _short(graph_sha256)
            raise CalibrationError(f"{path} was calibrated on another graph ({theirs}, not {ours})", _AGAIN)
        if json.dumps(made.preprocess, sort_keys=True) != json.dumps(preprocess, sort_keys=True):
            raise CalibrationError(
                f"{path} was calibrated with another preprocessing ({made.preprocess}, not {preprocess})", _AGAIN
            )


_AGAIN = "run 'gmf-edge calibrate' again for this build, or leave the file out"


def write_ranges(ranges: Ranges, path: Path) -> None:
    """Write ranges.json whole or not at all.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    content = ranges.to_json()
    text = json.dumps({"sha256": _digest(content), **content}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(path, error) from error
    write_atomically(path, text.encode())


def read_ranges(path: Path) -> Ranges:
    """Read what write_ranges wrote.

    Raises:
        CalibrationError: not there, not such a file, of another schema, edited or damaged, or with numbers that no range can be.
    """
    try:
        # a device or a pipe would never end
        if path.exists() and not path.is_dir() and not (path.is_file() and path.stat().st_size <= MAX_FILE_BYTES):
            raise CalibrationError(f"{path} is not a ranges file", _AGAIN)
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read ({error.strerror})", "calibrate first, or check the path") from error
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{path} is not a ranges file ({error})", _AGAIN) from error
    if not isinstance(content, dict) or "schema" not in content:
        raise CalibrationError(f"{path} is not a ranges file", _AGAIN)
    if content["schema"] != SCHEMA:
        raise CalibrationError(f"{path} has schema {content['schema']}, this version reads {SCHEMA}", _AGAIN)
    stated = content.pop("sha256", None)
    if stated != _digest(content):
        raise CalibrationError(f"{path} was changed after it was written", _AGAIN)
    try:
        ranges = Ranges(
            provenance=Provenance(**content["provenance"]),
            tensors={
                name: TensorRange(
                    found["threshold"], found["largest"], tuple(found["channel_largest"]), tuple(found["channel_mean"])
                )
                for name, found in content["tensors"].items()
            },
            smoothing={name: tuple(factors) for name, factors in content["smoothing"].items()},
            pictures=tuple(content["pictures"]),
            notes=tuple(content["notes"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(f"{path} lacks or misplaces {error}", _AGAIN) from error
    for name, found in ranges.tensors.items():
        if type(found.threshold) not in (int, float) or not 0 <= found.threshold < math.inf:
            raise CalibrationError(f"{path} gives {name} the range {found.threshold}", _AGAIN)
    return ranges


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _short(digest: str | None) -> str:
    return "random weights" if digest is None else f"SHA-256 {digest[:12]}"
