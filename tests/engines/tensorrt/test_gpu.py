"""What only a GPU can show, on engines that benchmarks/gpu_check.sh has deployed: GMF_EDGE_BUNDLES names their folder.

    GMF_EDGE_BUNDLES=out/gpu_check pytest -m gpu

Without a GPU or without bundles every test here is skipped with the reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed_engines import images_for, opened

from gmf_edge.bundle import GOLDEN, open_bundle
from gmf_edge.engines.tensorrt.backend import TensorRTBackend
from gmf_edge.engines.tensorrt.run import TensorRTEngine
from gmf_edge.spec import Precision
from gmf_edge.verify.golden import Golden

pytestmark = pytest.mark.gpu


def relative_l2(found: Any, exact: Any) -> float:
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def test_every_batch_size_gives_what_fp32_pytorch_gave(folder: Path, engine: TensorRTEngine) -> None:
    bundle = open_bundle(folder)
    golden = Golden.load(bundle.path(GOLDEN))
    # relative errors that the gates' cosines allow at right angles: see gmf_edge.verify.parity
    limit = {Precision.FP32: 3e-3, Precision.FP16: 3e-2, Precision.INT8: 0.3}[bundle.manifest.precision]
    for batch in range(engine.profile.min, min(engine.profile.max, len(golden.images)) + 1):
        assert relative_l2(engine.infer(golden.images[:batch]), golden.logits[:batch]) <= limit, f"batch {batch}"


def test_rows_do_not_depend_on_their_batch(engine: TensorRTEngine) -> None:
    images = images_for(engine, engine.profile.max)
    together = engine.infer(images)
    size = engine.profile.min
    apart = np.concatenate([engine.infer(images[start : start + size]) for start in range(0, len(images) - size + 1, size)])
    assert relative_l2(apart, together[: len(apart)]) <= 3e-2


def test_cuda_graphs_change_no_bit(folder: Path) -> None:
    with opened(folder, cuda_graphs=True) as captured, opened(folder, cuda_graphs=False) as launched:
        for batch in captured.profile.sizes:
            images = images_for(captured, batch)
            for _ in range(3):
                np.testing.assert_array_equal(captured.infer(images), launched.infer(images))
        assert captured.facts.notes == launched.facts.notes, "a graph could not be captured"


def test_batch_sizes_may_alternate_under_graphs(engine: TensorRTEngine) -> None:
    sizes = engine.profile.sizes
    first = {batch: engine.infer(images_for(engine, batch, batch)) for batch in sizes}
    for batch in (*sizes, *reversed(sizes)):
        np.testing.assert_array_equal(engine.infer(images_for(engine, batch, batch)), first[batch])


def test_streams_give_what_one_stream_gives(folder: Path) -> None:
    with opened(folder, streams=3) as many, opened(folder) as one:
        batches = [images_for(one, one.profile.opt, seed) for seed in range(12)]
        for answer, batch in zip(many.infer_many(batches), batches, strict=True):
            np.testing.assert_array_equal(answer, one.infer(batch))


def test_steps_are_timed_on_the_gpu(engine: TensorRTEngine) -> None:
    images = images_for(engine, engine.profile.max)
    times = [engine.infer_timed(images) for _ in range(10)]
    assert all(t.compute_ms > 0 and t.h2d_ms > 0 and t.d2h_ms > 0 for t in times)


def test_layer_times_cover_the_inspected_layers(engine: TensorRTEngine) -> None:
    times = engine.layer_times_ms()
    assert times
    assert sum(ms for _, ms in times) > 0
    named = {layer.name for layer in engine.facts.layers if layer.time_ms is not None}
    assert named <= {name for name, _ in times}


def device_arrays(library: str, images: Any, classes: int, dtype: Any) -> tuple[Any, Any, Any]:
    """(images on the GPU, an output there, a function that brings it back)."""
    if library == "pycuda":
        pytest.importorskip("pycuda.autoprimaryctx")
        from pycuda import gpuarray

        out = gpuarray.empty((len(images), classes), dtype)
        return gpuarray.to_gpu(images), out, lambda: out.get()
    if library == "torch":
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("this PyTorch has no CUDA")
        out = torch.full((len(images), classes), float("nan"), dtype=getattr(torch, np.dtype(dtype).name), device="cuda")
        return torch.from_numpy(images).cuda(), out, lambda: out.cpu().numpy()
    if library == "cupy":
        cupy = pytest.importorskip("cupy")
        out = cupy.full((len(images), classes), np.nan, dtype)
        return cupy.asarray(images), out, lambda: cupy.asnumpy(out)
    cuda = pytest.importorskip("numba.cuda")
    out = cuda.device_array((len(images), classes), dtype)
    return cuda.to_device(images), out, lambda: out.copy_to_host()


@pytest.mark.parametrize("library", ["pycuda", "torch", "cupy", "numba"])
def test_gpu_arrays_give_what_numpy_gives(engine: TensorRTEngine, library: str) -> None:
    for batch in engine.profile.sizes:
        images = images_for(engine, batch)
        source, out, bring_back = device_arrays(
            library, images.astype(engine.io.input_dtype), engine.io.classes, engine.io.output_dtype
        )
        assert engine.infer_device(source, out=out) is out
        assert relative_l2(bring_back(), engine.infer(images)) <= 1e-3


def test_the_callers_stream_is_used(engine: TensorRTEngine) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    images = images_for(engine, engine.profile.opt)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        source = torch.from_numpy(images.astype(engine.io.input_dtype)).cuda(non_blocking=True) * 1
        out = torch.empty((len(images), engine.io.classes), dtype=source.dtype, device="cuda")
        engine.infer_device(source, out=out, stream=stream.cuda_stream)
    stream.synchronize()
    assert relative_l2(out.cpu().numpy(), engine.infer(images)) <= 1e-3


def test_parity_with_fp32_pytorch_on_the_same_gpu(tmp_path: Path) -> None:
    """The whole way on one machine: export, deploy, and FP32 PyTorch on this GPU with TF32 off as the reference."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    for package in ("onnx", "onnx_ir", "onnxscript", "safetensors"):
        pytest.importorskip(package)
    missing = TensorRTBackend().missing()
    if missing is not None:
        pytest.skip(missing)
    from contextlib import ExitStack

    from gmf_edge.deploy import deploy_bundle
    from gmf_edge.prepare import export
    from gmf_edge.prepare.source import load_source
    from gmf_edge.spec import BatchProfile, BuildSpec

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    spec = BuildSpec(precision=Precision.FP16, variant="pico", profile=BatchProfile(1, 4, 8))
    export(spec, tmp_path / "bundle")
    assert deploy_bundle(tmp_path / "bundle", backend="tensorrt").passed
    with ExitStack() as stack, opened(tmp_path / "bundle") as engine:
        model = load_source(spec, stack).model.cuda().eval()
        for batch in engine.profile.sizes:
            images = images_for(engine, batch)
            with torch.no_grad():
                exact = model(torch.from_numpy(images).cuda()).cpu().numpy()
            assert relative_l2(engine.infer(images), exact) <= 3e-2
