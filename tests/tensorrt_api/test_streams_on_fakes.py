"""GPU arrays, streams, CUDA contexts and threads of an opened engine, on a CUDA that forgives nothing (cuda_fake, trt_contexts_fake).

Every test here also fails where the stand-in has seen a race, work on memory that is gone or a call in the wrong context: the fixture
`make` asks for its violations at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import trt_bindings
from fake_gpu import LEGACY, Work
from gpu_arrays import GpuArray, TorchTensor, new_stream, read
from trt_fake import CLASSES
from trt_machine import Machine, MakeMachine, expected, images

from gmf_edge.errors import EngineError

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
    with pytest.raises(EngineError, match="outside the profile"):
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
