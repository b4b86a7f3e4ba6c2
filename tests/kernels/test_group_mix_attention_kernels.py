"""The Triton kernels of GmfGroupMixAttention against the float64 reference.

FP32 has to be close, FP16 at most twice as far as plain FP16 code. All memory that the kernels must write starts as NaN.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import gmf_edge.kernels  # noqa: E402
from gmf_edge.errors import KernelError  # noqa: E402
from gmf_edge.kernels.layout import (  # noqa: E402
    DOUBLE_JOBS,
    MAX_SPLITS,
    SMALL,
    TILINGS,
    Tile,
    Tiling,
    blocks_of,
    choose_tiling,
    plan,
    tilings_of,
)
from gmf_edge.kernels.pack import packed_arrays  # noqa: E402
from gmf_edge.kernels.run import group_mix_attention  # noqa: E402
from gmf_edge.model.groupmixformer import Attention, GroupMixFormer, random_model  # noqa: E402
from gmf_edge.ops import group_mix_attention as op  # noqa: E402
from gmf_edge.spec import ModelSpec  # noqa: E402

# an error below this share of the signal is not worth a comparison of two roundings
FLOOR = 1e-4


def tensors(channels: int, batch: int, tokens: int, dtype: torch.dtype, device: str, seed: int = 0) -> dict[str, Tensor]:
    inputs = op.random_inputs(np.random.default_rng(seed), channels, batch, tokens)
    return {name: torch.from_numpy(value).to(dtype).to(device) for name, value in inputs.items()}


def exact(inputs: dict[str, Tensor], height: int, width: int) -> NDArray[np.float64]:
    channels = inputs["qkv"].shape[2] // 3
    attributes = op.node_attributes(height, width, channels)
    arrays = {name: value.cpu().double().numpy() for name, value in inputs.items()}
    return op.reference(arrays, height, width, float(attributes["scale"]), float(attributes["epsilon"]))


def plain(x: dict[str, Tensor], height: int, width: int) -> Tensor:
    """The operator in ordinary torch calls, every intermediate rounded to the type of qkv."""
    batch, tokens, stacked = x["qkv"].shape
    channels = stacked // 3
    maps = x["qkv"].transpose(1, 2).reshape(batch, 5, 3, channels // 5, height, width)
    mixed = []
    for t in range(3):
        parts = [F.hardswish(maps[:, 0, t])]
        for i, window in ((1, 3), (2, 5), (3, 7)):
            spread = F.conv2d(maps[:, i, t], x[f"depthwise_{i}"], padding=window // 2, groups=channels // 5)
            parts.append(F.hardswish(F.conv2d(spread, x[f"pointwise_{i}"], x[f"bias_{i}"])))
        mixed.append(torch.cat(parts, 1))
    local = F.conv2d(maps[:, 4].flatten(1, 2), x["depthwise_0"], padding=1, groups=3 * channels // 5)
    local = F.conv2d(local, x["pointwise_0"]).flatten(2).transpose(1, 2)
    local = F.hardswish(F.layer_norm(local, (channels // 5,), x["norm_weight"], x["norm_bias"], op.LAYER_NORM_EPSILON))
    q, k, v = (m.reshape(batch, 8, channels // 10, tokens) for m in mixed)
    out = (channels / 8) ** -0.5 * ((v @ k.softmax(3).transpose(2, 3)) @ q)
    head_dim = channels // 10
    v_parts = mixed[2].split([2 * head_dim, 3 * head_dim, 3 * head_dim], 1)
    position = [
        F.conv2d(part, x[f"crpe_weight_{w}"], x[f"crpe_bias_{w}"], padding=w // 2, groups=part.shape[1])
        for part, w in zip(v_parts, (3, 5, 7), strict=True)
    ]
    out = out + q * torch.cat(position, 1).reshape(q.shape)
    return torch.cat([out.reshape(batch, -1, tokens).transpose(1, 2), local], 2)


def distance(got: Tensor, truth: NDArray[np.float64]) -> float:
    """Relative L2 distance; infinite where anything is not a number."""
    value = float(np.linalg.norm(got.cpu().double().numpy() - truth) / np.linalg.norm(truth))
    return value if np.isfinite(value) else float("inf")


def run_kernels(inputs: dict[str, Tensor], height: int, width: int, **launch: Any) -> Tensor:
    """group_mix_attention into memory of NaN; with weights packed by NumPy, which takes the interpreter's 257 programs no time."""
    if "packed" not in launch:
        arrays = packed_arrays({name: inputs[name].cpu().numpy() for name in op.INPUT_NAMES[1:]})
        launch["packed"] = tuple(torch.from_numpy(array).to(inputs["qkv"].device) for array in arrays)
    got = group_mix_attention(inputs, height, width, fill=float("nan"), **launch)
    assert isinstance(got, Tensor)
    return got


