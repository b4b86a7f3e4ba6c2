"""A state dict -> the spec that its shapes tell -> a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gmf_edge.artifact import sha256_of
from gmf_edge.errors import CheckpointError, SpecError
from gmf_edge.model.backbone_state import BACKBONE_PREFIX, backbone_state
from gmf_edge.model.groupmixformer import GroupMixFormer
from gmf_edge.model.state_dict import LISTED_NAMES, load_state, some_names, type_name
from gmf_edge.spec import NUM_STAGES, VARIANTS, ModelSpec, Task
from gmf_edge.weights import WeightsOrigin

DEFAULT_IMAGE_SIZE = (224, 224)
# buffers and counters that no forward pass of this model reads, by the last part of their names: BatchNorm's and moving averages'
# counters, profilers' totals, and the attention tables of Swin, from whose training code upstream's is taken
IGNORED_NAMES = (
    "num_batches_tracked",
    "n_averaged",
    "total_ops",
    "total_params",
    "relative_position_index",
    "relative_coords_table",
    "attn_mask",
)
# upstream marks this row of its variants as one that still has to change, so its own file may not match it
UNSETTLED_VARIANTS = ("large",)


def infer_spec(
    state: Mapping[str, Tensor],
    *,
    image_size: tuple[int, int] = DEFAULT_IMAGE_SIZE,
    variant: str | None = None,
    num_classes: int | None = None,
    task: Task = Task.CLASSIFY,
) -> ModelSpec:
    """The spec that a state dict's shapes tell, checked against what was asked.

    Args:
        state: parameters by name.
        image_size: (H, W) in pixels; no shape depends on it.
        variant: the variant asked for, or None.
        num_classes: the class count asked for, or None.
        task: what the model is for; a backbone's names are those that backbone_state gives.

    Returns:
        A spec whose variant is the row of VARIANTS with the same shapes, or "custom".

    Raises:
        CheckpointError: the weights are not a GroupMixFormer's, or not those of what was asked.
        SpecError: the variant asked for is unknown, or the image size is not one.
    """
    if variant is not None and variant not in VARIANTS:
        raise SpecError(f"unknown variant {variant!r}", f"use one of {', '.join(VARIANTS)}")
    dims = tuple(_axis(state, f"patch_embed_layers.{stage}.norm.weight", 1) for stage in range(NUM_STAGES))
    depths = tuple(_depth(state, stage) for stage in range(NUM_STAGES))
    ratios = tuple(_mlp_ratio(state, stage, dim) for stage, dim in enumerate(dims))
    for stage, dim in enumerate(dims):
        if dim % 10:
            raise CheckpointError(
                f"stage {stage} of the checkpoint is {dim} channels wide, which no GroupMixFormer is",
                "give a checkpoint whose widths are multiples of 10",
            )
    if task is Task.CLASSIFY and "head.weight" not in state:
        raise CheckpointError(
            "the checkpoint has no head.weight: it is a backbone without a classifier",
            "give a classification checkpoint, or ask for the backbone: --task features",
        )
    classes = _axis(state, "head.weight", 2) if task is Task.CLASSIFY else 0
    row = (dims, depths, ratios)
    named = next((n for n, v in VARIANTS.items() if (v.embed_dims, v.depths, v.mlp_ratios) == row), "custom")

    if variant is not None and named != variant and not (named == "custom" and variant in UNSETTLED_VARIANTS):
        is_a = f"is a {named}" if named != "custom" else "matches no variant"
        wanted = VARIANTS[variant]
        raise CheckpointError(
            f"the checkpoint {is_a} ({_row_words(*row)}), but --variant {variant} was asked "
            f"({_row_words(wanted.embed_dims, wanted.depths, wanted.mlp_ratios)})",
            f"leave --variant out to take what the checkpoint is, or give a checkpoint of {variant}",
        )
    if task is Task.CLASSIFY and num_classes is not None and num_classes != classes:
        raise CheckpointError(
            f"the checkpoint has {classes} classes, but {num_classes} were asked",
            "leave --num-classes out to take the checkpoint's, or give another checkpoint",
        )
    norm = ""
    if "output_norms.0.weight" in state:
        norm = "batch" if "output_norms.0.running_mean" in state else "layer"
    return ModelSpec(named, dims, depths, ratios, classes, image_size, task, norm)  # type: ignore[arg-type]


def load_model(
    path: Path,
    *,
    variant: str | None = None,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    section: str | None = None,
    kind: str = "checkpoint",
    task: Task = Task.CLASSIFY,
) -> tuple[GroupMixFormer, WeightsOrigin]:
    """The model of a checkpoint, in evaluation mode, and where its weights come from.

    Args:
        path: see load_state.
        variant, num_classes: what was asked, checked against the file; None for what the file says.
        image_size: (H, W) in pixels; 224 x 224 where None.
        section: see load_state.
        kind: of the origin, "checkpoint" or "packaged".
        task: what the model is for; a backbone may come from a classification, detection or segmentation checkpoint.

    Raises:
        CheckpointError: see load_state, backbone_state and infer_spec; or parameters are missing, unexpected or misshapen (listed by name).
        SpecError: see infer_spec.
    """
    path = Path(path)
    state, detail = load_state(path, section=section)
    words = [detail] if detail else []
    if task is Task.FEATURES:
        state, taken = backbone_state(state, path)
        words += taken
    spec = infer_spec(state, image_size=image_size or DEFAULT_IMAGE_SIZE, variant=variant, num_classes=num_classes, task=task)
    if spec.variant == "custom":
        words.append(f"no known variant, built by its shapes ({_row_words(spec.embed_dims, spec.depths, spec.mlp_ratios)})")

    # on the meta device nothing is drawn or allocated only to be overwritten
    with torch.device("meta"):
        model = GroupMixFormer(spec)
    expected = model.state_dict()
    used = _fit(state, expected, path)
    # BatchNorm's own counters are in every checkpoint and not worth a word
    ignored = [name for name in state if name not in expected]
    if ignored:
        words.append(f"{len(ignored)} entries without effect ignored ({some_names(ignored, 3)})")
    # copies: the file may be mapped into memory, and of a type of its own; what it need not have counts training steps
    fitting = {
        name: state[name].to(value.dtype, copy=True, memory_format=torch.contiguous_format)
        if name in used
        else torch.zeros(value.shape, dtype=value.dtype)
        for name, value in expected.items()
    }
    model.load_state_dict(fitting, assign=True)
    return model.eval(), WeightsOrigin(kind, path.name, sha256_of(path), ", ".join(words))


def _axis(state: Mapping[str, Tensor], name: str, ndim: int) -> int:
    """The first axis of a parameter that every GroupMixFormer has."""
    if name not in state:
        known = re.compile(r"(conv_stem|patch_embed_layers|groupmixformer_backbone|norm4|head)\.")
        unexpected = [n for n in state if not known.match(n)]
        if any(n.startswith(f"{BACKBONE_PREFIX}conv_stem.") for n in state):
            raise CheckpointError(
                f"the checkpoint is a detector's or a segmenter's: its GroupMixFormer is under {BACKBONE_PREFIX!r}, without a classifier",
                "ask for the backbone: --task features",
            )
        if any(n.startswith("groupmixformer_backbone.") for n in state):
            raise CheckpointError(f"the checkpoint lacks {name}", "give a whole GroupMixFormer checkpoint")
        raise CheckpointError(
            f"the checkpoint is not a GroupMixFormer's: expected names such as conv_stem.proj1.weight, {name} and "
            f"groupmixformer_backbone.0.gma_stage.0.att.qkv.weight, found {some_names(unexpected or list(state), 8)}",
            "give a checkpoint of GroupMixFormer's classification code",
        )
    if state[name].ndim != ndim:
        shape = list(state[name].shape)
        raise CheckpointError(f"{name} has the shape {shape}, not {ndim} axes", "give a GroupMixFormer checkpoint")
    return int(state[name].shape[0])


def _depth(state: Mapping[str, Tensor], stage: int) -> int:
    """Blocks of one stage."""
    pattern = re.compile(rf"groupmixformer_backbone\.{stage}\.gma_stage\.(\d+)\.")
    blocks = {int(match[1]) for name in state if (match := pattern.match(name))}
    gap = next((block for block in range(max(blocks, default=0) + 1) if block not in blocks), None)
    if gap is not None:
        raise CheckpointError(
            f"the checkpoint lacks groupmixformer_backbone.{stage}.gma_stage.{gap}", "give a whole GroupMixFormer checkpoint"
        )
    return len(blocks)


def _mlp_ratio(state: Mapping[str, Tensor], stage: int, dim: int) -> int:
    """Hidden width of the MLPs of one stage over its channels; other blocks' MLPs are compared when the model is filled."""
    name = f"groupmixformer_backbone.{stage}.gma_stage.0.mlp.fc1.weight"
    hidden = _axis(state, name, 2)
    if dim == 0 or hidden % dim or hidden == 0:
        raise CheckpointError(
            f"{name} widens {dim} channels to {hidden}, which is no whole multiple", "give a GroupMixFormer checkpoint"
        )
    return hidden // dim


