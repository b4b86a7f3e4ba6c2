"""The parity report and its gate, on engines that are arrays: right ones pass, each known way to be wrong fails in its words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gmf_edge.engines.protocol import EngineFacts, FloatArray
from gmf_edge.errors import DataError, EngineError
from gmf_edge.spec import GATES, BatchProfile, Gate, Precision
from gmf_edge.verify.batches import BatchNumerics, prove_batches
from gmf_edge.verify.judge import judge
from gmf_edge.verify.parity import ParityReport, measure

FP16 = GATES[Precision.FP16]
INT8 = GATES[Precision.INT8]
CLASSES = 10


def linear_model(images: FloatArray) -> FloatArray:
    """A fixed linear classifier: float32 [B, 3, 4, 4] -> [B, 10]."""
    weight = np.random.default_rng(1).normal(size=(48, CLASSES))
    return (images.reshape(len(images), -1) @ weight / 7).astype(np.float32)


def drawn_images(n: int, seed: int = 2) -> FloatArray:
    return np.random.default_rng(seed).normal(size=(n, 3, 4, 4)).astype(np.float32)


class ArrayEngine:
    """linear_model, spoilt by a function of the logits and the batch size, accepting some batch sizes."""

    def __init__(self, spoil: Callable[[FloatArray], FloatArray] = lambda logits: logits, sizes: range = range(1, 10**6)) -> None:
        self.spoil, self.sizes, self.seen = spoil, sizes, list[int]()

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts("array", "1", "host", "portable")

    def infer(self, images: FloatArray) -> FloatArray:
        if len(images) not in self.sizes:
            raise EngineError(f"batch size {len(images)} is outside {self.sizes}")
        self.seen.append(len(images))
        return self.spoil(linear_model(images))

    def close(self) -> None:
        pass

    def __enter__(self) -> ArrayEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class TableEngine(ArrayEngine):
    """Returns prepared logits: images [B, 1, 1, 1] hold row numbers."""

    def __init__(self, logits: NDArray[Any]) -> None:
        super().__init__()
        self.logits = logits

    def infer(self, images: FloatArray) -> FloatArray:
        return self.logits[images[:, 0, 0, 0].astype(int)].astype(np.float32)


def numbered(n: int, size: int = 4) -> Iterator[FloatArray]:
    rows = np.arange(n, dtype=np.float32).reshape(-1, 1, 1, 1)
    for start in range(0, n, size):
        yield rows[start : start + size]


def table_report(reference: NDArray[Any], engine: NDArray[Any], labels: list[int] | None = None, **options: Any) -> ParityReport:
    n = len(reference)
    return measure(
        TableEngine(engine),
        numbered(n),
        reference,
        names=[f"{i}.png" for i in range(n)],
        labels=None if labels is None else np.array(labels),
        **options,
    )


def golden_numerics(engine: ArrayEngine, sizes: tuple[int, ...] = (1, 4, 8), images: int = 8) -> dict[int, BatchNumerics]:
    golden = drawn_images(images)
    return prove_batches(engine, golden, linear_model(golden), sizes)


def full_report(engine: ArrayEngine, sizes: tuple[int, ...] = (1, 4, 8), labelled: bool = True) -> ParityReport:
    images = drawn_images(60, seed=3)
    reference = linear_model(images)
    return measure(
        engine,
        (images[i : i + 7] for i in range(0, 60, 7)),
        reference,
        names=[str(i) for i in range(60)],
        labels=reference.argmax(1) if labelled else None,
        batch_numerics=golden_numerics(engine, sizes),
    )


def test_accuracy_by_hand() -> None:
    # image 0: both right; 1: lost; 2: gained; 3: both wrong, the same; label of 3 is second of both
    reference = np.array([[3.0, 0, 1, 0, 0, 0], [0, 3, 1, 0, 0, 0], [3, 0, 1, 0, 0, 0], [3, 2, 1, 0, 0, 0]])
    engine = np.array([[3.0, 0, 1, 0, 0, 0], [0, 3, 4, 0, 0, 0], [1, 0, 3, 0, 0, 0], [3, 2, 1, 0, 0, 0]])
    report = table_report(reference, engine, [0, 1, 2, 1], class_names=list("abcdef"))
    assert (report.images, report.reference_top1, report.engine_top1) == (4, 50.0, 50.0)
    assert (report.reference_top5, report.engine_top5) == (100.0, 100.0)
    assert report.top1_change_points == 0.0
    assert report.agreement == report.clear_agreement == 0.5
    assert report.max_abs_error == 3.0
    # squared errors 0, 9, 8, 0 over squared references 10, 10, 10, 14
    assert report.relative_l2 == pytest.approx(math.sqrt(17 / 44))
    # image 1: (9 + 4) / sqrt(10 * 25); image 2: (3 + 3) / 10
    assert report.cosine == pytest.approx((1 + 13 / math.sqrt(250) + 0.6 + 1) / 4)
    assert report.min_cosine == pytest.approx(0.6)
    flips = report.to_json()["flips"]
    assert flips[0] == {
        "image": "1.png",
        "label": "b",
        "reference": "b",
        "engine": "c",
        "margin": 2.0,
        "error": 3.0,
        "near_tie": False,
    }
    assert [(f["image"], f["label"], f["reference"], f["engine"]) for f in flips[1:]] == [("2.png", "c", "a", "c")]
    low, high = report.interval_95 or (0, 0)
    assert low == pytest.approx(-high)
    assert 50 < high < 90


def test_without_class_names_flips_have_indices() -> None:
    flip = table_report(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), [1]).flips[0]
    assert (flip.label, flip.reference, flip.engine) == (1, 0, 1)


@pytest.mark.parametrize(("labels", "trained"), [(None, True), ([0, 1], False)])
def test_without_labels_or_training_no_accuracy_is_claimed(labels: list[int] | None, trained: bool) -> None:
    reference = np.array([[2.0, 1.0], [1.0, 2.0]])
    report = table_report(reference, reference, labels, trained=trained)
    values = report.to_json()
    claims = ("reference_top1", "engine_top1", "reference_top5", "engine_top5", "top1_change_points", "interval_95")
    assert all(values[key] is None for key in claims)
    assert values["agreement"] == 1.0


def test_top5_of_five_classes_is_not_claimed() -> None:
    report = table_report(np.eye(5), np.eye(5), [0, 1, 2, 3, 4])
    assert report.reference_top1 == 100.0
    assert report.reference_top5 is None


def test_the_report_is_json_and_has_the_promised_fields() -> None:
    report = full_report(ArrayEngine())
    values = json.loads(json.dumps(report.to_json(), allow_nan=False))
    promised = {"images", "reference_top1", "engine_top1", "top1_change_points", "interval_95", "agreement", "flips"}
    assert promised | {"max_abs_error", "cosine", "batches"} <= set(values)
    assert set(values["batches"]) == {"1", "4", "8"}
    assert values["batches"]["8"]["rows"] == 8
    broken = full_report(ArrayEngine(lambda logits: logits * np.float32(np.nan)))
    values = json.loads(json.dumps(broken.to_json(), allow_nan=False))
    assert values["max_abs_error"] is None
    assert values["non_finite_images"] == 60
    assert values["flips"][0]["engine"] is None
    assert len(values["flips"]) == 60


def test_batches_of_any_size_are_served_in_the_profiles_sizes() -> None:
    engine = ArrayEngine(sizes=range(4, 9))
    images = drawn_images(23)
    reference = linear_model(images)
    report = measure(
        engine, (images[a:b] for a, b in ((0, 20), (20, 23))), reference, names=["x"] * 23, profile=BatchProfile(4, 4, 8)
    )
    assert engine.seen == [8, 8, 4, 4]
    assert report.agreement == 1.0
    assert report.max_abs_error < 1e-5


def test_a_right_engine_passes_with_and_without_labels() -> None:
    passed, why = judge(full_report(ArrayEngine()), FP16, True)
    assert passed
    assert why.startswith("top-1 100.00 % -> 100.00 % (+0.00 points, limit -0.1; 95 % interval -6.02 to +6.02)")
    assert why.endswith("right at batch 1, 4, 8")
    passed, why = judge(full_report(ArrayEngine(), labelled=False), FP16, True)
    assert passed
    assert why.startswith("agreement 100.00 % (limit 99 %), 0 of 60 images flipped; cosine 1.000000 (limit 0.9999)")


def test_half_precision_rounding_passes() -> None:
    assert judge(full_report(ArrayEngine(lambda logits: logits.astype(np.float16).astype(np.float32))), FP16, True)[0]


def wrong_from_8_on(logits: FloatArray) -> FloatArray:
    spoilt = logits.copy()
    if len(logits) >= 8:
        spoilt[7] = spoilt[7, ::-1]
    return spoilt


def test_right_up_to_6_and_wrong_from_8_on_fails_at_8() -> None:
    assert judge(full_report(ArrayEngine(wrong_from_8_on), sizes=(1, 4, 6)), FP16, True)[0]
    for gate in (FP16, INT8):
        passed, why = judge(full_report(ArrayEngine(wrong_from_8_on), sizes=(1, 4, 8)), gate, True)
        assert not passed
        assert why.startswith("at batch 8: ")


def test_one_faint_wrong_row_of_many_fails_although_the_mean_does_not_see_it() -> None:
    def faint(logits: FloatArray) -> FloatArray:
        spoilt = logits.copy()
        if len(logits) == 64:
            spoilt[40] += 0.3 * np.abs(spoilt[40]).max() * np.array([1, -1] * 5)
        return spoilt

    numerics = golden_numerics(ArrayEngine(faint), (1, 64), images=16)
    assert numerics[64].cosine >= INT8.min_cosine
    assert numerics[64].worst_row == 40
    passed, why = judge(replace(full_report(ArrayEngine()), batches=numerics), INT8, True)
    assert not passed
    assert "at batch 64: a row's cosine is" in why


def test_rows_in_each_others_places_fail_although_all_images_look_alike() -> None:
    golden = drawn_images(4)
    # as with untrained weights: one strong common direction, and little that tells images apart
    common = 50 * np.random.default_rng(5).normal(size=CLASSES)

    class Swapping(ArrayEngine):
        def infer(self, images: FloatArray) -> FloatArray:
            logits = linear_model(images) * 0.01 + common
            return (logits[::-1] if len(images) == 4 else logits).astype(np.float32)

    reference = (linear_model(golden) * 0.01 + common).astype(np.float32)
    numerics = prove_batches(Swapping(), golden, reference, (1, 4))
    assert numerics[4].min_cosine > 0.999999
    assert (numerics[1].misplaced_rows, numerics[4].misplaced_rows) == (0, 4)
    passed, why = judge(replace(full_report(ArrayEngine()), batches=numerics), FP16, False)
    assert (passed, why) == (False, "at batch 4: 4 of 4 rows hold another image's logits")


def test_every_row_of_a_batch_is_compared_where_images_are_fewer() -> None:
    for row in range(8):

        def spoil(logits: FloatArray, row: int = row) -> FloatArray:
            spoilt = logits.copy()
            if len(logits) == 8:
                spoilt[row] *= -1
            return spoilt

        numerics = golden_numerics(ArrayEngine(spoil), (8,), images=3)[8]
        assert (numerics.images, numerics.rows, numerics.worst_row) == (3, 8, row)
        assert numerics.min_cosine == pytest.approx(-1)
        assert not judge(replace(full_report(ArrayEngine()), batches={8: numerics}), FP16, True)[0]


def test_every_image_goes_through_every_batch_size_in_whole_batches() -> None:
    engine = ArrayEngine()
    steps: list[float | None] = []
    golden = drawn_images(8)
    numerics = prove_batches(engine, golden, linear_model(golden), [3, 1, 3], lambda fraction, _: steps.append(fraction))
    assert engine.seen == [1] * 8 + [3] * 3
    assert {size: n.rows for size, n in numerics.items()} == {1: 8, 3: 9}
    assert steps == sorted(s for s in steps if s is not None)
    assert steps[-1] == 1.0


def test_an_engine_that_hands_out_one_buffer_again_and_again_is_read_rightly() -> None:
    buffer = np.zeros((1, CLASSES), np.float32)

    class OneBuffer(ArrayEngine):
        def infer(self, images: FloatArray) -> FloatArray:
            buffer[:] = linear_model(images)
            return buffer

    golden = drawn_images(5)
    assert prove_batches(OneBuffer(), golden, linear_model(golden), (1,))[1].min_cosine > 0.999999


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("trained", [True, False])
def test_one_logit_that_is_not_finite_fails_every_gate(value: float, trained: bool) -> None:
    loosest = Gate(max_drop_points=100.0, min_agreement=0.0, min_cosine=-1.0)

    def spoil(logits: FloatArray) -> FloatArray:
        spoilt = logits.copy()
        spoilt[-1, 3] = value
        return spoilt

    right = full_report(ArrayEngine())
    passed, why = judge(replace(full_report(ArrayEngine(spoil)), batches=right.batches), loosest, trained)
    assert not passed
    assert "NaN or infinite logits on 9 of 60 images" in why
    passed, why = judge(replace(right, batches=full_report(ArrayEngine(spoil)).batches), loosest, trained)
    assert not passed
    assert why == "at batch 1: 8 of 8 rows are NaN or infinite, the first in row 0"
    assert judge(right, loosest, trained)[0]


@pytest.mark.parametrize("number", ["top1_change_points", "clear_agreement", "cosine", "relative_l2"])
def test_a_nan_in_any_judged_number_fails(number: str) -> None:
    report = replace(full_report(ArrayEngine()), **{number: math.nan})
    assert not judge(report, INT8, has_trained_weights=number != "clear_agreement")[0]


@pytest.mark.parametrize("number", ["cosine", "relative_l2", "row_spread"])
def test_a_nan_in_any_judged_number_of_a_batch_fails(number: str) -> None:
    report = full_report(ArrayEngine())
    broken = replace(report, batches={**report.batches, 4: replace(report.batches[4], **{number: math.nan})})
    assert not judge(broken, INT8, True)[0]


def test_a_reference_that_is_not_finite_is_blamed_itself() -> None:
    reference = np.array([[1.0, 0.0], [math.nan, 0.0]])
    passed, why = judge(table_report(reference, reference), FP16, True)
    assert (passed, why) == (False, "FP32 PyTorch itself gives NaN or infinite logits on 1 of 2 images")


def test_a_report_without_batch_sizes_fails() -> None:
    assert judge(replace(full_report(ArrayEngine()), batches={}), FP16, True) == (False, "no batch size was proved")


def test_a_wrong_scale_fails_although_no_class_changes() -> None:
    passed, why = judge(full_report(ArrayEngine(lambda logits: logits * 2)), FP16, True)
    assert not passed
    assert "relative L2 error 1 is above the limit 0.02829" in why


def test_the_spread_of_the_reference_is_worked_by_hand() -> None:
    # mean (2, 0): deviations (1, 1), (-1, -1), squares 4 in all, over 9 + 1 + 1 + 1 = 12
    reference = np.array([[3.0, 1.0], [1.0, -1.0]])
    assert table_report(reference, reference).reference_spread == pytest.approx(math.sqrt(4 / 12))


def test_a_pass_on_images_that_the_model_hardly_tells_apart_says_so() -> None:
    common = np.random.default_rng(5).normal(size=CLASSES)
    reference = common + 1e-5 * np.random.default_rng(6).normal(size=(30, CLASSES))
    ignorant = np.tile(common, (30, 1))  # an engine that ignores its input
    report = replace(table_report(reference, ignorant), batches=full_report(ArrayEngine()).batches)
    passed, why = judge(report, FP16, False)
    assert passed
    assert "too little to prove much" in why
    assert "too little" not in judge(full_report(ArrayEngine()), FP16, True)[1]


def accuracy_report(lost: int, gained: int, images: int = 1000) -> ParityReport:
    """`images` labelled 0, the reference right on all but `gained`; logits large enough that the changes are small in numbers."""
    reference = np.tile([100.0, 99.0, 0.0], (images, 1))
    reference[:gained] = [99.0, 100.0, 0.0]
    engine = reference.copy()
    engine[:gained] = [100.0, 99.0, 0.0]
    engine[gained : gained + lost] = [99.0, 100.0, 0.0]
    report = table_report(reference, engine, [0] * images)
    return replace(report, batches=full_report(ArrayEngine()).batches)


STRICT = replace(FP16, strict=True)


@pytest.mark.parametrize(
    ("lost", "gained", "passes"), [(0, 0, True), (1, 0, True), (2, 0, False), (3, 2, True), (0, 9, True), (4, 2, False)]
)
def test_a_strict_gate_is_the_net_loss_of_top1_in_points(lost: int, gained: int, passes: bool) -> None:
    report = accuracy_report(lost, gained)
    assert report.top1_change_points == pytest.approx(0.1 * (gained - lost))
    passed, why = judge(report, STRICT, True)
    assert passed is passes
    assert f"({0.1 * (gained - lost):+.2f} points, limit -0.1; 95 % interval" in why


def test_a_strict_gate_finer_than_one_image_says_so() -> None:
    passed, why = judge(accuracy_report(1, 0, images=226), STRICT, True)
    assert not passed
    assert why.endswith("of 226 images one is 0.44 points")


def test_one_coin_toss_does_not_fail_and_how_many_images_would_settle_it_is_said() -> None:
    passed, why = judge(accuracy_report(1, 0, images=274), FP16, True)
    assert passed, why
    assert "(-0.36 points, limit -0.1; 95 % interval -2.04 to +1.02); no such loss is shown, but 274 images are too few" in why
    assert re.search(r"too few to exclude it, about \d+,000 would do; 1 of 274 images flipped", why)


def test_a_loss_that_the_images_show_fails() -> None:
    passed, why = judge(accuracy_report(9, 0, images=1000), FP16, True)
    assert not passed
    assert "a loss above the limit is shown at 90 % confidence; 9 of 1000 images flipped" in why


def test_an_unsettled_gate_goes_by_agreement() -> None:
    # as many gained as lost, all of them clear: no loss is shown, and the engine does not behave like FP32 all the same
    passed, why = judge(accuracy_report(10, 10, images=1000), FP16, True)
    assert not passed
    assert why.startswith("agreement 98.00 % (limit 99 %)")
    assert judge(accuracy_report(10, 10, images=1000), STRICT, True)[0]


def test_many_images_settle_it_and_then_nothing_is_left_open() -> None:
    passed, why = judge(accuracy_report(0, 0, images=5000), FP16, True)
    assert passed
    assert "too few" not in why


def test_accuracy_does_not_excuse_untrained_weights() -> None:
    # three lost, three gained: no change of top-1, but six clear flips of 200
    report = accuracy_report(3, 3, images=200)
    assert judge(report, STRICT, True)[0]
    passed, why = judge(report, FP16, False)
    assert not passed
    assert why == "agreement 97.00 % (limit 99 %), 6 of 200 images flipped"


def test_without_labels_too_one_flip_of_a_few_images_is_a_coin_toss() -> None:
    passed, why = judge(accuracy_report(1, 0, images=16), INT8, False)
    assert passed, why
    assert why.startswith(
        "agreement 93.75 % (limit 95 %), 1 of 16 images flipped; 16 images are too few to show that it is below the"
    )
    # what the user asked for himself is held to the letter
    assert not judge(accuracy_report(1, 0, images=16), replace(INT8, strict=True), False)[0]
    passed, why = judge(accuracy_report(3, 0, images=16), INT8, False)
    assert not passed
    assert why == "agreement 81.25 % (limit 95 %), 3 of 16 images flipped"
    # FP32 allows none
    assert not judge(accuracy_report(1, 0, images=16), GATES[Precision.FP32], False)[0]


def test_a_near_tie_is_excused_and_a_clear_flip_is_not() -> None:
    generator = np.random.default_rng(6)
    reference = generator.normal(size=(20, CLASSES))
    reference[:, 0] = 5.0
    reference[3, 1] = 5.0 - 1e-4  # a tie of 1e-4 in logits of spread about 1.6
    engine = reference + 1e-3 * generator.choice([-1.0, 1.0], size=reference.shape)
    engine[3, :2] = [5.0 - 1e-3, 5.0 + 1e-3]
    batches = full_report(ArrayEngine()).batches
    report = replace(table_report(reference, engine), batches=batches)
    (flip,) = report.flips
    assert (flip.image, flip.near_tie) == ("3.png", True)
    assert flip.margin == pytest.approx(1e-4, rel=1e-3)
    assert (report.agreement, report.clear_agreement) == (0.95, 1.0)
    passed, why = judge(report, FP16, False)
    assert passed
    assert "agreement 95.00 %, 100.00 % with near ties excused" in why
    assert "1 of 20 images flipped, 1 of them near ties" in why

    engine[7, :2] = [4.9, 5.1]
    reference[7, 1] = 4.5
    clear = replace(table_report(reference, engine), batches=batches)
    assert [f.near_tie for f in clear.flips] == [True, False]
    passed, why = judge(clear, STRICT, False)
    assert not passed
    assert "95.00 % with near ties excused" in why


def test_large_errors_do_not_make_their_own_flips_near_ties() -> None:
    generator = np.random.default_rng(8)
    reference = generator.normal(size=(300, CLASSES))
    report = table_report(reference, generator.normal(size=(300, CLASSES)))
    assert report.agreement < 0.2
    # only the few whose margin is below 2 % of the spread
    assert report.clear_agreement < report.agreement + 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["a"]}, "1 image names with 2 reference logits"),
        ({"labels": np.array([0])}, "1 labels with 2 reference logits"),
        ({"labels": np.array([0, 2])}, "labels 0..2 for a model of 2 classes"),
        ({"labels": np.array([-1, 0])}, "labels -1..0 for a model of 2 classes"),
        ({"class_names": ["a", "b", "c"]}, "3 class names for 2 classes"),
        ({"batches": numbered(3)}, "more images than the 2 reference logits"),
        ({"batches": numbered(1)}, "1 images with 2 reference logits"),
        ({"batches": iter(())}, "0 images with 2 reference logits"),
    ],
)
def test_what_does_not_belong_together_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"batches": numbered(2), "reference_logits": np.eye(2), "names": ["a", "b"], **change}
    with pytest.raises(DataError, match=message):
        measure(TableEngine(np.eye(5)[:, :2]), **arguments)


def test_no_images_and_no_batch_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="no images to compare on"):
        measure(ArrayEngine(), [], np.zeros((0, CLASSES)), names=[])
    golden = drawn_images(2)
    with pytest.raises(DataError, match="batch sizes"):
        prove_batches(ArrayEngine(), golden, linear_model(golden), [])
    with pytest.raises(DataError, match="2 golden images with 1 reference"):
        prove_batches(ArrayEngine(), golden, linear_model(golden)[:1], [1])


def test_logits_of_another_shape_are_refused() -> None:
    golden = drawn_images(2)
    with pytest.raises(EngineError, match=r"shape \(2, 9\) for 2 images and 10 classes"):
        prove_batches(ArrayEngine(lambda logits: logits[:, :9]), golden, linear_model(golden), [2])
    with pytest.raises(EngineError, match=r"shape \(1, 10\) for 2 images"):
        prove_batches(ArrayEngine(lambda logits: logits[:1]), golden, linear_model(golden), [2])
