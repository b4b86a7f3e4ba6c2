"""Triton's Python model: encoded pictures -> model inputs, by the same code that calibration, parity and prediction use.

Copied as model.py into the model repository; gmf_edge/image.py and gmf_edge/errors.py lie beside it. Input "pictures", TYPE_STRING [B, 1]:
the bytes of a JPEG, PNG or whatever else Pillow reads. Output "images", TYPE_FP32 or TYPE_FP16 [B, 3, H, W]. A picture that cannot be read
fails its own request and no other. Interface: README.md of triton-inference-server/python_backend.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

PREPROCESS = "preprocess.json"


class TritonPythonModel:
    """One instance of the preprocessing model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read preprocess.json and the model's configuration; called by Triton once.

        Args:
            args: Triton's; model_config is the configuration as JSON.
        """
        import triton_python_backend_utils as pb_utils

        here = Path(__file__).resolve().parent
        # before any other gmf_edge that the container may have: these pixels are the bundle's
        sys.path.insert(0, str(here))
        from gmf_edge.image import Preprocess, default_workers, input_from_file

        config = json.loads(args["model_config"])
        preprocess = Preprocess.from_json(json.loads((here / PREPROCESS).read_text(encoding="utf-8")))
        upright = config["parameters"]["upright"]["string_value"] == "true"
        output = pb_utils.get_output_config_by_name(config, "images")
        self._dtype = pb_utils.triton_string_to_numpy(output["data_type"])
        self._input_of = partial(input_from_file, preprocess=preprocess, name="the picture", upright=upright)
        self._pool = ThreadPoolExecutor(default_workers(), thread_name_prefix="pictures")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request, in their order: its pictures' inputs, or what is wrong with the first broken one."""
        import numpy as np
        import triton_python_backend_utils as pb_utils

        from gmf_edge.errors import GmfEdgeError

        # Pillow decodes without Python's lock: all pictures of all requests at the same time
        pending = []
        for request in requests:
            pictures = pb_utils.get_input_tensor_by_name(request, "pictures").as_numpy()  # object [B, 1]
            pending.append([self._pool.submit(self._input_of, picture) for picture in pictures.reshape(-1)])
        responses = []
        for pictures in pending:
            try:
                images = np.stack([picture.result() for picture in pictures]).astype(self._dtype, copy=False)
            except GmfEdgeError as error:
                problem = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(output_tensors=[], error=problem))
            else:
                responses.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("images", images)]))
        return responses

    def finalize(self) -> None:
        """Stop the threads; called by Triton once."""
        self._pool.shutdown()
