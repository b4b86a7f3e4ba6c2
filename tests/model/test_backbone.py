"""The backbone: the maps that the classifier computes, from every checkpoint that has them, with a norm for each where there is one."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gmf_edge.errors import CheckpointError, SpecError
from gmf_edge.model.backbone_state import backbone_state
from gmf_edge.model.checkpoint import load_model
from gmf_edge.model.groupmixformer import GroupMixFormer, random_model
from gmf_edge.model.reference import reference_maps
from gmf_edge.spec import MAPS, ModelSpec, Task

SIZE = (64, 96)
CLASSIFIER = ModelSpec.of("pico", 10, SIZE)
BACKBONE = ModelSpec.of("pico", image_size=SIZE, task=Task.FEATURES)
IMAGES = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def classifier() -> GroupMixFormer:
    return random_model(CLASSIFIER, seed=5)


@pytest.fixture(scope="module")
def maps(classifier: GroupMixFormer) -> list[Tensor]:
    """What the classifier computes stage by stage, by its own modules."""
    with torch.inference_mode():
        x, found = classifier.conv_stem(IMAGES), []
        for embed, stage in zip(classifier.patch_embed_layers, classifier.groupmixformer_backbone, strict=True):
            x = stage(embed(x))
            found.append(x)
    return found


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def in_a_detector(weights: dict[str, Tensor]) -> dict[str, Any]:
    """A segmenter's training file as OpenMMLab's runner writes it: names, sections, and its log's classes in the pickle."""

    class HistoryBuffer:
        def min(self) -> float:
            return 0.0

        def __getstate__(self) -> dict[str, Any]:
            return {"_log_history": __import__("numpy").array([1.5, 0.5]), "statistics": {"min": HistoryBuffer.min}}

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer"
    HistoryBuffer.min.__module__, HistoryBuffer.min.__qualname__ = HistoryBuffer.__module__, "HistoryBuffer.min"
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["mmengine.logging.history_buffer"].HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    heads = {f"{part}.conv.weight": torch.zeros(2) for part in ("decode_head", "auxiliary_head", "neck")}
    body = {f"backbone.{name}": value for name, value in weights.items() if not name.startswith(("head.", "norm4."))}
    return {
        "meta": {"dataset_meta": {"classes": ("wall",)}, "seed": 0},
        "state_dict": OrderedDict({**body, **heads}),
        "message_hub": {"log_scalars": OrderedDict({"train/loss": HistoryBuffer()})},
        "optimizer": {"state": {}, "param_groups": []},
    }


