"""The workstation's half: a checkpoint becomes a bundle. The one half that needs torch and onnx.

weights -> 1-plain.onnx -> 2-fused.onnx -> 3-<precision>.onnx -> portable and plugin graphs over one weights.bin, beside golden data
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge import __version__
from gmf_edge.artifact import Stage, digest_of, library_versions, new_folder, run_stage, sha256_of
from gmf_edge.bundle import GOLDEN, LABELS, REFERENCE, Bundle, Manifest, is_bundle, seal
from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.errors import BundleError, DataError, EnvironmentProblem
from gmf_edge.image import Preprocess
from gmf_edge.imageset import ImageSet
from gmf_edge.spec import OPSET_NEW, OPSET_OLD, TARGETS, BuildSpec, ModelSpec
from gmf_edge.verify.golden import Golden, Reference
from gmf_edge.weights import WeightsOrigin

if TYPE_CHECKING:
    from gmf_edge.model.groupmixformer import GroupMixFormer

ASSETS = Path(__file__).parent / "assets"
PACKAGED_VARIANT, PACKAGED_SIZE, PACKAGED_CLASSES = "pico", (64, 64), 10
PACKAGED_WEIGHTS, PACKAGED_TEST, PACKAGED_LABELS = (
    ASSETS / "pico.safetensors",
    ASSETS / "pico-digits-test.zip",
    ASSETS / "pico-labels.txt",
)
DEFAULT_SIZE, DEFAULT_CLASSES = (224, 224), 1000
GOLDEN_IMAGES = 16
RANGE_BATCH = REFERENCE_BATCH = 8
# without trained weights only numerics can be judged, and those need no thousands of images
UNTRAINED_IMAGES = 128
# (file name, form, opset): the graphs that the targets of gmf_edge.spec.TARGETS need
GRAPH_FILES = (
    ("portable.onnx", "portable", OPSET_NEW),
    ("plugin.onnx", "plugin", OPSET_NEW),
    ("portable-opset17.onnx", "portable", OPSET_OLD),
    ("plugin-opset17.onnx", "plugin", OPSET_OLD),
)


@dataclass(frozen=True)
class Subject:
    """What a build is about: the FP32 PyTorch model, its weights' origin, how pictures come to it and the evaluation images."""

    model: GroupMixFormer
    origin: WeightsOrigin
    preprocess: Preprocess
    classes: tuple[str, ...]
    images: ImageSet | None

    @property
    def spec(self) -> ModelSpec:
        """Of the model."""
        return self.model.spec

    @property
    def key(self) -> dict[str, Any]:
        """What decides the model's function, for the keys of stages."""
        return {"model": self.spec.to_json(), "weights": self.origin.to_json()}


def export(spec: BuildSpec, out: Path, progress: Progress = silent) -> Bundle:
    """Make a bundle, without an engine: what `gmf-edge export` does.

    Args:
        spec: the request.
        out: folder to write; a bundle that is there is replaced whole.
        progress: told what is going on.

    Raises:
        GmfEdgeError: see gmf_edge.errors; nothing is left behind.
    """
    refuse_foreign(out)
    with ExitStack() as stack:
        subject = resolve(spec, stack, progress)
        with new_folder(out) as folder:
            write_bundle(subject, spec, folder, progress)
    return Bundle(out, _manifest_in(out))


def write_bundle(subject: Subject, spec: BuildSpec, folder: Path, progress: Progress = silent) -> Bundle:
    """The stages in their order, into a folder that exists and is empty."""
    plain = _plain_stage(subject, progress)
    fused = _fused_stage(plain, progress)
    reference = _reference_stage(subject, spec, progress)
    lowered = _lowered_stage(fused, reference, spec, progress)

    for stage in (lowered, reference):
        for path in stage.folder.iterdir():
            if path.name != "stage.json":
                shutil.copyfile(path, folder / path.name)
    (folder / LABELS).write_text("\n".join(subject.classes) + "\n", encoding="utf-8")
    manifest = Manifest(
        model=subject.spec,
        weights=subject.origin,
        precision=spec.precision,
        profile=spec.profile,
        preprocess=subject.preprocess,
        gate=spec.gate,
        io_dtype=spec.io_dtype,
        classes=subject.classes,
        graphs={f"{form}/{opset}": name for name, form, opset in GRAPH_FILES},
        lowering=lowered.facts["lowering"],
        rewriting=tuple(fused.facts["passes"]),
        versions={"gmf-edge": __version__, **library_versions()},
        evaluation=reference.facts["evaluation"],
    )
    return seal(folder, manifest)


