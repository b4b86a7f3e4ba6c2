"""Metrics of logits, by numbers worked by hand; and that what is not finite speaks for nothing."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from gmf_edge.verify import metrics

NAN, INF = math.nan, math.inf
REFERENCE = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
ENGINE = np.array([[4.0, 3.0], [1.0, 0.0], [0.0, 2.5]])


def test_by_hand() -> None:
    assert metrics.top1(REFERENCE).tolist() == [1, 0, 1]
    assert metrics.same_top1(REFERENCE, ENGINE).tolist() == [False, True, True]
    assert metrics.margins(REFERENCE).tolist() == [1.0, 1.0, 2.0]
    assert metrics.max_abs_errors(REFERENCE, ENGINE).tolist() == [1.0, 0.0, 0.5]
    # (3 * 4 + 4 * 3) / (5 * 5) = 0.96
    assert metrics.cosines(REFERENCE, ENGINE) == pytest.approx([0.96, 1.0, 1.0], abs=1e-15)
    squared_error, squared_reference = metrics.squared_norms(REFERENCE, ENGINE)
    assert squared_error.tolist() == [2.0, 0.0, 0.25]
    assert squared_reference.tolist() == [25.0, 1.0, 4.0]
    assert metrics.relative_l2(squared_error, squared_reference) == pytest.approx(math.sqrt(2.25 / 30))


def test_hits_count_the_label_among_the_k_largest() -> None:
    logits = np.array([[5.0, 4.0, 3.0, 2.0]] * 4)
    labels = np.array([0, 1, 2, 3])
    assert metrics.topk_hits(logits, labels, 1).tolist() == [True, False, False, False]
    assert metrics.topk_hits(logits, labels, 3).tolist() == [True, True, True, False]
    assert metrics.topk_hits(logits, labels, 9).all()


def test_of_equal_logits_the_lower_class_comes_first_in_hits_as_in_top1() -> None:
    level = np.zeros((3, 3))
    assert metrics.top1(level).tolist() == [0, 0, 0]
    assert metrics.topk_hits(level, np.array([0, 1, 2]), 1).tolist() == [True, False, False]
    assert metrics.topk_hits(level, np.array([0, 1, 2]), 2).tolist() == [True, True, False]
    assert metrics.margins(level).tolist() == [0, 0, 0]


def test_top1_hits_are_where_top1_is_the_label() -> None:
    generator = np.random.default_rng(0)
    logits = np.round(generator.normal(size=(500, 7)), 1)  # rounded, so that ties occur
    labels = generator.integers(0, 7, 500)
    assert (metrics.topk_hits(logits, labels, 1) == (metrics.top1(logits) == labels)).all()
    hits = [metrics.topk_hits(logits, labels, k).sum() for k in range(1, 8)]
    assert hits == sorted(hits)
    assert hits[-1] == 500


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("broken", ["reference", "engine", "both"])
def test_a_row_that_is_not_finite_neither_hits_nor_agrees_nor_has_numbers(value: float, broken: str) -> None:
    reference, engine = REFERENCE.copy(), REFERENCE.copy()
    if broken != "engine":
        reference[1, 1] = value
    if broken != "reference":
        engine[1, 1] = value
    assert metrics.same_top1(reference, engine).tolist() == [True, False, True]
    numbers = (metrics.max_abs_errors, metrics.cosines, lambda a, b: metrics.squared_norms(a, b)[0])
    for number in numbers:
        assert np.isnan(number(reference, engine)).tolist() == [False, True, False]
    touched = engine if broken != "reference" else reference
    assert metrics.finite_rows(touched).tolist() == [True, False, True]
    assert metrics.top1(touched)[1] == metrics.NO_CLASS
    assert not metrics.topk_hits(touched, np.array([0, 0, 0]), 2)[1]
    assert math.isnan(metrics.margins(touched)[1])
    assert math.isnan(metrics.relative_l2(*metrics.squared_norms(reference, engine)))


def test_a_zero_vector_has_no_cosine_and_a_zero_reference_no_relative_error() -> None:
    zero = np.zeros((1, 3))
    assert math.isnan(metrics.cosines(zero, zero)[0])
    assert math.isnan(metrics.relative_l2(*metrics.squared_norms(zero, zero + 1)))


def test_half_precision_is_compared_in_float64() -> None:
    reference = np.full((1, 1000), 1.0)
    # the squares of 300 leave FP16's range
    assert metrics.cosines(reference * 300, np.full((1, 1000), 300.0, np.float16))[0] == pytest.approx(1.0, abs=1e-12)


def test_one_class_has_an_infinite_margin() -> None:
    assert metrics.margins(np.ones((2, 1))).tolist() == [INF, INF]


def score_statistic(change: float, lost: int, gained: int, images: int) -> float:
    """Tango's z, with the constrained maximum likelihood found by search instead of by its formula."""
    rest = images - lost - gained

    def minus_log_likelihood(q: float) -> float:
        terms = ((lost, q), (gained, q + change), (rest, 1 - 2 * q - change))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in terms if count)

    bounds = (max(0, -change), (1 - change) / 2)
    found = minimize_scalar(minus_log_likelihood, bounds=bounds, options={"xatol": 1e-12}, method="bounded")
    return ((gained - lost) / images - change) / math.sqrt((2 * found.x + change - change**2) / images)


