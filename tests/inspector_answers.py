"""What TensorRT's engine inspector answers, version by version, for a small GMA network: stem, and per block qkv, fc1, fc2 and a softmax.

The shape of each answer is that of recorded ones, of which the names of keys, kinds and formats were taken:
    8.6     NVIDIA/TensorRT v8.6.1, tools/experimental/trt-engine-explorer/examples (ResNet on A100, INT8 by Q/DQ), and #3737:
            "Format/Datatype" is a sentence, Q and DQ are Reformat layers of origin QDQ, kernels carry "Weights" with "Type" and "Count";
            what TensorRT gives to Myelin is one layer named {ForeignNode[first...last]}, with no INT8 tensor outside
    10.x    #4397 (10.10 on A100: a BERT, all of it Myelin): gemm, fusion and kgen layers with the keys Name, LayerType, Inputs, Outputs,
            TacticName, StreamId, Metadata; weights are no inputs; one word as type; names with "_" for "." and _myl0_N at their end;
            "[ONNX Layer: x]" for every node, with control characters between them
    11.x    the same layers with "Format" and "Datatype" apart, "Constants", and "I/O Tensors" for "Bindings" (migration guide of
            IEngineInspector, and the keys that v11.1's .agents/skills/trt-perf-analysis reads)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# precision -> (8.x sentence, later word, operand types in kernel names)
_TYPES = {
    "fp32": ("Row major linear FP32", "Float", "f32f32"),
    "fp16": ("Row major linear FP16 format", "Half", "f16f16"),
    "bf16": ("Row major linear BFloat16 format", "BFloat16", "bf16bf16"),
    "int8": ("Thirty-two wide channel vectorized row major Int8 format", "Int8", "i8i8"),
}
_SEPARATOR = "\x1e"


def metadata_of(nodes: Sequence[str]) -> str:
    """The ONNX nodes of a layer as TensorRT 10 writes them."""
    return _SEPARATOR.join(f"[ONNX Layer: {node}]" for node in nodes)


def tactic_of(precision: str) -> str:
    """A matrix product's kernel name, as on an A100."""
    operands = _TYPES[precision][2]
    rest = (
        "i8i32_f32_tn_n_tilesize64x64x64_stage3"
        if precision == "int8"
        else f"{operands}_{operands[: len(operands) // 2]}_nn_n_tilesize32x32x64_stage6"
    )
    return f"sm80_xmma_gemm_{operands}_{rest}_warpsize2x2x1_tensor16x8x16"


def _tensor(major: int, name: str, precision: str) -> dict[str, Any]:
    sentence, word, _ = _TYPES[precision]
    told: dict[str, Any] = {"Name": name, "Location": "Device", "Dimensions": [1, 40, 8, 8]}
    if major >= 11:
        return {**told, "Format": "Row major linear", "Datatype": word}
    return {**told, "Format/Datatype": sentence if major < 10 else word}


def layer(
    version: str,
    name: str,
    kind: str,
    reads: Sequence[str],
    writes: Sequence[str],
    nodes: Sequence[str] = (),
    tactic: str = "",
    names: tuple[str, str] = ("a", "b"),
    **more: Any,
) -> dict[str, Any]:
    """One layer of the answer; reads and writes are precisions, names those of its tensors."""
    major = int(version.split(".")[0])
    told: dict[str, Any] = {
        "Name": name,
        "LayerType": kind,
        "Inputs": [_tensor(major, names[0], precision) for precision in reads],
        "Outputs": [_tensor(major, names[1], precision) for precision in writes],
    }
    if major >= 11:
        told["Constants"] = []
    return {**told, "TacticName": tactic, "StreamId": 0, "Metadata": metadata_of(nodes), **more}


def _answer(version: str, layers: list[dict[str, Any]]) -> dict[str, Any]:
    if int(version.split(".")[0]) >= 11:
        io = [{"Name": name, "IOMode": mode, "Datatype": "Float"} for name, mode in (("images", "Input"), ("logits", "Output"))]
        return {"Layers": layers, "I/O Tensors": io}
    return {"Layers": layers, "Bindings": ["images", "logits"]}


def quantised_nodes(blocks: int) -> tuple[str, ...]:
    """The ONNX nodes that are quantised in these networks."""
    return tuple(f"stage.{block}.{part}/MatMul" for block in range(blocks) for part in ("att.qkv", "mlp.fc1", "mlp.fc2"))


def engine_answer(
    version: str, products: str, *, blocks: int = 2, with_qdq: bool = False, myelin: bool = False, stem: str | None = None
) -> dict[str, Any]:
    """The whole answer for an engine whose matrix products run in `products`.

    Args:
        with_qdq: whether kernels that only quantise and dequantise stand round the products.
        myelin: 8.6 only: each block is one Myelin region.
        stem: precision of the convolution; None for that of the products (FP16 beside INT8).
    """
    first = stem or ("fp16" if products == "int8" else products)
    old = version.startswith("8.")
    conv_type = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16", "int8": "Int8"}[first]
    layers = [
        layer(
            version, "Reformatting CopyNode for Input Tensor 0 to stem/Conv", "Reformat", ["fp32"], [first], names=("images", "r")
        ),
        layer(
            version,
            "stem/Conv + stem/HardSwish",
            "CaskConvolution",
            [first],
            [first],
            ["stem/Conv", "stem/HardSwish"],
            f"sm80_xmma_fprop_implicit_gemm_{_TYPES[first][2]}_{_TYPES[first][2]}_f32_nhwckrsc_nhwc_tilesize128x64x32",
            Weights={"Type": conv_type, "Count": 1080},
        ),
    ]
    floating = "fp16" if products == "int8" else products
    for block in range(blocks):
        nodes = quantised_nodes(blocks)[3 * block : 3 * block + 3]
        softmax = f"stage.{block}.att/softmax"
        if old and myelin:
            region = f"{{ForeignNode[{nodes[0]}...{nodes[2]}]}}"
            layers.append(layer(version, region, "Myelin", [floating], [floating], nodes))
            continue
        for number, node in enumerate(nodes):
            index = 10 * block + 2 * number
            if with_qdq and old:
                layers.append(layer(version, f"{node}_QuantizeLinear", "Reformat", [floating], ["int8"], Origin="QDQ"))
                layers.append(layer(version, f"{node}_DequantizeLinear", "Reformat", ["int8"], [floating], Origin="QDQ"))
            elif with_qdq:
                # 10 and 11 generate a kernel for each, with the arithmetic beside them
                layers.append(layer(version, f"__myl_MulRound_myl0_{index}", "kgen", [floating], ["int8"], [f"{node}_q"]))
                layers.append(layer(version, f"__myl_CastMul_myl0_{index + 1}", "kgen", ["int8"], [floating], [f"{node}_dq"]))
            if old:
                layers.append(layer(version, node, "MatrixMultiply", [products], [floating], [node], tactic_of(products)))
            elif number == 1:
                # fused with the activation that follows
                tactic = tactic_of(products) + "_by_fusion_tactic"
                layers.append(
                    layer(version, f"__myl_FcMulErf_myl0_{index}", "fusion", [products], [floating], [node, "erf"], tactic)
                )
            else:
                name = node.replace(".", "_") + f"_myl0_{index}"
                layers.append(layer(version, name, "gemm", [products], [floating], [node], tactic_of(products)))
        name = softmax if old else f"__myl_MaxSubExpSumDiv_myl0_{10 * block + 9}"
        layers.append(layer(version, name, "SoftMaxV2" if old else "kgen", ["fp32"], ["fp32"], [softmax]))
    return _answer(version, layers)
