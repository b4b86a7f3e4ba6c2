"""Every option that more than one verb has, once: its spelling, its help, its default; and the request that they make together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from gmf_edge.engines.tensorrt.options import TrtexecRequest, options_from_trtexec
from gmf_edge.errors import SpecError
from gmf_edge.sizes import parse_range, parse_size
from gmf_edge.spec import BACKENDS, VARIANTS, BatchProfile, BuildSpec, Precision, Task


class BackendName(str, Enum):
    """Choices of --backend."""

    AUTO = "auto"
    TENSORRT = "tensorrt"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


class VariantName(str, Enum):
    """Choices of --variant, the rows of VARIANTS."""

    PICO = "pico"
    MOBILE = "mobile"
    TINY = "tiny"
    SMALL = "small"
    BASE = "base"
    LARGE = "large"


class PrecisionName(str, Enum):
    """Choices of --precision."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    AUTO = "auto"


class PrecisionProof(str, Enum):
    """Choices of --precision-proof."""

    REFUSE = "refuse"
    WARN = "warn"


assert [variant.value for variant in VariantName] == list(VARIANTS)
assert [backend.value for backend in BackendName] == ["auto", *BACKENDS]
assert [precision.value for precision in PrecisionName] == [*(precision.value for precision in Precision), "auto"]