@pytest.mark.parametrize(("lost", "gained", "images"), [(1, 0, 226), (12, 2, 50), (3, 9, 40), (5, 5, 1000), (0, 4, 30)])
def test_the_interval_ends_where_the_score_test_rejects(lost: int, gained: int, images: int) -> None:
    low, high = metrics.paired_interval(lost, gained, images)
    assert score_statistic(low, lost, gained, images) == pytest.approx(1.959964, abs=2e-3)
    assert score_statistic(high, lost, gained, images) == pytest.approx(-1.959964, abs=2e-3)


@pytest.mark.parametrize("images", [1, 2, 10, 226, 50_000])
def test_without_discordant_pairs_the_interval_is_not_empty(images: int) -> None:
    low, high = metrics.paired_interval(0, 0, images)
    # by hand: n d^2 / (d (1 - d)) = z^2, so d = z^2 / (n + z^2)
    assert high == pytest.approx(3.841459 / (images + 3.841459), rel=1e-5)
    assert low == pytest.approx(-high)


def test_the_interval_turns_with_its_sides_and_narrows_with_images() -> None:
    for lost, gained, images in [(3, 8, 60), (0, 1, 5), (7, 0, 7), (2, 2, 4), (0, 9, 9)]:
        low, high = metrics.paired_interval(lost, gained, images)
        assert -1 <= low <= (gained - lost) / images <= high <= 1
        assert low < high
        mirrored = metrics.paired_interval(gained, lost, images)
        assert mirrored == pytest.approx((-high, -low), abs=1e-9)
    widths = [np.diff(metrics.paired_interval(n // 50, n // 100, n))[0] for n in (100, 400, 1600)]
    assert widths[0] > widths[1] > widths[2]


@pytest.mark.parametrize(("share_lost", "share_gained"), [(0.02, 0.01), (0.1, 0.05), (0.005, 0.005)])
def test_the_interval_covers_the_truth_in_about_95_percent(share_lost: float, share_gained: float) -> None:
    images, covered, total = 200, 0.0, 0.0
    # every outcome with its probability: lost is binomial, gained binomial among the rest
    for lost in range(40):
        for gained in range(30):
            chance = binom.pmf(lost, images, share_lost) * binom.pmf(gained, images - lost, share_gained / (1 - share_lost))
            if chance < 1e-7:
                continue
            low, high = metrics.paired_interval(lost, gained, images)
            total += chance
            covered += chance * (low <= share_gained - share_lost <= high)
    assert total == pytest.approx(1, abs=1e-3)
    assert 0.935 <= covered <= 0.995


@pytest.mark.parametrize(("lost", "gained", "images"), [(0, 0, 0), (-1, 0, 5), (3, 3, 5)])
def test_impossible_counts_have_no_interval(lost: int, gained: int, images: int) -> None:
    with pytest.raises(ValueError, match="images"):
        metrics.paired_interval(lost, gained, images)


def test_the_room_needs_neither_torch_nor_onnx() -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['onnx'] = None; import gmf_edge.verify.parity; print('imported')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "imported\n"