def refuse_foreign(out: Path) -> None:
    """Never replace what gmf-edge did not make.

    Raises:
        BundleError: the output is a file, or a folder with other content.
    """
    if out.exists() and not is_bundle(out) and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out} exists and is not a bundle", "choose another --output, or remove it")


def resolve(spec: BuildSpec, stack: ExitStack, progress: Progress = silent) -> Subject:
    """Load or draw the weights, open the evaluation images, and settle everything that the request left open.

    Raises:
        EnvironmentProblem: torch or onnx is not installed.
        CheckpointError, DataError, SpecError: bad input.
    """
    missing = [name for name in ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            f"this half needs {', '.join(missing)}, which is not installed",
            "pip install 'gmf-edge[workstation]' here, or deploy a bundle that was exported elsewhere",
        )
    progress(None, "loading weights")
    model, origin = _weights(spec)
    preprocess = Preprocess(model.spec.image_size)
    if spec.crop_pct is not None:
        preprocess = replace(preprocess, crop_pct=spec.crop_pct)
    address = spec.eval_data
    if address is None and origin.kind == "packaged":
        address = PACKAGED_TEST
    images = None
    if address is not None:
        images = stack.enter_context(ImageSet.open(address))
        if not origin.trained and spec.eval_images is None:
            images = images.spread(min(UNTRAINED_IMAGES, len(images)), spec.seed)
        elif spec.eval_images is not None:
            images = images.spread(min(spec.eval_images, len(images)), spec.seed)
    return Subject(model, origin, preprocess, _class_names(model.spec, origin, images), images)


def _weights(spec: BuildSpec) -> tuple[GroupMixFormer, WeightsOrigin]:
    from gmf_edge.model.checkpoint import load_model
    from gmf_edge.model.groupmixformer import random_model

    if spec.checkpoint is not None:
        return load_model(
            spec.checkpoint, variant=spec.variant, num_classes=spec.num_classes, image_size=spec.image_size or DEFAULT_SIZE
        )
    variant = spec.variant or PACKAGED_VARIANT
    if variant == PACKAGED_VARIANT and spec.num_classes in (None, PACKAGED_CLASSES):
        return load_model(PACKAGED_WEIGHTS, variant=variant, image_size=spec.image_size or PACKAGED_SIZE, kind="packaged")
    model_spec = ModelSpec.of(variant, spec.num_classes or DEFAULT_CLASSES, spec.image_size or DEFAULT_SIZE)
    return random_model(model_spec, spec.seed), WeightsOrigin.random(spec.seed)


def _class_names(spec: ModelSpec, origin: WeightsOrigin, images: ImageSet | None) -> tuple[str, ...]:
    known = tuple(PACKAGED_LABELS.read_text(encoding="utf-8").split("\n"))[: spec.num_classes] if origin.kind == "packaged" else ()
    if images is not None and images.labelled and origin.trained:
        if len(images.classes) != spec.num_classes:
            raise DataError(
                f"{images.address} has {len(images.classes)} classes, the model {spec.num_classes}",
                "evaluate on images of the classes that the model was trained for, one folder a class",
            )
        if known and tuple(images.classes) != known:
            raise DataError(f"the class folders of {images.address} are not the packaged model's", f"name them {', '.join(known)}")
    if known:
        return known
    if images is not None and len(images.classes) == spec.num_classes:
        return tuple(images.classes)
    return tuple(f"class {index}" for index in range(spec.num_classes))


def _plain_stage(subject: Subject, progress: Progress) -> Stage:
    def make(folder: Path) -> Mapping[str, Any]:
        from gmf_edge.model.export import export_plain

        progress(None, "exporting 1-plain.onnx")
        export_plain(subject.model, subject.spec.image_size, folder / "1-plain.onnx")
        return {}

    return _said(run_stage("plain", subject.key, make), "1-plain.onnx", progress)


def _fused_stage(plain: Stage, progress: Progress) -> Stage:
    def make(folder: Path) -> Mapping[str, Any]:
        from gmf_edge.rewrite.passes import rewrite_onnx

        progress(None, "rewriting to 2-fused.onnx")
        return {"passes": [asdict(record) for record in rewrite_onnx(plain.folder / "1-plain.onnx", folder / "2-fused.onnx")]}

    return _said(run_stage("fused", {"plain": plain.key}, make), "2-fused.onnx", progress)


