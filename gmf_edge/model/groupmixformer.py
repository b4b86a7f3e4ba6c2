"""GroupMixFormer with Group-Mix Attention (GMA). Source: arXiv 2311.15157 and its reference code, whose parameter names are kept.

Letters: B images, C channels of a stage, H x W its feature map, N = H * W tokens, S = C / 5 channels of a segment,
d = C / 10 channels of one of the 8 heads, which share the first four segments.

Unlike the reference code, q, k and v never share the batch axis, so the batch size of a traced graph stays free.
BatchNorm stands where the reference has SyncBatchNorm; their state keys are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmf_edge.spec import NUM_HEADS, NUM_SEGMENTS, ModelSpec, Task

LAYER_NORM_EPSILON = 1e-6
# the windows of the convolutional relative position encoding (CRPE) and how many heads use each
CRPE_HEADS = {3: 2, 5: 3, 7: 3}


class SeparableConv2d(nn.Module):
    """Depthwise k x k, then pointwise, without biases and with nothing between: [B, C_in, H, W] -> [B, C_out, H', W']."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, kernel_size, stride, kernel_size // 2, groups=in_channels, bias=False)
        self.pointwise_conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pointwise_conv(self.conv1(x))
        return out


class LocalAggregator(nn.Module):
    """Segment 4 of q, k and v together: [B, 3S, H, W] -> [B, N, S], the part of the output that skips attention (x_agg0)."""

    def __init__(self, segment_dim: int) -> None:
        super().__init__()
        self.conv = SeparableConv2d(3 * segment_dim, segment_dim, 3)
        self.norm = nn.LayerNorm(segment_dim)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)  # [B, N, S]
        out: Tensor = self.act(self.norm(tokens))
        return out


class Aggregator(nn.Module):
    """The group aggregators: windows 1, 3, 5, 7 over segments 0..3; one set of weights serves q, k and v."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        segment_dim = dim // NUM_SEGMENTS
        self.norm0 = nn.BatchNorm2d(segment_dim)
        self.agg1 = SeparableConv2d(segment_dim, segment_dim, 3)
        self.norm1 = nn.BatchNorm2d(segment_dim)
        self.agg2 = SeparableConv2d(segment_dim, segment_dim, 5)
        self.norm2 = nn.BatchNorm2d(segment_dim)
        self.agg3 = SeparableConv2d(segment_dim, segment_dim, 7)
        self.norm3 = nn.BatchNorm2d(segment_dim)
        self.agg0 = LocalAggregator(segment_dim)
        self.act = nn.Hardswish()

    def forward(self, segments: tuple[Tensor, ...]) -> Tensor:
        """Segments 0..3 of q (or k, or v), each [B, S, H, W] -> [B, 4S, H, W]."""
        x0, x1, x2, x3 = segments
        mixed = (
            self.act(self.norm0(x0)),
            self.act(self.norm1(self.agg1(x1))),
            self.act(self.norm2(self.agg2(x2))),
            self.act(self.norm3(self.agg3(x3))),
        )
        return torch.cat(mixed, dim=1)


class ConvRelPosEnc(nn.Module):
    """Depthwise 3 x 3, 5 x 5 and 7 x 7 over the values of 2, 3 and 3 heads: [B, 8d, H, W] -> [B, 8d, H, W]."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.channels = [heads * head_dim for heads in CRPE_HEADS.values()]
        self.conv_list = nn.ModuleList(
            nn.Conv2d(channels, channels, window, padding=window // 2, groups=channels)
            for window, channels in zip(CRPE_HEADS, self.channels, strict=True)
        )

    def forward(self, v: Tensor) -> Tensor:
        parts = torch.split(v, self.channels, dim=1)
        return torch.cat([conv(part) for conv, part in zip(self.conv_list, parts, strict=True)], dim=1)


class Attention(nn.Module):
    """Group-Mix Attention, [B, N, C] -> [B, N, C]: scale * q @ (softmax(k over tokens)^T @ v) + q * CRPE(v), beside x_agg0."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        # of the full width, although the heads share only 4/5 of it
        self.scale = (dim // NUM_HEADS) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.aggregator = Aggregator(dim)
        self.crpe = ConvRelPosEnc(dim // 10)
        self.proj = nn.Linear(dim, dim)

    def core(self, qkv: Tensor, size: tuple[int, int]) -> Tensor:
        """All between the two projections: [B, N, 3C] -> [B, N, C]; the part that `GmfGroupMixAttention` replaces."""
        height, width = size
        maps = _unflatten(qkv.transpose(1, 2), 2, (height, width))  # [B, 3C, H, W]
        segments = torch.split(maps, self.dim // NUM_SEGMENTS, dim=1)  # q's five, k's five, v's five: [B, S, H, W] each
        q_map = self.aggregator(segments[0:4])
        k_map = self.aggregator(segments[5:9])
        v_map = self.aggregator(segments[10:14])
        local = self.aggregator.agg0(torch.cat([segments[4], segments[9], segments[14]], dim=1))  # [B, N, S]

        heads = (NUM_HEADS, self.dim // 10)
        q = _unflatten(q_map.flatten(2), 1, heads)  # [B, 8, d, N]
        k = _unflatten(k_map.flatten(2), 1, heads)
        v = _unflatten(v_map.flatten(2), 1, heads)
        context = v @ k.softmax(dim=3).transpose(2, 3)  # [B, 8, d of v, d of k]
        attended = self.scale * (context @ q)  # [B, 8, d, N]
        position = _unflatten(self.crpe(v_map).flatten(2), 1, heads)
        mixed = (attended + q * position).flatten(1, 2).transpose(1, 2)  # [B, N, 4S]
        return torch.cat([mixed, local], dim=2)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        out: Tensor = self.proj(self.core(self.qkv(x), size))
        return out


class ConvPosEnc(nn.Module):
    """Depthwise 3 x 3 beside the identity, on tokens: [B, N, C] -> [B, N, C]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        maps = _unflatten(x.transpose(1, 2), 2, size)
        out: Tensor = (self.proj(maps) + maps).flatten(2).transpose(1, 2)
        return out


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """CPE, attention and MLP with residuals, on tokens [B, N, C]."""

    def __init__(self, dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.cpe = ConvPosEnc(dim)
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPSILON)
        self.att = Attention(dim)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPSILON)
        self.mlp = Mlp(dim, dim * mlp_ratio)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.cpe(x, size)
        x = x + self.att(self.norm1(x), size)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Stage(nn.Module):
    """Blocks of one resolution, on maps [B, C, H, W]."""

    def __init__(self, dim: int, depth: int, mlp_ratio: int) -> None:
        super().__init__()
        self.gma_stage = nn.ModuleList(Block(dim, mlp_ratio) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).transpose(1, 2)  # [B, N, C]
        for block in self.gma_stage:
            tokens = block(tokens, size)
        return _unflatten(tokens.transpose(1, 2), 2, size)


