"""Has an engine lost more top-1 than its gate allows? Shown, excluded or not settled, at a stated confidence.

Both models see the same images, so only discordant images count: lost (FP32 PyTorch right, engine wrong) and gained. Tango's score
test (metrics.paired_score) holds their difference against the limit, twice:

SHOWN      a loss above the limit is the better explanation at SHOWN_CONFIDENCE, one-sided, of all discordant images or of those that
           are no near ties: a near tie turns either way by chance and only dilutes the evidence
EXCLUDED   a loss above the limit would have shown itself: rejected at EXCLUDED_CONFIDENCE, one-sided
UNSETTLED  neither: too few images for this limit. Agreement and the logits' errors are what the gate goes by then

Where there is no top-1 to lose, the share of clear flips is held against its limit in the same way: flips_shown.

tests/verify/test_error_rates.py holds the error rates of the gate that is made of this, and docs/gate.md lists them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from gmf_edge.verify.metrics import paired_score

SHOWN, EXCLUDED, UNSETTLED = "shown", "excluded", "unsettled"
SHOWN_CONFIDENCE = 0.90
EXCLUDED_CONFIDENCE = 0.95
# a number of images above this is no advice
MOST_IMAGES = 10_000_000


@dataclass(frozen=True)
class Discordant:
    """Images that exactly one of the two models has right.

    Attributes:
        lost, gained: right in FP32 PyTorch and wrong in the engine, and the reverse.
        clear_lost, clear_gained: those of them that are no near ties.
    """

    lost: int
    gained: int
    clear_lost: int
    clear_gained: int


def loss_verdict(found: Discordant, images: int, limit_points: float) -> str:
    """SHOWN, EXCLUDED or UNSETTLED: is more than the limit lost?

    Args:
        found: among the images.
        images: all of them.
        limit_points: largest accepted loss of top-1, in percentage points.
    """
    change = -limit_points / 100
    # positive where more is lost than the limit
    score = -paired_score(found.lost, found.gained, images, change)
    clear_score = -paired_score(found.clear_lost, found.clear_gained, images, change)
    if max(score, clear_score) > NormalDist().inv_cdf(SHOWN_CONFIDENCE):
        return SHOWN
    return EXCLUDED if score < -NormalDist().inv_cdf(EXCLUDED_CONFIDENCE) else UNSETTLED


def flips_shown(flips: int, images: int, allowed: float) -> bool:
    """Whether a share of flips above the allowed one is shown, at SHOWN_CONFIDENCE, one-sided: the exact binomial test.

    Args:
        flips: images with another top-1 than FP32 PyTorch's.
        images: all of them.
        allowed: largest accepted share, 0..1; with 0 every flip is shown.
    """
    if flips == 0 or allowed >= 1:
        return False
    if allowed <= 0:
        return True
    as_many = math.fsum(binomial(count, images, allowed) for count in range(flips, images + 1))
    return as_many <= 1 - SHOWN_CONFIDENCE


def binomial(count: int, images: int, share: float) -> float:
    """The probability that so many of the images flip where each does with probability `share`, between 0 and 1."""
    ways = math.lgamma(images + 1) - math.lgamma(count + 1) - math.lgamma(images - count + 1)
    return math.exp(ways + count * math.log(share) + (images - count) * math.log1p(-share))


def images_to_settle(found: Discordant, images: int, limit_points: float) -> int | None:
    """How many images would exclude a loss above the limit, if the engine loses nothing and as large a share of images stays discordant.

    Returns:
        That number, to two significant digits upwards; None where no reasonable number would.
    """
    change = -limit_points / 100
    critical = NormalDist().inv_cdf(EXCLUDED_CONFIDENCE)
    share = (found.lost + found.gained) / images / 2

    def excluded(number: int) -> bool:
        return paired_score(share * number, share * number, number, change) > critical

    if not excluded(MOST_IMAGES):
        return None
    low, high = 0, MOST_IMAGES  # excluded at high, not at low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if excluded(middle) else (middle, high)
    unit = int(10 ** max(int(math.log10(high)) - 1, 0))
    return math.ceil(high / unit) * unit