def kernels_are_right(inputs: dict[str, Tensor], height: int, width: int, **launch: Any) -> bool:
    """The tolerance of this project: error(kernel) <= 2 * error(plain code of the same type) + floor, both against float64."""
    truth = exact(inputs, height, width)
    got = run_kernels(inputs, height, width, **launch)
    floor = FLOOR if got.dtype == torch.float16 else 1e-6
    return distance(got, truth) <= 2 * distance(plain(inputs, height, width), truth) + floor


def tiling(aggregate: int, attend: int, channels: int, parts: int = 1, merge: int = 2) -> Tiling:
    """Tiles of so many slots, smaller than those that are compiled: several of them on a small map."""
    return Tiling("test", Tile(aggregate, channels, 4), Tile(attend, channels, 4), parts, merge)


# (C, H, W, B, tiling, multiprocessors); the last two decide into how many tiles and splits the tokens fall
SHAPES = {
    "three splits of two, two and one tiles, merged two and one": (40, 9, 5, 1, tiling(16, 16, 8), 4),
    "a map narrower than a block, two images": (40, 5, 1, 2, tiling(16, 32, 16, merge=8), 64),
    "a split of several tiles, chunks of 16": (160, 3, 9, 1, tiling(16, 32, 16), 1),
    "a program for each head, chunks of 16 and a rest of 4": (200, 3, 6, 1, tiling(16, 32, 16, parts=2), 1),
}


@pytest.mark.parametrize("case", SHAPES)
def test_kernels_match_the_reference(case: str, device: str) -> None:
    # FP32 shows a wrong sum that half precision would hide, FP16 a value that does not fit
    dtype = torch.float32 if "splits" in case else torch.float16
    channels, height, width, batch, cut, processors = SHAPES[case]
    inputs = tensors(channels, batch, height * width, dtype, device)
    # one of them with all three launches, as an engine with refitted weights has them
    launches = {"packed": None} if "splits" in case else {}
    assert kernels_are_right(inputs, height, width, tiling=cut, multiprocessors=processors, **launches)


# 48 is cut as 40 is, 72 as 96, 16 and 32 have nothing that 8 and 64 have not
OFTEN = [(8, "large"), (40, "small"), (64, "small"), (96, "large")]
SELDOM = [(segment_dim, name) for segment_dim in SMALL for name in TILINGS if (segment_dim, name) not in OFTEN]


