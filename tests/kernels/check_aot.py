"""Runs under the real TensorRT bindings over stub libraries: registers the Python plugins and calls their functions.

python check_aot.py FOLDER   FOLDER: kernels of S = 8 in the form "node" for sm_90; prints what the functions return, as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tensorrt as trt
import tensorrt.plugin as trtp
from tensorrt.plugin import _lib as library

from gmf_edge.kernels import tensorrt_aot
from gmf_edge.kernels.compile import read_table

registered: list[str] = []
# the stub library has no registry to put creators into
library._register_plugin_creator = lambda name, namespace, attributes: registered.append(f"{namespace}::{name}")


def tensor(dtype: trt.DataType) -> trtp.TensorDesc:
    description = trtp.TensorDesc(trtp.ShapeExprs(3, _is_dummy=True), dtype)
    description._immutable = True
    return description


tensorrt_aot.register_plugins(read_table(Path(sys.argv[1])), "sm_90")
answers = {"registered": registered}
integers = {"height": 5, "width": 7, "segment_dim": 8, "splits": 2, "tiles_per_split": 3}
for name, count in ((tensorrt_aot.AGGREGATE, 3), (tensorrt_aot.ATTEND, 6)):
    plugin = library.QDP_REGISTRY[f"{tensorrt_aot.NAMESPACE}::{name}"]
    inputs = [tensor(trt.float16) for _ in range(count)]
    described = plugin.register_func(*inputs, **integers)
    outputs = described if isinstance(described, tuple) else (described,)
    entry, ptx, launch, extra = plugin.aot_impl_func(*inputs, **integers, outputs=outputs, tactic=0)
    answers[name] = {
        "inputs": plugin.input_tensor_names,
        "outputs": plugin.num_outputs,
        "types": [str(output.dtype) for output in outputs],
        "entry": entry,
        "ptx_holds_entry": f".entry {entry}" in ptx,
        "integers": len(extra),
        "attributes": plugin.aot_impl_attr_names,
    }
print(json.dumps(answers))
