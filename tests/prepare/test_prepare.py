"""The workstation's half: what is resolved from a request, what is refused before minutes of work, and what a stage depends on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import gmf_edge
from gmf_edge import Precision
from gmf_edge.bundle import open_bundle, require_replaceable
from gmf_edge.errors import BundleError, DataError, EnvironmentProblem
from gmf_edge.prepare.source import UNTRAINED_IMAGES, SourceModel, load_source
from gmf_edge.verify.golden import Golden, Reference

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
        assert source.classes == tuple("0123456789")


def test_another_class_count_is_another_model_and_that_is_random() -> None:
    with ExitStack() as stack:
        source = resolved(stack, variant="pico", num_classes=3, image_size=(32, 64))
        assert source.origin.trained is False
        assert source.evaluation is None
        assert source.classes == ("class 0", "class 1", "class 2")
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


def test_only_a_bundle_or_an_empty_place_may_be_replaced(tmp_path: Path, pico_export: Path) -> None:
    require_replaceable(tmp_path / "nothing")
    require_replaceable(pico_export)
    (tmp_path / "empty").mkdir()
    require_replaceable(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    for place in (tmp_path / "full", tmp_path / "full" / "a"):
        with pytest.raises(BundleError, match="not a bundle"):
            require_replaceable(place)


def test_a_damaged_bundle_may_be_replaced(copied: Callable[[Path], Path], pico_export: Path) -> None:
    folder = copied(pico_export)
    (folder / "weights.bin").unlink()
    (folder / "notes.txt").write_text("foreign")
    gmf_edge.export(gmf_edge.BuildSpec(precision=Precision.FP16), folder)
    assert "notes.txt" not in open_bundle(folder).manifest.files


def test_two_builds_into_one_folder_do_not_mix(tmp_path: Path, odd_pico: Any, odd_spec: Any, pico_export: Path) -> None:
    first = gmf_edge.export(gmf_edge.BuildSpec(precision=Precision.FP16), tmp_path / "out")
    assert "reference.npz" in first.manifest.files
    second = gmf_edge.export(gmf_edge.BuildSpec(precision=Precision.FP32, eval_images=50), tmp_path / "out")
    assert second.manifest.precision is Precision.FP32
    found = {path.name for path in (tmp_path / "out").iterdir()} - {"manifest.json"}
    assert found == set(second.manifest.files)
    assert second.manifest.evaluation is not None
    assert second.manifest.evaluation["images"] == 50
    assert len(Reference.load(tmp_path / "out" / "reference.npz").names) == 50


def test_equal_inputs_do_no_work_twice(tmp_path: Path, pico_export: Path) -> None:
    said: list[str] = []
    gmf_edge.export(gmf_edge.BuildSpec(precision=Precision.FP16), tmp_path / "out", lambda fraction, message: said.append(message))
    assert [message.split(":")[0] for message in said if "unchanged" in message] == [
        "1-plain.onnx",
        "2-fused.onnx",
        "FP32 PyTorch's logits",
        "3-fp16.onnx",
    ]
    assert not any(message.startswith(("exporting", "rewriting", "lowering")) for message in said)


def test_another_request_redoes_only_what_depends_on_it(tmp_path: Path, pico_export: Path) -> None:
    said: list[str] = []
    spec = gmf_edge.BuildSpec(precision=Precision.FP16, crop_pct=0.95, eval_images=10)
    gmf_edge.export(spec, tmp_path / "out", lambda fraction, message: said.append(message))
    kept = [message.split(":")[0] for message in said if "unchanged" in message]
    assert kept == ["1-plain.onnx", "2-fused.onnx"]


def test_without_images_the_golden_pictures_are_drawn_and_say_so(odd_pico: Any) -> None:
    golden = Golden.load(odd_pico.bundle / "golden.npz")
    assert golden.source == "synthetic pictures"
    assert golden.images.shape == (16, 3, 96, 64)
    # like ImageNet's pixels after normalisation: not constant, not saturated
    assert 0.3 < golden.images.std() < 3
    assert np.abs(golden.images).max() < 3
    assert golden.logits.shape == (16, 7)


def test_golden_pictures_come_from_the_evaluation_images(pico_export: Path) -> None:
    golden = Golden.load(pico_export / "golden.npz")
    assert golden.source == "16 images of pico-digits-test.zip"
    reference = Reference.load(pico_export / "reference.npz")
    distances = np.abs(golden.logits[:, None] - reference.logits[None]).max(axis=2).min(axis=1)
    assert distances.max() <= 1e-4
