"""GroupMixFormer on real hardware: from a checkpoint to a verified, measured engine in one folder."""

from __future__ import annotations

__version__ = "0.1.0"
