"""What TensorRT's engine inspector answers, version by version, for a small GMA network: stem, and per block qkv, fc1, fc2 and a softmax.

The shape of each answer is that of recorded ones, of which the names of keys, kinds, formats and kernels were taken:
    8.6     NVIDIA/TensorRT v8.6.1, tools/experimental/trt-engine-explorer/examples/pytorch/resnet/A100/qat (INT8 by Q/DQ):
            "Format/Datatype" is a sentence, Q and DQ are Reformat layers of origin QDQ, a product's name joins what was fused with
            " + ", its weights first, and it carries "Weights" with "Type" and "Count". A MatMul by constant weights becomes a
            convolution between two reshapes (NVIDIA/TensorRT#3266, #3679: reshape_before_..., CaskGemmConvolution). Metadata exists
            from 8.6 on, \x1e between the nodes (trex/parser.py of v10.13.3). What TensorRT gives to Myelin is one layer
            {ForeignNode[first...last]} (#3768), whose tensors are never INT8 (libnvinfer 8.6: "I/O tensors for Myelin graph should
            not be of INT8 type")
    10.x    layer_info.json of Eternal-Raiden-Ying/i-vit-srtp (INT8 by Q/DQ on sm_86: a shape_call, a kgen that quantises, a gemm in INT8,
            and one whose Q/DQ were folded and which ran in TF32) and NVIDIA/TensorRT#4397 (10.10 on A100: a BERT, all of it Myelin):
            keys Name, LayerType, Inputs, Outputs, TacticName, StreamId, Metadata; weights are no inputs; one word as type; names with "_"
            for "." and _myl0_N at their end; Metadata with \x1f between the nodes, the Q/DQ nodes that were folded among them
    10.3    as 10.x, and the INT8 weights are a second input of an INT8 product (a published inspection of Qwen3 on an Orin, 10.3)
    11.x    the same layers with "Format" and "Datatype" apart and "Constants" (the keys that v11.1's .agents/skills/trt-perf-analysis
            reads), and "I/O Tensors" for "Bindings" (NVIDIA's guide "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x")
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


def metadata_of(nodes: Sequence[str], major: int = 10) -> str:
    """The ONNX nodes of a layer as TensorRT writes them."""
    return ("\x1e" if major < 10 else "\x1f").join(f"[ONNX Layer: {node}]" for node in nodes)


def tactic_of(precision: str) -> str:
    """A matrix product's kernel name, as on an A100."""
    operands = _TYPES[precision][2]
    rest = (
        "i8i32_f32_tn_n_tilesize256x64x64_stage3"
        if precision == "int8"
        else f"{operands}_{operands[: len(operands) // 2]}_nn_n_tilesize32x32x64_stage6"
    )
    return f"sm80_xmma_gemm_{operands}_{rest}_warpsize2x2x1_tensor16x8x{32 if precision == 'int8' else 16}"


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
    return {**told, "TacticName": tactic, "StreamId": 0, "Metadata": metadata_of(nodes, major), **more}


def _answer(version: str, layers: list[dict[str, Any]]) -> dict[str, Any]:
    if int(version.split(".")[0]) < 11:
        return {"Layers": layers, "Bindings": ["images", "logits"]}
    io: list[dict[str, Any]] = []
    for name, mode, shape in (("images", "Input", [3, 32, 32]), ("logits", "Output", [5])):
        shapes = {f"{bound}Shape": [batch, *shape] for bound, batch in (("Min", 1), ("Opt", 2), ("Max", 4))}
        profile = [{**shapes, "Format": "Row major linear FP32 format (kLINEAR)"}] if mode == "Input" else []
        io.append({"Name": name, "IOMode": mode, "DataType": "Float", "Dimensions": [-1, *shape], "Location": "Device"})
        io[-1] |= {"IsShapeInferenceIO": False, "ProfileInfo": profile}
    return {"Layers": layers, "I/O Tensors": io}


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
    if not old:
        layers.insert(0, layer(version, "__mye780_0_myl0_0", "shape_call", [], []))
    for block in range(blocks):
        nodes = quantised_nodes(blocks)[3 * block : 3 * block + 3]
        softmax = f"stage.{block}.att/softmax"
        if old and myelin:
            region = f"{{ForeignNode[{nodes[0]}...{nodes[2]}]}}"
            layers.append(layer(version, region, "Myelin", [floating], [floating], nodes))
            continue
        for number, node in enumerate(nodes):
            product = _product_8 if old else _product_10
            layers += product(version, node, products, floating, with_qdq, 10 * block + 3 * number)
        name = softmax if old else f"__myl_MaxSubExpSumDiv_myl0_{10 * block + 9}"
        layers.append(layer(version, name, "SoftMaxV2" if old else "kgen", ["fp32"], ["fp32"], [softmax]))
    return _answer(version, layers)


def _product_8(version: str, node: str, products: str, floating: str, with_qdq: bool, index: int) -> list[dict[str, Any]]:
    """A MatMul of 8.6: a convolution between reshapes, Q and DQ beside it where they stayed."""
    weights = {"Type": {"fp32": "Float", "fp16": "Half", "int8": "Int8"}[products], "Count": 19200}
    name = f"{node}.weight + {node}" if products == "int8" else node
    layers = [
        layer(version, f"reshape_before_{node}", "Shuffle", [floating], [floating]),
        layer(version, name, "CaskGemmConvolution", [products], [floating], [node], tactic_of(products), Weights=weights),
        layer(version, f"reshape_after_{node}", "Shuffle", [floating], [floating]),
    ]
    if with_qdq:
        layers.insert(0, layer(version, f"{node}_QuantizeLinear", "Reformat", [floating], ["int8"], Origin="QDQ"))
        if products != "int8":
            layers.insert(1, layer(version, f"{node}_DequantizeLinear", "Reformat", ["int8"], [floating], Origin="QDQ"))
    return layers


def _product_10(version: str, node: str, products: str, floating: str, with_qdq: bool, index: int) -> list[dict[str, Any]]:
    """A MatMul of 10 and 11: a gemm, or with the activation behind it a fusion; Q, and DQ where it is not folded, are generated kernels."""
    layers = []
    nodes = [node]
    if with_qdq:
        quantise = f"__myl_MulMinMaxRounCast_myl0_{index}"
        layers.append(
            layer(version, quantise, "kgen", [floating], ["int8"], [f"{node}_q"], f"__myl_MulMinMaxRounCast_0x{index:032x}")
        )
        # those of the weights are always folded, those of the activations where the product multiplies in INT8
        nodes += [f"{node}_w_dq", *([f"{node}_dq"] if products == "int8" else [])]
    if with_qdq and products != "int8":
        back = f"__myl_CastMul_myl0_{index + 1}"
        layers.append(layer(version, back, "kgen", ["int8"], [floating], [f"{node}_dq"], f"__myl_CastMul_0x{index:032x}"))
    reads = [products] * (2 if products == "int8" and version.startswith("10.3") else 1)
    if "fc1" in node:
        tactic, name = tactic_of(products) + "_by_fusion_tactic", f"__myl_FcMulErf_myl0_{index + 2}"
        return [*layers, layer(version, name, "fusion", reads, [floating], [*nodes, "erf"], tactic)]
    name = node.replace(".", "_") + f"_myl0_{index + 2}"
    return [*layers, layer(version, name, "gemm", reads, [floating], nodes, tactic_of(products))]
