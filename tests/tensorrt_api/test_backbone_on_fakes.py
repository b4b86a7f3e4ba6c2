"""A backbone in the TensorRT backend, on the stand-ins: four outputs, several image sizes, arrays on the GPU, streams and graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trt_bindings
from cuda_fake import FakeCuda
from gpu_arrays import GpuArray, new_stream, read
from trt_contexts_fake import MAP_CHANNELS, output_of
from trt_fake import FakeModel
from trt_machine import Machine, MakeMachine

from gmf_edge.errors import EngineError
from gmf_edge.spec import MAPS, SizeRange, Task

every_version = pytest.mark.parametrize("version", trt_bindings.VERSIONS)
SIZES = SizeRange((32, 64), (64, 64), (96, 128))
FILES = ("engine.plan", "engine.plan.json", "engine.plan.layers.json")


def images(batch: int, size: tuple[int, int], seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(batch, 3, *size)).astype(np.float32)


def backbone(make: MakeMachine, version: str = "10.13.3.9", sizes: SizeRange | None = SIZES, **model: Any) -> Machine:
    machine = make(version, FakeModel(is_backbone=True, **model))
    size = (64, 64) if sizes is None else sizes.opt
    assert machine.build(task=Task.FEATURES, image_size=size, sizes=sizes) == FILES
    return machine


def check(found: Any, given: Any) -> None:
    assert tuple(found) == MAPS
    for name, (channels, stride) in MAP_CHANNELS.items():
        np.testing.assert_allclose(found[name], output_of(given, channels, stride), rtol=1e-6, atol=1e-6)


@every_version
def test_maps_of_several_image_and_batch_sizes_come_out_of_one_engine(make: MakeMachine, version: str) -> None:
    machine = backbone(make, version)
    profile = machine.trt.configs[0]._profiles[0]._shapes["images"]
    assert [tuple(shape) for shape in profile] == [(1, 3, 32, 64), (2, 3, 64, 64), (4, 3, 96, 128)]
    with machine.open(FILES) as engine:
        assert engine.task is Task.FEATURES
        for batch, size in ((1, (32, 64)), (4, (96, 128)), (2, (96, 64)), (1, (32, 64)), (4, (96, 128))):
            given = images(batch, size, seed=batch)
            check(engine.infer_maps(given), given)
        # a graph a shape, replayed when the shape comes again
        assert machine.cuda.log.count("instantiate") == 3
        assert machine.cuda.log.count("launch") == 2
    assert not machine.cuda.memory, "leaked memory"


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 48, 64), "multiples of 32, from 32x64 to 96x128"),
        ((1, 3, 128, 64), "from 32x64 to 96x128"),
        ((1, 3, 64, 32), "from 32x64 to 96x128"),
        ((1, 1, 64, 64), "from 32x64 to 96x128"),
        ((5, 3, 64, 64), r"batch size 5 is outside the profile 1\.\.4"),
    ],
)
def test_what_is_outside_the_profile_is_refused(make: MakeMachine, shape: tuple[int, ...], words: str) -> None:
    with backbone(make).open(FILES) as engine, pytest.raises(EngineError, match=words):
        engine.infer_maps(np.zeros(shape, np.float32))


def test_a_backbone_of_one_size_takes_that_size_alone(make: MakeMachine) -> None:
    with backbone(make, sizes=None).open(FILES) as engine:
        check(engine.infer_maps(images(3, (64, 64))), images(3, (64, 64)))
        with pytest.raises(EngineError, match=r"give \[batch, 3, 64, 64\]"):
            engine.infer_maps(images(1, (32, 64)))


def test_logits_of_a_backbone_and_maps_of_a_classifier_are_refused(make: MakeMachine) -> None:
    with backbone(make).open(FILES) as engine:
        with pytest.raises(EngineError, match="a backbone: it gives maps and no logits"):
            engine.infer(images(1, (64, 64)))
        with pytest.raises(EngineError, match="a backbone"):
            next(engine.infer_many([images(1, (64, 64))]))
    machine = make("10.13.3.9")
    machine.build()
    with machine.open(FILES) as engine, pytest.raises(EngineError, match="a classifier: it gives logits and no maps"):
        engine.infer_maps(np.zeros((1, 3, 32, 32), np.float32))


@pytest.mark.parametrize("streams", [1, 3])
def test_batches_of_different_sizes_are_in_flight_at_once(make: MakeMachine, streams: int) -> None:
    machine = backbone(make)
    given = [images(1 + number % 4, ((64, 64), (96, 128), (32, 96))[number % 3], number) for number in range(7)]
    with machine.open(FILES, options={"streams": streams}) as engine:
        for found, wanted in zip(engine.infer_many_maps(given), given, strict=True):
            check(found, wanted)


def gpu_maps(cuda: FakeCuda, batch: int, size: tuple[int, int]) -> dict[str, Any]:
    shapes = {name: (batch, channels, size[0] // stride, size[1] // stride) for name, (channels, stride) in MAP_CHANNELS.items()}
    return {name: GpuArray(cuda, np.zeros(shape, np.float32), version=3, stream=None) for name, shape in shapes.items()}


def test_maps_stay_on_the_gpu(make: MakeMachine) -> None:
    machine = backbone(make)
    with machine.open(FILES) as engine:
        given = images(2, (96, 64))
        views = engine.infer_device(GpuArray(machine.cuda, given))
        stream = new_stream(machine.cuda)
        check({name: read(machine.cuda, stream, view.__cuda_array_interface__) for name, view in views.items()}, given)
        out = gpu_maps(machine.cuda, 2, (96, 64))
        assert engine.infer_device(GpuArray(machine.cuda, given), out=out) is out
        check({name: read(machine.cuda, stream, array.__cuda_array_interface__) for name, array in out.items()}, given)


@pytest.mark.parametrize("fault", ["missing", "shape", "no mapping"])
def test_gpu_arrays_for_maps_that_do_not_fit_are_refused(make: MakeMachine, fault: str) -> None:
    machine = backbone(make)
    with machine.open(FILES) as engine:
        out: Any = gpu_maps(machine.cuda, 1, (64, 64))
        if fault == "missing":
            del out["stage3"]
        elif fault == "shape":
            out["stage2"] = gpu_maps(machine.cuda, 1, (64, 96))["stage2"]
        else:
            out = out["stage1"]
        words = {
            "missing": "no array for stage3",
            "shape": r"out\['stage2'\] has shape \(1, 3, 8, 12\)",
            "no mapping": "no array for stage1",
        }
        with pytest.raises(EngineError, match=words[fault]):
            engine.infer_device(GpuArray(machine.cuda, images(1, (64, 64))), out=out)


def test_times_and_memory_of_a_backbone(make: MakeMachine) -> None:
    machine = backbone(make)
    with machine.open(FILES) as engine:
        times = engine.compute_times_ms(images(2, (64, 64)), 5)
        assert times.shape == (5,)
        assert (times > 0).all()
        assert engine.infer_timed(images(2, (96, 128))).latency_ms > 0
        # images, outputs and what infer_device hands out, for the largest shape
        maps = sum(4 * 4 * channels * (96 // stride) * (128 // stride) for channels, stride in MAP_CHANNELS.values())
        assert engine.memory_mib["buffers"] == pytest.approx((4 * 4 * 3 * 96 * 128 + 2 * maps) / 2**20)
        assert len(engine.layer_times_ms(2)) > 0
