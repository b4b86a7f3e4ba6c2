"""The model against a second forward pass, written for this test from the paper: functions of a state dict, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmf_edge.errors import SpecError
from gmf_edge.model.groupmixformer import GroupMixFormer, random_model
from gmf_edge.spec import VARIANTS, ModelSpec

# five small widths that differ, so that a mixed-up stage cannot fit by chance
SMALL = ((40, 60, 80, 100), (2, 1, 2, 1), (4, 2, 3, 1))


class PaperForward:
    """GroupMixFormer of arXiv 2311.15157 with upstream's parameter names; q, k and v are stacked on a leading axis."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {name: value.double() for name, value in state.items()}

    def batch_norm(self, x: Tensor, name: str) -> Tensor:
        s = self.state
        gain = s[f"{name}.weight"] / torch.sqrt(s[f"{name}.running_var"] + 1e-5)
        return (x - s[f"{name}.running_mean"].view(-1, 1, 1)) * gain.view(-1, 1, 1) + s[f"{name}.bias"].view(-1, 1, 1)

    def conv(self, x: Tensor, name: str, stride: int = 1, depthwise: bool = False) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(
            x, weight, self.state.get(f"{name}.bias"), stride, weight.shape[-1] // 2, groups=x.shape[1] if depthwise else 1
        )

    def separable(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        return self.conv(self.conv(x, f"{name}.conv1", stride, depthwise=True), f"{name}.pointwise_conv")

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def layer_norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + epsilon)
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def attention(self, x: Tensor, name: str, height: int, width: int) -> Tensor:
        batch, tokens, channels = x.shape
        segment, head = channels // 5, channels // 10
        qkv = self.linear(x, f"{name}.qkv").view(batch, tokens, 3, channels).permute(2, 0, 3, 1)
        maps = qkv.reshape(3 * batch, channels, height, width)  # q of every image, then k, then v
        agg = f"{name}.aggregator"
        groups = [self.batch_norm(maps[:, :segment], f"{agg}.norm0")]
        for i in (1, 2, 3):
            part = maps[:, i * segment : (i + 1) * segment]
            groups.append(self.batch_norm(self.separable(part, f"{agg}.agg{i}"), f"{agg}.norm{i}"))
        q, k, v = F.hardswish(torch.cat(groups, 1)).view(3, batch, 8, head, tokens).transpose(3, 4)  # [B, 8, N, d]

        last = maps[:, 4 * segment :].view(3, batch, segment, height, width).transpose(0, 1)
        local = self.separable(last.reshape(batch, 3 * segment, height, width), f"{agg}.agg0.conv")
        local = F.hardswish(self.layer_norm(local.flatten(2).transpose(1, 2), f"{agg}.agg0.norm", 1e-5))  # [B, N, S]

        weight = k.exp() / k.exp().sum(2, keepdim=True)
        attended = (channels // 8) ** -0.5 * torch.einsum("bhnk,bhmk,bhmv->bhnv", q, weight, v)
        v_maps = v.transpose(2, 3).reshape(batch, 8 * head, height, width)
        position = [
            self.conv(part, f"{name}.crpe.conv_list.{i}", depthwise=True)
            for i, part in enumerate(v_maps.split([2 * head, 3 * head, 3 * head], 1))
        ]
        position_tokens = torch.cat(position, 1).view(batch, 8, head, tokens).transpose(2, 3)
        mixed = (attended + q * position_tokens).transpose(1, 2).reshape(batch, tokens, 8 * head)
        return self.linear(torch.cat([mixed, local], 2), f"{name}.proj")

    def block(self, x: Tensor, name: str) -> Tensor:
        height, width = x.shape[2:]
        x = x + self.conv(x, f"{name}.cpe.proj", depthwise=True)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(self.layer_norm(tokens, f"{name}.norm1", 1e-6), f"{name}.att", height, width)
        hidden = self.linear(self.layer_norm(tokens, f"{name}.norm2", 1e-6), f"{name}.mlp.fc1")
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        tokens = tokens + self.linear(hidden, f"{name}.mlp.fc2")
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    def __call__(self, images: Tensor) -> Tensor:
        x = images.double()
        for i in (1, 2):
            x = F.hardswish(self.batch_norm(self.conv(x, f"conv_stem.proj{i}", 2), f"conv_stem.norm{i}"))
        for stage in range(4):
            embed = f"patch_embed_layers.{stage}"
            x = F.hardswish(self.batch_norm(self.separable(x, f"{embed}.proj", 2 if stage else 1), f"{embed}.norm"))
            block = 0
            while f"groupmixformer_backbone.{stage}.gma_stage.{block}.norm1.weight" in self.state:
                x = self.block(x, f"groupmixformer_backbone.{stage}.gma_stage.{block}")
                block += 1
        return self.linear(self.batch_norm(x, "norm4").mean((2, 3)), "head")


def lively_model(spec: ModelSpec, seed: int) -> GroupMixFormer:
    """Every parameter drawn, none left at 0 or 1, and activations near unit variance: logits depend on every layer and the image.

    Freshly initialised weights let the signal fade: the images would differ in the fourth digit, and a wrong layer with them.
    """
    generator = torch.Generator().manual_seed(seed)
    model = GroupMixFormer(spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(drawn * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.2 * drawn + (1.0 if name.endswith("weight") else 0.0))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # statistics become those of the pass below
        model.train()(torch.randn(16, 3, 64, 64, generator=generator))
    return model.eval()


def assert_equal_logits(model: GroupMixFormer, images: Tensor) -> None:
    """Within 1e-5 of the largest logit of the images and their mirror images, and within 1e-4 of how far these are apart."""
    with torch.no_grad():
        logits, exact = model(images), PaperForward(model.state_dict())(images)
        other = PaperForward(model.state_dict())(images.flip(3))
    assert logits.shape == (len(images), model.spec.num_classes)
    error = float((logits - exact).abs().max())
    assert error <= 1e-5 * float(torch.cat([exact, other]).abs().max())
    assert error <= 1e-4 * float((other - exact).abs().max())


def drawn_images(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(
    ("batch", "size", "classes"),
    [(1, (64, 64), 1), (2, (256, 192), 10), (3, (96, 160), 37), (1, (32, 32), 10), (1, (64, 64), 37)],
    ids=str,
)
def test_logits_equal_the_paper_in_float64(batch: int, size: tuple[int, int], classes: int) -> None:
    assert_equal_logits(lively_model(ModelSpec("custom", *SMALL, classes, size), seed=classes), drawn_images(batch, *size))


def test_mobile_logits_equal_the_paper_in_float64() -> None:
    assert_equal_logits(lively_model(ModelSpec.of("mobile", 10, (64, 64)), seed=0), drawn_images(2, 64, 64))


def test_every_parameter_of_a_block_reaches_the_logits() -> None:
    # a block a stage: as many forward passes as there are parameters
    model = lively_model(ModelSpec("custom", SMALL[0], (1, 1, 1, 1), SMALL[2], 10, (32, 32)), seed=2)
    images, generator = drawn_images(1, 32, 32), torch.Generator().manual_seed(9)
    with torch.no_grad():
        before = model(images)
        for name, parameter in model.named_parameters():
            kept = parameter.clone()
            # other directions, not another scale, which a normalisation would undo
            parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter.std().clamp(min=0.2))
            assert float((model(images) - before).abs().max()) > 1e-4, name
            parameter.copy_(kept)


def test_an_image_has_the_same_logits_alone_and_in_a_batch() -> None:
    model = lively_model(ModelSpec("custom", *SMALL, 10, (64, 64)), seed=1)
    images = drawn_images(9, 64, 64)
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    assert float((together - alone).abs().max()) <= 1e-5 * float(alone.abs().max())


# counted from upstream's code with the rows of its configuration files; the paper says 5.7, 11.0, 22.4, 45.8 and 70.3 million
@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("mobile", 5_733_120), ("tiny", 10_949_152), ("small", 22_421_320), ("base", 45_827_272), ("large", 71_833_648)],
)
def test_the_parameters_are_as_many_as_upstreams(variant: str, parameters: int) -> None:
    with torch.device("meta"):
        model = GroupMixFormer(ModelSpec.of(variant))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_random_models_are_drawn_from_their_seed_alone() -> None:
    spec = ModelSpec.of("pico", 10, (64, 64))
    before = torch.random.get_rng_state()
    first, again, other = random_model(spec, 3), random_model(spec, 3), random_model(spec, 4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not first.training
    weights = first.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())
    assert not torch.equal(other.head.weight, first.head.weight)


@pytest.mark.parametrize("size", [(100, 100), (64, 0), (64, 65), (16, 32)], ids=str)
def test_a_size_that_is_no_multiple_of_32_is_refused_with_one_that_is(size: tuple[int, int]) -> None:
    with pytest.raises(SpecError, match="give --image-size a multiple of 32, such as"):
        ModelSpec.of("pico", image_size=size)


def test_every_variant_is_named_in_the_table_and_can_be_specified() -> None:
    for name in VARIANTS:
        assert ModelSpec.of(name).variant == name
