"""C++ programs for the bundle's engine or graph: sources with a CMakeLists.txt, the model, golden inputs with their logits.

A deployed TensorRT bundle gets the TensorRT program and its engine; any other the ONNX Runtime program and its graph.

DIR/CMakeLists.txt, DIR/classify.cpp, DIR/tensor_files.h   the program: float32 images in, float32 logits out
DIR/model/        model.plan, or model.onnx with weights.bin; labels.txt
DIR/golden/       images.f32 [g, 3, H, W], logits.f32 [g, classes] of FP32 PyTorch: raw little-endian float32
DIR/README.md     how to build and run it
"""

from __future__ import annotations

import shutil
from pathlib import Path

from gmf_edge import __version__
from gmf_edge.bundle import GOLDEN, LABELS, Bundle
from gmf_edge.engines.protocol import Progress
from gmf_edge.errors import PackageError
from gmf_edge.package.delivered import (
    Delivered,
    PackageRequest,
    copy_model,
    copy_template,
    delivered_engine,
    require_classifier,
    require_library_for,
    template,
)
from gmf_edge.spec import OPSET_NEW
from gmf_edge.verify.golden import Golden

# backend that delivered the engine -> folder of templates/cpp/
_PROGRAMS = {"tensorrt": "tensorrt", "onnxruntime": "onnxruntime", "openvino": "onnxruntime"}


def write_cpp(bundle: Bundle, request: PackageRequest, out: Path, progress: Progress) -> tuple[str, ...]:
    """Write the program and its model into `out`; notes for the user.

    Raises:
        PackageError: no classifier, input and output that are not float32, or an engine that a plain program cannot load.
        AccuracyError: the bundle's engine is outside the gate.
    """
    require_classifier(bundle)
    manifest = bundle.manifest
    if manifest.io_dtype != "float32":
        raise PackageError(
            f"the graph takes {manifest.io_dtype}, and the C++ programs give float32", "build it with --io-dtype float32"
        )
    engine = delivered_engine(bundle) if bundle.report is not None else _undeployed(bundle)
    if engine.sidecar is not None and engine.sidecar.stripped:
        raise PackageError("the engine has no weights of its own", "deploy without --stripWeights")
    require_library_for(engine.sidecar, request.plugin_library)
    program = _PROGRAMS[engine.backend]
    progress(None, f"writing the program for {program}")
    model = "model.plan" if program == "tensorrt" else "model.onnx"
    copy_model(engine, bundle, out / "model", model)
    shutil.copyfile(bundle.path(LABELS), out / "model" / LABELS)
    golden = Golden.load(bundle.path(GOLDEN))
    (out / "golden").mkdir()
    for name, values in (("images", golden.images), ("logits", golden.logits)):
        (out / "golden" / f"{name}.f32").write_bytes(values.astype("<f4").tobytes())
    for file in ("CMakeLists.txt", "classify.cpp"):
        copy_template(f"cpp/{program}/{file}", out / file)
    copy_template("cpp/tensor_files.h", out / "tensor_files.h")
    plugin = ""
    if request.plugin_library is not None:
        (out / "plugins").mkdir()
        shutil.copyfile(request.plugin_library, out / "plugins" / request.plugin_library.name)
        plugin = f" --plugin plugins/{request.plugin_library.name}"
    height, width = manifest.model.image_size
    text = template(f"cpp/{program}/README.md").substitute(
        about=f"{manifest.model.variant}, {manifest.precision.value}, by gmf-edge {__version__}",
        weights=manifest.weights.statement,
        height=height,
        width=width,
        classes=manifest.model.num_classes,
        batch=manifest.profile.max,
        plugin=plugin,
        version=engine.version or "1.18 or newer",
        device=engine.device,
    )
    (out / "README.md").write_text(text, encoding="utf-8")
    if engine.backend == "openvino":
        return (
            "the bundle was proved with OpenVINO; the program runs the same graph in ONNX Runtime: compare its logits, --expect does",
        )
    if bundle.report is None:
        return (
            "the bundle was not deployed, so nothing was proved of its graph in ONNX Runtime: compare its logits, --expect does",
        )
    return ()


def _undeployed(bundle: Bundle) -> Delivered:
    """The graph that ONNX Runtime would be given, without a proof."""
    form = "onnxruntime" if ("onnxruntime", OPSET_NEW) in bundle.graphs.files else "portable"
    return Delivered("onnxruntime", "", bundle.graphs.path(form, OPSET_NEW), True, None, {}, {}, "")