@pytest.mark.parametrize(("segment_dim", "name"), [*OFTEN, *(pytest.param(*use, marks=pytest.mark.slow) for use in SELDOM)])
def test_what_is_compiled_for_a_width_matches_the_reference(segment_dim: int, name: str, device: str) -> None:
    height, width = 3, 5
    inputs = tensors(5 * segment_dim, 1, height * width, torch.float16, device)
    [cut] = [cut for cut in tilings_of(segment_dim) if cut.name == name]
    assert kernels_are_right(inputs, height, width, tiling=cut, multiprocessors=8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("channels", "size"), [(80, 56), (160, 28), (320, 14), (320, 7), (480, 7), (40, 13)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_kernels_match_the_reference_on_a_gpu_at_real_sizes(channels: int, size: int, dtype: torch.dtype) -> None:
    inputs = tensors(channels, 2, size * size, dtype, "cuda")
    truth = exact(inputs, size, size)
    got = group_mix_attention(inputs, size, size, fill=float("nan"))
    assert distance(got, truth) <= 2 * distance(plain(inputs, size, size), truth) + FLOOR


def test_values_that_overflow_plain_half_precision_come_out_right(device: str) -> None:
    inputs = tensors(40, 1, 49, torch.float16, device)
    # segment 3's pointwise sums pass FP16's range below zero, where HardSwish is 0: plain code stores -inf and multiplies it by 0
    inputs["bias_3"].fill_(-64000.0)
    inputs["pointwise_3"] *= 1000.0
    truth = exact(inputs, 7, 7)
    assert not torch.isfinite(plain(inputs, 7, 7)).all()
    got = run_kernels(inputs, 7, 7, tiling=tiling(64, 64, 16))
    assert distance(got, truth) <= 1e-3


def test_the_softmax_survives_large_keys(device: str) -> None:
    inputs = tensors(40, 1, 15, torch.float16, device)
    # exp(90) is infinite in FP32: without the running maximum the sums would be
    inputs["bias_1"] += 90.0
    inputs["qkv"][..., 8:16] *= 30.0
    assert kernels_are_right(inputs, 3, 5, tiling=tiling(16, 32, 16), multiprocessors=8)


def test_splitting_the_tokens_changes_rounding_only(device: str) -> None:
    inputs = tensors(40, 1, 35, torch.float32, device)
    whole = run_kernels(inputs, 5, 7, tiling=tiling(64, 64, 8))
    parts = run_kernels(inputs, 5, 7, tiling=tiling(16, 16, 8), multiprocessors=64)
    assert plan(1, 5, 7, 8, tiling(16, 16, 8), 64).splits == 3
    assert distance(parts, whole.cpu().double().numpy()) < 1e-6


def test_plan_covers_every_block_once_without_empty_splits() -> None:
    for height, width in ((1, 1), (7, 7), (9, 7), (14, 14), (28, 28), (56, 56), (96, 96)):
        for batch in (1, 3, 64):
            for processors in (1, 16, 132):
                for cut in tilings_of(16):
                    geometry = plan(batch, height, width, 16, cut, processors)
                    per_split = geometry.tiles_per_split * cut.aggregate.tokens // 4
                    assert 1 <= geometry.splits <= MAX_SPLITS
                    blocks = blocks_of(height, width)
                    assert (geometry.splits - 1) * per_split < blocks <= geometry.splits * per_split
                    idle = geometry.splits // 2 * len(DOUBLE_JOBS) * batch
                    assert geometry.aggregate_programs == np.prod(geometry.aggregate_grid) - idle


def test_a_single_image_gets_small_tiles_on_a_large_device_only() -> None:
    assert choose_tiling(1, 14, 14, 64, 132).name == "small"
    assert choose_tiling(64, 14, 14, 64, 132).name == "large"
    assert choose_tiling(1, 28, 28, 32, 16).name == "large"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bias_2", lambda t: t[:-1], "expected"),
        ("bias_2", lambda t: t.double(), "convert"),
        ("qkv", lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), "contiguous"),
    ],
)
def test_wrong_inputs_are_refused(name: str, change: object, message: str, device: str) -> None:
    inputs = tensors(40, 1, 9, torch.float16, device)
    inputs[name] = change(inputs[name])  # type: ignore[operator]
    with pytest.raises(KernelError, match=message):
        group_mix_attention(inputs, 3, 3)


