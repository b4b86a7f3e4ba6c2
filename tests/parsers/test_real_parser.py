"""The real ONNX parser of TensorRT 8.6 on the exported graphs, without a GPU: it fills a network of ours, as no builder starts here.

GMF_EDGE_TRT_HOME names an unpacked TensorRT 8.6, TENSORRT_ROOT has its headers among others; skipped where one is missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import onnx_ir
import pytest

pytest.importorskip("onnxscript")

from fake_kernels import fake_table
from quantized_graph import quantized

from gmf_edge.kernels.archive import attach_kernels
from gmf_edge.parsers.check import unfit
from gmf_edge.rewrite.bodies import drop_bodies, inline_bodies
from gmf_edge.rewrite.opset import for_target
from gmf_edge.spec import TARGETS

HOME = os.environ.get("GMF_EDGE_TRT_HOME", "")
HEADERS = [Path(root) for root in os.environ.get("TENSORRT_ROOT", "").split(":") if Path(root).name.startswith("8.")]
CUDA = Path(os.environ.get("CUDA_ROOT", "/usr/local/cuda")) / "include"
pytestmark = [
    pytest.mark.skipif(not HOME or not HEADERS, reason="needs GMF_EDGE_TRT_HOME and the headers of 8.6 in TENSORRT_ROOT"),
    pytest.mark.skipif(not shutil.which("g++") or not (CUDA / "cuda.h").is_file(), reason="needs g++ and CUDA's headers"),
]
OLD = TARGETS["tensorrt-8.6"]
PLUGINS = Path(__file__).parents[2] / "plugins"
# what network_of_8.cpp answers
INTERFACES = (
    "VTensor",
    "VLayer",
    "VConvolutionLayer",
    "VActivationLayer",
    "VElementWiseLayer",
    "VUnaryLayer",
    "VShuffleLayer",
    "VSliceLayer",
    "VReduceLayer",
    "VSoftMaxLayer",
    "VMatrixMultiplyLayer",
    "VConstantLayer",
    "VIdentityLayer",
    "VCastLayer",
    "VConcatenationLayer",
    "VNormalizationLayer",
    "VQuantizeLayer",
    "VDequantizeLayer",
    "VPluginV2Layer",
    "VBuilder",
    "VNetworkDefinition",
)


def stubs(header: str) -> str:
    """Every method of the interfaces, empty: what the parser asks for and the network lacks is said on stderr."""
    lines = ["#pragma once", "#include <NvInfer.h>", "#include <cstdio>", "#include <cstdlib>", "namespace stubs {"]
    lines.append("using namespace nvinfer1;")
    for name in INTERFACES:
        found = re.search(rf"class {name} : public VRoot\n\{{(.*?)\n\}};", header, re.DOTALL)
        assert found is not None, name
        lines.append(f"struct {name} : apiv::{name} {{")
        methods = re.findall(
            r"virtual\s+([^;()]*?[\s*&])(\w+)\(([^;]*?)\)\s*(const)?\s*noexcept\s*=\s*0;", found.group(1), re.DOTALL
        )
        for result, method, arguments, constant in methods:
            does = "return;" if result.strip() == "void" else "return {};"
            if result.strip().endswith("&"):
                does = "std::abort();"
            elif method.startswith("add"):
                does = f'std::fprintf(stderr, "the network lacks {method}\\n"); return {{}};'
            lines.append(f"    {result.strip()} {method}({arguments}) {constant} noexcept override {{ {does} }}")
        lines.append("};")
    return "\n".join([*lines, "}", ""])


@pytest.fixture(scope="module")
def parse_on_8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parser")
    include = HEADERS[0] / "include"
    (folder / "stubs.h").write_text(stubs((include / "NvInferImpl.h").read_text()))
    source = Path(__file__).with_name("network_of_8.cpp")
    command = ["g++", "-std=c++17", "-w", f"-I{folder}", "-isystem", str(include), "-isystem", str(CUDA), str(source)]
    done = subprocess.run([*command, "-o", str(folder / "parse_on_8"), "-ldl"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "parse_on_8"


def parsed(program: Path, graph: Path, *plugins: Path) -> dict[str, Any]:
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{HOME}/lib"}
    command = [str(program), str(graph), *map(str, plugins)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "the network lacks" not in done.stderr, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def saved(graph: onnx_ir.Model, path: Path) -> Path:
    onnx_ir.save(onnx_ir.external_data.load_to_model(graph), path)
    return path


def test_it_takes_the_fp16_bundles_graph(parse_on_8: Path, odd_pico: Any) -> None:
    told = parsed(parse_on_8, odd_pico.bundle / "portable-opset17.onnx")
    assert (told["parsed"], told["errors"], told["output"]) == (True, "", [1, 7])
    assert told["layers"]["normalization"] == 15
    assert told["layers"]["softmax"] == 5


def test_it_takes_fp32_and_int8(parse_on_8: Path, odd_pico: Any, tmp_path: Path) -> None:
    fused = onnx_ir.load(odd_pico.fused)
    for name, graph in (("fp32", fused), ("int8", quantized(fused, "float32"))):
        told = parsed(parse_on_8, saved(for_target(inline_bodies(graph), OLD), tmp_path / f"{name}.onnx"))
        assert (told["parsed"], told["errors"], told["output"]) == (True, "", [1, 7]), name
        quantizers = sum(node.op_type == "QuantizeLinear" for node in graph.graph)
        assert told["layers"].get("quantize", 0) == quantizers
        assert (quantizers > 0) is (name == "int8")


def test_it_refuses_opset_20_where_the_table_says(parse_on_8: Path, odd_pico: Any) -> None:
    graph = onnx_ir.load(odd_pico.bundle / "portable.onnx")
    told = parsed(parse_on_8, odd_pico.bundle / "portable.onnx")
    refused = [found.node for found in unfit(graph, OLD.name) if found.rule == "operator"]
    assert not told["parsed"]
    assert f'name: "{refused[0]}"' in told["errors"]


def test_it_leaves_normalization_layers_without_a_name(parse_on_8: Path, odd_pico: Any) -> None:
    """So that no constraint on a layer by its ONNX node's name reaches them."""
    told = parsed(parse_on_8, odd_pico.bundle / "portable-opset17.onnx")
    assert set(told["normalizations"]) == {""}