Folder = Annotated[Path, typer.Argument(help="A bundle: the folder that build or export wrote.", show_default=False)]
Backend = Annotated[
    BackendName, typer.Option(help="What runs the model; auto: TensorRT where it can be used, else the faster of the others.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU: threads of an inference.", show_default="one a core that this process may use")
]
DeviceName = Annotated[str | None, typer.Option("--device", help="OpenVINO: CPU, GPU, GPU.1 or NPU.", show_default="CPU")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; a bundle that is there is replaced whole.")]

Variant = Annotated[VariantName | None, typer.Option(help="Which GroupMixFormer.", show_default="the checkpoint's, else pico")]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights: .pth or .safetensors.", show_default="packaged (pico) or random")]
ImageSize = Annotated[str | None, typer.Option(help="Pixels, S or HxW, multiples of 32.", show_default="224, pico 64")]
TaskChoice = Annotated[
    Task, typer.Option("--task", help="What comes out: logits, or a backbone's maps of strides 4, 8, 16 and 32.")
]
DynamicSize = Annotated[
    str | None,
    typer.Option(
        help="features: sizes that one engine takes, MIN..MAX such as 256..512 or 256x256..512x768; --image-size is what it is tuned for.",
        show_default="--image-size alone",
    ),
]
Classes = Annotated[
    int | None, typer.Option("--num-classes", help="Number of classes.", show_default="the checkpoint's, else 1000")
]
CropPct = Annotated[
    float | None, typer.Option(help="Share of the resized short side that the centre crop keeps.", show_default="0.875")
]
Seed = Annotated[int, typer.Option(help="Of random weights and of drawn images.")]

CalibrationData = Annotated[Path | None, typer.Option(help="INT8: images of the training split.", show_default="packaged (pico)")]
CalibrationImages = Annotated[int, typer.Option(help="INT8: draw this many of them, evenly over the classes.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="INT8: balanced, fastest, accurate, or a TOML file.")]
RangesFile = Annotated[
    Path | None, typer.Option("--ranges", help="INT8: a ranges.json of 'gmf-edge calibrate', instead of images.")
]
BudgetMinutes = Annotated[float, typer.Option(help="auto: time for the search.")]

PrecisionChoice = Annotated[
    PrecisionName, typer.Option(help="Arithmetic of the heavy layers; auto: INT8 with as few exceptions as the gate needs.")
]
Fp32 = Annotated[bool, typer.Option("--fp32", help="The same as --precision fp32.")]
Fp16 = Annotated[bool, typer.Option("--fp16", help="The same as --precision fp16.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="The same as --precision bf16.")]
Int8 = Annotated[bool, typer.Option("--int8", help="The same as --precision int8.")]
MinBatch = Annotated[int, typer.Option(help="Smallest batch that will be served.")]
OptBatch = Annotated[int, typer.Option(help="Batch to tune for.")]
MaxBatch = Annotated[int | None, typer.Option(help="Largest batch that will be served.", show_default="8; features 1")]
IoDtype = Annotated[str, typer.Option(help="Type of the graph's input and output: float32 or float16.")]
PluginArch = Annotated[
    list[str] | None, typer.Option(help="Carry GPU kernels for this architecture in the plugin graphs, such as sm_87; repeatable.")
]

Labels = Annotated[
    Path | None,
    typer.Option(
        help="Class names, one a line, in the order of the logits.", show_default="the evaluation folders', or ImageNet's"
    ),
]
EvalData = Annotated[Path | None, typer.Option(help="Labelled images: class folders in a folder or a .zip (or a.zip/folder).")]
EvalImages = Annotated[int | None, typer.Option(help="Use this many of the evaluation images.", show_default="all; untrained: 64")]
MaxDrop = Annotated[float | None, typer.Option(help="Accepted loss of top-1 in percentage points.", show_default="by precision")]

NoPlugin = Annotated[bool, typer.Option("--no-plugin", help="Build from the portable graph, without the GMA plugin.")]
PrecisionProofChoice = Annotated[
    PrecisionProof | None,
    typer.Option(
        help="TensorRT: what becomes of an engine that does not run the precision asked for: refuse it, or warn and deliver it.",
        show_default="refuse",
    ),
]
WorkspaceMib = Annotated[int | None, typer.Option(help="TensorRT: limit of scratch memory in MiB.")]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results.")]
AsJson = Annotated[bool, typer.Option("--json", help="Results as one JSON object on standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="All of the report, above its summary.")]


@dataclass(frozen=True)
class ScreenOptions:
    """What is printed."""

    quiet: Quiet = False
    as_json: AsJson = False


@dataclass(frozen=True)
class ResultOptions(ScreenOptions):
    """What is printed of a result: what `build`, `deploy` and `verify` take."""

    verbose: Verbose = False


@dataclass(frozen=True)
class CalibrationOptions:
    """The model, and the pictures that INT8 is calibrated on: what `calibrate` takes."""

    variant: Variant = None
    checkpoint: Checkpoint = None
    image_size: ImageSize = None
    num_classes: Classes = None
    crop_pct: CropPct = None
    seed: Seed = 0
    calibration_data: CalibrationData = None
    calibration_images: CalibrationImages = 500
    recipe: RecipeName = "balanced"
    task: TaskChoice = Task.CLASSIFY

    def calibration_spec(self) -> BuildSpec:
        """The request of `gmf-edge calibrate`.

        Raises:
            SpecError: nonsense.
        """
        return BuildSpec(
            precision=Precision.INT8,
            variant=None if self.variant is None else self.variant.value,
            checkpoint=self.checkpoint,
            image_size=None if self.image_size is None else parse_size(self.image_size),
            num_classes=self.num_classes,
            crop_pct=self.crop_pct,
            seed=self.seed,
            calibration_data=self.calibration_data,
            calibration_images=self.calibration_images,
            recipe=self.recipe,
            task=self.task,
        )


@dataclass(frozen=True)
class BundleOptions(CalibrationOptions):
    """Everything that a bundle is made from: what `export` takes."""

    precision: PrecisionChoice = PrecisionName.FP32
    fp32: Fp32 = False
    fp16: Fp16 = False
    bf16: Bf16 = False
    int8: Int8 = False
    ranges: RangesFile = None
    budget_minutes: BudgetMinutes = 30.0
    io_dtype: IoDtype = "float32"
    min_batch: MinBatch = 1
    opt_batch: OptBatch = 1
    max_batch: MaxBatch = None
    plugin_arch: PluginArch = None
    labels: Labels = None
    eval_data: EvalData = None
    eval_images: EvalImages = None
    max_drop: MaxDrop = None
    dynamic_size: DynamicSize = None

    def spec(self, backend: BackendName = BackendName.AUTO, keep_int8: bool = False) -> BuildSpec:
        """The request.

        Raises:
            SpecError: two precisions, or nonsense.
        """
        precision = self._precision_name()
        image_size = None if self.image_size is None else parse_size(self.image_size)
        return BuildSpec(
            precision=Precision.INT8 if precision is PrecisionName.AUTO else Precision(precision.value),
            auto=precision is PrecisionName.AUTO,
            variant=None if self.variant is None else self.variant.value,
            checkpoint=self.checkpoint,
            image_size=image_size,
            num_classes=self.num_classes,
            profile=BatchProfile(self.min_batch, self.opt_batch, self._largest_batch()),
            backend=backend.value,
            io_dtype=self.io_dtype,
            labels=self.labels,
            eval_data=self.eval_data,
            eval_images=self.eval_images,
            max_drop_points=self.max_drop,
            crop_pct=self.crop_pct,
            seed=self.seed,
            calibration_data=self.calibration_data,
            calibration_images=self.calibration_images,
            recipe=self.recipe,
            ranges=self.ranges,
            budget_minutes=self.budget_minutes,
            keep_int8=keep_int8,
            plugin_archs=tuple(self.plugin_arch or ()),
            task=self.task,
            sizes=None if self.dynamic_size is None else parse_range(self.dynamic_size, image_size),
        )

    def _largest_batch(self) -> int:
        """Eight images of a classifier; one of a backbone, whose images are large, or as many as the others need."""
        if self.max_batch is not None:
            return self.max_batch
        return 8 if self.task is Task.CLASSIFY else max(self.min_batch, self.opt_batch)

    def _precision_name(self) -> PrecisionName:
        flags = {
            PrecisionName.FP32: self.fp32,
            PrecisionName.FP16: self.fp16,
            PrecisionName.BF16: self.bf16,
            PrecisionName.INT8: self.int8,
        }
        names = {name for name, is_set in flags.items() if is_set}
        if self.precision is not PrecisionName.FP32:
            names.add(self.precision)
        if len(names) > 1:
            raise SpecError(
                f"two precisions were asked for: {' and '.join(sorted(name.value for name in names))}",
                "give one of --precision, --fp32, --fp16, --bf16 and --int8",
            )
        return next(iter(names), PrecisionName.FP32)


@dataclass(frozen=True)
class RunOptions:
    """What runs a bundle, and how: what `verify`, `predict` and `bench` take."""

    backend: Backend = BackendName.AUTO
    threads: Threads = None
    device: DeviceName = None

    @property
    def run_options(self) -> dict[str, Any]:
        """Of the backend, those that were given."""
        return {name: value for name, value in {"threads": self.threads, "device": self.device}.items() if value is not None}


@dataclass(frozen=True)
class EngineOptions(RunOptions):
    """How the engine is built: what `build` and `deploy` take, beside trtexec's own spellings."""

    workspace_mib: WorkspaceMib = None
    no_plugin: NoPlugin = False
    precision_proof: PrecisionProofChoice = None

    def request(self, trtexec: Sequence[str]) -> TrtexecRequest:
        """What these and the options in trtexec's spelling ask for.

        Raises:
            SpecError: an option that trtexec does not have, or that means nothing for a build.
        """
        try:
            request = options_from_trtexec(trtexec)
        except SpecError as error:
            raise _misspelt(trtexec) or error from None
        if request.bench:
            raise SpecError(
                f"{', '.join(sorted(request.bench))}: a build measures with fixed settings", "use 'gmf-edge bench' for others"
            )
        proof = None if self.precision_proof is None else self.precision_proof.value
        own = {"workspace_mib": self.workspace_mib, "precision_proof": proof}
        own = {name: value for name, value in own.items() if value is not None}
        return replace(request, options={**request.options, **own, **self.run_options})


def _misspelt(trtexec: Sequence[str]) -> SpecError | None:
    """About an option that looks like a slip of one of our own rather than one of trtexec's."""
    own = [
        f"--{field.name.replace('_', '-')}" for group in (BundleOptions, EngineOptions, ResultOptions) for field in fields(group)
    ]
    own += ["--json", "--output", "--keep-int8"]
    for argument in trtexec:
        name = argument.partition("=")[0]
        near = get_close_matches(name, own, n=1, cutoff=0.8)
        if name.startswith("--") and near:
            return SpecError(f"there is no option {name}", f"did you mean {near[0]}?")
    return None
