"""Checkpoints: every layout loads to the same weights; every bad file ends in one clear error, and none runs code."""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from gmf_edge.artifact import sha256_of
from gmf_edge.errors import CheckpointError, SpecError
from gmf_edge.model.checkpoint import infer_spec, load_model
from gmf_edge.model.groupmixformer import random_model
from gmf_edge.model.state_dict import load_state
from gmf_edge.spec import ModelSpec
from gmf_edge.weights import WeightsOrigin

PICO = ModelSpec.of("pico", 10, (64, 64))
SIZE = (64, 64)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return dict(random_model(PICO, seed=5).state_dict())


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def refusal(path: Path, call: Callable[..., Any] = load_model, **asked: Any) -> str:
    """The one line of the error that `call` ends in."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointError) as caught:
            call(path, **asked)
    assert caught.value.exit_status == 1
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return str(caught.value)


def as_training_file(weights: dict[str, Tensor]) -> dict[str, Any]:
    """What a training run leaves: optimizer state, epoch, settings and a NumPy scalar beside the weights."""
    state = {"step": 3, "exp_avg": torch.zeros(4)}
    return {
        "model": OrderedDict(weights),
        "optimizer": {"state": {0: state}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}]},
        "lr_scheduler": {"t_initial": 300},
        "max_accuracy": np.float64(66.4),
        "epoch": 28,
        "args": argparse.Namespace(data=Path("train"), lr=0.1),
    }


LAYOUTS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "bare": (dict, "bare weights"),
    "model": (lambda w: {"model": w}, 'under "model"'),
    "state_dict": (lambda w: {"state_dict": w, "optimizer": {}}, 'under "state_dict"'),
    "model_ema": (lambda w: {"model_ema": w}, 'under "model_ema"'),
    "both": (
        lambda w: {"model_ema": {k: v * 0 for k, v in w.items()}, "model": w},
        '"model_ema" is there too and was not taken',
    ),
    "nested": (lambda w: {"model": {"state_dict": w}}, 'under "model", under "state_dict"'),
    "module": (lambda w: {"model": {f"module.{k}": v for k, v in w.items()}}, '"module." prefixes removed'),
    "module twice": (lambda w: {f"module.model.{k}": v for k, v in w.items()}, '"module." and "model." prefixes removed'),
    "compiled": (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, '"_orig_mod." prefixes removed'),
    "averaged": (
        lambda w: {"n_averaged": torch.tensor(4), **{f"module.{k}": v for k, v in w.items()}},
        '"module." prefixes removed',
    ),
    "training": (as_training_file, "epoch 28"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_layout_gives_the_same_weights_and_says_what_it_was(
    tmp_path: Path, weights: dict[str, Tensor], layout: str, zipped: bool
) -> None:
    wrap, words = LAYOUTS[layout]
    path = saved(tmp_path / "a.pth", wrap(weights), _use_new_zipfile_serialization=zipped)
    model, origin = load_model(path, image_size=SIZE)
    assert model.spec == PICO
    assert not model.training
    assert words in origin.detail
    assert origin == WeightsOrigin("checkpoint", "a.pth", sha256_of(path), origin.detail)
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_load_like_pth(tmp_path: Path, weights: dict[str, Tensor], prefix: str) -> None:
    save_file({prefix + k: v for k, v in weights.items()}, tmp_path / "a.safetensors")
    model, origin = load_model(tmp_path / "a.safetensors", image_size=SIZE)
    assert model.spec == PICO
    assert origin.file == "a.safetensors"
    assert torch.equal(model.head.weight, weights["head.weight"])


def test_upstreams_training_settings_do_not_stand_in_the_way(
    tmp_path: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # upstream saves its yacs configuration beside the weights: a dict with attributes, of a package that need not be installed here
    node = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    module = types.ModuleType("yacs.config")
    module.CfgNode = node  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        config = node(MODEL=node(NAME="groupmixformer", DIMS=[40, 40]))
        config.__dict__["__immutable__"] = True
        path = saved(tmp_path / "ckpt_epoch_3.pth", {"model": weights, "config": config, "epoch": 3})
    model, origin = load_model(path, image_size=SIZE)
    assert torch.equal(model.head.bias, weights["head.bias"])
    assert "epoch 3" in origin.detail


def test_another_section_can_be_asked_for(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = saved(tmp_path / "a.pth", {"model": {k: v * 0 for k, v in weights.items()}, "model_ema": weights})
    state, words = load_state(path, section="model_ema")
    assert torch.equal(state["head.weight"], weights["head.weight"])
    assert words.startswith('under "model_ema"')
    assert 'nothing under "state_dict"; it has model, model_ema' in refusal(path, load_state, section="state_dict")


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "FP16"), (torch.bfloat16, "BF16"), (torch.float64, "FP64")])
def test_other_float_types_become_fp32_with_a_word(
    tmp_path: Path, weights: dict[str, Tensor], dtype: torch.dtype, name: str
) -> None:
    path = saved(tmp_path / "a.pth", {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()})
    model, origin = load_model(path, image_size=SIZE)
    assert f"{name} weights became FP32" in origin.detail
    assert model.head.weight.dtype is torch.float32
    assert torch.equal(model.head.weight, weights["head.weight"].to(dtype).float())


def test_entries_without_effect_are_ignored_and_named(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    kept = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    path = saved(tmp_path / "a.pth", {**kept, "total_ops": torch.zeros(1), "layers.0.relative_position_index": torch.zeros(4)})
    _, origin = load_model(path, image_size=SIZE)
    assert "2 entries without effect ignored (total_ops, layers.0.relative_position_index)" in origin.detail


def test_the_spec_is_read_from_the_shapes(weights: dict[str, Tensor]) -> None:
    assert infer_spec(weights, image_size=SIZE) == PICO
    assert infer_spec(weights, image_size=SIZE, variant="pico", num_classes=10) == PICO
    for variant in ("mobile", "tiny", "small", "base", "large"):
        spec = ModelSpec.of(variant, 21)
        with torch.device("meta"):
            state = random_state_on_meta(spec)
        assert infer_spec(state) == spec


def random_state_on_meta(spec: ModelSpec) -> dict[str, Tensor]:
    from gmf_edge.model.groupmixformer import GroupMixFormer

    return GroupMixFormer(spec).state_dict()


def test_shapes_of_no_variant_load_as_custom_and_say_so(tmp_path: Path) -> None:
    spec = ModelSpec("custom", (20, 30, 40, 50), (1, 1, 2, 1), (1, 2, 3, 4), 7, (32, 32))
    path = saved(tmp_path / "a.pth", random_model(spec, 0).state_dict())
    model, origin = load_model(path, image_size=(32, 32))
    assert model.spec == spec
    assert "built by its shapes (widths 20-30-40-50, blocks 1-1-2-1, MLP ratios 1-2-3-4)" in origin.detail
    # upstream's row of large is not settled, so a file of other shapes may be one; no other name may be claimed
    assert load_model(path, image_size=(32, 32), variant="large")[0].spec.variant == "custom"
    assert "matches no variant (widths 20-30-40-50" in refusal(path, variant="small")


def test_what_contradicts_the_request_says_both(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = saved(tmp_path / "a.pth", weights)
    message = refusal(path, variant="small", image_size=SIZE)
    assert "the checkpoint is a pico (widths 40-40-80-80" in message
    assert "but --variant small was asked (widths 80-160-320-320" in message
    assert "the checkpoint has 10 classes, but 1000 were asked" in refusal(path, num_classes=1000, image_size=SIZE)
    with pytest.raises(SpecError, match="multiple of 32"):
        load_model(path, image_size=(100, 100))
    with pytest.raises(SpecError, match="unknown variant 'huge'"):
        load_model(path, variant="huge")


def test_parameters_that_do_not_fit_are_listed_by_name(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    changed = dict(weights)
    del changed["conv_stem.proj1.bias"]
    changed["extra.weight"] = torch.zeros(1)
    changed["head.bias"] = torch.zeros(11)
    changed["conv_stem.norm1.weight"] = torch.zeros(20, dtype=torch.int32)
    message = refusal(saved(tmp_path / "a.pth", changed), image_size=SIZE)
    assert "1 missing: conv_stem.proj1.bias" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 misshapen: head.bias [11] instead of [10]" in message
    assert "1 not floating point: conv_stem.norm1.weight int32" in message


def test_a_long_list_is_cut_and_counted(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    many = {**weights, **{f"extra.{i}": torch.zeros(1) for i in range(25)}}
    message = refusal(saved(tmp_path / "a.pth", many), image_size=SIZE)
    assert "25 unexpected: extra.0, " in message
    assert "extra.9, ... (25 in all)" in message


def test_a_missing_block_or_head_is_named(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    block = "groupmixformer_backbone.2.gma_stage.0."
    holed = {k: v for k, v in weights.items() if not k.startswith(block)}
    assert f"lacks {block[:-1]}" in refusal(saved(tmp_path / "a.pth", holed))
    headless = {k: v for k, v in weights.items() if not k.startswith(("head.", "norm4."))}
    assert "backbone without a classifier" in refusal(saved(tmp_path / "b.pth", headless))


def test_another_networks_checkpoint_is_named_as_such(tmp_path: Path) -> None:
    state = {f"layer{i}.conv.weight": torch.zeros(3, 3) for i in range(12)}
    message = refusal(saved(tmp_path / "a.pth", {"state_dict": state}))
    assert "not a GroupMixFormer's: expected names such as conv_stem.proj1.weight" in message
    assert "found layer0.conv.weight" in message
    assert "layer7.conv.weight, ... (12 in all)" in message
    assert "layer8" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, weights: dict[str, Tensor], value: float) -> None:
    broken = dict(weights)
    broken["norm4.bias"] = weights["norm4.bias"].clone()
    broken["norm4.bias"][3] = value
    assert "NaN or infinite values in norm4.bias" in refusal(saved(tmp_path / "a.pth", broken))


def test_a_negative_variance_is_named(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    broken = {**weights, "norm4.running_var": weights["norm4.running_var"] - 100}
    assert "negative variances in norm4.running_var" in refusal(saved(tmp_path / "a.pth", broken))


def test_files_that_are_no_checkpoints_say_what_they_are(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    def written(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    assert "does not exist; check the path" in refusal(tmp_path / "none.pth")
    (tmp_path / "folder.pth").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.pth")
    assert "is empty" in refusal(written("empty.pth", b""))
    assert "is empty" in refusal(written("empty.safetensors", b""))
    assert "is not a PyTorch checkpoint" in refusal(written("text.pth", b"these are my best weights\n" * 9))
    assert "is a web page" in refusal(written("page.pth", b"\n<!DOCTYPE html><html>"))
    assert "Git LFS pointer" in refusal(written("lfs.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"))
    assert "a pickle, but not one that torch.save wrote" in refusal(written("p.pth", pickle.dumps({"model": {"a": 1}}, 4)))
    assert "suffix '.onnx'" in refusal(written("a.onnx", b"\x08\x07"))
    assert "has no tensors: its top-level keys are epoch, note" in refusal(saved(tmp_path / "b.pth", {"epoch": 1, "note": "x"}))
    assert "its top-level keys are none" in refusal(saved(tmp_path / "c.pth", {}))
    assert "holds a list" in refusal(saved(tmp_path / "d.pth", [1, 2]))
    assert "not a dense tensor" in refusal(saved(tmp_path / "e.pth", {"head.weight": torch.eye(4).to_sparse()}))
    save_file(weights, tmp_path / "f.safetensors")
    (tmp_path / "f.safetensors").rename(tmp_path / "f.pth")
    assert "is a safetensors file; rename it to f.safetensors" in refusal(tmp_path / "f.pth")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "g.pt"))
    assert "TorchScript program" in refusal(tmp_path / "g.pt")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {})
    path.chmod(0)
    assert "cannot be read (Permission denied)" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.002, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_pth_says_so(tmp_path: Path, weights: dict[str, Tensor], zipped: bool, share: float) -> None:
    path = saved(tmp_path / "a.pth", {"model": weights}, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "is truncated" in refusal(path)


@pytest.mark.parametrize("share", [0.00001, 0.01, 0.5, 0.9999])
def test_a_truncated_safetensors_says_so(tmp_path: Path, weights: dict[str, Tensor], share: float) -> None:
    path = tmp_path / "a.safetensors"
    save_file(weights, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    message = refusal(path)
    assert "is not a whole safetensors file" in message
    assert "download or copy it again" in message


class RunsCode:
    """Unpickled by an unrestricted unpickler, this writes a file."""

    def __init__(self, target: Path, call: Callable[..., Any]) -> None:
        self.target, self.call = target, call

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        command = f"touch '{self.target}'"
        return (self.call, (command,)) if self.call is os.system else (self.call, (f"open({str(self.target)!r}, 'w')",))


@pytest.mark.parametrize("call", [os.system, eval], ids=["os.system", "eval"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 4", "state hidden in the optimizer"])
def test_a_pth_that_would_run_code_is_refused_and_runs_nothing(
    tmp_path: Path, weights: dict[str, Tensor], call: Callable[..., Any], form: str
) -> None:
    target, path = tmp_path / "ran", tmp_path / "a.pth"
    evil = RunsCode(target, call)
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps({"model": evil}, protocol=int(form[-1])))
    elif form in ("zip", "legacy"):
        saved(path, {"model": weights, "extra": evil}, _use_new_zipfile_serialization=form == "zip")
    else:
        saved(path, {"model": weights, "optimizer": {"state": [evil]}})
    message = refusal(path)
    assert "asks to run code when it is loaded (" in message
    assert ("system" if call is os.system else "eval") in message
    assert "nothing was run" in message
    assert not target.exists()
    # the file is a real attack: an unrestricted unpickler, in a process of its own, does run it
    if form.startswith("pickle"):
        subprocess.run([sys.executable, "-c", f"import pickle; pickle.load(open({str(path)!r}, 'rb'))"], check=True)
        assert target.exists()


def test_a_whole_pickled_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    message = refusal(saved(tmp_path / "a.pth", random_model(PICO, 0)))
    assert "whole pickled model" in message
    assert "model.state_dict()" in message


def test_a_damaged_pickle_inside_a_whole_zip_is_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    source = saved(tmp_path / "a.pth", {"model": weights})
    damaged = tmp_path / "b.pth"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(damaged, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content[: len(content) // 2] if name.endswith("data.pkl") else content)
    assert "is truncated or damaged" in refusal(damaged)


def test_the_same_name_with_and_without_a_prefix_is_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = saved(tmp_path / "a.pth", {**weights, "module.head.bias": weights["head.bias"]})
    assert "has head.bias twice" in refusal(path)


def test_an_origin_survives_json_and_says_when_nothing_was_trained() -> None:
    origin = WeightsOrigin("packaged", "pico.safetensors", "0" * 64, "bare weights")
    assert WeightsOrigin.from_json(origin.to_json()) == origin
    assert origin.trained
    drawn = WeightsOrigin.random(3)
    assert WeightsOrigin.from_json(drawn.to_json()) == drawn
    assert not drawn.trained
    assert drawn.statement == "UNTRAINED weights: for latency and numerics only"
    assert drawn.to_json()["statement"] == drawn.statement


@pytest.mark.parametrize(
    "values",
    [
        ("found", None, None, ""),
        ("random", "a.pth", None, ""),
        ("checkpoint", None, "0" * 64, ""),
        ("checkpoint", "/home/me/a.pth", "0" * 64, ""),
        ("checkpoint", "a.pth", "0", ""),
        ("packaged", "a.pth", None, ""),
    ],
)
def test_an_impossible_origin_is_refused(values: tuple[Any, ...]) -> None:
    with pytest.raises(SpecError):
        WeightsOrigin(*values)
    with pytest.raises(SpecError):
        WeightsOrigin.from_json({"kind": "random"})


def test_the_origin_is_read_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import gmf_edge.weights as w; print(w.WeightsOrigin.random(1).statement)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("UNTRAINED weights")


def upstream_input(picture: Image.Image) -> Tensor:
    """Upstream's evaluation of 64 x 64 pixels, spelled out: short side to 73 by bicubic, the middle 64, ImageNet's mean and std."""
    width, height = picture.size
    short = min(width, height)
    picture = picture.resize((int(73 * width / short), int(73 * height / short)), Image.Resampling.BICUBIC)
    left, top = round((picture.width - 64) / 2), round((picture.height - 64) / 2)
    pixels = np.asarray(picture.crop((left, top, left + 64, top + 64)), np.float32) / 255
    normal = (pixels - np.array([0.485, 0.456, 0.406], np.float32)) / np.array([0.229, 0.224, 0.225], np.float32)
    return torch.from_numpy(normal.transpose(2, 0, 1).copy())


def test_the_trained_mobile_checkpoint_reaches_its_accuracy() -> None:
    folder = os.environ.get("GMF_EDGE_TEST_DATA")
    if not folder:
        pytest.skip("GMF_EDGE_TEST_DATA does not name the folder with mobile-tin10.pth and tin10-val.zip")
    model, origin = load_model(Path(folder) / "mobile-tin10.pth", image_size=SIZE)
    assert model.spec == ModelSpec.of("mobile", 10, SIZE)
    assert origin.trained
    with zipfile.ZipFile(Path(folder) / "tin10-val.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.lower().endswith((".jpeg", ".jpg", ".png")))
        images = []
        for name in names:
            with archive.open(name) as file:
                images.append(upstream_input(Image.open(file).convert("RGB")))
    classes = sorted({name.split("/")[-2] for name in names})
    labels = torch.tensor([classes.index(name.split("/")[-2]) for name in names])
    with torch.no_grad():
        logits = torch.cat([model(torch.stack(images[i : i + 64])) for i in range(0, len(images), 64)])
    assert len(names) == 226
    hits = int((logits.argmax(1) == labels).sum())
    assert hits == 150  # 66.37 %
    assert int((logits.topk(5).indices == labels[:, None]).any(1).sum()) == 213  # 94.25 %
