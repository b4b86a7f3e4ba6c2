"""What a search for exceptions has measured so far, how long it may take, and what a gate said."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gmf_edge.artifact import digest_of
from gmf_edge.errors import CalibrationError
from gmf_edge.scratch import write_atomically

STATE_SCHEMA = 1


@dataclass(frozen=True)
class Verdict:
    """What a gate says of one choice of exceptions.

    Attributes:
        passed: whether it holds.
        drop_points: lost top-1 in percentage points; None where there are no labels.
        reason: the gate's sentence.
    """

    passed: bool
    drop_points: float | None = None
    reason: str = ""


@dataclass
class Budget:
    """Time that may be spent, from the moment that it is made.

    Attributes:
        seconds: infinity for no limit.
        clock: monotonic seconds.
    """

    seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def spent(self) -> float:
        """Seconds since it was made."""
        return self.clock() - self.started

    def over(self, share: float = 1.0) -> bool:
        """Whether that share of it is spent; written so that NaN is over."""
        return not self.spent < share * self.seconds


class SearchState:
    """What a search has measured so far, in a JSON file that a later run goes on from.

    A file of another model, recipe, gate or of other images is not gone on from, and `fresh_because` says so.

    Args:
        path: of the file; None keeps all in memory.
        key: digest of everything that the measurements depend on.

    Raises:
        CalibrationError: the file is another kind of file.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path = path
        self.key = key
        self.fresh_because: str | None = None
        self.costs: dict[str, tuple[float, int]] = {}
        self.verdicts: dict[frozenset[str], Verdict] = {}
        if path is None or not path.exists():
            return
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            stored_key, schema = content["key"], content["schema"]
            costs = {str(name): (float(error), int(flips)) for name, (error, flips) in content["costs"].items()}
            verdicts = {frozenset(entry["exceptions"]): Verdict(**entry["verdict"]) for entry in content["verdicts"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = "name another file for the search's state, or remove it"
            raise CalibrationError(f"{path} is not the state of a search ({error!r})", remedy) from error
        if content.pop("sha256", None) != digest_of(content):
            self.fresh_because = f"{path.name} is damaged"
            return
        if schema != STATE_SCHEMA or stored_key != key:
            self.fresh_because = f"{path.name} is of another model, recipe, gate or image set"
            return
        self.costs, self.verdicts = costs, verdicts

    def save(self) -> None:
        """Write the file whole or not at all."""
        if self.path is None:
            return
        content = {
            "schema": STATE_SCHEMA,
            "key": self.key,
            "costs": {name: list(cost) for name, cost in self.costs.items()},
            "verdicts": [{"exceptions": sorted(names), "verdict": asdict(verdict)} for names, verdict in self.verdicts.items()],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps({"sha256": digest_of(content), **content}, indent=1).encode())
