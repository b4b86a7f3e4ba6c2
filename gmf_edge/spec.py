"""What is asked for: frozen values that refuse nonsense when they are made.

Task          what comes out: logits, or a backbone's maps
ModelSpec     which GroupMixFormer: widths, depths, classes, image size
BatchProfile  the batch sizes that will be served: min, opt, max
SizeRange     the image sizes that will be served, where they are several (gmf_edge.sizes)
Precision     FP32, FP16, BF16, INT8
Target        one row of TARGETS: what a runtime of a given version wants of a graph
Gate, MapGate how much change against FP32 PyTorch is accepted, of logits and of maps
BuildSpec     all of these together: one request of `gmf-edge build`

Source of VARIANTS: GroupMixFormer, configs/*.yaml (arXiv 2311.15157); `pico` is this project's own, small enough to be
trained on two CPU cores in minutes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from gmf_edge.errors import SpecError
from gmf_edge.image import Preprocess as Preprocess  # part of a request; image.py is the layer below
from gmf_edge.ops.aggregation import NUM_SEGMENTS as NUM_SEGMENTS
from gmf_edge.ops.mixed_attention import NUM_HEADS as NUM_HEADS
from gmf_edge.sizes import SIZE_MULTIPLE as SIZE_MULTIPLE
from gmf_edge.sizes import SizeRange as SizeRange
from gmf_edge.sizes import check_size as check_size
from gmf_edge.sizes import words_of_size as words_of_size

NUM_STAGES = 4
# beyond these a request is a slip of the keyboard, and an error is kinder than a machine without memory
MOST_CLASSES, LARGEST_BATCH, LARGEST_SEED = 1_000_000, 4096, 2**32 - 1
STAGE_STRIDES = (4, 8, 16, 32)
# the input of every graph and engine, [B, 3, H, W], and the outputs of the two tasks
IMAGES = "images"
LOGITS = "logits"
MAPS = ("stage1", "stage2", "stage3", "stage4")
# what may stand behind each map of a backbone
OUTPUT_NORMS = ("", "batch", "layer")


class Task(str, Enum):
    """What the model gives: logits [B, classes], or the maps of the four stages [B, C, H / stride, W / stride] for another network."""

    CLASSIFY = "classify"
    FEATURES = "features"


class Precision(str, Enum):
    """Arithmetic of the graph's heavy layers."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


@dataclass(frozen=True)
class Variant:
    """One row of the model's family: widths, blocks and MLP ratios of the four stages."""

    embed_dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    mlp_ratios: tuple[int, int, int, int]


VARIANTS: dict[str, Variant] = {
    "pico": Variant((40, 40, 80, 80), (1, 1, 2, 1), (2, 2, 2, 2)),
    "mobile": Variant((40, 80, 160, 160), (3, 3, 12, 4), (4, 4, 4, 4)),
    "tiny": Variant((80, 160, 200, 240), (4, 4, 12, 4), (4, 4, 4, 4)),
    "small": Variant((80, 160, 320, 320), (2, 4, 12, 4), (4, 4, 4, 4)),
    "base": Variant((200, 240, 320, 480), (8, 8, 12, 8), (2, 2, 4, 4)),
    "large": Variant((240, 320, 360, 480), (8, 10, 30, 10), (4, 4, 2, 2)),
}


