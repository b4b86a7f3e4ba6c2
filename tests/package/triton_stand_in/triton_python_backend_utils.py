"""What Triton's Python backend gives to a model, as far as this project uses it.

After triton-inference-server/python_backend: src/pb_stub.cc (Tensor: two positional arguments; InferenceResponse: output_tensors, error;
TritonError: a message and a code, static codes), src/resources/triton_python_backend_utils.py (the functions; BYTES tensors are arrays
of objects that are bytes).
"""

from __future__ import annotations

import numpy as np


class Tensor:
    def __init__(self, name, array, /):
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise TypeError("__init__(): incompatible constructor arguments")
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message, code=INTERNAL):
        if not isinstance(message, str):
            raise TypeError("__init__(): incompatible constructor arguments")
        self._message, self._code = message, code

    def message(self):
        return self._message

    def code(self):
        return self._code


class InferenceRequest:
    def __init__(self, inputs):
        self._inputs = inputs

    def inputs(self):
        return self._inputs


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        if not all(isinstance(tensor, Tensor) for tensor in output_tensors):
            raise TypeError("__init__(): incompatible constructor arguments")
        if error is not None and not isinstance(error, TritonError):
            raise TypeError("__init__(): incompatible constructor arguments")
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self):
        return self._tensors

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error


def get_input_tensor_by_name(inference_request, name):
    return next((tensor for tensor in inference_request.inputs() if tensor.name() == name), None)


def get_output_config_by_name(model_config, name):
    return next((output for output in model_config.get("output", []) if output["name"] == name), None)


def triton_string_to_numpy(triton_type_string):
    return {"TYPE_FP16": np.float16, "TYPE_FP32": np.float32, "TYPE_STRING": np.object_}[triton_type_string]
