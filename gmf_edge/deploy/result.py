"""How a build, a deployment or a verification ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """How a build, a deployment or a verification ended.

    Attributes:
        folder: of the bundle.
        passed: whether parity is within the gate.
        reason: why, with figures and limits.
        report: what report.json says.
    """

    folder: Path
    passed: bool
    reason: str
    report: Mapping[str, Any]