def _fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> list[str]:
    """Hold the checkpoint's names, shapes and types against the model's.

    Returns:
        The names to load; the checkpoint's others have no effect.

    Raises:
        CheckpointError: what does not fit, by name.
    """
    needed = [name for name in expected if not _without_effect(name)]
    shared = [name for name in needed if name in state]
    missing = [name for name in needed if name not in state]
    unexpected = [name for name in state if name not in expected and not _without_effect(name)]
    misshapen = [
        f"{name} {list(state[name].shape)} instead of {list(expected[name].shape)}"
        for name in shared
        if state[name].shape != expected[name].shape
    ]
    mistyped = [f"{name} {type_name(state[name].dtype)}" for name in shared if not state[name].is_floating_point()]
    found = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen, "not floating point": mistyped}
    problems = [f"{len(names)} {what}: {some_names(names, LISTED_NAMES)}" for what, names in found.items() if names]
    if problems:
        raise CheckpointError(f"{path} does not fit the model; {'; '.join(problems)}", "give a whole checkpoint of GroupMixFormer")
    negative = [name for name in shared if name.endswith("running_var") and bool((state[name] < 0).any())]
    if negative:
        raise CheckpointError(
            f"{path} has negative variances in {some_names(negative, LISTED_NAMES)}", "take an undamaged checkpoint"
        )
    return needed


def _without_effect(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in IGNORED_NAMES


def _row_words(dims: Iterable[int], depths: Iterable[int], ratios: Iterable[int]) -> str:
    return f"widths {'-'.join(map(str, dims))}, blocks {'-'.join(map(str, depths))}, MLP ratios {'-'.join(map(str, ratios))}"
