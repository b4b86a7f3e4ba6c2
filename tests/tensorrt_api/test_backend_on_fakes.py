"""The whole backend, ours and Polygraphy's code, against each version's API: graph -> engine -> proof -> sidecar -> open -> run.

`tensorrt` is a stand-in with exactly the names of that version's bindings, CUDA one on host memory (trt_fake, cuda_fake): what is
tested is every call, its arguments, buffers, graphs and errors; not TensorRT's own work, which the tests marked `gpu` are for.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trt_bindings
from trt_fake import CLASSES, FakeModel
from trt_machine import MakeMachine, expected, images

from gmf_edge.engines.choose import choose_backend
from gmf_edge.engines.finding import MISSING, OK
from gmf_edge.engines.tensorrt.backend import TensorRTBackend, inspect_engine
from gmf_edge.engines.tensorrt.doctor import diagnose
from gmf_edge.engines.tensorrt.plugins import PLUGIN_OP
from gmf_edge.errors import EngineError, EnvironmentProblem, PrecisionError, SpecError, StaleArtifact
from gmf_edge.spec import OPSET_BF16, OPSET_NEW, OPSET_OLD, BatchProfile, Precision

every_version = pytest.mark.parametrize("version", trt_bindings.VERSIONS)


@every_version
def test_build_open_run(make: MakeMachine, version: str) -> None:
    machine = make(version)
    files = machine.build()
    assert files == ("engine.plan", "engine.plan.json", "engine.plan.layers.json")
    with machine.open(files) as engine:
        for batch in (1, 2, 4, 2):
            np.testing.assert_allclose(engine.infer(images(batch, batch)), expected(images(batch, batch)), rtol=1e-6, atol=1e-6)
        # one graph per batch size, captured behind its first run and replayed when the size comes again
        assert machine.cuda.log.count("instantiate") == 3
        assert machine.cuda.log.count("launch") == 1
        assert engine.facts.version == version
        assert engine.facts.form == "portable"
        assert engine.facts.notes[0].startswith(f"TensorRT {version} is {machine.sidecar['target']}")
    assert not machine.cuda.memory, "leaked memory"
    assert not machine.cuda.streams, "leaked streams"
    assert not machine.cuda.events, "leaked events"
    assert not machine.cuda.graphs, "leaked graphs"


@every_version
def test_the_graph_fits_the_version(make: MakeMachine, version: str) -> None:
    machine = make(version)
    machine.build()
    opset = OPSET_OLD if version.startswith("8.") else OPSET_NEW
    assert machine.sidecar["graph_file"] == f"portable-{opset}.onnx"
    [(parsed,)] = machine.calls("OnnxParser.parse_from_file")
    assert parsed.endswith(f"portable-{opset}.onnx")


@every_version
def test_typing_is_weak_with_flags_in_8_and_strong_later(make: MakeMachine, version: str) -> None:
    machine = make(version, FakeModel(precision="int8"))
    machine.build(precision=Precision.INT8)
    flags = machine.trt.configs[0]._flags
    created = machine.trt.networks[0]._flags
    kinds = machine.trt.types["NetworkDefinitionCreationFlag"]
    if version.startswith("8."):
        assert {"FP16", "INT8"} <= flags
        assert created == 1 << int(kinds.EXPLICIT_BATCH)
    else:
        assert not {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"} & flags
        assert created == 1 << int(kinds.STRONGLY_TYPED)
    assert "TF32" not in flags


@pytest.mark.parametrize("version", trt_bindings.VERSIONS[1:])
def test_bf16_is_built_from_the_graph_that_is_bf16_and_proved(make: MakeMachine, version: str) -> None:
    machine = make(version, FakeModel(precision="bf16"))
    files = machine.build(precision=Precision.BF16)
    assert machine.sidecar["graph_file"] == f"portable-{OPSET_BF16}.onnx"
    assert machine.sidecar["precision_proof"]["verdict"] == "proved"
    assert "BF16" not in machine.trt.configs[0]._flags, "the graph's types decide"
    with machine.open(files, precision=Precision.BF16) as engine:
        np.testing.assert_allclose(engine.infer(images(2)), expected(images(2)), rtol=1e-6, atol=1e-6)


def test_bf16_is_refused_where_tensorrt_or_the_gpu_has_none(make: MakeMachine) -> None:
    with pytest.raises(EnvironmentProblem, match=r"TensorRT 8\.6\.1 has no BF16.*--precision fp16"):
        make("8.6.1").build(precision=Precision.BF16)
    machine = make("10.3.0", FakeModel(precision="bf16"))
    machine.cuda.capability = (7, 5)
    with pytest.raises(EnvironmentProblem, match=r"\(sm_75\) has no BF16 arithmetic"):
        machine.build(precision=Precision.BF16)
    assert not list(machine.out.iterdir())


ISLAND = [
    ("CAST", "to fp16", ["images"], ["h0"], {"to_type": "HALF"}),
    ("CONVOLUTION", "conv", ["h0"], ["h1"], {}),
    ("CAST", "to fp32", ["h1"], ["f0"], {"to_type": "FLOAT"}),
    ("SOFTMAX", "softmax", ["f0"], ["f1"], {}),
    ("CONSTANT", "scale", [], ["c0"], {}),
    ("ELEMENTWISE", "product", ["f1", "c0"], ["f2"], {"metadata": "[ONNX Layer: /blocks/product]"}),
    ("CAST", "back", ["f2"], ["h2"], {"to_type": "HALF"}),
    ("ELEMENTWISE", "residual", ["h2", "c0"], ["h3"], {}),
    ("QUANTIZE", "q", ["h3", "c0"], ["q0"], {"dtype": "INT8"}),
    ("DEQUANTIZE", "dq", ["q0", "c0"], ["d0"], {}),
    ("MATRIX_MULTIPLY", "gemm", ["d0", "d0"], ["d1"], {}),
    ("QUANTIZE", "q32", ["f0", "c0"], ["q1"], {"dtype": "INT8"}),
    ("DEQUANTIZE", "dq32", ["q1", "c0"], ["d2"], {}),
    ("MATRIX_MULTIPLY", "gemm in int8", ["d2", "d2"], ["d3"], {}),
    ("SHAPE", "shape", ["h3"], ["s0"], {"dtype": "INT32"}),
    ("SHUFFLE", "reshape", ["h3", None], ["h4"], {}),
    ("ELEMENTWISE", "named", ["h4", "h4"], ["h5"], {"metadata": "[ONNX Layer: /head/named]"}),
]


def test_fp32_islands_are_pinned_and_the_rest_is_free_in_8(make: MakeMachine) -> None:
    machine = make("8.6.1", FakeModel(layers=ISLAND))
    machine.build(fp32_islands=("/head/named", "/gone"))
    layers = {layer.name: layer for layer in machine.trt.networks[0]._layers}
    pinned = {name for name, layer in layers.items() if layer._output_types}
    assert pinned == {"softmax", "product", "named"}
    assert all(layers[name]._output_types == {0: "FLOAT"} and layers[name].precision.name == "FLOAT" for name in pinned)
    assert "OBEY_PRECISION_CONSTRAINTS" in machine.trt.configs[0]._flags
    assert any("/gone" in note for note in machine.sidecar["notes"])


QDQ = [
    ("CONVOLUTION", "stem", ["images"], ["f0"], {}),
    ("SOFTMAX", "over tokens", ["f0"], ["f1"], {}),
    ("SHUFFLE", "transpose", ["f1"], ["f2"], {}),
    ("MATRIX_MULTIPLY", "context", ["f2", "f0"], ["f3"], {}),
    ("MATRIX_MULTIPLY", "attention", ["f0", "f3"], ["f4"], {}),
    ("CONSTANT", "scale", [], ["c0"], {}),
    ("QUANTIZE", "q", ["f4", "c0"], ["q0"], {"dtype": "INT8"}),
    ("DEQUANTIZE", "dq", ["q0", "c0"], ["d0"], {}),
    ("MATRIX_MULTIPLY", "gemm in int8", ["d0", "d0"], ["d1"], {}),
    # as 8.6's parser leaves it: without a name of its own and without metadata
    ("NORMALIZATION", "(Unnamed Layer* 9) [Normalization]", ["d1"], ["d2"], {}),
    ("MATRIX_MULTIPLY", "head", ["d2", "c0"], ["logits"], {"metadata": "[ONNX Layer: /head]"}),
]


def test_an_int8_graph_leaves_all_but_softmax_and_named_islands_to_the_builder_in_8(make: MakeMachine) -> None:
    """For weak typing it is FP32 with Q/DQ, and the FP16 flag is to make FP16 of what is not INT8."""
    machine = make("8.6.1", FakeModel(layers=QDQ, precision="int8"))
    machine.build(precision=Precision.INT8, fp32_islands=("/head",))
    pinned = {layer.name for layer in machine.trt.networks[0]._layers if layer._output_types}
    # not the transpose between them: there is no implementation of data movement for a pinned type
    assert pinned == {"over tokens", "context", "head"}
    assert {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"} <= machine.trt.configs[0]._flags


def test_a_layer_normalization_that_8s_parser_left_without_a_name_is_pinned_all_the_same(make: MakeMachine) -> None:
    machine = make("8.6.1", FakeModel(layers=QDQ, precision="int8"))
    machine.build(precision=Precision.INT8, fp32_islands=("blocks.0.norm1/LayerNormalization",))
    pinned = {layer.name for layer in machine.trt.networks[0]._layers if layer._output_types}
    assert pinned == {"over tokens", "context", "(Unnamed Layer* 9) [Normalization]"}
    assert not any("LayerNormalization" in note for note in machine.sidecar["notes"])


def test_nothing_is_pinned_for_fp32(make: MakeMachine) -> None:
    machine = make("8.6.1", FakeModel(layers=ISLAND, precision="fp32"))
    machine.build(precision=Precision.FP32)
    assert not any(layer._output_types for layer in machine.trt.networks[0]._layers)
    assert not {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "TF32"} & machine.trt.configs[0]._flags


@every_version
def test_options_reach_the_builder(make: MakeMachine, version: str, tmp_path: Path) -> None:
    machine = make(version)
    machine.cuda.integrated = False
    options: dict[str, Any] = {
        "workspace_mib": 512,
        "optimization_level": 4,
        "version_compatible": True,
        "hardware_compatibility": "ampere+",
        "refit": not version.startswith("8."),
        "max_aux_streams": 1,
        "tactic_sources": ("-jit_convolutions",),
        "timing_cache": str(tmp_path / "own.cache"),
    }
    machine.build(options=options)
    config = machine.trt.configs[0]
    assert config._pools == {"WORKSPACE": 512 << 20}
    assert config.builder_optimization_level == 4
    assert config.max_aux_streams == 1
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert {"VERSION_COMPATIBLE", *(("REFIT",) if options["refit"] else ())} <= config._flags
    assert config.profiling_verbosity.name == "DETAILED"
    assert config._tactics == 0b11111 & ~(1 << int(machine.trt.types["TacticSource"].JIT_CONVOLUTIONS))
    assert config._profiles[0]._shapes["images"] == [(1, 3, 32, 32), (2, 3, 32, 32), (4, 3, 32, 32)]
    assert (tmp_path / "own.cache").read_bytes() == b"timings"
    assert config._preview == ({"PROFILE_SHARING_0806": True} if version.startswith("8.") else {})


@every_version
def test_the_timing_cache_is_kept_per_device_and_version(make: MakeMachine, version: str, tmp_path: Path) -> None:
    machine = make(version)
    machine.build()
    [kept] = (tmp_path / "cache" / "timing").glob("*.cache")
    assert kept.name.startswith("Fake-Orin-sm-87-cuda12.6-trt" + version)
    machine.build()
    # the second build starts from it
    assert [args for args in machine.calls("IBuilderConfig.create_timing_cache") if args == (b"timings",)]
    machine.build(options={"timing_cache": ""})
    assert kept.read_bytes() == b"timings"


@every_version
def test_a_stripped_engine_gets_its_weights_back(make: MakeMachine, version: str) -> None:
    machine = make(version)
    if version.startswith("8."):
        with pytest.raises(SpecError, match="no stripped engines"):
            machine.build(options={"strip": True})
        return
    files = machine.build(options={"strip": True})
    assert {"STRIP_PLAN", "REFIT_IDENTICAL"} <= machine.trt.configs[0]._flags
    before = len(machine.calls("OnnxParserRefitter.refit_from_file"))
    assert before == 1, "the proof ran an engine without weights"
    with machine.open(files) as engine:
        assert engine.infer(images(1)).shape == (1, CLASSES)
    refits = machine.calls("OnnxParserRefitter.refit_from_file")
    assert len(refits) == before + 1
    assert refits[-1][0].endswith("portable-20.onnx")
    (machine.request.graphs.folder / "portable-20.onnx").unlink()
    with pytest.raises(EngineError, match="no weights of its own"):
        machine.open(files)


@every_version
def test_an_engine_is_refitted_without_a_build(make: MakeMachine, version: str) -> None:
    machine = make(version)
    if version.startswith("8."):
        with pytest.raises(SpecError, match="cannot exchange weights from an ONNX file"):
            machine.build(options={"refit": True})
        return
    files = machine.build(options={"refit": True})
    graph = machine.request.graphs.folder / machine.sidecar["graph_file"]
    with machine.open(files) as engine:
        engine.infer(images(2))
        engine.refit_from(graph)
        assert machine.calls("OnnxParserRefitter.refit_from_file") == [(str(graph),)]
        assert machine.calls("Refitter.refit_cuda_engine") == [()]
        captured = machine.cuda.log.count("capture")
        np.testing.assert_allclose(engine.infer(images(2)), expected(images(2)), rtol=1e-6, atol=1e-6)
        assert machine.cuda.log.count("capture") == captured + 1, "a graph captured before the refit was replayed"


def test_weights_that_do_not_fit_are_refused(make: MakeMachine) -> None:
    machine = make("10.3.0")
    files = machine.build(options={"refit": True})
    machine.trt.behaviours["OnnxParserRefitter.refit_from_file"] = lambda owner, model: False
    with machine.open(files) as engine, pytest.raises(EngineError, match="weights of other"):
        engine.refit_from(Path("other.onnx"))


def test_an_int8_engine_is_not_refitted(make: MakeMachine) -> None:
    """TensorRT folds INT8 weights into kernels that a refit does not reach, and says nothing of it."""
    machine = make("10.3.0", FakeModel(precision="int8"))
    files = machine.build(options={"refit": True}, precision=Precision.INT8)
    graph = machine.request.graphs.folder / machine.sidecar["graph_file"]
    with machine.open(files) as engine, pytest.raises(EngineError, match="INT8 weights"):
        engine.refit_from(graph)
    assert not machine.calls("OnnxParserRefitter.refit_from_file")


def test_another_module_of_the_same_name_is_noted_and_a_smaller_one_refused(make: MakeMachine) -> None:
    machine = make("10.3.0")
    files = machine.build()
    machine.cuda.multiprocessors = 8
    with machine.open(files) as engine:
        assert any("built for 16 multiprocessors, opened on 8" in note for note in engine.facts.notes)
    machine.cuda.total //= 2
    with pytest.raises(StaleArtifact, match="gmf-edge deploy"):
        machine.open(files)


def test_an_old_polygraphy_is_told_apart_from_none(make: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = make("11.4.0.106")
    import polygraphy

    monkeypatch.setattr(polygraphy, "__version__", "0.49.9")
    with pytest.raises(
        EnvironmentProblem, match=r"Polygraphy 0\.49\.9 does not know TensorRT 11\.4.*pip install 'polygraphy>=0\.49\.26'"
    ):
        machine.build()
    assert {finding.subject: finding.state for finding in diagnose()}["Polygraphy"] == MISSING
    # an engine that is there runs without it
    assert TensorRTBackend().missing() is None
    # and --backend auto builds with what can build
    assert choose_backend("auto")[0].name == "tensorrt"
    chosen, why = choose_backend("auto", to_build=True)
    assert chosen.name == "onnxruntime"
    assert "not tensorrt: Polygraphy 0.49.9 does not know" in why
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(EnvironmentProblem, match="Polygraphy cannot be imported"):
        machine.build()


@every_version
def test_out_of_memory_is_tried_again_with_less_workspace(make: MakeMachine, version: str) -> None:
    machine = make(version, FakeModel(build_failures=["Error Code 2: OutOfMemory (Requested size was 3 bytes.)"] * 2))
    machine.build(options={"workspace_mib": 1024})
    assert [config._pools["WORKSPACE"] >> 20 for config in machine.trt.configs] == [1024, 256, 64]
    assert machine.sidecar["options"]["workspace_mib"] == 64
    assert any("repeated with 64 MiB" in note for note in machine.sidecar["notes"])


def test_out_of_memory_to_the_end_says_what_to_lower(make: MakeMachine) -> None:
    machine = make("10.3.0", FakeModel(build_failures=["CUDA out of memory"] * 9))
    with pytest.raises(EngineError, match=r"even with a workspace of 64 MiB.*lower --max-batch"):
        machine.build(options={"workspace_mib": 256})
    assert not list(machine.out.iterdir())


def test_too_little_workspace_says_so(make: MakeMachine) -> None:
    machine = make("10.3.0", FakeModel(build_failures=["Could not find any implementation for node conv."]))
    with pytest.raises(EngineError, match="give more workspace than 64 MiB"):
        machine.build(options={"workspace_mib": 64})


@every_version
def test_a_graph_that_the_parser_refuses_is_named(make: MakeMachine, version: str) -> None:
    machine = make(version, FakeModel(parse_error="No importer registered for op: Gelu"))
    machine.trt.types["OnnxParser"].num_errors = property(lambda owner: 1)
    with pytest.raises(EngineError, match=r"does not take portable-\d+.onnx: No importer registered for op: Gelu \(node 3\)"):
        machine.build()


@every_version
def test_an_engine_that_stayed_in_fp32_fails_the_build_and_is_not_written(make: MakeMachine, version: str) -> None:
    machine = make(version, FakeModel(precision="fp32"))
    with pytest.raises(PrecisionError, match=r"no layer of the engine runs in fp16: stem/Conv \+ stem/HardSwish"):
        machine.build()
    assert not list(machine.out.iterdir())
    assert not machine.cuda.memory, "a failed build leaks memory"


def test_too_much_fp32_fails_the_build_by_time(make: MakeMachine) -> None:
    machine = make("10.13.3.9")
    machine.build(options={"max_fp32_share": 0.2})
    # the fake's times: seven products of 2.0 ms, two softmaxes of 0.5 ms
    assert machine.sidecar["precision_shares"] == pytest.approx({"fp16": 14 / 15, "fp32": 1 / 15})
    with pytest.raises(PrecisionError, match=r"7% of the work stayed in FP32 .at most 6%"):
        machine.build(options={"max_fp32_share": 0.06})


@every_version
def test_a_foreign_engine_is_refused_before_tensorrt_sees_it(make: MakeMachine, version: str) -> None:
    machine = make(version)
    files = machine.build()
    seen = len(machine.calls("Runtime.deserialize_cuda_engine"))
    machine.cuda.capability, machine.cuda.name = (9, 0), b"Fake H100"
    with pytest.raises(StaleArtifact, match=r"built on Fake Orin \(sm_87\).*Fake H100 \(sm_90\).*gmf-edge deploy"):
        machine.open(files)
    machine.cuda.capability, machine.cuda.name = (8, 7), b"Fake Orin"
    machine.trt.__version__ = "10.4.0"
    with pytest.raises(StaleArtifact, match=f"TensorRT {version}; this machine has TensorRT 10.4.0"):
        machine.open(files)
    machine.trt.__version__ = version
    (machine.request.graphs.folder / machine.sidecar["graph_file"]).write_bytes(b"another model")
    with pytest.raises(StaleArtifact, match="built from another portable"):
        machine.open(files)
    assert len(machine.calls("Runtime.deserialize_cuda_engine")) == seen


def test_an_engine_of_other_weights_is_refused(make: MakeMachine) -> None:
    """Two models of one architecture share every byte of the graph; the weights lie beside it."""
    machine = make("10.3.0")
    folder = machine.request.graphs.folder
    (folder / "portable-20.onnx").write_bytes(b"onnx \x0a\x08location\x12\x0bweights.bin and more")
    (folder / "weights.bin").write_bytes(b"one")
    files = machine.build()
    machine.open(files).close()
    (folder / "weights.bin").write_bytes(b"two")
    with pytest.raises(StaleArtifact, match="built from another portable-20"):
        machine.open(files)


def test_a_changed_engine_file_is_refused(make: MakeMachine) -> None:
    machine = make("10.3.0")
    files = machine.build()
    content = bytearray((machine.out / "engine.plan").read_bytes())
    content[3] ^= 1
    (machine.out / "engine.plan").write_bytes(content)
    with pytest.raises(EngineError, match="not the file that was built"):
        machine.open(files)
    (machine.out / "engine.plan.json").unlink()
    with pytest.raises(EngineError, match=r"has no engine\.plan\.json beside it"):
        machine.open(files)


def plugin_library(folder: Path, *symbols: str) -> Path:
    """A shared library that exports those symbols and nothing else."""
    source = folder / "plugin.c"
    source.write_text("".join(f"int {symbol}(void) {{ return 0; }}\n" for symbol in symbols))
    library = folder / f"libgmf-{'-'.join(symbols)}.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


@every_version
def test_the_plugin_graph_is_taken_where_the_plugin_is(make: MakeMachine, version: str, tmp_path: Path) -> None:
    library = plugin_library(tmp_path, "getPluginCreators", "getCreators")
    machine = make(version, FakeModel(library_plugins=[PLUGIN_OP]))
    files = machine.build(options={"plugin_library": str(library)})
    assert machine.sidecar["form"] == "plugin"
    assert machine.sidecar["plugins"] == [PLUGIN_OP]
    # once into the builder's registry, once into the runtime's that proves the engine
    assert machine.calls("IPluginRegistry.load_library") == [(str(library),)] * 2
    for options in ({"plugin_library": str(library)}, {}):
        with machine.open(files, options=options) as engine:
            assert engine.facts.form == "plugin"
    assert machine.calls("IPluginRegistry.load_library") == [(str(library),)] * 4
    library.unlink()
    with pytest.raises(EngineError, match=r"plugin library .* is missing"):
        machine.open(files)
    # a plugin that was registered from Python needs no library
    machine.trt.global_plugins.append(PLUGIN_OP)
    machine.open(files).close()


@every_version
def test_a_registered_plugin_needs_no_library(make: MakeMachine, version: str) -> None:
    machine = make(version, FakeModel(plugins=[PLUGIN_OP]))
    files = machine.build()
    assert machine.sidecar["form"] == "plugin"
    machine.trt.global_plugins.clear()
    with pytest.raises(EngineError, match="the engine needs the plugin GmfGroupMixAttention, which TensorRT does not know here"):
        machine.open(files)


def test_a_plugin_library_without_the_plugin_is_refused(make: MakeMachine, tmp_path: Path) -> None:
    library = plugin_library(tmp_path, "getCreators")
    machine = make("11.4.0.106", FakeModel(library_plugins=["SomethingElse"]))
    with pytest.raises(EngineError, match=r"gives no creator of GmfGroupMixAttention to TensorRT 11\.4\.0\.106: .*IPluginV3"):
        machine.build(options={"plugin_library": str(library)})


def test_a_plugin_library_for_another_version_is_refused_before_a_build(make: MakeMachine, tmp_path: Path) -> None:
    machine = make("8.6.1", FakeModel(library_plugins=[PLUGIN_OP]))
    for_newer = plugin_library(tmp_path, "getCreators")
    with pytest.raises(EngineError, match=r"exports no getPluginCreators; build it for this version .IPluginV2DynamicExt"):
        machine.build(options={"plugin_library": str(for_newer)})
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(EngineError, match=r"cannot be loaded: .*libbroken"):
        machine.build(options={"plugin_library": str(broken)})
    assert not machine.calls("OnnxParser.parse_from_file")
    states = {finding.subject: finding.state for finding in diagnose(str(for_newer))}
    assert states["plugin"] == MISSING


@every_version
def test_several_streams_give_results_in_order(make: MakeMachine, version: str) -> None:
    machine = make(version)
    files = machine.build()
    with machine.open(files, options={"streams": 3}) as engine:
        batches = [images(1 + number % 4, number) for number in range(7)]
        answers = list(engine.infer_many(batches))
        assert len(answers) == 7
        for batch, answer in zip(batches, answers, strict=True):
            np.testing.assert_allclose(answer, expected(batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 3, 32, 32), (0, 3, 32, 32), (1, 3, 32, 64), (3, 32, 32)])
def test_wrong_batches_are_refused(make: MakeMachine, shape: tuple[int, ...]) -> None:
    machine = make("10.3.0")
    files = machine.build()
    engine = machine.open(files)
    with pytest.raises(EngineError, match=r"outside the profile 1..4|give \[batch, 3, 32, 32\]"):
        engine.infer(np.zeros(shape, np.float32))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.infer(images(1))


def test_a_model_that_cannot_be_captured_runs_without_graphs_and_says_so(make: MakeMachine) -> None:
    machine = make("10.3.0", FakeModel(capture_fails=True))
    files = machine.build()
    with machine.open(files) as engine:
        np.testing.assert_allclose(engine.infer(images(2)), expected(images(2)), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(engine.infer(images(1)), expected(images(1)), rtol=1e-6, atol=1e-6)
        assert any("no CUDA graph could be captured" in note for note in engine.facts.notes)
        assert machine.cuda.log.count("capture") == 1, "tried again for another batch size"
    assert "launch" not in machine.cuda.log


def test_half_precision_input_and_output(make: MakeMachine) -> None:
    machine = make("10.3.0", FakeModel(engine_type="HALF"))
    files = machine.build()
    with machine.open(files) as engine:
        logits = engine.infer(images(2))
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected(images(2)), rtol=2e-3, atol=2e-3)


@every_version
def test_inspect_tells_layers_precisions_and_memory(make: MakeMachine, version: str) -> None:
    machine = make(version)
    machine.build()
    told = inspect_engine(machine.out / "engine.plan")
    assert told["opened"] is True, told["why_not_opened"]
    assert not machine.calls("Refitter.refit_cuda_engine"), "an engine with weights was refitted"
    products = [layer for layer in told["layers"] if layer["kind"] in ("CaskConvolution", "CaskGemmConvolution", "gemm", "fusion")]
    assert [layer["precision"] for layer in products] == ["fp16"] * 7
    assert told["layers"][-1]["precision"] == "fp32"
    assert products[0]["time_ms"] == pytest.approx(2.0)
    # the inspector counts no weights from 10 on
    assert set(products[0]) == {"name", "kind", "precision", "time_ms"}
    assert told["precision_proof"]["verdict"] == "proved"
    assert told["memory_mib"]["activations"] == pytest.approx(3.0)
    machine.cuda.device_error = 35
    closed = inspect_engine(machine.out / "engine.plan")
    assert closed["opened"] is False
    assert "driver" in closed["why_not_opened"]
    assert closed["precision_shares"] == told["precision_shares"]


@every_version
def test_progress_is_told_where_the_version_tells_it(make: MakeMachine, version: str) -> None:
    machine = make(version)
    shown: list[tuple[float | None, str]] = []
    TensorRTBackend().build(machine.request, machine.out, lambda fraction, message: shown.append((fraction, message)))
    fractions = [fraction for fraction, _ in shown if fraction is not None]
    if version.startswith("8."):
        assert fractions == []
        assert any("does not tell its progress" in message for _, message in shown)
    else:
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        assert any("Building Engine" in message for _, message in shown)


def test_an_interrupt_during_progress_stops_the_build(make: MakeMachine) -> None:
    machine = make("11.4.0.106")

    def interrupt(fraction: float | None, message: str) -> None:
        if fraction is not None and fraction > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TensorRTBackend().build(machine.request, machine.out, interrupt)
    assert not list(machine.out.iterdir())


@every_version
def test_a_machine_without_gpu_is_an_environment_problem_before_tensorrt_is_touched(make: MakeMachine, version: str) -> None:
    machine = make(version, device_error=35)
    with pytest.raises(EnvironmentProblem, match="driver is too old for this CUDA, or missing"):
        machine.build()
    assert not machine.trt.calls
    assert "driver" in (TensorRTBackend().missing() or "")
    states = {finding.subject: finding.state for finding in diagnose()}
    assert states["GPU"] == MISSING
    assert states["TensorRT"] == OK


def test_a_missing_driver_and_an_old_one_are_told_apart(make: MakeMachine) -> None:
    machine = make("8.6.1")
    machine.cuda.runtime_cuda, machine.cuda.driver_cuda = 13050, 12040
    with pytest.raises(
        EnvironmentProblem, match=r"driver supports CUDA 12\.4, cuda-python is for 13\.5; pip install 'cuda-bindings==12"
    ):
        machine.build()
    machine.cuda.driver_cuda = 0
    with pytest.raises(EnvironmentProblem, match="no NVIDIA driver is loaded"):
        machine.build()
    # a newer driver runs older CUDA
    machine.cuda.runtime_cuda, machine.cuda.driver_cuda = 11080, 13000
    assert machine.build() == ("engine.plan", "engine.plan.json", "engine.plan.layers.json")


@every_version
def test_a_machine_with_everything_misses_nothing(make: MakeMachine, version: str) -> None:
    make(version)
    assert TensorRTBackend().missing() is None
    findings = {finding.subject: finding for finding in diagnose()}
    assert findings["GPU"].detail.startswith("Fake Orin (sm_87)")
    assert findings["TensorRT"].detail.startswith(version)


@pytest.mark.parametrize("text", ["8.5.2", "9.1.0", "12.0", "unknown"])
def test_other_versions_are_refused_with_what_is_supported(make: MakeMachine, text: str) -> None:
    machine = make("10.3.0")
    machine.trt.__version__ = text
    with pytest.raises(EnvironmentProblem, match=f"TensorRT {text} is not supported; use TensorRT 8.6"):
        machine.build()


def test_dla_is_refused_where_there_is_none(make: MakeMachine) -> None:
    machine = make("10.3.0")
    with pytest.raises(SpecError, match="the DLA runs one batch size"):
        machine.build(options={"dla_core": 0})
    with pytest.raises(EngineError, match="no DLA core 0 here"):
        machine.build(options={"dla_core": 0}, profile=BatchProfile(2, 2, 2))
    with pytest.raises(SpecError, match="has no DLA support"):
        make("10.13.3.9").build(options={"dla_core": 0}, profile=BatchProfile(2, 2, 2))
