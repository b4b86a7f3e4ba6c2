"""Streams, GPU arrays, CUDA graphs and memory of an opened engine, on a CUDA that forgives nothing (cuda_fake, trt_contexts_fake).

Every test here also fails where the stand-in has seen a race, work on memory that is gone or a call in the wrong context: the fixture
`make` asks for its violations at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trt_bindings
from cuda_fake import COPY_BYTES_PER_MS, LEGACY, FakeCuda, Work
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


class GpuArray:
    """What PyCUDA's GPUArray shows: __cuda_array_interface__ only; with `stream`, what CuPy's and Numba's show."""

    def __init__(self, cuda: FakeCuda, values: np.ndarray[Any, Any], **more: Any) -> None:
        self.shape, self.dtype, self.more, self.cuda = values.shape, values.dtype, more, cuda
        pointer = cuda.allocate(values.nbytes)
        assert pointer is not None
        self.pointer = pointer
        self.values = np.frombuffer(memoryview(cuda.memory[pointer]), values.dtype).reshape(values.shape)
        self.values[:] = values
        self.strides: tuple[int, ...] | None = None

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        told = {"shape": self.shape, "typestr": self.dtype.str, "data": (self.pointer, False), "version": 2}
        return {**told, "strides": self.strides, **self.more}

    def write(self, stream: int, values: np.ndarray[Any, Any]) -> None:
        """A kernel of the caller, on a stream, that puts values there."""
        work = Work("the caller's producer", lambda: np.copyto(self.values, values), 1.0, writes=[(self.pointer, values.nbytes)])
        assert self.cuda.kernel(stream, work) == 0


class TorchTensor(GpuArray):
    """What PyTorch shows: __dlpack__, which makes the consumer's stream wait for the current one."""

    def __init__(self, cuda: FakeCuda, values: np.ndarray[Any, Any], current: int, device: int = 0) -> None:
        super().__init__(cuda, values)
        self.current, self.device = current, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device

    def __dlpack__(self, stream: int) -> Any:
        if stream != -1:
            _, event = self.cuda.cudaEventCreateWithFlags(2)
            self.cuda.cudaEventRecord(event, self.current)
            assert self.cuda.cudaStreamWaitEvent(stream, event, 0)[0] == 0
            self.cuda.cudaEventDestroy(event)
        return self.values.__dlpack__()


