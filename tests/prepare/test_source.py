"""What a request leaves open is settled once: weights, class count, preprocessing and data sets."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gmf_edge
from gmf_edge.errors import DataError, EnvironmentProblem
from gmf_edge.prepare.source import UNTRAINED_IMAGES, SourceModel, load_source

pytest.importorskip("torch")
TEST_SET = Path(gmf_edge.__file__).parent / "assets" / "pico-digits-test.zip"


def resolved(stack: ExitStack, **request: Any) -> SourceModel:
    return load_source(gmf_edge.BuildSpec(**request), stack)


def test_without_a_request_it_is_the_packaged_model_and_its_test_set() -> None:
    with ExitStack() as stack:
        source = resolved(stack)
        assert (source.spec.variant, source.spec.num_classes, source.spec.image_size) == ("pico", 10, (64, 64))
        assert source.origin.kind == "packaged"
        assert source.evaluation is not None
        assert len(source.evaluation) == 360
        assert source.classes.names == tuple("0123456789")


def test_another_class_count_is_another_model_and_that_is_random() -> None:
    with ExitStack() as stack:
        source = resolved(stack, variant="pico", num_classes=3, image_size=(32, 64))
        assert source.origin.trained is False
        assert source.evaluation is None
        assert source.classes.names == ("class 0", "class 1", "class 2")
        assert (source.spec.num_classes, source.preprocess.image_size) == (3, (32, 64))


def test_random_weights_follow_the_seed() -> None:
    with ExitStack() as stack:
        heads = [
            resolved(stack, variant="pico", num_classes=3, image_size=(32, 32), seed=seed).model.head.weight.detach().numpy()
            for seed in (1, 1, 2)
        ]
    assert np.array_equal(heads[0], heads[1])
    assert not np.array_equal(heads[0], heads[2])


def test_untrained_weights_are_judged_on_fewer_images_unless_asked() -> None:
    with ExitStack() as stack:
        request: dict[str, Any] = {"variant": "pico", "num_classes": 3, "image_size": (32, 32), "eval_data": TEST_SET}
        usual, asked = resolved(stack, **request), resolved(stack, **request, eval_images=200)
        assert usual.evaluation is not None
        assert asked.evaluation is not None
        assert (len(usual.evaluation), len(asked.evaluation)) == (UNTRAINED_IMAGES, 200)


def test_a_drawn_part_covers_every_class() -> None:
    with ExitStack() as stack:
        images = resolved(stack, eval_images=20).evaluation
        assert images is not None
        assert images.labels is not None
        assert np.bincount(images.labels, minlength=10).tolist() == [2] * 10


def test_crop_pct_reaches_the_preprocessing() -> None:
    with ExitStack() as stack:
        assert resolved(stack, crop_pct=0.5).preprocess.scale_size == (128, 128)


def test_class_folders_of_other_names_are_refused(digits: Path, tmp_path: Path) -> None:
    other = shutil.copytree(digits, tmp_path / "other")
    (other / "9").rename(other / "nine")
    with ExitStack() as stack, pytest.raises(DataError, match="not the packaged model's"):
        resolved(stack, eval_data=other)


def test_a_missing_package_is_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmf_edge.prepare.source.find_spec", lambda name: None if name == "onnxscript" else object())
    with ExitStack() as stack, pytest.raises(EnvironmentProblem, match="onnxscript"):
        resolved(stack)
