"""Where a model's weights come from: said on screen, in the manifest and in every report. Readable without torch.

kind         meaning
checkpoint   a file of the user's
packaged     the trained weights inside this package (pico)
random       seeded and untrained: nothing may be claimed about accuracy
"""

from __future__ import annotations

import string
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gmf_edge.errors import SpecError

# what is packaged: weights, labels and pictures of pico, and ImageNet's class names
ASSETS = Path(__file__).parent / "assets"
KINDS = ("checkpoint", "packaged", "random")
UNTRAINED = "UNTRAINED weights: for latency and numerics only"


@dataclass(frozen=True)
class WeightsOrigin:
    """Where weights come from.

    Attributes:
        kind: one of KINDS.
        file: the file's base name; None for random weights.
        sha256: of the file, in hexadecimal; None for random weights.
        detail: what was found or done on the way: the layout, an epoch, a conversion, the seed.

    Raises:
        SpecError: an unknown kind, or a file without a digest, or either with random weights.
    """

    kind: str
    file: str | None
    sha256: str | None
    detail: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SpecError(f"weights of kind {self.kind!r} are not known", f"use one of {', '.join(KINDS)}")
        if self.kind == "random":
            if self.file is not None or self.sha256 is not None:
                raise SpecError("random weights come from no file", "leave file and digest out")
        elif not self.file or Path(self.file).name != self.file:
            raise SpecError(f"{self.kind} weights from file {self.file!r}", "give the file's base name")
        elif not (isinstance(self.sha256, str) and len(self.sha256) == 64 and set(self.sha256) <= set(string.hexdigits)):
            raise SpecError(f"{self.kind} weights with the digest {self.sha256!r}", "give the file's SHA-256 in hexadecimal")

    @classmethod
    def random(cls, seed: int) -> WeightsOrigin:
        """Of untrained weights drawn from `seed`."""
        return cls("random", None, None, f"seed {seed}")

    @property
    def trained(self) -> bool:
        """Whether accuracy means anything."""
        return self.kind != "random"

    @property
    def statement(self) -> str:
        """One line for screens and reports."""
        if not self.trained:
            return UNTRAINED
        what = "weights" if self.kind == "checkpoint" else "packaged weights"
        return f"{what} of {self.file} (SHA-256 {(self.sha256 or '')[:12]})" + (f": {self.detail}" if self.detail else "")

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest; `trained` and `statement` beside the fields, for readers that are not Python."""
        return {**asdict(self), "trained": self.trained, "statement": self.statement}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> WeightsOrigin:
        """The inverse of to_json.

        Raises:
            SpecError: a field is missing or nonsense.
        """
        try:
            return cls(values["kind"], values["file"], values["sha256"], values["detail"])
        except (KeyError, TypeError) as error:
            raise SpecError(f"not an origin of weights: {error!r}", "the file was written by another version or edited") from error
