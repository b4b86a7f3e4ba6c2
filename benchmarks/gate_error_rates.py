"""How often the gate is wrong: the tables of docs/gate.md, that of top-1 by simulation, that of flips without labels exactly.

An engine is described by shares of images: lost and gained for good, flips between two wrong classes, and near ties, of which a quarter
is lost and a quarter gained by chance. Sets of images are drawn from it, and each set is judged as gmf_edge.verify.judge does it.

    python benchmarks/gate_error_rates.py
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from gmf_edge.spec import GATES, Gate, Precision
from gmf_edge.verify.accuracy import EXCLUDED, SHOWN, Discordant, binomial, flips_shown, loss_verdict

SETS = 20_000
SEED = 0
IMAGES = (100, 250, 500, 1000, 5000, 50_000)


@dataclass(frozen=True)
class SimulatedEngine:
    """Shares of all images, in percent.

    Attributes:
        precision: whose gate it is held against.
        lost, gained, wrong: clear flips: from right to wrong, from wrong to right, from wrong to wrong.
        ties: near ties that flip.
    """

    precision: Precision
    lost: float
    gained: float
    wrong: float
    ties: float

    @property
    def loss_points(self) -> float:
        """The true loss of top-1."""
        return self.lost - self.gained


ENGINES = (
    SimulatedEngine(Precision.FP16, 0.0, 0.0, 0.0, 0.3),
    SimulatedEngine(Precision.FP16, 0.1, 0.1, 0.1, 0.3),
    SimulatedEngine(Precision.FP16, 0.5, 0.0, 0.2, 0.3),
    SimulatedEngine(Precision.FP16, 1.0, 0.0, 0.3, 0.3),
    SimulatedEngine(Precision.FP16, 3.0, 1.0, 1.0, 0.3),
    SimulatedEngine(Precision.INT8, 0.3, 0.3, 0.3, 0.3),
    SimulatedEngine(Precision.INT8, 0.8, 0.8, 0.6, 0.5),
    SimulatedEngine(Precision.INT8, 1.3, 0.3, 0.6, 0.5),
    SimulatedEngine(Precision.INT8, 2.5, 0.5, 1.0, 0.5),
    SimulatedEngine(Precision.INT8, 6.0, 1.0, 2.0, 0.5),
)


@dataclass(frozen=True)
class Rates:
    """Shares of the drawn sets, 0..1: passed by the gate, by the same limit as a strict one, and a loss above the limit excluded."""

    passed: float
    passed_strict: float
    excluded: float


def error_rates(engine: SimulatedEngine, images: int, sets: int = SETS) -> Rates:
    """Draw sets of images and judge them."""
    gate = GATES[engine.precision]
    shares = np.array([engine.lost, engine.gained, engine.wrong, engine.ties / 4, engine.ties / 4, engine.ties / 2]) / 100
    drawn = np.random.default_rng(SEED).multinomial(images, [*shares, 1 - shares.sum()], size=sets)
    counts, times = np.unique(drawn[:, :5], axis=0, return_counts=True)
    judged = np.array([_judged(row.tolist(), images, gate) for row in counts])
    return Rates(*((judged * times[:, None]).sum(axis=0) / sets).tolist())


def _judged(counts: list[int], images: int, gate: Gate) -> tuple[bool, bool, bool]:
    """Passed, passed strictly, excluded."""
    lost, gained, wrong, tie_lost, tie_gained = counts
    found = Discordant(lost + tie_lost, gained + tie_gained, lost, gained)
    verdict = loss_verdict(found, images, gate.max_drop_points)
    agrees = 1 - (lost + gained + wrong) / images >= gate.min_agreement
    strict = 100 * (found.lost - found.gained) / images <= gate.max_drop_points
    return verdict != SHOWN and (agrees or verdict == EXCLUDED), strict, verdict == EXCLUDED


def table(sets: int = SETS) -> str:
    """All engines at all numbers of images, as Markdown."""
    lines = [
        "| precision, limit | true loss | flips: lost, gained, wrong, near ties | " + " | ".join(f"{n:,}" for n in IMAGES) + " |",
        "|---|---|---|" + "---|" * len(IMAGES),
    ]
    for engine in ENGINES:
        limit = GATES[engine.precision].max_drop_points
        cells = []
        for images in IMAGES:
            rates = error_rates(engine, images, sets)
            cells.append(f"{100 * rates.passed:.0f} ({100 * rates.passed_strict:.0f}), {100 * rates.excluded:.0f}")
        flips = f"{engine.lost:g}, {engine.gained:g}, {engine.wrong:g}, {engine.ties:g} %"
        lines.append(f"| {engine.precision.value}, {limit:g} | {engine.loss_points:.1f} | {flips} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


FEWER_IMAGES = (16, 64, 200, 1000, 5000)
# true shares of clear flips, in percent, from none to a broken engine
FLIPS = {
    Precision.FP16: (0.0, 0.2, 1.0, 2.0, 5.0, 20.0),
    Precision.BF16: (0.0, 0.5, 2.0, 5.0, 20.0),
    Precision.INT8: (0.0, 1.0, 5.0, 10.0, 20.0),
}


def share_passed(true_share: float, images: int, allowed: float) -> float:
    """How many sets of so many images pass without labels, 0..1, if such a share of the images flips for good."""
    if true_share == 0:
        return 1.0
    fewest = bisect_left(range(images + 1), True, key=lambda flips: flips_shown(flips, images, allowed))
    return math.fsum(binomial(flips, images, true_share) for flips in range(fewest))


def flips_table() -> str:
    """All shares of clear flips at all numbers of images, as Markdown."""
    lines = [
        "| precision, flips allowed | true share of clear flips | " + " | ".join(f"{n:,}" for n in FEWER_IMAGES) + " |",
        "|---|---|" + "---|" * len(FEWER_IMAGES),
    ]
    for precision, shares in FLIPS.items():
        allowed = 1 - GATES[precision].min_agreement
        for share in shares:
            cells = [f"{100 * share_passed(share / 100, images, allowed):.0f}" for images in FEWER_IMAGES]
            lines.append(f"| {precision.value}, {100 * allowed:.0f} % | {share:g} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
    print()
    print(flips_table())
