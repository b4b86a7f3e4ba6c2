"""serve.py MODEL_PY CONFIG_JSON OUT PICTURE...: what Triton does with a Python model.

The requests: the first picture, all pictures, and the first with what is no picture.

Beside this file lies the stand-in of triton_python_backend_utils. The path gets the model's folder at its end, as Triton appends it.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

model_py, config, out, *names = sys.argv[1:]
sys.path.append(str(Path(model_py).parent))
model = importlib.import_module("model").TritonPythonModel()
folder = Path(model_py).parents[1]
model.initialize(
    {
        "model_config": Path(config).read_text(),
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
        "model_repository": str(folder),
        "model_version": "1",
        "model_name": folder.name,
    }
)
pictures = [Path(name).read_bytes() for name in names]


def request(contents: list[bytes]) -> pb_utils.InferenceRequest:
    return pb_utils.InferenceRequest([pb_utils.Tensor("pictures", np.array(contents, object).reshape(-1, 1))])


alone, together, broken = model.execute([request(pictures[:1]), request(pictures), request([pictures[0], b"no picture"])])
model.finalize()
assert not alone.has_error()
assert not together.has_error()
for response in (alone, together):
    assert [tensor.name() for tensor in response.output_tensors()] == ["images"]

np.savez(
    out,
    alone=alone.output_tensors()[0].as_numpy(),
    together=together.output_tensors()[0].as_numpy(),
    error=broken.error().message(),
    code_is_invalid_argument=broken.error().code() == pb_utils.TritonError.INVALID_ARG,
    code_from=sys.modules["gmf_edge.image"].__file__,
)