# a kernel broken in one place each: the line, what becomes of it, and the shape at which it must be noticed
MUTATIONS = {
    "the 7x7 window's last row is skipped": ("for dy in range(K):", "for dy in range(K - K // 7):"),
    "a 7x7 window's first column has its neighbour's weights": ("weights + dx * P)", "weights + (dx + (K == 7) * (dx == 0)) * P)"),
    "windows are transposed": (("weights + dy * (K * P)", "weights + dy * P"), ("weights + dx * P)", "weights + dx * (K * P))")),
    "a block's third token has the second one's values": ("sum_2 += values[dx + 2]", "sum_2 += values[dx + 1]"),
    "k has v's window values": ("r // G * way", "(r // G * 0 + 1) * way"),
    "columns beyond the map's right edge are read": ("(x + j < width + K // 2)", "(x + j < width + K)"),
    "the rest of the channels is left out": ("if REST > 0:", "if REST > 64:"),
    "splits are merged without rescaling": ("now = tl.exp(m[i] - higher)", "now = tl.exp(m[i] - m[i])"),
    "a group of splits is merged without rescaling": ("context = context * before[:, None]", "context = context * 1.0"),
    "tiles are merged without rescaling the context": (
        "context * rescale + multiply",
        "context * tl.exp(rescale * 0.0) + multiply",
    ),
    "a split's sum is left out": ("total += sums[i] * now", "total += now"),
    "softmax counts the masked tokens": ('tl.where(valid[:, None], k, float("-inf"))', "k"),
    "LayerNorm counts the padded channels": ("tl.sum(centred * centred, axis=1) / S", "tl.sum(centred * centred, axis=1) / P"),
    "LayerNorm does not subtract the mean": ("mixed - (tl.sum(mixed, axis=1) / S)[:, None]", "mixed"),
    "heads see each other": (
        "mask=same_head & (group + i < splits)",
        "mask=(real[:, None] & real[None, :]) & (group + i < splits)",
    ),
    "CRPE's bias is left out": ("position += tl.load(", "position += 0.0 * tl.load("),
    "the scale is that of the head": ("context * (SCALE / ", "context * (SCALE * 0.9 / "),
    "q of every second split is left out": ("(1 + double) * per_split", "per_split"),
}


def broken_kernels(changes: tuple[tuple[str, str], ...], folder: Path) -> ModuleType:
    """The kernel modules with those places changed, each of which has to be in one of them."""
    sources = Path(gmf_edge.kernels.__file__).parent
    names = ("depthwise", "group_mix_attention")
    texts = {name: (sources / f"{name}.py").read_text() for name in names}
    for old, new in changes:
        assert any(old in text for text in texts.values()), "the mutation no longer finds its line"
        texts = {name: text.replace(old, new) for name, text in texts.items()}
    modules = {}
    for name in names:
        path = folder / f"broken_{name}.py"
        path.write_text(texts[name].replace("from gmf_edge.kernels.depthwise import", "from broken_depthwise import"))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        modules[name] = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[name])
    return modules["group_mix_attention"]


# one of each kind; every one of them takes as long as the kernels themselves
SAMPLE = {
    "the 7x7 window's last row is skipped",
    "columns beyond the map's right edge are read",
    "splits are merged without rescaling",
    "softmax counts the masked tokens",
    "LayerNorm counts the padded channels",
    "heads see each other",
    "CRPE's bias is left out",
}