class ConvStem(nn.Module):
    """Two 3 x 3 convolutions of stride 2: [B, 3, H, W] -> [B, C, H / 4, W / 4]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(3, dim // 2, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(dim // 2)
        self.proj2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(dim)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.proj1(x)))
        out: Tensor = self.act(self.norm2(self.proj2(x)))
        return out


class PatchEmbed(nn.Module):
    """Between stages: depthwise 3 x 3 of the given stride, pointwise, BatchNorm, HardSwish."""

    def __init__(self, in_dim: int, dim: int, stride: int) -> None:
        super().__init__()
        self.proj = SeparableConv2d(in_dim, dim, 3, stride)
        self.norm = nn.BatchNorm2d(dim)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.norm(self.proj(x)))
        return out


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=LAYER_NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GroupMixFormer(nn.Module):
    """The classifier: images [B, 3, H, W] -> logits [B, classes]; or the backbone: the maps of the four stages, [B, C, H / s, W / s].

    H and W are any multiples of 32, whatever spec.image_size says.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        dims = spec.embed_dims
        self.conv_stem = ConvStem(dims[0])
        self.patch_embed_layers = nn.ModuleList(
            PatchEmbed(dims[max(stage - 1, 0)], dim, stride=1 if stage == 0 else 2) for stage, dim in enumerate(dims)
        )
        self.groupmixformer_backbone = nn.ModuleList(
            Stage(dim, depth, ratio) for dim, depth, ratio in zip(dims, spec.depths, spec.mlp_ratios, strict=True)
        )
        if spec.task is Task.CLASSIFY:
            self.norm4 = nn.BatchNorm2d(dims[-1])
            self.head = nn.Linear(dims[-1], spec.num_classes)
        norm = {"": nn.Identity, "batch": nn.BatchNorm2d, "layer": ChannelNorm}[spec.output_norm]
        self.output_norms = nn.ModuleList(norm(dim) for dim in dims)
        self.apply(_initialize)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.conv_stem(images)
        maps = []
        for embed, stage in zip(self.patch_embed_layers, self.groupmixformer_backbone, strict=True):
            x = stage(embed(x))
            maps.append(x)
        if self.spec.task is Task.FEATURES:
            return tuple(norm(x) for norm, x in zip(self.output_norms, maps, strict=True))
        logits: Tensor = self.head(self.norm4(x).mean(dim=(2, 3)))
        return logits


def _unflatten(x: Tensor, axis: int, sizes: tuple[int, int]) -> Tensor:
    """Tensor.unflatten, whose stub has no types."""
    out: Tensor = x.unflatten(axis, sizes)  # type: ignore[no-untyped-call]
    return out


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def random_model(spec: ModelSpec, seed: int) -> GroupMixFormer:
    """A model with seeded random weights, in evaluation mode: for latency and numerics, never for accuracy.

    BatchNorm's gains and biases are drawn, so that folding them is exercised by numbers that matter, and its statistics are taken
    from one batch of noise: with initial statistics the signal fades from layer to layer until the logits no longer depend on
    the image, and then every engine would look right.
    """
    generator_state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        model = GroupMixFormer(spec)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.8, 1.2)
            nn.init.normal_(norm.bias, 0.0, 0.1)
            norm.reset_running_stats()
            norm.momentum = None  # the plain average over the calls to come: q, k and v share a BatchNorm
        if spec.task is Task.CLASSIFY:
            # the head's small initial weights would leave all logits near zero
            nn.init.normal_(model.head.weight, std=spec.embed_dims[-1] ** -0.5)
        with torch.no_grad():
            model.train()(torch.randn(16, 3, 64, 64))
    finally:
        torch.random.set_rng_state(generator_state)
    return model.eval()
