"""The command line: parse, one library call, print. The same calls work from Python.

Results and the last line (PASSED or FAILED and why) go to standard output, progress and errors to standard error. Exit status: 0 done,
1 failure, 2 usage, 3 accuracy, 4 environment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from gmf_edge import __version__
from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.errors import AccuracyError, GmfEdgeError, SpecError
from gmf_edge.spec import VARIANTS, BatchProfile, BuildSpec, Precision

app = typer.Typer(
    name="gmf-edge",
    help="GroupMixFormer on real hardware: from a checkpoint to a verified, measured engine in one folder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# every error of reading the command line; Typer's own copy of Click names no public base class
_CommandLineError: Any = typer.BadParameter.__mro__[2]
_TRTEXEC = {"allow_extra_args": True, "ignore_unknown_options": True}
# a file or a pipe has no width: tables keep their columns whole there
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False, soft_wrap=True)


# of the INT8 layers that `inspect` names
WORST_LAYERS = 3


class BackendName(str, Enum):
    """Choices of --backend."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"


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
    INT8 = "int8"
    AUTO = "auto"


assert [variant.value for variant in VariantName] == list(VARIANTS)

Backend = Annotated[BackendName, typer.Option(help="What runs the model; auto takes TensorRT where it can be used.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results.")]
AsJson = Annotated[bool, typer.Option("--json", help="Results as one JSON object on standard output.")]
Folder = Annotated[Path, typer.Argument(help="A bundle: the folder that build or export wrote.", show_default=False)]
EvalData = Annotated[Path | None, typer.Option(help="Labelled images: class folders in a folder or a .zip (or a.zip/folder).")]
MaxDrop = Annotated[float | None, typer.Option(help="Accepted loss of top-1 in percentage points.", show_default="by precision")]
NoPlugin = Annotated[bool, typer.Option("--no-plugin", help="Build from the portable graph, without the GMA plugin.")]
Variant = Annotated[VariantName | None, typer.Option(help="Which GroupMixFormer.", show_default="the checkpoint's, else pico")]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights: .pth or .safetensors.", show_default="packaged (pico) or random")]
ImageSize = Annotated[str | None, typer.Option(help="Pixels, S or HxW, multiples of 32.", show_default="224, pico 64")]
Classes = Annotated[
    int | None, typer.Option("--num-classes", help="Number of classes.", show_default="the checkpoint's, else 1000")
]
PrecisionChoice = Annotated[
    PrecisionName, typer.Option(help="Arithmetic of the heavy layers; auto: INT8 with as few exceptions as the gate needs.")
]
Fp32 = Annotated[bool, typer.Option("--fp32", help="The same as --precision fp32.")]
Fp16 = Annotated[bool, typer.Option("--fp16", help="The same as --precision fp16.")]
Int8 = Annotated[bool, typer.Option("--int8", help="The same as --precision int8.")]
CalibrationData = Annotated[Path | None, typer.Option(help="INT8: images of the training split.", show_default="packaged (pico)")]
CalibrationImages = Annotated[int, typer.Option(help="INT8: draw this many of them, evenly over the classes.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="INT8: balanced, fastest, accurate, or a TOML file.")]
RangesFile = Annotated[
    Path | None, typer.Option("--ranges", help="INT8: a ranges.json of 'gmf-edge calibrate', instead of images.")
]
BudgetMinutes = Annotated[float, typer.Option(help="auto: time for the search.")]
PluginArch = Annotated[
    list[str] | None, typer.Option(help="Carry GPU kernels for this architecture in the plugin graphs, such as sm_87; repeatable.")
]
KeepInt8 = Annotated[bool, typer.Option("--keep-int8", help="Deliver INT8 although it is no faster on this machine.")]
MinBatch = Annotated[int, typer.Option(help="Smallest batch that will be served.")]
OptBatch = Annotated[int, typer.Option(help="Batch to tune for.")]
MaxBatch = Annotated[int, typer.Option(help="Largest batch that will be served.")]
IoDtype = Annotated[str, typer.Option(help="Type of the graph's input and output: float32 or float16.")]
EvalImages = Annotated[int | None, typer.Option(help="Use this many of the evaluation images.", show_default="all; untrained: 64")]
CropPct = Annotated[
    float | None, typer.Option(help="Share of the resized short side that the centre crop keeps.", show_default="0.875")
]
Seed = Annotated[int, typer.Option(help="Of random weights and of drawn images.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; a bundle that is there is replaced whole.")]
WorkspaceMib = Annotated[int | None, typer.Option(help="TensorRT: limit of scratch memory in MiB.")]


@app.command(context_settings=_TRTEXEC)
def build(
    context: typer.Context,
    variant: Variant = None,
    checkpoint: Checkpoint = None,
    image_size: ImageSize = None,
    num_classes: Classes = None,
    precision: PrecisionChoice = PrecisionName.FP32,
    fp32: Fp32 = False,
    fp16: Fp16 = False,
    int8: Int8 = False,
    backend: Backend = BackendName.AUTO,
    min_batch: MinBatch = 1,
    opt_batch: OptBatch = 1,
    max_batch: MaxBatch = 8,
    io_dtype: IoDtype = "float32",
    eval_data: EvalData = None,
    eval_images: EvalImages = None,
    max_drop: MaxDrop = None,
    crop_pct: CropPct = None,
    seed: Seed = 0,
    calibration_data: CalibrationData = None,
    calibration_images: CalibrationImages = 500,
    recipe: RecipeName = "balanced",
    ranges: RangesFile = None,
    budget_minutes: BudgetMinutes = 30.0,
    keep_int8: KeepInt8 = False,
    plugin_arch: PluginArch = None,
    workspace_mib: WorkspaceMib = None,
    no_plugin: NoPlugin = False,
    output: Output = Path("out/bundle"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """From a checkpoint to a verified and measured engine.

    Options of trtexec that mean the same are taken too, such as --memPoolSize=workspace:1024 or --builderOptimizationLevel=5.
    """
    from gmf_edge.pipeline import build as build_bundle

    spec = _spec(locals())
    asked = _trtexec(context.args, workspace_mib)
    if asked.profile is not None:
        spec = replace(spec, profile=asked.profile)
    if asked.image_size is not None:
        spec = replace(spec, image_size=asked.image_size)
    if asked.precision is not None:
        spec = replace(spec, precision=asked.precision)
    with _progress(quiet or as_json) as progress:
        result = build_bundle(spec, output, use_plugin=not no_plugin, options=asked.options, progress=progress)
    _show_result(result, as_json)


@app.command()
def export(
    variant: Variant = None,
    checkpoint: Checkpoint = None,
    image_size: ImageSize = None,
    num_classes: Classes = None,
    precision: PrecisionChoice = PrecisionName.FP32,
    fp32: Fp32 = False,
    fp16: Fp16 = False,
    int8: Int8 = False,
    min_batch: MinBatch = 1,
    opt_batch: OptBatch = 1,
    max_batch: MaxBatch = 8,
    io_dtype: IoDtype = "float32",
    eval_data: EvalData = None,
    eval_images: EvalImages = None,
    max_drop: MaxDrop = None,
    crop_pct: CropPct = None,
    seed: Seed = 0,
    calibration_data: CalibrationData = None,
    calibration_images: CalibrationImages = 500,
    recipe: RecipeName = "balanced",
    ranges: RangesFile = None,
    budget_minutes: BudgetMinutes = 30.0,
    plugin_arch: PluginArch = None,
    output: Output = Path("out/bundle"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """A bundle without an engine: take the folder to the device and deploy it there."""
    from gmf_edge.prepare import export as export_bundle

    spec = _spec(locals())
    with _progress(quiet or as_json) as progress:
        bundle = export_bundle(spec, output, progress)
    if as_json:
        _print_json({"folder": str(output), "manifest": bundle.manifest.to_json()})
        return
    out.print(bundle.manifest.weights.statement)
    _show_files(bundle.manifest.files)
    out.print(f"exported {output}; next: gmf-edge deploy {output}, on the device")


@app.command()
def calibrate(
    variant: Variant = None,
    checkpoint: Checkpoint = None,
    image_size: ImageSize = None,
    num_classes: Classes = None,
    calibration_data: CalibrationData = None,
    calibration_images: CalibrationImages = 500,
    recipe: RecipeName = "balanced",
    crop_pct: CropPct = None,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("out/ranges.json"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Ranges of the activations for INT8, from pictures: for `build --ranges`."""
    from gmf_edge.prepare import calibrate as calibrated

    spec = BuildSpec(
        precision=Precision.INT8,
        variant=None if variant is None else variant.value,
        checkpoint=checkpoint,
        image_size=None if image_size is None else parse_size(image_size),
        num_classes=num_classes,
        calibration_data=calibration_data,
        calibration_images=calibration_images,
        recipe=recipe,
        crop_pct=crop_pct,
        seed=seed,
    )
    with _progress(quiet or as_json) as progress:
        ranges = calibrated(spec, output, progress)
    made = ranges.provenance
    if as_json:
        _print_json({"file": str(output), "images": made.images, "method": made.method, "notes": list(ranges.notes)})
        return
    for note in ranges.notes:
        out.print(f"note: {note}", markup=False)
    out.print(f"wrote {output}: {len(ranges.tensors)} ranges by {made.method} on {made.images} images", markup=False)


@app.command(context_settings=_TRTEXEC)
def deploy(
    context: typer.Context,
    folder: Folder,
    backend: Backend = BackendName.AUTO,
    eval_data: EvalData = None,
    max_drop: MaxDrop = None,
    workspace_mib: WorkspaceMib = None,
    no_plugin: NoPlugin = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here.", show_default="into the bundle")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Build, prove and measure the engine from a bundle, on the machine where it will run. Takes trtexec's spellings like build."""
    from gmf_edge.bundle import require_replaceable
    from gmf_edge.deploy import deploy_bundle

    if output is not None:
        require_replaceable(output)
    asked = _trtexec(context.args, workspace_mib)
    if (asked.profile, asked.image_size, asked.precision) != (None, None, None):
        raise SpecError("shapes and precision are in the bundle already", "give them to 'gmf-edge build' or 'gmf-edge export'")
    with _progress(quiet or as_json) as progress:
        result = deploy_bundle(
            folder,
            backend=backend.value,
            eval_data=eval_data,
            max_drop_points=max_drop,
            use_plugin=not no_plugin,
            options=asked.options,
            out=output,
            progress=progress,
        )
    _show_result(result, as_json)


@app.command()
def verify(
    folder: Folder,
    backend: Backend = BackendName.AUTO,
    eval_data: EvalData = None,
    max_drop: MaxDrop = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Check every byte of a bundle and prove its engine again; nothing is written."""
    from gmf_edge.deploy import verify_bundle

    with _progress(quiet or as_json) as progress:
        result = verify_bundle(folder, backend=backend.value, eval_data=eval_data, max_drop_points=max_drop, progress=progress)
    _show_result(result, as_json)


@app.command()
def predict(
    folder: Folder,
    images: Annotated[list[Path], typer.Argument(help="Pictures.", show_default=False)],
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    backend: Backend = BackendName.AUTO,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The likeliest classes of pictures."""
    from gmf_edge.deploy import predict as predictions_of

    with _progress(quiet or as_json) as progress:
        predictions = predictions_of(folder, images, top=top, backend=backend.value, progress=progress)
    if as_json:
        _print_json([{"image": p.image, "classes": [{"name": n, "probability": v} for n, v in p.classes]} for p in predictions])
        return
    for prediction in predictions:
        out.print(prediction.image, markup=False)
        for name, probability in prediction.classes:
            out.print(f"  {100 * probability:6.2f} %  {name}", markup=False)


@app.command()
def bench(
    folder: Folder,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size; may be repeated.", show_default="the profile's")] = None,
    warm_up: Annotated[float, typer.Option("--warm-up", "--warmUp", help="Milliseconds of untimed inferences.")] = 200.0,
    duration: Annotated[float, typer.Option(help="Seconds, at least.")] = 3.0,
    iterations: Annotated[int, typer.Option(help="Timed inferences, at least.")] = 10,
    percentile: Annotated[list[float] | None, typer.Option(help="May be repeated.", show_default="90, 95, 99")] = None,
    backend: Backend = BackendName.AUTO,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Latency of a bundle's engine, by trtexec's conventions."""
    from gmf_edge.deploy import bench_bundle

    with _progress(quiet or as_json) as progress:
        latencies = bench_bundle(
            folder,
            batches=tuple(batch or ()),
            backend=backend.value,
            warmup_ms=warm_up,
            duration_s=duration,
            iterations=iterations,
            percentiles=tuple(percentile or (90.0, 95.0, 99.0)),
            progress=progress,
        )
    values = [latency.to_json() for latency in latencies]
    if as_json:
        _print_json(values)
    else:
        _show_latency(values)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle, or an engine file.", show_default=False)],
    layers: Annotated[int, typer.Option(min=0, help="Show this many of the slowest layers.")] = 10,
    as_json: AsJson = False,
) -> None:
    """What is in a bundle or an engine: model, weights, precisions, layers, files."""
    from gmf_edge.bundle import open_bundle

    if path.is_file():
        from gmf_edge.engines.tensorrt.backend import inspect_engine

        _print_json(inspect_engine(path))
        return
    bundle = open_bundle(path)
    if as_json:
        _print_json({"manifest": bundle.manifest.to_json(), "report": bundle.report})
    else:
        _show_bundle(bundle, layers)


@app.command()
def doctor(
    plugins: Annotated[str | None, typer.Option(help="A plugin library to try.")] = None,
    as_json: AsJson = False,
) -> None:
    """What this machine has, what it lacks, and what to do about it."""
    from gmf_edge.doctor import examine

    findings = examine(plugins)
    if as_json:
        _print_json([asdict(finding) for finding in findings])
        return
    for finding in findings:
        mark = {"ok": "ok     ", "warning": "warning", "missing": "missing"}[finding.state]
        out.print(f"{mark}  {finding.subject}: {finding.detail}", markup=False)
        if finding.remedy:
            out.print(f"           {finding.remedy}", markup=False)


kernels = typer.Typer(help="The GPU kernels of Group-Mix Attention.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(kernels, name="kernels")


@kernels.callback()
def _kernels() -> None:
    pass


@kernels.command("compile")
def compile_kernels(
    variant: Annotated[VariantName, typer.Option(help="Whose widths to compile for.")] = VariantName.PICO,
    arch: Annotated[str, typer.Option(help="Architectures, separated by commas, such as sm_87,sm_90.")] = "sm_87,sm_90",
    dtype: Annotated[str, typer.Option(help="Type of the activations: fp16, bf16 or fp32.")] = "fp16",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the images and kernels.json.")] = Path("out/kernels"),
    as_json: AsJson = False,
) -> None:
    """Compile them ahead of time, without a GPU: registers, spills and shared memory of each."""
    from gmf_edge.kernels.compile import compile_kernels as compiled
    from gmf_edge.spec import ModelSpec

    table = compiled(ModelSpec.of(variant.value), arch.split(","), output, dtype=dtype)
    if as_json:
        _print_json(table.rows)
        return
    columns = list(table.rows[0])
    shown = Table(*columns, box=None, pad_edge=False)
    for row in table.rows:
        shown.add_row(*(str(row[name]) for name in columns))
    out.print(shown)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"gmf-edge {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name.

    Returns:
        The exit status.
    """
    as_json = "--json" in arguments
    command = typer.main.get_command(app)
    try:
        status = command.main(args=list(arguments) or ["--help"], prog_name="gmf-edge", standalone_mode=False)
    except typer.Exit as end:
        return end.exit_code
    except (typer.Abort, KeyboardInterrupt):
        err.print("interrupted; nothing was left behind")
        return 130
    except _CommandLineError as error:
        return _fail(SpecError(error.format_message().rstrip("."), "see 'gmf-edge --help'"), as_json)
    except GmfEdgeError as error:
        return _fail(error, as_json)
    except MemoryError:
        return _fail(GmfEdgeError("out of memory", "free memory, or lower --max-batch"), as_json)
    except Exception as error:  # a fault of ours: still one clear line, and the way to more
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where is not None else "unknown place"
        text = str(error).strip().splitlines()[0] if str(error).strip() else ""
        problem = f"unexpected {type(error).__name__} at {place}: {text}"
        return _fail(GmfEdgeError(problem, "please report this with the output of 'gmf-edge doctor'"), as_json)
    return status if isinstance(status, int) else 0


def _fail(error: GmfEdgeError, as_json: bool) -> int:
    if isinstance(error, _Shown):
        return error.exit_status
    if as_json:
        _print_json({"error": error.problem, "remedy": error.remedy, "exit_status": error.exit_status})
        return error.exit_status
    err.print(f"error: {error.problem}", markup=False)
    if error.remedy:
        err.print(f"what to do: {error.remedy}", markup=False)
    out.print(f"FAILED: {error.problem}", markup=False)
    return error.exit_status


class _Shown(AccuracyError):
    """A result outside the gate that has been printed already."""


def _spec(given: Mapping[str, Any]) -> BuildSpec:
    """The request that a verb's options make; options that the verb does not have keep BuildSpec's defaults."""
    asked = {name for name in PrecisionName if given.get(name.value)}
    if given["precision"] is not PrecisionName.FP32:
        asked.add(given["precision"])
    if len(asked) > 1:
        raise SpecError(f"two precisions were asked for: {' and '.join(sorted(name.value for name in asked))}", "give one")
    name = next(iter(asked), PrecisionName.FP32)
    variant, image_size, backend = given["variant"], given["image_size"], given.get("backend", BackendName.AUTO)
    return BuildSpec(
        precision=Precision.INT8 if name is PrecisionName.AUTO else Precision(name.value),
        auto=name is PrecisionName.AUTO,
        variant=None if variant is None else variant.value,
        image_size=None if image_size is None else parse_size(image_size),
        profile=BatchProfile(given["min_batch"], given["opt_batch"], given["max_batch"]),
        backend=backend.value,
        max_drop_points=given["max_drop"],
        plugin_archs=tuple(given["plugin_arch"] or ()),
        **{key: given[key] for key in _SAME_NAMES if key in given},
    )


# options whose name and type are BuildSpec's own
_SAME_NAMES = (
    "checkpoint",
    "num_classes",
    "io_dtype",
    "eval_data",
    "eval_images",
    "crop_pct",
    "seed",
    "calibration_data",
    "calibration_images",
    "recipe",
    "ranges",
    "budget_minutes",
    "keep_int8",
)


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) of "224" or "256x192".

    Raises:
        SpecError: neither form.
    """
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdigit() for part in parts):
        raise SpecError(f"cannot read the image size {text!r}", "write it as 224, or as HxW such as 256x192")
    return int(parts[0]), int(parts[-1])


@dataclass(frozen=True)
class _Trtexec:
    """What options in trtexec's spelling ask for; see engines.tensorrt.options.TrtexecRequest."""

    options: dict[str, Any]
    profile: BatchProfile | None
    image_size: tuple[int, int] | None
    precision: Precision | None


def _trtexec(arguments: Sequence[str], workspace_mib: int | None) -> _Trtexec:
    from gmf_edge.engines.tensorrt.options import options_from_trtexec

    request = options_from_trtexec(arguments)
    if request.bench:
        raise SpecError(
            f"{', '.join(sorted(request.bench))}: a build measures with fixed settings", "use 'gmf-edge bench' for others"
        )
    options = {**request.options, **({} if workspace_mib is None else {"workspace_mib": workspace_mib})}
    return _Trtexec(options, request.profile, request.image_size, request.precision)


@contextmanager
def _progress(hidden: bool) -> Iterator[Progress]:
    """Steps as lines, long steps as a bar with the time left, on standard error."""
    if hidden:
        yield silent
        return
    if not err.is_terminal:
        yield lambda fraction, message: err.print(f"- {message}", markup=False) if fraction is None else None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with ProgressBar(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(fraction: float | None, message: str) -> None:
            if fraction is None:
                bar.reset(task, total=None, description=message)
                bar.console.print(f"- {message}", markup=False)
            else:
                if fraction <= bar.tasks[0].completed:
                    bar.reset(task)
                bar.update(task, total=1.0, completed=fraction, description=message)

        yield show


def _print_json(values: Any) -> None:
    sys.stdout.write(json.dumps(values, indent=2) + "\n")


def _show_result(result: Any, as_json: bool) -> None:
    """Print a deploy.Result and leave with its status."""
    if as_json:
        _print_json({"folder": str(result.folder), **result.report})
    else:
        _show_report(result.report)
        out.print(f"{'PASSED' if result.passed else 'FAILED'}: {result.reason}", markup=False)
    if not result.passed:
        raise _Shown(result.reason, "")


def _show_report(report: Mapping[str, Any]) -> None:
    weights, engine = report["weights"], report["engine"]
    if not weights["trained"]:
        out.print(f"*** {weights['statement']} ***", markup=False)
    else:
        out.print(weights["statement"], markup=False)
    out.print(f"engine: {engine['backend']} {engine['version']} on {engine['device']}, {engine['form']} graph", markup=False)
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in engine["precision_shares"].items())
    if shares:
        out.print(f"asked for {report['precision']}; computed in: {shares} (share of the weighted layers' time)", markup=False)
    for note in engine["notes"]:
        out.print(f"note: {note}", markup=False)
    parity = report["parity"]
    for flip in parity["flips"][:5]:
        out.print(f"flipped: {flip['image']}: {flip['reference']} -> {flip['engine']}", markup=False)
    if len(parity["flips"]) > 5:
        out.print(f"and {len(parity['flips']) - 5} more flipped images, by name in report.json", markup=False)
    if report["latency"]:
        _show_latency(list(report["latency"].values()))
    if report.get("plugin"):
        out.print(f"plugin: {report['plugin']['reason']}", markup=False)
    if report.get("choice"):
        other = report["alternative"]
        out.print(f"{report['precision']} was delivered; beside it {other['precision']}: {other['reason']}", markup=False)


def _show_latency(values: Sequence[Mapping[str, Any]]) -> None:
    table = Table("batch", "median ms", "p99 ms", "images/s", "variation", box=None, pad_edge=False)
    for value in values:
        top = list(value["percentiles_ms"].values())[-1]
        steady = "" if value["steady"] else " (unsteady)"
        table.add_row(
            str(value["batch"]),
            f"{value['median_ms']:.3f}",
            f"{top:.3f}",
            f"{value['throughput']:.1f}",
            f"{100 * value['variation']:.1f} %{steady}",
        )
    out.print(table)


def _show_bundle(bundle: Any, layers: int) -> None:
    manifest, report = bundle.manifest, bundle.report
    model = manifest.model
    out.print(
        f"{model.variant} {model.image_size[0]}x{model.image_size[1]}, {model.num_classes} classes, {manifest.precision.value}"
    )
    out.print(manifest.weights.statement, markup=False)
    profile = manifest.profile
    out.print(f"batch {profile.min}..{profile.max}, tuned for {profile.opt}; {manifest.io_dtype} input and output")
    islands = manifest.lowering.get("islands", {})
    for name, reason in islands.items():
        out.print(f"FP32 island: {name} ({reason})", markup=False)
    for key in ("near", "beyond"):
        for name, size in manifest.lowering.get("ranges", {}).get(key, {}).items():
            out.print(f"activation {key} FP16's range: {name} reaches {size:.0f}", markup=False)
    for row in sorted(manifest.lowering.get("int8", {}).get("layer_snr", []), key=_output_db)[:WORST_LAYERS]:
        out.print(f"INT8 layer with the largest error: {row['layer']}, {_output_db(row):.1f} dB", markup=False)
    _show_files(manifest.files)
    if report is None:
        out.print("not deployed yet")
        return
    _show_report(report)
    slowest = sorted(report["engine"]["layers"], key=lambda layer: -(layer["time_ms"] or 0.0))[:layers]
    table = Table("layer", "kind", "precision", "ms", box=None, pad_edge=False)
    for layer in slowest:
        table.add_row(
            layer["name"], layer["kind"], layer["precision"], "" if layer["time_ms"] is None else f"{layer['time_ms']:.3f}"
        )
    out.print(table)
    out.print(f"{'PASSED' if report['passed'] else 'FAILED'}: {report['reason']}", markup=False)


def _output_db(row: Mapping[str, Any]) -> float:
    """Signal-to-noise ratio of a layer's output; JSON has null for a layer without error."""
    return float("inf") if row["output_db"] is None else float(row["output_db"])


def _show_files(files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, entry in files.items():
        out.print(f"  {name}  {entry['bytes'] / 2**20:.2f} MiB", markup=False)
