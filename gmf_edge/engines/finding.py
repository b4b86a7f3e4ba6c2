"""What `gmf-edge doctor` says of one thing on this machine; each backend's own doctor gives some."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, MISSING = "ok", "warning", "missing"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what, such as "GPU".
        state: OK, WARNING (works, but not as it could) or MISSING.
        detail: what was found.
        remedy: what to do, empty where nothing is wrong.
        optional: whether this machine works without it.
    """

    subject: str
    state: str
    detail: str
    remedy: str = ""
    optional: bool = False