@pytest.mark.parametrize(
    "fault", [fault if fault in SAMPLE else pytest.param(fault, marks=pytest.mark.slow) for fault in MUTATIONS]
)
def test_a_broken_kernel_is_noticed(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    changes: Any = MUTATIONS[fault]
    changes = (changes,) if isinstance(changes[0], str) else changes
    # two splits of two tiles and of one, not full; merged one by one
    inputs = tensors(60, 1, 25, torch.float16, device)
    monkeypatch.setattr(gmf_edge.kernels, "group_mix_attention", broken_kernels(changes, tmp_path), raising=False)
    cut = tiling(16, 64, 8 if "rest" in fault else 16, merge=1)
    assert plan(1, 5, 5, 12, cut, 2).splits == 2
    assert not kernels_are_right(inputs, 5, 5, tiling=cut, multiprocessors=2)


def fused_inputs(attention: Attention, qkv: Tensor) -> dict[str, Tensor]:
    """The operator's inputs from the torch module and the output of its qkv Linear, with the BatchNorms folded."""
    aggregator, dim = attention.aggregator, attention.dim
    gain, shift = [], []
    for norm in (aggregator.norm0, aggregator.norm1, aggregator.norm2, aggregator.norm3):
        gain.append(norm.weight / torch.sqrt(norm.running_var + norm.eps))
        shift.append(norm.bias - norm.running_mean * gain[-1])
    segments = qkv.unflatten(2, (3, 5, dim // 5)).transpose(2, 3).clone()  # [B, N, segment, q k v, S]
    segments[:, :, 0] = segments[:, :, 0] * gain[0] + shift[0]
    inputs = {"qkv": segments.flatten(2)}
    for i in (1, 2, 3):
        convolutions = getattr(aggregator, f"agg{i}")
        inputs[f"depthwise_{i}"] = convolutions.conv1.weight
        inputs[f"pointwise_{i}"] = convolutions.pointwise_conv.weight * gain[i][:, None, None, None]
        inputs[f"bias_{i}"] = shift[i]
    local = aggregator.agg0
    inputs |= {"depthwise_0": local.conv.conv1.weight, "pointwise_0": local.conv.pointwise_conv.weight}
    inputs |= {"norm_weight": local.norm.weight, "norm_bias": local.norm.bias}
    for window, convolution in zip((3, 5, 7), attention.crpe.conv_list, strict=True):
        inputs |= {f"crpe_weight_{window}": convolution.weight, f"crpe_bias_{window}": convolution.bias}
    return {name: inputs[name].detach().contiguous() for name in op.INPUT_NAMES}


def logits_with_kernels(model: GroupMixFormer, images: Tensor, dtype: torch.dtype, device: str, cut: Tiling | None) -> Tensor:
    """The network with every attention core run by the kernels in `dtype`, all else in the model's own type."""
    for module in model.modules():
        if isinstance(module, Attention):

            def core(qkv: Tensor, size: tuple[int, int], attention: Attention = module) -> Tensor:
                inputs = {name: value.to(dtype).to(device) for name, value in fused_inputs(attention, qkv).items()}
                return run_kernels(inputs, *size, tiling=cut, multiprocessors=2).to(qkv)

            module.core = core  # type: ignore[method-assign]
    try:
        with torch.no_grad():
            return model(images)
    finally:
        for module in model.modules():
            if isinstance(module, Attention):
                del module.core


def random_images(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("dtype", "limit"),
    [
        pytest.param(torch.float32, 1e-5, id="fp32"),
        # a wrong kernel shows in FP32; what half precision does to it, the tests of single shapes see
        pytest.param(torch.float16, 2e-3, id="fp16", marks=pytest.mark.slow),
    ],
)
def test_the_whole_pico_network_gives_the_logits_of_plain_torch(dtype: torch.dtype, limit: float, device: str) -> None:
    model = random_model(ModelSpec.of("pico", num_classes=10), seed=0)
    images = random_images(1, 64, 32)
    with torch.no_grad():
        truth = model.double()(images.double()).numpy()
    assert distance(logits_with_kernels(model.float(), images, dtype, device, cut=tiling(128, 128, 16)), truth) <= limit


@pytest.mark.slow
def test_the_whole_small_network_at_224_gives_the_logits_of_plain_torch(device: str) -> None:
    model = random_model(ModelSpec.of("small"), seed=0)
    images = random_images(1, 224, 224)
    with torch.no_grad():
        truth = model.double()(images.double()).numpy()
    logits = logits_with_kernels(
        model.float(), images, torch.float16, device, cut=tiling(1024, 1024, 64) if device == "cpu" else None
    )
    assert distance(logits, truth) <= 2e-3
    assert int(logits.argmax()) == int(truth.argmax())
