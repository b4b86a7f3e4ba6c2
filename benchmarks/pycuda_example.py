"""Images that PyCUDA already holds on the GPU through a TensorRT engine, without a copy to the host or on the device.

    python benchmarks/pycuda_example.py BUNDLE        (deployed on this machine with `gmf-edge deploy --backend tensorrt`)

PyTorch, CuPy and Numba arrays go the same way: infer_device takes anything with __cuda_array_interface__ or __dlpack__.
pycuda.autoinit would make a CUDA context of its own, whose arrays the engine refuses.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pycuda.autoprimaryctx  # the primary context is the one that TensorRT and cuda-python use
import pycuda.driver
from pycuda import gpuarray

from gmf_edge.engines.tensorrt.backend import ENGINE_FILE, open_engine
from gmf_edge.engines.tensorrt.sidecar import Sidecar


def main(bundle: Path) -> None:
    path = bundle / ENGINE_FILE
    sidecar = Sidecar.read(path)
    with open_engine(path, sidecar, refit_from=bundle / sidecar.graph_file) as engine:
        batch = engine.profile.opt
        images = np.random.default_rng(0).normal(size=(batch, *engine.io.image_shape)).astype(engine.io.input_dtype)
        on_gpu = gpuarray.to_gpu(images)
        logits = gpuarray.empty((batch, engine.io.classes), engine.io.output_dtype)
        through_host = engine.infer(images.astype(np.float32))
        engine.infer_device(on_gpu, out=logits)  # complete on return
        print(f"batch {batch}: largest difference to the way through the host {np.abs(logits.get() - through_host).max():g}")
        stream = pycuda.driver.Stream()
        # enqueued behind what is on the stream; from the third time on it is one launch of a CUDA graph
        for _ in range(3):
            engine.infer_device(on_gpu, out=logits, stream=stream.handle)
        stream.synchronize()
        print("top-1:", logits.get().argmax(axis=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
