"""A Triton model repository.

DIR/model_repository/<name>               the engine: images [B, 3, H, W] -> logits [B, classes]
DIR/model_repository/<name>_preprocess    Python: pictures, encoded, [B, 1] -> images, pixel for pixel as `gmf-edge predict`
DIR/model_repository/<name>_pictures      the two as an ensemble: pictures -> logits
DIR/plugins/                              the TensorRT plugin's library, where the engine needs it
DIR/Dockerfile, DIR/README.md             Triton's image with Pillow; how to start and ask it

The backends' own files and parameters: README.md of triton-inference-server/{tensorrt,onnxruntime,openvino,python}_backend.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import gmf_edge.errors
import gmf_edge.image
import gmf_edge.package.triton_preprocess
from gmf_edge import __version__
from gmf_edge.bundle import LABELS, Bundle
from gmf_edge.engines.openvino.saturation import NARROWED_NOTE
from gmf_edge.engines.protocol import Progress
from gmf_edge.engines.tensorrt.sidecar import Sidecar, architecture_of
from gmf_edge.errors import PackageError
from gmf_edge.package.delivered import (
    Delivered,
    PackageRequest,
    copy_model,
    delivered_engine,
    require_classifier,
    require_library_for,
    template,
)
from gmf_edge.package.triton_config import CONFIG, Symbol, check_repository, missing_schema, parameters, tensor, to_pbtxt
from gmf_edge.package.triton_preprocess import PREPROCESS
from gmf_edge.spec import IMAGES, LOGITS, BatchProfile, Precision

REPOSITORY, PLUGINS, VERSION = "model_repository", "plugins", "1"
PICTURES = "pictures"
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16"}
# in the library that registers itself when it is loaded, and in no other: plugins/gma/register.cpp
_REGISTERS_ITSELF = b"not registered, because"


def write_triton(bundle: Bundle, request: PackageRequest, out: Path, progress: Progress) -> tuple[str, ...]:
    """Write the repository of a deployed bundle into `out`; notes for the user.

    Raises:
        PackageError: the bundle is not deployed, Triton cannot serve it as it was proved, or the result is not what Triton takes.
        AccuracyError: its engine is outside the gate.
    """
    require_classifier(bundle)
    engine = delivered_engine(bundle)
    _require_servable(bundle, engine)
    require_library_for(engine.sidecar, request.plugin_library)
    name = request.name or f"gmf_{bundle.manifest.model.variant}"
    repository = out / REPOSITORY
    progress(None, f"writing the models {name}, {name}_preprocess and {name}_{PICTURES}")
    _write_engine(bundle, engine, request, repository / name)
    _write_preprocess(bundle, repository / f"{name}_preprocess")
    _write_ensemble(bundle, name, repository / f"{name}_{PICTURES}")
    notes = [*_precision_notes(engine), *_batch_notes(bundle, engine)]
    missing = missing_schema()
    if missing is None:
        progress(None, "parsing the configurations with Triton's protobuf")
        check_repository(repository)
    else:
        notes.append(
            f"the configurations were not parsed with Triton's protobuf, because {missing}: pip install tritonclient protobuf"
        )
    library = None
    if request.plugin_library is not None:
        library = _copy_plugin(request.plugin_library, out / PLUGINS)
    _write_readme(bundle, engine, name, library, notes, out)
    return tuple(notes)


def _require_servable(bundle: Bundle, engine: Delivered) -> None:
    """Triton must run the engine as it was proved, or the proof says nothing.

    Raises:
        PackageError: it would not.
    """
    profile = bundle.manifest.profile
    if profile.min > 1:
        raise PackageError(
            f"the smallest batch is {profile.min}, and Triton sends single requests", "build or export it with --min-batch 1"
        )
    if engine.sidecar is not None and engine.sidecar.stripped:
        raise PackageError(
            "the engine has no weights of its own, and Triton does not put them back", "deploy without --stripWeights"
        )
    if engine.backend == "openvino" and bundle.manifest.precision is Precision.INT8 and _narrowed(bundle):
        raise PackageError(
            "this CPU has no VNNI: the INT8 weights were given 7 bits when the engine was opened, and Triton's OpenVINO does not do that",
            "deploy with --backend onnxruntime, or on a CPU with VNNI",
        )


def _narrowed(bundle: Bundle) -> bool:
    report = bundle.report or {"engine": {"notes": []}}
    return NARROWED_NOTE in report["engine"]["notes"]


def _write_engine(bundle: Bundle, engine: Delivered, request: PackageRequest, folder: Path) -> None:
    manifest = bundle.manifest
    file = "model.plan" if engine.backend == "tensorrt" else "model.onnx"
    copy_model(engine, bundle, folder / VERSION, file)
    shutil.copyfile(bundle.path(LABELS), folder / LABELS)
    dtype, shape = _TYPES[manifest.io_dtype], [3, *manifest.model.image_size]
    config: dict[str, Any] = {
        "name": folder.name,
        "backend": engine.backend,
        # OpenVINO's backend looks for model.xml where it is not told
        **({"default_model_filename": file} if engine.backend == "openvino" else {}),
        "max_batch_size": manifest.profile.max,
        "input": [tensor(IMAGES, dtype, shape)],
        "output": [tensor(LOGITS, dtype, [manifest.model.num_classes], label_filename=LABELS)],
        "instance_group": [{"count": request.instances, "kind": _kind(engine)}],
        **_batching(manifest.profile, request.max_queue_delay_us),
        "model_warmup": [
            {
                "name": f"batch {size}",
                "batch_size": size,
                "inputs": [
                    {"key": IMAGES, "value": {"data_type": Symbol(dtype), "dims": shape, "random_data": True}},
                ],
            }
            for size in manifest.profile.sizes
        ],
    }
    settings = _backend_parameters(engine, manifest.profile)
    if settings:
        config["parameters"] = parameters(settings)
    _write_config(folder, config)


def _kind(engine: Delivered) -> Symbol:
    # OpenVINO's backend takes KIND_CPU alone, also for its GPUs
    return Symbol("KIND_GPU" if engine.backend == "tensorrt" else "KIND_CPU")


def _batching(profile: BatchProfile, delay_us: int) -> dict[str, Any]:
    """Preferred are the sizes that the engine was tuned and proved for; a batch of one needs no batcher."""
    preferred = [size for size in profile.sizes if size > 1]
    if not preferred:
        return {}
    return {"dynamic_batching": {"preferred_batch_size": preferred, "max_queue_delay_microseconds": delay_us}}


def _backend_parameters(engine: Delivered, profile: BatchProfile) -> dict[str, str]:
    """As the engine ran when it was proved."""
    threads = engine.options.get("threads")
    if engine.backend == "onnxruntime":
        return {} if threads is None else {"intra_op_thread_count": str(threads)}
    if engine.backend == "openvino":
        settings = {
            "PERFORMANCE_HINT": "LATENCY" if engine.options.get("streams", 1) == 1 else "THROUGHPUT",
            "NUM_STREAMS": str(engine.options.get("streams", 1)),
            "TARGET_DEVICE": str(engine.options.get("device", "CPU")),
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        if engine.options.get("arithmetic") == "bf16":
            settings["HINT_BF16"] = "YES"
        if profile.max > 1:
            settings["ENABLE_BATCH_PADDING"] = "YES"
        return settings
    return {}


def _write_preprocess(bundle: Bundle, folder: Path) -> None:
    manifest = bundle.manifest
    version = folder / VERSION
    package = version / "gmf_edge"
    package.mkdir(parents=True)
    for module in (gmf_edge.image, gmf_edge.errors):
        shutil.copyfile(_source_of(module), package / _source_of(module).name)
    (package / "__init__.py").write_text(f'"""What preprocessing needs of gmf-edge {__version__}."""\n', encoding="utf-8")
    shutil.copyfile(_source_of(gmf_edge.package.triton_preprocess), version / "model.py")
    (version / PREPROCESS).write_text(json.dumps(manifest.preprocess.to_json(), indent=2) + "\n", encoding="utf-8")
    config = {
        "name": folder.name,
        "backend": "python",
        "max_batch_size": manifest.profile.max,
        "input": [tensor(PICTURES, "TYPE_STRING", [1])],
        "output": [tensor(IMAGES, _TYPES[manifest.io_dtype], [3, *manifest.model.image_size])],
        "instance_group": [{"count": 1, "kind": Symbol("KIND_CPU")}],
        # photographs are turned as their EXIF data say, as `gmf-edge predict` does; "false" for pixels as the evaluation has them
        "parameters": parameters({"upright": "true"}),
    }
    _write_config(folder, config)


def _source_of(module: Any) -> Path:
    return Path(module.__file__)


def _write_ensemble(bundle: Bundle, name: str, folder: Path) -> None:
    manifest = bundle.manifest
    (folder / VERSION).mkdir(parents=True)
    # Triton wants the version's folder, and a copy by many tools leaves empty folders behind
    (folder / VERSION / "ensemble.txt").write_text("An ensemble has no files; see config.pbtxt.\n", encoding="utf-8")
    shutil.copyfile(bundle.path(LABELS), folder / LABELS)
    config = {
        "name": folder.name,
        "platform": "ensemble",
        "max_batch_size": manifest.profile.max,
        "input": [tensor(PICTURES, "TYPE_STRING", [1])],
        "output": [tensor(LOGITS, _TYPES[manifest.io_dtype], [manifest.model.num_classes], label_filename=LABELS)],
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": f"{name}_preprocess",
                    "model_version": -1,
                    "input_map": [{"key": PICTURES, "value": PICTURES}],
                    "output_map": [{"key": IMAGES, "value": IMAGES}],
                },
                {
                    "model_name": name,
                    "model_version": -1,
                    "input_map": [{"key": IMAGES, "value": IMAGES}],
                    "output_map": [{"key": LOGITS, "value": LOGITS}],
                },
            ]
        },
    }
    _write_config(folder, config)


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / CONFIG).write_text(to_pbtxt(config) + "\n", encoding="utf-8")


def _copy_plugin(library: Path, folder: Path) -> str:
    """Its name there.

    Raises:
        PackageError: not the library that registers itself: Triton only loads it and asks for nothing.
    """
    if _REGISTERS_ITSELF not in library.read_bytes():
        raise PackageError(
            f"{library} does not register its plugin when it is loaded, which is all that Triton does with it",
            "give libgmf_edge_plugin_registered.so, which 'make plugin' builds as well",
        )
    folder.mkdir()
    shutil.copyfile(library, folder / library.name)
    return library.name


def _precision_notes(engine: Delivered) -> list[str]:
    if engine.backend != "openvino" or engine.options.get("arithmetic") == "bf16":
        return []
    return [
        "Triton's OpenVINO backend cannot be told to compute in FP32: on a CPU that multiplies BF16 or FP16 it may, and then other logits "
        "come out than those that were proved; --backend onnxruntime computes what it is given"
    ]


def _batch_notes(bundle: Bundle, engine: Delivered) -> list[str]:
    size = bundle.manifest.profile.max
    if engine.backend != "openvino" or size == 1:
        return []
    return [f"Triton's OpenVINO backend fills every batch up to {size}: for latency, build with --max-batch 1"]


def _write_readme(bundle: Bundle, engine: Delivered, name: str, library: str | None, notes: list[str], out: Path) -> None:
    pillow = metadata.version("pillow")
    (out / "Dockerfile").write_text(template("triton/Dockerfile").substitute(pillow=pillow), encoding="utf-8")
    text = template("triton/README.md").substitute(
        name=name,
        about=f"{bundle.manifest.model.variant}, {bundle.manifest.precision.value}, by gmf-edge {__version__}",
        weights=bundle.manifest.weights.statement,
        image=_image(engine),
        gpus="--gpus all " if engine.backend == "tensorrt" else "",
        server_options=_server_options(engine.sidecar, library),
        batch=bundle.manifest.profile.max,
        height=bundle.manifest.model.image_size[0],
        width=bundle.manifest.model.image_size[1],
        classes=bundle.manifest.model.num_classes,
        dtype=_TYPES[bundle.manifest.io_dtype],
        notes="".join(f"- {note}.\n" for note in notes),
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def _image(engine: Delivered) -> str:
    """Which release of Triton to take, by NVIDIA's support matrix."""
    if engine.sidecar is None:
        return f"any release with the {engine.backend} backend; proved here with version {engine.version} on {engine.device}"
    built = engine.sidecar
    where = f"{built.device['name']} ({architecture_of(built.device)})"
    if built.version_compatible:
        return f"a release with TensorRT {built.tensorrt} or newer, on {where}"
    return f"the release whose TensorRT is {built.tensorrt}, on {where}: the engine loads nowhere else"


def _server_options(sidecar: Sidecar | None, library: str | None) -> str:
    options = []
    if library is not None:
        options.append(f"plugins=/models/{PLUGINS}/{library}")
    if sidecar is not None and sidecar.version_compatible:
        options.append("version-compatible=true")
    return "".join(f" \\\n    --backend-config=tensorrt,{option}" for option in options)
