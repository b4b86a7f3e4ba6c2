"""First step: the FP32 PyTorch model that a build starts from, its preprocessing, classes and data sets.

A request (BuildSpec) leaves most of this open; here it is settled, once.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.errors import DataError, EnvironmentProblem, SpecError
from gmf_edge.image import Preprocess
from gmf_edge.imageset import ImageSet
from gmf_edge.model.plain_stage import model_key
from gmf_edge.prepare.classes import Classes, classes_from_file, classes_from_folders, default_classes, packaged_classes
from gmf_edge.spec import BuildSpec, ModelSpec, Precision, Task
from gmf_edge.weights import ASSETS, WeightsOrigin

if TYPE_CHECKING:
    from gmf_edge.model.groupmixformer import GroupMixFormer

PACKAGED_VARIANT, PACKAGED_SIZE, PACKAGED_CLASSES = "pico", (64, 64), 10
PACKAGED_WEIGHTS = ASSETS / "pico.safetensors"
PACKAGED_TEST, PACKAGED_CALIBRATION = ASSETS / "pico-digits-test.zip", ASSETS / "pico-digits-calibration.zip"
DEFAULT_SIZE, DEFAULT_CLASSES = (224, 224), 1000
# without trained weights only numerics can be judged, and those need no thousands of images
UNTRAINED_IMAGES = 64


@dataclass(frozen=True)
class SourceModel:
    """The FP32 PyTorch model, how pictures come to it, and the data sets of the build.

    Attributes:
        model: in evaluation mode.
        origin: of its weights.
        preprocess: how pictures come to it.
        classes: their names; none of a backbone.
        evaluation: images to evaluate on, or None.
        calibration: images to calibrate INT8 on; None for other precisions, or where ranges were given.
    """

    model: GroupMixFormer
    origin: WeightsOrigin
    preprocess: Preprocess
    classes: Classes
    evaluation: ImageSet | None
    calibration: ImageSet | None = None

    @property
    def spec(self) -> ModelSpec:
        """Of the model."""
        return self.model.spec

    @property
    def key(self) -> dict[str, Any]:
        """What decides the model's function, for the keys of stages."""
        return model_key(self.spec, self.origin)


def load_source(spec: BuildSpec, stack: ExitStack, progress: Progress = silent, with_evaluation: bool = True) -> SourceModel:
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
    _refuse_early(spec)
    progress(None, "loading weights")
    model, origin = _weights(spec)
    preprocess = Preprocess(model.spec.image_size)
    if spec.crop_pct is not None:
        preprocess = replace(preprocess, crop_pct=spec.crop_pct)
    address = spec.eval_data
    if address is None and origin.kind == "packaged":
        address = PACKAGED_TEST
    evaluation = None
    if address is not None and with_evaluation:
        evaluation = stack.enter_context(ImageSet.open(address))
        if not origin.trained and spec.eval_images is None:
            evaluation = evaluation.spread(min(UNTRAINED_IMAGES, len(evaluation)), spec.seed)
        elif spec.eval_images is not None:
            evaluation = evaluation.spread(min(spec.eval_images, len(evaluation)), spec.seed)
    classes = _classes(spec, model.spec, origin, evaluation) if spec.task is Task.CLASSIFY else Classes(())
    calibration = None
    if spec.precision is Precision.INT8 and spec.ranges is None:
        calibration = _calibration_images(spec, origin, evaluation, stack)
    return SourceModel(model, origin, preprocess, classes, evaluation, calibration)


def _refuse_early(spec: BuildSpec) -> None:
    """Small files that are wanted after minutes of export are read before it."""
    if spec.precision is not Precision.INT8:
        return
    from gmf_edge.precision.ranges import read_ranges
    from gmf_edge.precision.recipe import open_recipe

    open_recipe(spec.recipe)
    if spec.ranges is not None:
        read_ranges(spec.ranges)


def _calibration_images(spec: BuildSpec, origin: WeightsOrigin, evaluation: ImageSet | None, stack: ExitStack) -> ImageSet:
    from gmf_edge.precision.calibration_images import check_disjoint, draw

    address = spec.calibration_data
    if address is None and origin.kind == "packaged":
        address = PACKAGED_CALIBRATION
    if address is None:
        raise SpecError(
            "INT8 needs images to calibrate on", "give --calibration-data with some 500 images of the training split, or --ranges"
        )
    drawn = draw(stack.enter_context(ImageSet.open(address)), spec.calibration_images, spec.seed)
    if evaluation is not None:
        check_disjoint(drawn, evaluation)
    return drawn


def _weights(spec: BuildSpec) -> tuple[GroupMixFormer, WeightsOrigin]:
    from gmf_edge.model.checkpoint import load_model
    from gmf_edge.model.groupmixformer import random_model

    if spec.checkpoint is not None:
        return load_model(
            spec.checkpoint,
            variant=spec.variant,
            num_classes=spec.num_classes,
            image_size=spec.input_size or DEFAULT_SIZE,
            task=spec.task,
        )
    variant = spec.variant or PACKAGED_VARIANT
    if variant == PACKAGED_VARIANT and spec.num_classes in (None, PACKAGED_CLASSES):
        size = spec.input_size or PACKAGED_SIZE
        return load_model(PACKAGED_WEIGHTS, variant=variant, image_size=size, kind="packaged", task=spec.task)
    model_spec = ModelSpec.of(variant, spec.num_classes or DEFAULT_CLASSES, spec.input_size or DEFAULT_SIZE, spec.task)
    return random_model(model_spec, spec.seed), WeightsOrigin.random(spec.seed)


def _classes(request: BuildSpec, spec: ModelSpec, origin: WeightsOrigin, evaluation: ImageSet | None) -> Classes:
    packaged = packaged_classes(spec.num_classes) if origin.kind == "packaged" else None
    if evaluation is not None and evaluation.labelled and origin.trained:
        if len(evaluation.classes) != spec.num_classes:
            raise DataError(
                f"{evaluation.address} has {len(evaluation.classes)} classes, the model {spec.num_classes}",
                "evaluate on images of the classes that the model was trained for, one folder a class",
            )
        if packaged is not None and tuple(evaluation.classes) != packaged.names:
            raise DataError(
                f"the class folders of {evaluation.address} are not the packaged model's", f"name them {', '.join(packaged.names)}"
            )
    if request.labels is not None:
        return classes_from_file(request.labels, spec.num_classes)
    if packaged is not None:
        return packaged
    if evaluation is not None and len(evaluation.classes) == spec.num_classes:
        return classes_from_folders(evaluation.classes)
    return default_classes(spec.num_classes)
