"""CUDA graphs, memory, times and options of an opened engine, on the CUDA of test_streams_on_fakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trt_bindings
from cuda_fake import COPY_BYTES_PER_MS, FakeCuda
from gpu_arrays import GpuArray
from trt_contexts_fake import ACTIVATION_BYTES
from trt_fake import CLASSES, FakeModel
from trt_machine import Machine, MakeMachine, expected, images

from gmf_edge.engines.tensorrt.backend import open_engine
from gmf_edge.engines.tensorrt.lane import MOST_GRAPHS
from gmf_edge.engines.tensorrt.options import TensorRTOptions
from gmf_edge.engines.tensorrt.sidecar import Sidecar
from gmf_edge.errors import EngineError, EnvironmentProblem

every_version = pytest.mark.parametrize("version", trt_bindings.VERSIONS)
VERSION = "10.3.0"


@pytest.fixture
def machine(make: MakeMachine) -> Machine:
    made = make(VERSION)
    made.build()
    made.cuda.log.clear()
    return made


FILES = ("engine.plan", "engine.plan.json")


def close_to(values: Any, batch: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(values, expected(batch), rtol=1e-6, atol=1e-6)


# CUDA graphs


def arrays(cuda: FakeCuda, count: int) -> list[GpuArray]:
    return [GpuArray(cuda, images(2, seed)) for seed in range(count)]


def test_arrays_that_come_again_are_replayed_from_a_graph(machine: Machine) -> None:
    with machine.open(FILES) as engine:
        source, out = GpuArray(machine.cuda, images(2)), GpuArray(machine.cuda, np.zeros((2, CLASSES), np.float32))
        launches = []
        for seed in range(5):
            source.values[:] = images(2, seed)
            before = machine.cuda.log.count("launch")
            engine.infer_device(source, out=out)
            close_to(out.values, images(2, seed))
            launches.append(machine.cuda.log.count("launch") - before)
        assert launches == [0, 0, 1, 1, 1]
        assert machine.cuda.log.count("instantiate") == 1


def test_arrays_that_do_not_come_again_are_never_captured(machine: Machine) -> None:
    with machine.open(FILES) as engine:
        for array in arrays(machine.cuda, 5 * MOST_GRAPHS):
            engine.infer_device(array)
        assert "capture" not in machine.cuda.log
        assert not engine.facts.notes[len(machine.sidecar["notes"]) :]


def test_graphs_have_a_limit_that_is_told(machine: Machine) -> None:
    with machine.open(FILES) as engine:
        for array in [each for each in arrays(machine.cuda, MOST_GRAPHS + 2) for _ in range(3)]:
            engine.infer_device(array)
        assert machine.cuda.log.count("instantiate") == MOST_GRAPHS
        assert [note for note in engine.facts.notes if f"the first {MOST_GRAPHS} arrays of infer_device are replayed" in note]
        # infer's own batch sizes are counted apart
        engine.infer(images(2))
        assert machine.cuda.log.count("instantiate") == MOST_GRAPHS + 1


@every_version
def test_all_contexts_of_a_stream_share_one_block_of_activations(make: MakeMachine, version: str) -> None:
    machine = make(version)
    files = machine.build()
    for streams in (1, 3):
        with machine.open(files, options={"streams": streams}) as engine:
            list(engine.infer_many([images(1 + number % 4) for number in range(12)]))
            engine.layer_times_ms()
            on_gpu = sum(len(found.block) for found in machine.cuda.allocations.values() if not found.on_host)
            told = engine.memory_mib
            assert told["streams"] == streams
            assert told["activations"] == streams * ACTIVATION_BYTES / 2**20
            assert told["activations"] + told["buffers"] == pytest.approx(on_gpu / 2**20)
        assert not machine.cuda.memory


@every_version
@pytest.mark.parametrize("told", [0, -1])
def test_an_engine_whose_memory_is_not_told_allocates_for_itself(make: MakeMachine, version: str, told: int) -> None:
    """As a version-compatible one of an older major may."""
    machine = make(version)
    files = machine.build()
    for name in ("device_memory_size", "device_memory_size_v2"):
        if name in machine.trt.described["classes"]["ICudaEngine"]["properties"]:
            setattr(machine.trt.types["ICudaEngine"], name, property(lambda owner: told))
    with machine.open(files) as engine:
        for batch in (1, 4, 1):
            close_to(engine.infer(images(batch)), images(batch))
        assert engine.memory_mib["activations"] == 0
    assert not machine.cuda.memory


def test_no_memory_for_a_stream_leaves_nothing_behind(make: MakeMachine) -> None:
    machine = make(VERSION)
    files = machine.build()
    machine.cuda.total = 2 * ACTIVATION_BYTES
    with pytest.raises(EngineError, match="the GPU is out of memory; use smaller batches or fewer streams"):
        machine.open(files, options={"streams": 3})
    assert not machine.cuda.memory
    assert not machine.cuda.streams
    assert not machine.cuda.events


@every_version
def test_a_context_that_cannot_be_made_for_a_graph_kills_no_inference(make: MakeMachine, version: str) -> None:
    machine = make(version)
    files = machine.build()
    with machine.open(files) as engine:
        for name in ("create_execution_context", "create_execution_context_without_device_memory"):
            machine.trt.behaviours[f"ICudaEngine.{name}"] = lambda owner, *args, **kwargs: None
        for seed in range(3):
            close_to(engine.infer(images(2, seed)), images(2, seed))
        assert any("no CUDA graph could be captured" in note for note in engine.facts.notes)


@pytest.mark.parametrize("fault", ["first run", "capture", "spoilt capture", "instantiate"])
def test_a_capture_that_fails_leaves_nothing_behind(make: MakeMachine, fault: str) -> None:
    machine = make(VERSION, FakeModel(capture_fails=fault == "spoilt capture"))
    files = machine.build()
    cuda, contexts = machine.cuda, machine.trt.contexts
    with machine.open(files) as engine:
        made = contexts.made

        def execute(context: Any, stream_handle: int) -> bool:
            is_graphs_own = contexts.made > made and context is not engine._lanes[0].context
            if is_graphs_own and (fault == "first run" or (fault == "capture" and cuda.is_capturing(stream_handle))):
                return False
            return contexts.execute(context, stream_handle)

        machine.trt.behaviours["IExecutionContext.execute_async_v3"] = execute
        if fault == "instantiate":
            cuda.cudaGraphInstantiateWithFlags = lambda graph, flags: (setattr(cuda, "last_error", 2) or 2, None)  # type: ignore[method-assign]
        for seed in range(3):
            close_to(engine.infer(images(2, seed)), images(2, seed))
        assert not cuda.graphs
        assert cuda.cudaGetLastError() == (0,)
        assert not cuda.is_capturing(engine._lanes[0].stream.handle)
        [note] = engine.facts.notes[len(machine.sidecar["notes"]) :]
        assert "no CUDA graph could be captured" in note
    assert not cuda.memory


# times


def test_the_steps_of_an_inference_hold_no_gap_of_the_cpu(machine: Machine) -> None:
    batch = images(4)
    with machine.open(FILES) as engine:
        for transfers in (True, False):
            times = engine.infer_timed(batch, transfers)
            assert times.compute_ms == pytest.approx(machine.model.compute_ms)
            copied = batch.nbytes / COPY_BYTES_PER_MS if transfers else 0.0
            assert times.h2d_ms == pytest.approx(copied)
            assert times.d2h_ms == pytest.approx(4 * CLASSES * 4 / COPY_BYTES_PER_MS if transfers else 0.0)
            assert times.latency_ms == pytest.approx(times.h2d_ms + times.compute_ms + times.d2h_ms)
            assert times.enqueue_ms > 0
        close_to(engine.infer(images(2)), images(2))


@pytest.mark.parametrize("count", [1, 3, 200])
def test_compute_times_are_the_gpus_alone(machine: Machine, count: int) -> None:
    with machine.open(FILES) as engine:
        times = engine.compute_times_ms(images(2), count)
        assert times.dtype == np.float64
        assert times.shape == (count,)
        # the first ones neither: they are captured before
        np.testing.assert_allclose(times, machine.model.compute_ms)
        assert machine.cuda.log.count("instantiate") == 1
        close_to(engine.infer(images(2, 3)), images(2, 3))
    assert not machine.cuda.events


def test_without_graphs_the_layers_launches_are_part_of_the_time(make: MakeMachine) -> None:
    machine = make(VERSION, FakeModel(launch_ms=3.0))
    with machine.open(machine.build(), options={"cuda_graphs": False}) as engine:
        assert "capture" not in machine.cuda.log
        assert engine.compute_times_ms(images(2), 4).min() > 2.9


# opening


@every_version
def test_an_engine_is_opened_as_it_was_built_to_run(make: MakeMachine, version: str) -> None:
    machine = make(version)
    files = machine.build(options={"streams": 3, "cuda_graphs": False})
    with machine.open(files) as engine:
        assert engine.memory_mib["streams"] == 3
        engine.infer(images(1))
        assert "capture" not in machine.cuda.log
    with machine.open(files, options={"streams": 1, "cuda_graphs": True}) as engine:
        assert engine.memory_mib["streams"] == 1
        engine.infer(images(1))
        assert "capture" in machine.cuda.log
    path = machine.out / files[0]
    sidecar = Sidecar.read(path)
    with open_engine(path, sidecar) as engine:
        assert engine.memory_mib["streams"] == 3
    with open_engine(path, sidecar, TensorRTOptions()) as engine:
        assert engine.memory_mib["streams"] == 1


@every_version
def test_a_library_that_does_not_start_is_an_environment_problem(make: MakeMachine, version: str) -> None:
    """pybind11 turns the null pointer of createInferRuntime into a TypeError."""
    machine = make(version)
    files = machine.build()

    def no_runtime(runtime: Any, logger: Any) -> None:
        logger.log(machine.trt.types["ILogger.Severity"].ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    machine.trt.types["Runtime"].__init__ = no_runtime
    with pytest.raises(EnvironmentProblem, match=f"TensorRT {version} could not be started: CUDA initialization failure.*install"):
        machine.open(files)


def test_what_cannot_be_released_does_not_hide_what_led_there(machine: Machine) -> None:
    synchronize = machine.cuda.cudaStreamSynchronize

    def use() -> None:
        with machine.open(FILES):
            machine.cuda.cudaStreamSynchronize = lambda stream: (719,)  # type: ignore[method-assign]
            raise ValueError("the first error")

    with pytest.raises(ValueError, match="the first error"):
        use()
    machine.cuda.cudaStreamSynchronize = synchronize  # type: ignore[method-assign]
    # and the rest was released all the same
    assert not machine.cuda.memory
    assert not machine.cuda.streams
    broken = machine.open(FILES)
    machine.cuda.cudaStreamSynchronize = lambda stream: (719,)  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=r"error 719.*start it again"):
        broken.close()
