"""How often the gate is wrong, on engines whose true loss or true share of flips is known; docs/gate.md quotes the whole tables."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gmf_edge.spec import GATES, Precision
from gmf_edge.verify.accuracy import EXCLUDED, SHOWN, UNSETTLED, Discordant, binomial, flips_shown, images_to_settle, loss_verdict
from gmf_edge.verify.metrics import paired_interval, paired_score

REPOSITORY = Path(__file__).parents[2]
SETS = 2000


@pytest.fixture(scope="module")
def rates() -> ModuleType:
    path = REPOSITORY / "benchmarks" / "gate_error_rates.py"
    spec = importlib.util.spec_from_file_location("gate_error_rates", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_an_engine_that_loses_nothing_passes_nearly_always(rates: ModuleType) -> None:
    lossless = [engine for engine in rates.ENGINES if engine.loss_points == 0]
    assert {engine.precision for engine in lossless} == {Precision.FP16, Precision.INT8}
    for engine in lossless:
        for images in (100, 250, 1000, 5000):
            found = rates.error_rates(engine, images, SETS)
            assert found.passed >= 0.90, (engine, images)
    # what this rule is for: the strict one fails a third of the sets of a few hundred images
    assert rates.error_rates(lossless[1], 500, SETS).passed_strict < 0.70 < rates.error_rates(lossless[1], 500, SETS).passed


def test_a_real_loss_does_not_pass_where_the_images_can_tell(rates: ModuleType) -> None:
    for engine in rates.ENGINES:
        over = engine.loss_points - GATES[engine.precision].max_drop_points
        if over > 0.8:
            assert rates.error_rates(engine, 1000, SETS).passed <= 0.06, engine
        if over > 0.3:
            assert rates.error_rates(engine, 5000, SETS).passed <= 0.06, engine
            assert all(rates.error_rates(engine, images, SETS).excluded <= 0.05 for images in (100, 500, 5000)), engine


def test_enough_images_settle_it(rates: ModuleType) -> None:
    for engine in rates.ENGINES:
        found = rates.error_rates(engine, 50_000, SETS)
        assert (found.passed, found.excluded) >= (1.0, 0.97) if engine.loss_points == 0 else found.passed == 0.0, engine


def test_the_document_has_the_table_of_the_script(rates: ModuleType) -> None:
    document = (REPOSITORY / "docs" / "gate.md").read_text(encoding="utf-8")
    assert rates.flips_table() in document
    rows = re.findall(r"^\| (?:fp16|int8), [\d.]+ \| .*\|$", document, re.MULTILINE)
    assert len(rows) == len(rates.ENGINES)
    # one column drawn again, whole; the other columns take minutes on a slow machine
    for row, engine in zip(rows, rates.ENGINES, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        found = rates.error_rates(engine, 250)
        assert cells[3 + rates.IMAGES.index(250)] == (
            f"{100 * found.passed:.0f} ({100 * found.passed_strict:.0f}), {100 * found.excluded:.0f}"
        )


@pytest.mark.parametrize(
    ("counts", "images", "limit", "verdict"),
    [
        ((1, 0, 1, 0), 274, 0.1, UNSETTLED),  # one coin toss
        ((1, 0, 0, 0), 274, 0.1, UNSETTLED),
        ((0, 0, 0, 0), 274, 0.1, UNSETTLED),
        ((0, 0, 0, 0), 5000, 0.1, EXCLUDED),
        ((8, 0, 8, 0), 274, 0.1, SHOWN),
        ((8, 8, 8, 8), 274, 0.5, UNSETTLED),
        ((9, 5, 5, 0), 274, 0.1, SHOWN),  # five clear losses are not undone by near ties that were gained
        ((9, 5, 0, 0), 274, 0.1, UNSETTLED),
        ((500, 500, 400, 400), 50_000, 0.5, EXCLUDED),
        ((800, 500, 700, 400), 50_000, 0.5, SHOWN),
    ],
)
def test_verdicts(counts: tuple[int, int, int, int], images: int, limit: float, verdict: str) -> None:
    assert loss_verdict(Discordant(*counts), images, limit) == verdict


def test_the_score_crosses_its_critical_value_at_the_ends_of_the_interval() -> None:
    for lost, gained in ((0, 0), (1, 0), (3, 9), (12, 4)):
        for end in paired_interval(lost, gained, 300):
            assert abs(paired_score(lost, gained, 300, end)) == pytest.approx(1.959964, abs=1e-4)


def test_the_score_at_what_was_observed_is_zero_and_beyond_reason_infinite() -> None:
    assert paired_score(3, 1, 100, -0.02) == 0.0
    assert paired_score(0, 0, 100, 0.0) == 0.0
    assert paired_score(1, 0, 100, 0.0) == pytest.approx(-1.0)
    assert paired_score(0, 0, 100, -1.0) == math.inf


def test_so_many_images_do_settle_it_and_one_fewer_in_ten_does_not() -> None:
    none = Discordant(0, 0, 0, 0)
    number = images_to_settle(none, 360, 0.1)
    assert number == 2800
    assert loss_verdict(none, number, 0.1) == EXCLUDED
    assert loss_verdict(none, int(0.9 * number), 0.1) == UNSETTLED
    assert images_to_settle(Discordant(4, 0, 4, 0), 500, 0.5) > images_to_settle(none, 500, 0.5)  # type: ignore[operator]
    assert images_to_settle(none, 360, 0.0) is None


def test_flips_are_shown_by_the_binomial_tail() -> None:
    # P(at least 2 of 16 at 5 %) is 0.189, at least 3 is 0.043
    assert [flips_shown(flips, 16, 0.05) for flips in (0, 1, 2, 3)] == [False, False, False, True]
    assert sum(binomial(flips, 16, 0.05) for flips in range(3, 17)) == pytest.approx(0.0429, abs=1e-4)
    assert flips_shown(1, 16, 0.0)
    assert not flips_shown(16, 16, 1.0)
    # where the first terms are smaller than any float: no more than chance gives, and far more
    assert not flips_shown(2500, 50_000, 0.05)
    assert flips_shown(2600, 50_000, 0.05)


def test_without_labels_what_is_within_the_limit_passes_and_a_broken_engine_does_not(rates: ModuleType) -> None:
    for precision in (Precision.FP16, Precision.BF16, Precision.INT8):
        allowed = 1 - GATES[precision].min_agreement
        for images in rates.FEWER_IMAGES:
            assert rates.share_passed(allowed, images, allowed) >= 0.90
            assert rates.share_passed(0.5, images, allowed) <= 0.01