def _lowered_stage(fused: Stage, reference: Stage, spec: BuildSpec, progress: Progress) -> Stage:
    def make(folder: Path) -> Mapping[str, Any]:
        import onnx_ir

        from gmf_edge.precision.lower import lower_precision
        from gmf_edge.rewrite.bodies import drop_bodies, inline_bodies
        from gmf_edge.rewrite.opset import for_target
        from gmf_edge.rewrite.shared_weights import save_graphs

        progress(None, f"lowering to 3-{spec.precision.value}.onnx")
        graph = onnx_ir.load(fused.folder / "2-fused.onnx")
        golden = Golden.load(reference.folder / GOLDEN).images
        batches = (golden[start : start + RANGE_BATCH] for start in range(0, len(golden), RANGE_BATCH))
        lowering = lower_precision(graph, spec.precision, spec.io_dtype, inline_bodies, batches)
        forms = {"portable": inline_bodies(graph), "plugin": drop_bodies(graph)}
        target_of = {target.opset: target for target in TARGETS.values()}
        save_graphs({name: for_target(forms[form], target_of[opset]) for name, form, opset in GRAPH_FILES}, folder)
        return {"lowering": lowering}

    inputs = {
        "fused": fused.key,
        "golden": sha256_of(reference.folder / GOLDEN),
        "precision": spec.precision.value,
        "io_dtype": spec.io_dtype,
    }
    return _said(run_stage("lowered", inputs, make), f"3-{spec.precision.value}.onnx", progress)


def _reference_stage(subject: Subject, spec: BuildSpec, progress: Progress) -> Stage:
    images = subject.images
    inputs = {
        **subject.key,
        "preprocess": subject.preprocess.to_json(),
        "images": None if images is None else images.sha256,
        "seed": spec.seed,
    }

    def make(folder: Path) -> Mapping[str, Any]:
        from gmf_edge.model.reference import reference_logits

        if images is None:
            golden_inputs, source = _synthetic_inputs(subject.preprocess, spec.seed), "synthetic pictures"
        else:
            chosen = images.spread(min(GOLDEN_IMAGES, len(images)), spec.seed)
            golden_inputs = np.concatenate([batch.inputs for batch in chosen.batches(subject.preprocess, REFERENCE_BATCH)])
            source = f"{len(chosen)} images of {Path(images.address).name}"
            _evaluation_reference(subject, images, progress).save(folder / REFERENCE)
        logits = np.concatenate(list(reference_logits(subject.model, _parts(golden_inputs))))
        Golden(golden_inputs, logits, source).save(folder / GOLDEN)
        evaluation = None
        if images is not None:
            evaluation = {"name": Path(images.address).name, "images": len(images), "sha256": digest_of(images.sha256)}
        return {"evaluation": evaluation}

    return _said(run_stage("reference", inputs, make), "FP32 PyTorch's logits", progress)


def _evaluation_reference(subject: Subject, images: ImageSet, progress: Progress) -> Reference:
    from gmf_edge.model.reference import reference_logits

    def inputs() -> Iterator[NDArray[np.float32]]:
        done = 0
        for batch in images.batches(subject.preprocess, REFERENCE_BATCH):
            yield batch.inputs
            done += len(batch.inputs)
            progress(done / len(images), f"FP32 PyTorch on {done} of {len(images)} images")

    try:
        logits = np.concatenate(list(reference_logits(subject.model, inputs())))
    except DataError:
        # one broken picture stops the stream; name all of them before giving up
        images.require_readable()
        raise
    return Reference(
        tuple(item.name for item in images.items),
        tuple(item.sha256 for item in images.items),
        images.labels if subject.origin.trained else None,
        logits,
    )


def _parts(inputs: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    return (inputs[start : start + REFERENCE_BATCH] for start in range(0, len(inputs), REFERENCE_BATCH))


def _synthetic_inputs(preprocess: Preprocess, seed: int) -> NDArray[np.float32]:
    """Pictures drawn with the 1/f spectrum of natural images, preprocessed: for numerics where no images were given.

    Source of the spectrum: Field, Relations between the statistics of natural images, JOSA A 4 (1987).
    """
    height, width = preprocess.image_size
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    spectrum = rng.standard_normal((GOLDEN_IMAGES, 3, height, width)) + 1j * rng.standard_normal((GOLDEN_IMAGES, 3, height, width))
    pictures = np.fft.ifft2(spectrum / frequency).real
    pictures /= pictures.std(axis=(1, 2, 3), keepdims=True)
    # ImageNet's pixels have about these moments on the 0..1 scale
    pixels = np.clip(0.45 + 0.25 * pictures, 0, 1)
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return np.ascontiguousarray((pixels - mean) / std, np.float32)


def _said(stage: Stage, what: str, progress: Progress) -> Stage:
    if stage.reused:
        progress(None, f"{what}: unchanged, taken from the cache")
    return stage


def _manifest_in(out: Path) -> Manifest:
    from gmf_edge.bundle import open_bundle

    return open_bundle(out).manifest
