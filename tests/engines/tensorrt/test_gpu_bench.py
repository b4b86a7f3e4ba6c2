"""What only a GPU can show of the benchmark, on engines that benchmarks/gpu_check.sh has deployed: GMF_EDGE_BUNDLES names their folder.

    GMF_EDGE_BUNDLES=out/gpu_check pytest -m gpu tests/engines/tensorrt/test_gpu_bench.py

Without a GPU or without bundles every test here is skipped with the reason.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gmf_edge.bench.energy import EnergyMeter
from gmf_edge.bench.in_turn import TurnPlan
from gmf_edge.bench.latency import BenchPlan
from gmf_edge.bundle import open_bundle
from gmf_edge.deploy import BenchRequest, bench_bundle, open_engine
from gmf_edge.engines.trace import TracedEngine, TracePlan

pytestmark = pytest.mark.gpu


def test_traced_compute_is_what_events_round_the_engine_tell(folder: Path) -> None:
    bundle = open_bundle(folder)
    height, width = bundle.manifest.model.image_size
    images = np.random.default_rng(0).normal(size=(bundle.manifest.profile.opt, 3, height, width)).astype(np.float32)
    with open_engine(bundle) as engine:
        assert isinstance(engine, TracedEngine)
        alone = engine.compute_times_ms(images, 100)
        assert alone is not None
        traced = engine.trace(images, TracePlan(0.2, 1.0, 100, transfers=False, spin_wait=True))
    compute = np.median([trace.compute_ms for trace in traced.traces])
    assert compute == pytest.approx(np.median(alone), rel=0.1)
    # back to back, so that the wall's clock and the GPU's agree
    assert len(traced.traces) / traced.wall_s == pytest.approx(1000 / compute, rel=0.15)


def test_the_table_has_stock_tensorrt_and_every_mode(folder: Path, tmp_path: Path) -> None:
    request = BenchRequest(
        plan=BenchPlan(duration_s=0.5, spin_wait=True),
        streams=2,
        against=("stock-trt",),
        turn=TurnPlan(seconds=0.5),
        batches=(open_bundle(folder).manifest.profile.opt,),
        export_profile=tmp_path / f"profile_{folder.name}.json",
    )
    result = bench_bundle(folder, request)
    told = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert told["latency"][0]["modes"]["spin_wait"] is True
    assert told["streams"][0]["images_per_s"] > 0
    # it may not run, TensorRT 8.6 for one refuses the opset, but never without a reason
    assert "stock-trt" in {**told["baselines"]["engines"], **told["baselines"]["not_run"]}


def test_energy_is_read_where_the_gpu_counts_it(folder: Path) -> None:
    meter = EnergyMeter(on_gpu=True)
    bench_bundle(folder, BenchRequest(plan=BenchPlan(duration_s=0.5), batches=(open_bundle(folder).manifest.profile.opt,)))
    meter.stop(1)
    found = meter.to_json()
    if found is None:
        pytest.skip("neither NVML nor a Jetson's rail tells energy here")
    assert 1 < found["watts"] < 2000