@dataclass(frozen=True)
class ModelSpec:
    """Which GroupMixFormer.

    Attributes:
        variant: the row of VARIANTS, or "custom" where a checkpoint's shapes match no row.
        embed_dims: channels C of the four stages, each a multiple of 10 (five segments, two heads a segment).
        depths: blocks of the four stages.
        mlp_ratios: hidden width of each stage's MLP over its C.
        num_classes: width of the classifier; 0 for a backbone, which has none.
        image_size: (H, W) in pixels, multiples of 32.
        task: what comes out.
        output_norm: "batch" or "layer" where a checkpoint normalises each of a backbone's maps, else "".

    Raises:
        SpecError: a value that no GroupMixFormer can have.
    """

    variant: str
    embed_dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    mlp_ratios: tuple[int, int, int, int]
    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    task: Task = Task.CLASSIFY
    output_norm: str = ""

    def __post_init__(self) -> None:
        if self.output_norm not in OUTPUT_NORMS or (self.output_norm and self.task is Task.CLASSIFY):
            raise SpecError(f"output_norm is {self.output_norm!r}", "give batch or layer for a backbone that has such norms")
        for name in ("embed_dims", "depths", "mlp_ratios"):
            values = getattr(self, name)
            if len(values) != NUM_STAGES or any(int(v) < 1 for v in values):
                raise SpecError(f"{name} is {values}", "give four positive integers, one per stage")
        for dim in self.embed_dims:
            if dim % 10:
                raise SpecError(f"embedding width {dim} is not a multiple of 10", "use a multiple of 10, such as 40, 80 or 320")
        if self.task is Task.CLASSIFY and not 1 <= self.num_classes <= MOST_CLASSES:
            raise SpecError(f"num_classes is {self.num_classes}", f"give 1 to {MOST_CLASSES} classes")
        if self.task is Task.FEATURES and self.num_classes != 0:
            raise SpecError(f"{self.num_classes} classes were asked of a backbone, which has no classifier", "leave them out")
        check_size(self.image_size)

    @classmethod
    def of(
        cls, variant: str, num_classes: int = 1000, image_size: tuple[int, int] = (224, 224), task: Task = Task.CLASSIFY
    ) -> ModelSpec:
        """The spec of a named variant.

        Raises:
            SpecError: the variant is unknown.
        """
        row = VARIANTS.get(variant)
        if row is None:
            raise SpecError(f"unknown variant {variant!r}", f"use one of {', '.join(VARIANTS)}")
        classes = num_classes if task is Task.CLASSIFY else 0
        return cls(variant, row.embed_dims, row.depths, row.mlp_ratios, classes, image_size, task)

    @property
    def stage_sizes(self) -> tuple[tuple[int, int], ...]:
        """(H, W) of each stage's feature map; the number of tokens N is H * W."""
        height, width = self.image_size
        return tuple((height // down, width // down) for down in STAGE_STRIDES)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Of the graph: (LOGITS,) or MAPS."""
        return (LOGITS,) if self.task is Task.CLASSIFY else MAPS

    def map_shapes(self, image_size: tuple[int, int] | None = None) -> dict[str, tuple[int, int, int]]:
        """(C, H / stride, W / stride) of each of a backbone's maps at an image size (None: its own), by name."""
        height, width = image_size or self.image_size
        rows = zip(MAPS, self.embed_dims, STAGE_STRIDES, strict=True)
        return {name: (dim, height // down, width // down) for name, dim, down in rows}

    @property
    def segment_dims(self) -> tuple[int, ...]:
        """Channels S = C / 5 of one segment in each stage."""
        return tuple(dim // NUM_SEGMENTS for dim in self.embed_dims)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, for a manifest."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ModelSpec:
        """The inverse of to_json.

        Raises:
            SpecError: a field is missing or nonsense.
        """
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**{**fields, "task": Task(fields.get("task", Task.CLASSIFY))})
        except (TypeError, ValueError) as error:
            raise SpecError(f"not a model spec: {error}", "the file was written by another version or edited") from error


@dataclass(frozen=True)
class BatchProfile:
    """Batch sizes that will be served: the engine accepts min..max and is tuned for opt.

    Raises:
        SpecError: not 1 <= min <= opt <= max.
    """

    min: int = 1
    opt: int = 1
    max: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise SpecError(
                f"batch sizes min {self.min}, opt {self.opt}, max {self.max} are out of order",
                "give 1 <= --min-batch <= --opt-batch <= --max-batch",
            )
        if self.max > LARGEST_BATCH:
            raise SpecError(f"batch size {self.max} is too large", f"give at most {LARGEST_BATCH}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """min, opt and max, each once, ascending: the sizes at which parity is proved."""
        return tuple(sorted({self.min, self.opt, self.max}))


@dataclass(frozen=True)
class Target:
    """What a runtime of one version wants of a graph. TensorRT columns: facts by NVIDIA's release notes and bindings.

    Attributes:
        name: the row's key.
        opset: ONNX operator set of the graph.
        ir_version: ONNX file format version.
        typing: "strong" where the graph alone decides the types, "weak" where builder flags and layer constraints must help.
        plugin_interface: "IPluginV2DynamicExt", "IPluginV3" or "" where no plugin can be loaded.
        has_bf16: it computes in BF16.
    """

    name: str
    opset: int
    ir_version: int
    typing: str
    plugin_interface: str
    has_bf16: bool = False

    def opset_for(self, precision: Precision) -> int:
        """The operator set of its graph in that precision: BF16 convolutions are of opset 22.

        Raises:
            SpecError: it has no such arithmetic.
        """
        if precision is not Precision.BF16:
            return self.opset
        if not self.has_bf16:
            raise SpecError(f"{self.name} does not compute in BF16", "use --precision fp16, or TensorRT 10 or newer")
        return OPSET_BF16


OPSET_NEW, OPSET_OLD, OPSET_BF16 = 20, 17, 22
TARGETS: dict[str, Target] = {
    "onnxruntime": Target("onnxruntime", OPSET_NEW, 9, "strong", ""),
    "tensorrt-8.6": Target("tensorrt-8.6", OPSET_OLD, 8, "weak", "IPluginV2DynamicExt"),
    "tensorrt-10.3": Target("tensorrt-10.3", OPSET_NEW, 9, "strong", "IPluginV3", True),
    "tensorrt-10.13": Target("tensorrt-10.13", OPSET_NEW, 9, "strong", "IPluginV3", True),
    "tensorrt-11": Target("tensorrt-11", OPSET_NEW, 9, "strong", "IPluginV3", True),
}


@dataclass(frozen=True)
class Gate:
    """How much change against the FP32 PyTorch model is accepted.

    Attributes:
        max_drop_points: largest accepted loss of top-1, in absolute percentage points, where there are labels.
        min_agreement: smallest accepted share of images with the same top-1 as FP32, near ties excused, where labels do not settle it;
            without labels or training a lower share has to be shown (verify.accuracy.flips_shown).
        min_cosine: smallest accepted cosine similarity of logits, at every batch size.
        strict: whether max_drop_points holds for the loss as measured, as it does where a user names it. Otherwise it holds for
            the true loss, as far as the images can tell (gmf_edge.verify.accuracy).
    """

    max_drop_points: float
    min_agreement: float
    min_cosine: float
    strict: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop_points <= 100:
            raise SpecError(f"--max-drop is {self.max_drop_points}", "give percentage points between 0 and 100")
        if not (0 <= self.min_agreement <= 1 and -1 <= self.min_cosine <= 1):
            raise SpecError("agreement and cosine limits are out of range", "agreement lies in 0..1, cosine in -1..1")


# BF16 rounds eight times as coarsely as FP16. On a trained mobile (226 pictures, 64 x 64) it moves logits by a relative L2 of 7.3e-3 on
# average and 1.8e-2 at most (FP16: 8.4e-4 and 1.9e-3), the smallest cosine is 0.99984, and 2 pictures flip, which leaves top-1 where it
# was. Its limits are some five times that, as FP16's are of what FP16 does
GATES: dict[Precision, Gate] = {
    Precision.FP32: Gate(max_drop_points=0.0, min_agreement=1.0, min_cosine=0.999999),
    Precision.FP16: Gate(max_drop_points=0.1, min_agreement=0.99, min_cosine=0.9999),
    Precision.BF16: Gate(max_drop_points=0.2, min_agreement=0.98, min_cosine=0.999),
    Precision.INT8: Gate(max_drop_points=0.5, min_agreement=0.95, min_cosine=0.99),
}


@dataclass(frozen=True)
class MapGate:
    """How much change of each of a backbone's maps is accepted, at every batch size and image size; there are no labels to judge by.

    Attributes:
        min_cosine: smallest accepted cosine similarity of an image's map.
        max_relative_l2: largest accepted norm of an image's differences over the norm of its map.
        max_error_share: largest accepted difference of any value over the largest value: what a wrong corner is, hardly seen by a norm.
    """

    min_cosine: float
    max_relative_l2: float
    max_error_share: float

    def __post_init__(self) -> None:
        if not (-1 <= self.min_cosine <= 1 and self.max_relative_l2 >= 0 and self.max_error_share >= 0):
            raise SpecError("the limits of maps are out of range", "cosine lies in -1..1, the relative L2 error is at least 0")


# On the same model and pictures an image's map differs from FP32's by a relative L2 of at most 1.9e-3 in FP16 and 1.6e-2 in BF16, its
# largest error is 1.4e-3 and 1.3e-2 of its largest value, and 1 - cosine at most 1.6e-6 and 1.2e-4. Limits are about five times that: what
# rounding does to a deeper model passes, what a wrong kernel, border or layout does (errors of the values' own size) is far outside.
# INT8's are just above what the coarsest recipe does (0.18, 0.23 and 1.3e-2; the default one 1.9e-2, 1.2e-2 and 1.7e-4). All of it by
# benchmarks/map_errors.py
MAP_GATES: dict[Precision, MapGate] = {
    Precision.FP32: MapGate(min_cosine=0.999999, max_relative_l2=1e-4, max_error_share=1e-3),
    Precision.FP16: MapGate(min_cosine=0.9999, max_relative_l2=0.01, max_error_share=0.02),
    Precision.BF16: MapGate(min_cosine=0.997, max_relative_l2=0.08, max_error_share=0.1),
    Precision.INT8: MapGate(min_cosine=0.98, max_relative_l2=0.2, max_error_share=0.3),
}

# what runs an engine; see gmf_edge.engines.choose
BACKENDS = ("tensorrt", "onnxruntime", "openvino")
IO_DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class BuildSpec:
    """One request of `gmf-edge build`.

    Attributes:
        precision: arithmetic of the heavy layers.
        variant: a name of VARIANTS, or None to infer it from the checkpoint (pico where there is none).
        checkpoint: .pth or .safetensors, or None for the packaged (pico) or seeded random weights.
        task: what comes out.
        num_classes: width of the classifier, or None to infer it.
        image_size: (H, W) in pixels, or None for the variant's default.
        sizes: image sizes of a backbone that will be served, or None for image_size alone; it goes before image_size.
        profile: batch sizes.
        backend: "auto" or one of BACKENDS.
        io_dtype: dtype of the graph's input and output, of IO_DTYPES.
        labels: text file of class names, one a line, or None for the evaluation set's folders or ImageNet's names.
        eval_data: labelled images (ImageFolder layout, folder or .zip), or None.
        eval_images: how many of them, drawn evenly over the classes; None for all (64 of them with untrained weights).
        max_drop_points: overrides the gate's, in percentage points, and makes it strict; None for the precision's default.
        calibration_data: images that INT8 is calibrated on, from the training split; None for the packaged ones (pico).
        calibration_images: how many of them, drawn evenly over the classes.
        recipe: what INT8 quantises and how: a name (balanced, fastest, accurate) or a TOML file.
        ranges: a ranges.json of `gmf-edge calibrate`, instead of calibrating.
        auto: leave as few layers as possible out of INT8 so that the gate holds.
        budget_minutes: time for that search.
        keep_int8: deliver INT8 although it is no faster here.
        plugin_archs: GPU architectures, such as "sm_87", whose kernels travel in the plugin graphs.
        crop_pct: see Preprocess; None for the variant's default.
        seed: of random weights and of drawn images.
    """

    precision: Precision = Precision.FP32
    variant: str | None = None
    checkpoint: Path | None = None
    num_classes: int | None = None
    image_size: tuple[int, int] | None = None
    profile: BatchProfile = field(default_factory=BatchProfile)
    backend: str = "auto"
    io_dtype: str = "float32"
    labels: Path | None = None
    eval_data: Path | None = None
    eval_images: int | None = None
    max_drop_points: float | None = None
    crop_pct: float | None = None
    seed: int = 0
    calibration_data: Path | None = None
    calibration_images: int = 500
    recipe: str = "balanced"
    ranges: Path | None = None
    auto: bool = False
    budget_minutes: float = 30.0
    keep_int8: bool = False
    plugin_archs: tuple[str, ...] = ()
    task: Task = Task.CLASSIFY
    sizes: SizeRange | None = None

    def __post_init__(self) -> None:
        if self.variant is not None and self.variant not in VARIANTS:
            raise SpecError(f"unknown variant {self.variant!r}", f"give --variant one of {', '.join(VARIANTS)}")
        if self.backend not in ("auto", *BACKENDS):
            raise SpecError(f"unknown backend {self.backend!r}", f"give --backend one of auto, {', '.join(BACKENDS)}")
        if self.num_classes is not None and self.num_classes < 1:
            raise SpecError(f"num_classes is {self.num_classes}", "give --num-classes at least 1, or leave it out")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise SpecError(f"--seed is {self.seed}", f"give --seed 0 to {LARGEST_SEED}")
        if self.eval_images is not None and self.eval_images < 1:
            raise SpecError(f"--eval-images is {self.eval_images}", "give at least 1, or leave it out for all")
        if self.io_dtype not in IO_DTYPES:
            raise SpecError(f"unknown I/O dtype {self.io_dtype!r}", f"give --io-dtype one of {', '.join(IO_DTYPES)}")
        if self.precision is not Precision.INT8 and (self.calibration_data or self.ranges or self.auto):
            raise SpecError(f"calibration was given for {self.precision.value}", "use --precision int8 or auto, or leave it out")
        if self.sizes is not None and self.task is not Task.FEATURES:
            raise SpecError(
                "several image sizes were asked of a classifier, whose accuracy is that of one", "give one --image-size"
            )
        if self.sizes is not None and self.plugin_archs:
            raise SpecError(
                "kernels were asked for with several image sizes, and the plugin's node has its H and W in it",
                "leave out --plugin-arch, or give one --image-size",
            )
        if self.task is Task.FEATURES and self.labels is not None:
            raise SpecError("--labels names the classes of a classifier, and a backbone has none", "leave it out")
        if self.task is Task.FEATURES and self.max_drop_points is not None:
            raise SpecError(
                "--max-drop is in points of top-1, which a backbone has not", "leave it out: each map has limits of its own"
            )
        if self.crop_pct is not None:
            Preprocess((SIZE_MULTIPLE, SIZE_MULTIPLE), crop_pct=self.crop_pct)
        if self.image_size is not None:
            check_size(self.image_size)
        if not self.budget_minutes > 0:
            raise SpecError(f"--budget-minutes is {self.budget_minutes}", "give minutes above 0")
        _ = self.gate

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(H, W) that the model is exported and tuned at; None for the default."""
        return self.image_size if self.sizes is None else self.sizes.opt

    @property
    def gate(self) -> Gate | MapGate:
        """The precision's gate for the task, with max_drop_points where it was given."""
        if self.task is Task.FEATURES:
            return MAP_GATES[self.precision]
        gate = GATES[self.precision]
        if self.max_drop_points is None:
            return gate
        return Gate(self.max_drop_points, gate.min_agreement, gate.min_cosine, strict=True)