@pytest.mark.parametrize("layout", ["classifier", "bare", "detector"])
def test_every_checkpoint_with_the_backbone_gives_the_classifiers_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classifier: GroupMixFormer, maps: list[Tensor], layout: str
) -> None:
    weights = classifier.state_dict()
    if layout == "classifier":
        content: Any = {"model": weights, "epoch": 3}
    elif layout == "bare":
        content = {name: value for name, value in weights.items() if not name.startswith(("head.", "norm4."))}
    else:
        for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        content = in_a_detector(weights)
    path = saved(tmp_path / "a.pth", content)
    for name in [name for name in sys.modules if name.split(".")[0] == "mmengine"]:
        monkeypatch.delitem(sys.modules, name)
    model, origin = load_model(path, image_size=SIZE, task=Task.FEATURES)
    assert model.spec == BACKBONE
    with torch.inference_mode():
        found = model(IMAGES)
    assert [tuple(each.shape[1:]) for each in found] == list(BACKBONE.map_shapes().values())
    assert all(torch.equal(ours, wanted) for ours, wanted in zip(found, maps, strict=True))
    words = {
        "classifier": "the classifier (head, norm4) left out",
        "bare": "",
        "detector": 'backbone under "backbone.", decode_head, auxiliary_head, neck left out',
    }
    assert words[layout] in origin.detail
    assert origin.trained


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_a_norm_for_each_map_is_taken_whether_counted_from_0_or_1(
    tmp_path: Path, classifier: GroupMixFormer, maps: list[Tensor], kind: str, first: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    state = {name: value for name, value in classifier.state_dict().items() if not name.startswith(("head.", "norm4."))}
    wanted = []
    for index, one in enumerate(maps):
        weight, bias = (torch.rand(one.shape[1], generator=generator) + 0.5 for _ in range(2))
        state |= {f"norm{index + first}.weight": weight, f"norm{index + first}.bias": bias}
        if kind == "batch":
            mean, variance = one.mean((0, 2, 3)), one.var((0, 2, 3))
            state |= {f"norm{index + first}.running_mean": mean, f"norm{index + first}.running_var": variance}
            wanted.append(torch.nn.functional.batch_norm(one, mean, variance, weight, bias))
        else:
            normed = torch.nn.functional.layer_norm(one.permute(0, 2, 3, 1), (one.shape[1],), weight, bias, 1e-6)
            wanted.append(normed.permute(0, 3, 1, 2))
    path = saved(tmp_path / "a.pth", {"state_dict": {f"backbone.{name}": value for name, value in state.items()}})
    model, origin = load_model(path, image_size=SIZE, task=Task.FEATURES)
    assert model.spec.output_norm == kind
    assert "with a norm for each map" in origin.detail
    with torch.inference_mode():
        for ours, exact in zip(model(IMAGES), wanted, strict=True):
            assert torch.allclose(ours, exact, rtol=1e-5, atol=1e-5)


def test_norms_of_some_maps_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"a\.pth has norm2, norm3: norms of some maps"):
        backbone_state({f"norm{number}.weight": torch.ones(2) for number in (2, 3)}, Path("a.pth"))


def test_a_detectors_checkpoint_says_how_to_ask_for_its_backbone(tmp_path: Path, classifier: GroupMixFormer) -> None:
    state = {f"backbone.{name}": value for name, value in classifier.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"under 'backbone\.'") as caught:
        load_model(saved(tmp_path / "a.pth", state))
    assert "--task features" in caught.value.remedy
    bare = {name: value for name, value in classifier.state_dict().items() if not name.startswith("head.")}
    with pytest.raises(CheckpointError, match=r"no head\.weight") as caught:
        load_model(saved(tmp_path / "b.pth", bare))
    assert "--task features" in caught.value.remedy


def test_a_foreign_entry_is_still_refused(tmp_path: Path, classifier: GroupMixFormer) -> None:
    state = {f"backbone.{name}": value for name, value in classifier.state_dict().items()}
    state["backbone.patch_embed_layers.0.extra.weight"] = torch.ones(2)
    with pytest.raises(CheckpointError, match=r"unexpected: patch_embed_layers\.0\.extra\.weight"):
        load_model(saved(tmp_path / "a.pth", state), task=Task.FEATURES)


def test_maps_of_a_random_backbone_depend_on_the_image() -> None:
    found = reference_maps(random_model(BACKBONE, seed=2), IMAGES.numpy())
    assert tuple(found) == MAPS
    for name in MAPS:
        difference = abs(found[name][0] - found[name][1]).max()
        assert difference > 0.1 * abs(found[name]).max()


def test_classes_of_a_backbone_are_nonsense() -> None:
    with pytest.raises(SpecError, match="a backbone, which has no classifier"):
        ModelSpec("pico", (40, 40, 80, 80), (1, 1, 2, 1), (2, 2, 2, 2), 10, SIZE, Task.FEATURES)
    with pytest.raises(SpecError, match="output_norm"):
        ModelSpec("pico", (40, 40, 80, 80), (1, 1, 2, 1), (2, 2, 2, 2), 10, SIZE, output_norm="batch")


def test_a_spec_goes_through_json_and_an_older_one_is_a_classifiers() -> None:
    assert ModelSpec.from_json(BACKBONE.to_json()) == BACKBONE
    older = {name: value for name, value in CLASSIFIER.to_json().items() if name not in ("task", "output_norm")}
    assert ModelSpec.from_json(older) == CLASSIFIER