@pytest.fixture(scope="module")
def plugin_of_8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("cmake"):
        pytest.skip("needs CMake")
    folder = tmp_path_factory.mktemp("plugin-8")
    subprocess.run(
        ["cmake", "-S", str(PLUGINS), "-B", str(folder), f"-DTENSORRT_ROOT={HEADERS[0]}"], check=True, capture_output=True
    )
    target = ["cmake", "--build", str(folder), "--parallel", "2", "--target", "gmf_edge_plugin_registered"]
    subprocess.run(target, check=True, capture_output=True)
    return folder / "libgmf_edge_plugin_registered.so"


@pytest.mark.parametrize("pack", [True, False])
def test_it_makes_a_plugin_layer_of_each_attention(
    parse_on_8: Path, plugin_of_8: Path, odd_pico: Any, tmp_path: Path, pack: bool
) -> None:
    """With the library's own creator in the real registry: its fields, its attributes, its output's shape."""
    table = fake_table(tmp_path, (8, 16))
    lowered = for_target(drop_bodies(onnx_ir.load(odd_pico.bundle / "plugin-opset17.onnx")), OLD)
    whole = onnx_ir.to_proto(onnx_ir.external_data.load_to_model(lowered))
    attached = onnx_ir.from_proto(attach_kernels(whole, table, pack=pack))
    graph = saved(attached, tmp_path / "plugin.onnx")
    told = parsed(parse_on_8, graph, plugin_of_8)
    assert (told["parsed"], told["errors"], told["output"]) == (True, "", [1, 7])
    assert told["layers"]["plugin"] == 5
    without = parsed(parse_on_8, graph)
    assert not without["parsed"]
    assert "Plugin not found" in without["errors"]
