"""PyTorch model -> 1-plain.onnx: standard ops, dynamic batch, fixed H and W, BatchNorm and GMA still in pieces.

torch.onnx's dynamo exporter writes the graph; nothing is trusted about it: it is run in ONNX Runtime at batch sizes other than
the traced one, because a batch size baked into a reshape is a known trap, and compared with PyTorch.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from gmf_edge.errors import ExportError
from gmf_edge.model.groupmixformer import GroupMixFormer
from gmf_edge.spec import OPSET_NEW

INPUT_NAME, OUTPUT_NAME, BATCH_AXIS = "images", "logits", "batch"
TRACED_BATCH = 2
PROVED_BATCHES = (1, 2, 3, 8)
# of the logits' largest magnitude; two FP32 implementations of some 20 blocks stay an order of magnitude below
EXPORT_TOLERANCE = 1e-4


def export_plain(model: GroupMixFormer, image_size: tuple[int, int], out: Path) -> None:
    """Write the model as a plain ONNX graph and prove it at batch 1, 2, 3 and 8.

    Args:
        model: in evaluation mode, FP32.
        image_size: (H, W) in pixels, multiples of 32.
        out: the .onnx file to write.

    Raises:
        ExportError: the exporter failed, baked the batch size in, or the graph's logits differ from PyTorch's.
    """
    example = torch.zeros(TRACED_BATCH, 3, *image_size)
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=OPSET_NEW,
                dynamic_shapes=({0: torch.export.Dim(BATCH_AXIS)},),
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many types; each means the same to the user
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(
            f"torch.onnx could not export the model: {reason}", "install the torch version that constraints.txt pins"
        ) from error
    if program is None:
        raise ExportError("torch.onnx returned no graph", "install the torch version that constraints.txt pins")
    program.save(str(out))
    _prove_plain(model, image_size, out)


def _prove_plain(model: GroupMixFormer, image_size: tuple[int, int], graph: Path) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]
    if not isinstance(batch, str):
        raise ExportError(f"the exported graph's batch size is fixed at {batch}", "report this with the torch version in use")
    # noise, not pictures: this is about the graph being the same function, and noise reaches every channel
    images = np.random.default_rng(0).standard_normal((max(PROVED_BATCHES), 3, *image_size)).astype(np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    scale = float(np.abs(expected).max())
    for size in PROVED_BATCHES:
        try:
            (logits,) = session.run(None, {INPUT_NAME: images[:size]})
        except Exception as error:
            raise ExportError(
                f"the exported graph fails at batch {size}: {str(error).splitlines()[0]}", "report this with the torch version in use"
            ) from error
        worst = float(np.abs(logits - expected[:size]).max())
        if not worst <= EXPORT_TOLERANCE * scale:
            raise ExportError(
                f"at batch {size} the exported graph's logits differ from PyTorch's by {worst:.2e} (largest logit {scale:.2e})",
                "report this with the torch and onnxruntime versions in use",
            )


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's prints, its warnings about absent torchvision and its deprecation notes."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
