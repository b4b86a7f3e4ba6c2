"""What is asked for: frozen values that refuse nonsense when they are made.

ModelSpec     which GroupMixFormer: widths, depths, classes, image size
BatchProfile  the batch sizes that will be served: min, opt, max
Precision     FP32, FP16, INT8
Target        one row of TARGETS: what a runtime of a given version wants of a graph
Gate          how much change against FP32 PyTorch is accepted
BuildSpec     all of these together: one request of `gmf-edge build`

Source of VARIANTS: GroupMixFormer, configs/*.yaml (arXiv 2311.15157); `pico` is this project's own, small enough to be
trained on two CPU cores in minutes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from gmf_edge.errors import SpecError
from gmf_edge.image import Preprocess as Preprocess  # part of a request; image.py is the layer below

NUM_STAGES = 4
NUM_SEGMENTS = 5
NUM_HEADS = 8
# the stem halves twice and three of the four stages halve once: 32 in all
SIZE_MULTIPLE = 32
# beyond these a request is a slip of the keyboard, and an error is kinder than a machine without memory
MOST_PIXELS_A_SIDE, MOST_CLASSES, LARGEST_BATCH, LARGEST_SEED = 4096, 1_000_000, 4096, 2**32 - 1


class Precision(str, Enum):
    """Arithmetic of the graph's heavy layers."""

    FP32 = "fp32"
    FP16 = "fp16"
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
        num_classes: width of the classifier.
        image_size: (H, W) in pixels, multiples of 32.

    Raises:
        SpecError: a value that no GroupMixFormer can have.
    """

    variant: str
    embed_dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    mlp_ratios: tuple[int, int, int, int]
    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)

    def __post_init__(self) -> None:
        for name in ("embed_dims", "depths", "mlp_ratios"):
            values = getattr(self, name)
            if len(values) != NUM_STAGES or any(int(v) < 1 for v in values):
                raise SpecError(f"{name} is {values}", "give four positive integers, one per stage")
        for dim in self.embed_dims:
            if dim % 10:
                raise SpecError(f"embedding width {dim} is not a multiple of 10", "use a multiple of 10, such as 40, 80 or 320")
        if not 1 <= self.num_classes <= MOST_CLASSES:
            raise SpecError(f"num_classes is {self.num_classes}", f"give 1 to {MOST_CLASSES} classes")
        for side, pixels in zip(("height", "width"), self.image_size, strict=True):
            if pixels > MOST_PIXELS_A_SIDE:
                raise SpecError(f"image {side} {pixels} is too large", f"give at most {MOST_PIXELS_A_SIDE} pixels a side")
            if pixels < SIZE_MULTIPLE or pixels % SIZE_MULTIPLE:
                below = max(SIZE_MULTIPLE, pixels // SIZE_MULTIPLE * SIZE_MULTIPLE)
                above = below if pixels < SIZE_MULTIPLE else below + SIZE_MULTIPLE
                near = f"{below}" if below == above else f"{below} or {above}"
                raise SpecError(
                    f"image {side} {pixels} is not a multiple of {SIZE_MULTIPLE}",
                    f"use a multiple of {SIZE_MULTIPLE}, such as {near}",
                )

    @classmethod
    def of(cls, variant: str, num_classes: int = 1000, image_size: tuple[int, int] = (224, 224)) -> ModelSpec:
        """The spec of a named variant.

        Raises:
            SpecError: the variant is unknown.
        """
        row = VARIANTS.get(variant)
        if row is None:
            raise SpecError(f"unknown variant {variant!r}", f"use one of {', '.join(VARIANTS)}")
        return cls(variant, row.embed_dims, row.depths, row.mlp_ratios, num_classes, image_size)

    @property
    def stage_sizes(self) -> tuple[tuple[int, int], ...]:
        """(H, W) of each stage's feature map; the number of tokens N is H * W."""
        height, width = self.image_size
        return tuple((height // down, width // down) for down in (4, 8, 16, 32))

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
            return cls(**fields)
        except TypeError as error:
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
                f"batch sizes min {self.min}, opt {self.opt}, max {self.max} are out of order", "give 1 <= min <= opt <= max"
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
        qdq_scales: dtype of Q/DQ scales in a graph whose activations are FP16: "float32" or "float16".
        plugin_interface: "IPluginV2DynamicExt", "IPluginV3" or "" where no plugin can be loaded.
    """

    name: str
    opset: int
    ir_version: int
    typing: str
    qdq_scales: str
    plugin_interface: str


OPSET_NEW, OPSET_OLD = 20, 17
TARGETS: dict[str, Target] = {
    "onnxruntime": Target("onnxruntime", OPSET_NEW, 9, "strong", "float16", ""),
    "tensorrt-8.6": Target("tensorrt-8.6", OPSET_OLD, 8, "weak", "float32", "IPluginV2DynamicExt"),
    "tensorrt-10.3": Target("tensorrt-10.3", OPSET_NEW, 9, "strong", "float16", "IPluginV3"),
    "tensorrt-10.13": Target("tensorrt-10.13", OPSET_NEW, 9, "strong", "float16", "IPluginV3"),
    "tensorrt-11": Target("tensorrt-11", OPSET_NEW, 9, "strong", "float16", "IPluginV3"),
}


@dataclass(frozen=True)
class Gate:
    """How much change against the FP32 PyTorch model is accepted.

    Attributes:
        max_drop_points: largest accepted loss of top-1, in absolute percentage points, where there are labels.
        min_agreement: smallest accepted share of images with the same top-1 as FP32, where there are none.
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


GATES: dict[Precision, Gate] = {
    Precision.FP32: Gate(max_drop_points=0.0, min_agreement=1.0, min_cosine=0.999999),
    Precision.FP16: Gate(max_drop_points=0.1, min_agreement=0.99, min_cosine=0.9999),
    Precision.INT8: Gate(max_drop_points=0.5, min_agreement=0.95, min_cosine=0.99),
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
        num_classes: width of the classifier, or None to infer it.
        image_size: (H, W) in pixels, or None for the variant's default.
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

    def __post_init__(self) -> None:
        if self.variant is not None and self.variant not in VARIANTS:
            raise SpecError(f"unknown variant {self.variant!r}", f"use one of {', '.join(VARIANTS)}")
        if self.backend not in ("auto", *BACKENDS):
            raise SpecError(f"unknown backend {self.backend!r}", f"use auto, {', '.join(BACKENDS)}")
        if self.num_classes is not None and self.num_classes < 1:
            raise SpecError(f"num_classes is {self.num_classes}", "give at least one class, or leave it out")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise SpecError(f"--seed is {self.seed}", f"give 0 to {LARGEST_SEED}")
        if self.eval_images is not None and self.eval_images < 1:
            raise SpecError(f"--eval-images is {self.eval_images}", "give at least 1, or leave it out for all")
        if self.io_dtype not in IO_DTYPES:
            raise SpecError(f"unknown I/O dtype {self.io_dtype!r}", f"use one of {', '.join(IO_DTYPES)}")
        if self.precision is not Precision.INT8 and (self.calibration_data or self.ranges or self.auto):
            raise SpecError(f"calibration was given for {self.precision.value}", "use --precision int8 or auto, or leave it out")
        if self.crop_pct is not None:
            Preprocess((SIZE_MULTIPLE, SIZE_MULTIPLE), crop_pct=self.crop_pct)
        if self.image_size is not None:
            replace(ModelSpec.of("pico"), image_size=self.image_size)
        if not self.budget_minutes > 0:
            raise SpecError(f"--budget-minutes is {self.budget_minutes}", "give minutes above 0")
        _ = self.gate

    @property
    def gate(self) -> Gate:
        """The precision's gate, with max_drop_points where it was given."""
        gate = GATES[self.precision]
        if self.max_drop_points is None:
            return gate
        return Gate(self.max_drop_points, gate.min_agreement, gate.min_cosine, strict=True)
