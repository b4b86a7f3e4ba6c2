"""Streams, CUDA graphs and times that only a GPU can show, on the deployed bundles of test_gpu.

    GMF_EDGE_BUNDLES=out/gpu_check pytest -m gpu tests/engines/tensorrt

PyTorch is the caller here; without it, or without a GPU or bundles, a test is skipped with the reason.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed_engines import images_for, opened

from gmf_edge.engines.tensorrt.cuda import free_memory_mib
from gmf_edge.engines.tensorrt.run import TensorRTEngine
from gmf_edge.errors import EngineError

pytestmark = pytest.mark.gpu


def relative_l2(found: Any, exact: Any) -> float:
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def cuda_torch() -> Any:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    return torch


def test_replayed_arrays_give_what_launched_layers_give(folder: Path) -> None:
    torch = cuda_torch()
    with opened(folder, cuda_graphs=True) as captured, opened(folder, cuda_graphs=False) as launched:
        for batch in captured.profile.sizes:
            source = torch.from_numpy(images_for(captured, batch).astype(captured.io.input_dtype)).cuda()
            out = torch.empty((batch, captured.io.classes), dtype=source.dtype, device="cuda")
            exact = torch.empty_like(out)
            launched.infer_device(source, out=exact)
            for _ in range(4):
                out.fill_(float("nan"))
                captured.infer_device(source, out=out)
                assert torch.equal(out, exact)
        assert captured.facts.notes == launched.facts.notes, "a graph could not be captured"


def test_work_on_the_callers_stream_is_ordered_before_and_after(engine: TensorRTEngine) -> None:
    """A long producer and a consumer on a side stream, with infer between them, many times and without waiting."""
    torch = cuda_torch()
    batch = engine.profile.max
    images = [torch.from_numpy(images_for(engine, batch, seed).astype(engine.io.input_dtype)).cuda() for seed in range(3)]
    exact = [engine.infer(each.float().cpu().numpy()) for each in images]
    stream = torch.cuda.Stream()
    source = torch.empty_like(images[0])
    out = torch.empty((batch, engine.io.classes), dtype=source.dtype, device="cuda")
    torch.cuda.synchronize()
    kept = []
    for number in range(30):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(2_000_000)  # about a millisecond: what comes too early reads the picture before
            source.copy_(images[number % 3])
            engine.infer_device(source, out=out, stream=stream.cuda_stream)
            kept.append(out.clone())
            source.fill_(float("nan"))
            out.fill_(float("nan"))
        if number % 5 == 0:
            assert relative_l2(engine.infer(images[0].float().cpu().numpy()), exact[0]) <= 1e-3
    stream.synchronize()
    for number, found in enumerate(kept):
        assert relative_l2(found.float().cpu().numpy(), exact[number % 3]) <= 1e-3, f"call {number}"


def test_another_thread_and_another_device_are_no_matter(engine: TensorRTEngine) -> None:
    torch = cuda_torch()
    images = images_for(engine, engine.profile.opt)
    exact = engine.infer(images)
    found = []
    thread = threading.Thread(target=lambda: found.append(engine.infer(images)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], exact)
    if torch.cuda.device_count() > 1:
        with torch.cuda.device(1):
            np.testing.assert_array_equal(engine.infer(images), exact)
            assert torch.cuda.current_device() == 1
        with pytest.raises(EngineError, match="lies on GPU 1"):
            engine.infer_device(torch.zeros(images.shape, dtype=torch.float32, device="cuda:1"))


def test_graphs_share_the_activations_of_their_stream(folder: Path) -> None:
    with opened(folder, cuda_graphs=True) as engine:
        engine.infer(images_for(engine, engine.profile.min))
        before = free_memory_mib()
        for batch in range(engine.profile.min, engine.profile.max + 1):
            engine.infer(images_for(engine, batch))
        taken = before - free_memory_mib()
        sizes = engine.profile.max - engine.profile.min
        # a context of its own for each graph would take the whole block again each time
        assert taken < max(32, 0.5 * sizes * engine.memory_mib["activations"])


def test_compute_times_agree_with_the_steps(engine: TensorRTEngine) -> None:
    for batch in engine.profile.sizes:
        images = images_for(engine, batch)
        for _ in range(20):
            engine.infer(images)
        together = float(np.median(engine.compute_times_ms(images, 100)))
        alone = float(np.median([engine.infer_timed(images, transfers=False).compute_ms for _ in range(30)]))
        assert together > 0
        # the next graph's launch is part of the distance between two events: a few microseconds
        assert together == pytest.approx(alone, rel=0.15, abs=0.02)