def read(cuda: FakeCuda, stream: int, told: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What a consumer that keeps to the CUDA array interface finds, reading on its own stream."""
    pointer, size = told["data"][0], int(np.prod(told["shape"])) * np.dtype(told["typestr"]).itemsize
    if told["stream"] is not None:
        assert told["stream"] != 0, "the interface does not allow 0"
        _, event = cuda.cudaEventCreateWithFlags(2)
        cuda.cudaEventRecord(event, told["stream"])
        cuda.cudaStreamWaitEvent(stream, event, 0)
        cuda.cudaEventDestroy(event)
    found = np.full(told["shape"], np.nan, told["typestr"])

    def take() -> None:
        found[:] = np.frombuffer(memoryview(cuda.allocation_of(pointer).block), told["typestr"])[: found.size].reshape(found.shape)

    assert cuda.kernel(stream, Work("the caller's consumer", take, 0.1, reads=[(pointer, size)])) == 0
    cuda.cudaStreamSynchronize(stream)
    return found


def new_stream(cuda: FakeCuda, flags: int = 1) -> int:
    return int(cuda.cudaStreamCreateWithFlags(flags)[1])


@pytest.fixture
def machine(make: MakeMachine) -> Machine:
    made = make(VERSION)
    made.build()
    made.cuda.log.clear()
    return made


FILES = ("engine.plan", "engine.plan.json")


def close_to(values: Any, batch: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(values, expected(batch), rtol=1e-6, atol=1e-6)


# arrays of other libraries


@every_version
def test_gpu_arrays_go_in_and_out_without_a_copy(make: MakeMachine, version: str) -> None:
    machine = make(version)
    files = machine.build()
    with machine.open(files) as engine:
        source = GpuArray(machine.cuda, images(3))
        target = GpuArray(machine.cuda, np.full((3, CLASSES), np.nan, np.float32))
        machine.cuda.log.clear()
        assert engine.infer_device(source, out=target) is target
        close_to(target.values, images(3))
        # the producer's work is waited for, and the answer is complete on return
        assert machine.cuda.log == ["wait", "wait", "synchronize"]
        own = engine.infer_device(source)
        told = own.__cuda_array_interface__
        assert (told["shape"], told["typestr"], told["stream"]) == ((3, CLASSES), "<f4", None)
        close_to(read(machine.cuda, new_stream(machine.cuda), told), images(3))


@pytest.mark.parametrize("fault", ["type", "strides", "host", "out", "alignment", "read-only", "freed"])
def test_gpu_arrays_that_do_not_fit_are_refused(machine: Machine, fault: str) -> None:
    with machine.open(FILES) as engine:
        source: Any = GpuArray(machine.cuda, images(2).astype(np.float16 if fault == "type" else np.float32))
        out = GpuArray(machine.cuda, np.zeros((1 if fault == "out" else 2, CLASSES), np.float32))
        if fault == "strides":
            source.strides = (4 * 3 * 32 * 32, 4, 4 * 3 * 32, 4 * 3)
        elif fault == "host":
            source = images(2)
        elif fault == "alignment":
            out = GpuArray(machine.cuda, np.zeros((4, CLASSES), np.float32))
            out.shape, out.pointer = (2, CLASSES), out.pointer + 2 * CLASSES * 4
        elif fault == "read-only":
            out.more["data"] = (out.pointer, True)
        elif fault == "freed":
            machine.cuda.cudaFree(source.pointer)
        message = {
            "type": "images has type float16, the engine's is float32",
            "strides": "images is not contiguous",
            "host": "outside GPU memory",
            "out": r"out has shape \(1, 5\)",
            "alignment": "out starts at an address that is not a multiple of 256 bytes",
            "read-only": "out is read-only",
            "freed": "images is at address .* where CUDA knows no memory",
        }[fault]
        with pytest.raises(EngineError, match=message):
            engine.infer_device(source, out=out)


# order between streams


@pytest.mark.parametrize("flags", [0, 1], ids=["blocking", "non-blocking"])
def test_work_on_the_callers_stream_is_ordered_before_and_after(machine: Machine, flags: int) -> None:
    cuda = machine.cuda
    with machine.open(FILES) as engine:
        stream = new_stream(cuda, flags)
        # no protocol tells this array's stream: only the order on the caller's own
        source = GpuArray(cuda, images(2), version=3, stream=new_stream(cuda))
        out = GpuArray(cuda, np.zeros((2, CLASSES), np.float32), version=3, stream=new_stream(cuda))
        for seed in range(5):
            source.write(stream, images(2, seed))
            cuda.log.clear()
            assert engine.infer_device(source, out=out, stream=stream) is out
            found = read(cuda, stream, {**out.__cuda_array_interface__, "stream": None})
            close_to(found, images(2, seed))
        # the last ones came from a graph, and nothing but the reader waited
        assert cuda.log.count("synchronize") == 1
        assert "launch" in cuda.log


def test_the_default_stream_may_be_given(machine: Machine) -> None:
    with machine.open(FILES) as engine:
        for handle in (0, LEGACY):
            source = GpuArray(machine.cuda, images(2))
            source.write(LEGACY, images(2, 7))
            view = engine.infer_device(source, stream=handle)
            close_to(read(machine.cuda, LEGACY, {**view.__cuda_array_interface__, "stream": None}), images(2, 7))


def test_an_array_of_a_third_stream_is_waited_for(machine: Machine) -> None:
    cuda = machine.cuda
    with machine.open(FILES) as engine:
        elsewhere, stream = new_stream(cuda), new_stream(cuda)
        for array in (
            GpuArray(cuda, images(2), version=3, stream=elsewhere),
            TorchTensor(cuda, images(2), elsewhere),
        ):
            for given in (stream, None):
                array.write(elsewhere, images(2, 5))
                view = engine.infer_device(array, stream=given)
                close_to(read(cuda, stream, view.__cuda_array_interface__), images(2, 5))


def test_an_unfinished_result_names_the_stream_to_wait_for(machine: Machine) -> None:
    with machine.open(FILES) as engine:
        source = GpuArray(machine.cuda, images(2))
        view = engine.infer_device(source, stream=new_stream(machine.cuda))
        # a reader on another stream, that keeps to the interface
        close_to(read(machine.cuda, new_stream(machine.cuda), view.__cuda_array_interface__), images(2))
        # and the engine itself, as an input's producer would be
        assert view.__cuda_array_interface__["stream"] is not None


def test_calls_on_the_callers_stream_and_others_do_not_meet(machine: Machine) -> None:
    cuda = machine.cuda
    with machine.open(FILES) as engine:
        first, second = new_stream(cuda), new_stream(cuda)
        source = GpuArray(cuda, images(3))
        for _ in range(4):
            view = engine.infer_device(source, stream=first)
            close_to(engine.infer(images(2, 9)), images(2, 9))
            other = engine.infer_device(source, out=GpuArray(cuda, np.zeros((3, CLASSES), np.float32)), stream=second)
            close_to(engine.infer(images(4, 8)), images(4, 8))
            # infer does not write where infer_device's result lies
            close_to(read(cuda, first, {**view.__cuda_array_interface__, "stream": None}), images(3))
            close_to(read(cuda, second, {**other.__cuda_array_interface__, "stream": None}), images(3))


def test_a_reader_on_the_callers_stream_is_not_overtaken_by_the_next_call(machine: Machine) -> None:
    cuda = machine.cuda
    with machine.open(FILES) as engine:
        stream = new_stream(cuda)
        for seed in range(4):
            told = engine.infer_device(GpuArray(cuda, images(1, seed)), stream=stream).__cuda_array_interface__
            size = CLASSES * 4
            # enqueued and not waited for: the next call must come behind it
            assert cuda.kernel(stream, Work("a reader", lambda: None, 0.1, reads=[(told["data"][0], size)])) == 0
        cuda.cudaStreamSynchronize(stream)


def test_close_waits_for_what_is_in_flight(machine: Machine) -> None:
    engine = machine.open(FILES)
    source = GpuArray(machine.cuda, images(4))
    out = GpuArray(machine.cuda, np.full((4, CLASSES), np.nan, np.float32))
    for _ in range(4):
        engine.infer_device(source, out=out, stream=new_stream(machine.cuda))
    running = engine.infer_many([images(1), images(2)])
    close_to(next(running), images(1))
    engine.close()
    close_to(out.values, images(4))
    with pytest.raises(EngineError, match="the engine is closed"):
        next(running)
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.infer_device(source)


def test_a_stream_that_records_a_graph_is_refused_and_not_spoilt(machine: Machine) -> None:
    with machine.open(FILES) as engine:
        stream = new_stream(machine.cuda)
        machine.cuda.cudaStreamBeginCapture(stream, 1)
        with pytest.raises(EngineError, match="the given stream records a CUDA graph"):
            engine.infer_device(GpuArray(machine.cuda, images(1)), stream=stream)
        assert machine.cuda.cudaStreamEndCapture(stream)[0] == 0


# batches in flight


@pytest.mark.parametrize("streams", [1, 3])
def test_other_calls_may_come_between_the_results_of_infer_many(machine: Machine, streams: int) -> None:
    with machine.open(FILES, options={"streams": streams}) as engine:
        batches = [images(1 + number % 4, number) for number in range(7)]
        for number, answer in enumerate(engine.infer_many(batches)):
            close_to(answer, batches[number])
            close_to(engine.infer(images(3, 50)), images(3, 50))
            engine.infer_timed(images(2, 51))
            close_to(engine.infer_device(GpuArray(machine.cuda, images(2, 52))) and engine.infer(images(1, 53)), images(1, 53))
        assert number == 6


def test_results_that_nobody_takes_disturb_nothing(machine: Machine) -> None:
    with machine.open(FILES, options={"streams": 2}) as engine:
        abandoned = engine.infer_many(images(4, number) for number in range(9))
        close_to(next(abandoned), images(4, 0))
        abandoned.close()
        close_to(engine.infer(images(2, 5)), images(2, 5))


def test_an_inference_that_fails_halfway_leaves_the_buffers_free(machine: Machine) -> None:
    with machine.open(FILES, options={"cuda_graphs": False}) as engine:
        execute = machine.trt.behaviours["IExecutionContext.execute_async_v3"]
        machine.trt.behaviours["IExecutionContext.execute_async_v3"] = lambda context, stream_handle: False
        with pytest.raises(EngineError, match="could not run a batch of 2"):
            engine.infer(images(2))
        machine.trt.behaviours["IExecutionContext.execute_async_v3"] = execute
        close_to(engine.infer(images(2, 3)), images(2, 3))


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


# devices, contexts and threads


def on_thread(work: Callable[[], Any]) -> Any:
    """What the work returns on a thread that has no CUDA context."""
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(work())
        except BaseException as error:
            answers.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(answers[0], BaseException):
        raise answers[0]
    return answers[0]


@every_version
def test_an_engine_runs_where_it_was_opened_whatever_is_current(make: MakeMachine, version: str) -> None:
    machine = make(version, devices=2)
    files = machine.build()
    engine = machine.open(files, options={"streams": 2})
    source = GpuArray(machine.cuda, images(2))
    machine.cuda.cudaSetDevice(1)
    elsewhere = machine.cuda.context
    for _ in range(4):
        close_to(engine.infer(images(3)), images(3))
        close_to(list(engine.infer_many([images(1), images(2)]))[1], images(2))
        engine.infer_device(source)
        engine.infer_timed(images(1))
        engine.compute_times_ms(images(1), 3)
        engine.layer_times_ms()
        engine.inspector_json()
        assert machine.cuda.context == elsewhere, "the caller's device was changed"
    engine.close()
    assert machine.cuda.context == elsewhere
    assert len(machine.cuda.memory) == 1


def test_a_thread_without_a_context_is_left_without_one(machine: Machine) -> None:
    with machine.open(FILES) as engine:

        def use() -> int:
            close_to(engine.infer(images(2, 4)), images(2, 4))
            return int(machine.driver.cuCtxGetCurrent()[1])

        assert on_thread(use) == 0


def test_the_device_is_put_back_when_a_call_fails(make: MakeMachine) -> None:
    machine = make(VERSION, devices=2)
    engine = machine.open(machine.build())
    machine.cuda.cudaSetDevice(1)
    elsewhere = machine.cuda.context
    with pytest.raises(EngineError, match="outside the engine's profile"):
        engine.infer(images(7))
    assert machine.cuda.context == elsewhere
    engine.close()


def test_arrays_of_another_gpu_are_refused_by_name(make: MakeMachine) -> None:
    machine = make(VERSION, devices=2)
    with machine.open(machine.build()) as engine:
        here, out = GpuArray(machine.cuda, images(2)), GpuArray(machine.cuda, np.zeros((2, CLASSES), np.float32))
        machine.cuda.cudaSetDevice(1)
        there, stream = GpuArray(machine.cuda, images(2)), new_stream(machine.cuda)
        with pytest.raises(EngineError, match="images lies on GPU 1, the engine on GPU 0; copy it there"):
            engine.infer_device(there)
        with pytest.raises(EngineError, match="out lies on GPU 1"):
            engine.infer_device(here, out=there)
        with pytest.raises(EngineError, match="images lies on GPU 1"):
            engine.infer_device(TorchTensor(machine.cuda, images(2), stream, device=1), out=out)
        with pytest.raises(EngineError, match="the given stream belongs to another GPU or CUDA context"):
            engine.infer_device(here, out=out, stream=stream)


def test_arrays_of_a_librarys_own_context_are_refused_with_a_remedy(machine: Machine) -> None:
    """pycuda.autoinit after the engine was opened: the same GPU, another context."""
    with machine.open(FILES) as engine:
        own = machine.cuda.new_context(0)
        machine.driver.cuCtxSetCurrent(own)
        array = GpuArray(machine.cuda, images(1))
        with pytest.raises(EngineError, match=r"images belongs to another CUDA context of GPU 0.*pycuda\.autoprimaryctx"):
            engine.infer_device(array)
        close_to(engine.infer(images(1)), images(1))
        # PyCUDA finds its context as it left it
        assert machine.cuda.context == own


def test_an_engine_opened_in_a_librarys_own_context_takes_its_arrays(machine: Machine) -> None:
    """pycuda.autoinit before the engine was opened: everything is in its context."""
    machine.driver.cuCtxSetCurrent(machine.cuda.new_context(0))
    with machine.open(FILES) as engine:
        array = GpuArray(machine.cuda, images(2))
        view = on_thread(lambda: engine.infer_device(array))
        close_to(read(machine.cuda, new_stream(machine.cuda), view.__cuda_array_interface__), images(2))


def test_memory_of_a_pool_belongs_to_no_context_and_is_taken(machine: Machine) -> None:
    with machine.open(FILES) as engine:
        array = GpuArray(machine.cuda, images(2))
        machine.driver.pool.add(array.pointer)
        told = engine.infer_device(array).__cuda_array_interface__
        close_to(read(machine.cuda, new_stream(machine.cuda), told), images(2))


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
    engine = machine.open(FILES)
    synchronize = machine.cuda.cudaStreamSynchronize
    with pytest.raises(ValueError, match="the first error"), engine:
        machine.cuda.cudaStreamSynchronize = lambda stream: (719,)  # type: ignore[method-assign]
        raise ValueError("the first error")
    machine.cuda.cudaStreamSynchronize = synchronize  # type: ignore[method-assign]
    # and the rest was released all the same
    assert not machine.cuda.memory
    assert not machine.cuda.streams
    broken = machine.open(FILES)
    machine.cuda.cudaStreamSynchronize = lambda stream: (719,)  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="error 719.*start it again"):
        broken.close()
