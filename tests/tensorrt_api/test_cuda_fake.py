"""The stand-in for CUDA catches what it is there for: each wrong program is refused, and its right form is not."""

from __future__ import annotations

import ctypes

import pytest
from cuda_driver_fake import CUpointer_attribute, FakeDriver
from cuda_fake import FakeCuda
from fake_gpu import CALL_MS, LEGACY, Handle, Work
from happens_before import HOST, Access, Order, Violation

SIZE = 1024


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda(devices=2)


def buffer(cuda: FakeCuda) -> int:
    pointer: int = cuda.cudaMalloc(SIZE)[1]
    return pointer


def stream(cuda: FakeCuda, flags: int = 1) -> int:
    return int(cuda.cudaStreamCreateWithFlags(flags)[1])


def event(cuda: FakeCuda, flags: int = 0) -> int:
    return int(cuda.cudaEventCreateWithFlags(flags)[1])


def launch(cuda: FakeCuda, on: int, *, reads: int = 0, writes: int = 0, ms: float = 1.0) -> int:
    work = Work("a kernel", lambda: None, ms, [(reads, SIZE)] if reads else [], [(writes, SIZE)] if writes else [])
    return int(cuda.kernel(on, work))


def wait(cuda: FakeCuda, on: int, behind: int) -> None:
    mark = event(cuda, cuda.cudaEventDisableTiming)
    cuda.cudaEventRecord(mark, behind)
    cuda.cudaStreamWaitEvent(on, mark, 0)
    cuda.cudaEventDestroy(mark)


# order


@pytest.mark.parametrize("how", ["not at all", "event", "event the wrong way round", "host", "the same stream"])
def test_a_read_needs_an_order_with_the_write_before(cuda: FakeCuda, how: str) -> None:
    memory, writer, reader = buffer(cuda), stream(cuda), stream(cuda)
    launch(cuda, writer, writes=memory)
    if how == "event":
        wait(cuda, reader, behind=writer)
    elif how == "event the wrong way round":
        wait(cuda, writer, behind=reader)
    elif how == "host":
        cuda.cudaStreamSynchronize(writer)
    elif how == "the same stream":
        reader = writer
    if how in ("not at all", "event the wrong way round"):
        with pytest.raises(Violation, match=r"race: a kernel \(read, on stream \d+\) may run beside a kernel \(write"):
            launch(cuda, reader, reads=memory)
        assert len(cuda.violations) == 1
    else:
        launch(cuda, reader, reads=memory)


def test_reads_may_run_side_by_side_and_a_later_write_waits_for_all_of_them(cuda: FakeCuda) -> None:
    memory, first, second, third = buffer(cuda), stream(cuda), stream(cuda), stream(cuda)
    launch(cuda, first, reads=memory)
    launch(cuda, second, reads=memory)
    wait(cuda, third, behind=first)
    with pytest.raises(Violation, match="race"):
        launch(cuda, third, writes=memory)
    wait(cuda, third, behind=second)
    launch(cuda, third, writes=memory)


def test_an_event_orders_what_was_recorded_and_nothing_later(cuda: FakeCuda) -> None:
    memory, writer, reader = buffer(cuda), stream(cuda), stream(cuda)
    wait(cuda, reader, behind=writer)
    launch(cuda, writer, writes=memory)
    with pytest.raises(Violation, match="race"):
        launch(cuda, reader, reads=memory)


@pytest.mark.parametrize(("flags", "is_ordered"), [(0, True), (1, False)], ids=["blocking", "non-blocking"])
def test_the_legacy_stream_is_ordered_with_blocking_streams_only(cuda: FakeCuda, flags: int, is_ordered: bool) -> None:
    memory, other = buffer(cuda), stream(cuda, flags)
    launch(cuda, other, writes=memory)
    if is_ordered:
        launch(cuda, LEGACY, reads=memory)
        launch(cuda, other, writes=memory)
    else:
        with pytest.raises(Violation, match="race"):
            launch(cuda, 0, reads=memory)


def test_orders_go_through_third_streams() -> None:
    order = Order()
    for timeline in ("a", "b", "c"):
        order.clock(timeline)
    order.touch(1, Access("a", order.step("a"), "write", 0, 8, True))
    order.wait("b", order.now("a"))
    order.wait("c", order.now("b"))
    order.touch(1, Access("c", order.step("c"), "write", 4, 12, True))
    # beside it, not over it
    order.touch(1, Access("b", order.step("b"), "write", 12, 16, True))
    with pytest.raises(Violation):
        order.touch(1, Access("b", order.step("b"), "read", 11, 12, False))
    assert order.in_use(1, order.now(HOST)) is not None
    order.wait(HOST, order.now("c"))
    order.wait(HOST, order.now("b"))
    assert order.in_use(1, order.now(HOST)) is None


# memory


def test_memory_in_use_must_not_be_freed(cuda: FakeCuda) -> None:
    memory, on = buffer(cuda), stream(cuda)
    launch(cuda, on, writes=memory)
    with pytest.raises(Violation, match="memory is freed while a kernel may still run"):
        cuda.cudaFree(memory)
    cuda.cudaStreamSynchronize(on)
    assert cuda.cudaFree(memory) == (0,)
    assert cuda.cudaFree(memory) == (1,)
    with pytest.raises(Violation, match="illegal access"):
        launch(cuda, on, reads=memory)


def test_memory_of_another_device_or_context_must_not_be_reached(cuda: FakeCuda) -> None:
    here, on = buffer(cuda), stream(cuda)
    cuda.cudaSetDevice(1)
    there = buffer(cuda)
    assert launch(cuda, on, reads=here) == 400, "a kernel on a stream of a device that is not current"
    cuda.cudaSetDevice(0)
    with pytest.raises(Violation, match="memory of another device"):
        launch(cuda, on, reads=there)


def test_a_host_buffer_must_not_change_under_a_copy(cuda: FakeCuda) -> None:
    memory, on, host = buffer(cuda), stream(cuda), cuda.cudaMallocHost(SIZE)[1]
    cuda.cudaMemcpyAsync(memory, host, SIZE, 1, on)
    ctypes.memset(host, 1, 1)
    with pytest.raises(Violation, match="host memory was written while a copy from it was under way"):
        cuda.cudaStreamSynchronize(on)


def test_a_host_buffer_tells_nothing_before_the_copy_to_it_is_waited_for(cuda: FakeCuda) -> None:
    memory, on, host = buffer(cuda), stream(cuda), cuda.cudaMallocHost(SIZE)[1]
    ctypes.memset(memory, 7, SIZE)
    ctypes.memset(host, 1, SIZE)
    cuda.cudaMemcpyAsync(host, memory, SIZE, 2, on)
    assert ctypes.string_at(host, 2) == b"\xff\xff"
    cuda.cudaStreamSynchronize(on)
    assert ctypes.string_at(host, 2) == b"\x07\x07"


# captures and graphs


def captured(cuda: FakeCuda, on: int, memory: int) -> int:
    cuda.cudaStreamBeginCapture(on, 1)
    launch(cuda, on, writes=memory)
    graph = int(cuda.cudaStreamEndCapture(on)[1])
    executable = int(cuda.cudaGraphInstantiateWithFlags(graph, 0)[1])
    cuda.cudaGraphDestroy(graph)
    return executable


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaMallocHost", "cudaFree", "cudaStreamSynchronize"])
def test_an_unsafe_call_spoils_a_capture(cuda: FakeCuda, call: str) -> None:
    memory, on = buffer(cuda), stream(cuda)
    cuda.cudaStreamBeginCapture(on, 1)
    assert getattr(cuda, call)({"cudaFree": memory, "cudaStreamSynchronize": on}.get(call, SIZE))[0] == 900
    assert launch(cuda, on, writes=memory) == 901
    code, graph = cuda.cudaStreamEndCapture(on)
    assert (code, int(graph)) == (901, 0)
    assert cuda.cudaGetLastError() == (901,)
    assert cuda.cudaGetLastError() == (0,)
    assert launch(cuda, on, writes=memory) == 0


def test_a_capture_takes_no_event_from_outside(cuda: FakeCuda) -> None:
    on, other = stream(cuda), stream(cuda)
    mark = event(cuda)
    cuda.cudaEventRecord(mark, other)
    cuda.cudaStreamBeginCapture(on, 1)
    assert cuda.cudaStreamWaitEvent(on, mark, 0) == (905,)
    assert cuda.cudaStreamEndCapture(on)[0] == 901


def test_a_graphs_work_is_ordered_where_it_is_launched(cuda: FakeCuda) -> None:
    memory, on, other = buffer(cuda), stream(cuda), stream(cuda)
    graph = captured(cuda, on, memory)
    cuda.cudaGraphLaunch(graph, on)
    # one executable graph's launches follow each other on any stream
    cuda.cudaGraphLaunch(graph, other)
    with pytest.raises(Violation, match="race"):
        launch(cuda, on, reads=memory)
    with pytest.raises(Violation, match="a graph is destroyed while it may still run"):
        cuda.cudaGraphExecDestroy(graph)
    cuda.cudaStreamSynchronize(other)
    assert cuda.cudaGraphExecDestroy(graph) == (0,)


# time


def test_an_idle_gpu_waits_for_the_cpu_and_a_busy_one_does_not(cuda: FakeCuda) -> None:
    on, marks = stream(cuda), [event(cuda) for _ in range(3)]
    cuda.cudaEventRecord(marks[0], on)
    cuda.spend(5.0)
    launch(cuda, on, ms=1.0)
    cuda.cudaEventRecord(marks[1], on)
    assert cuda.cudaEventElapsedTime(marks[0], marks[1])[0] == 600, "not waited for"
    cuda.cudaStreamSynchronize(on)
    assert cuda.cudaEventElapsedTime(marks[0], marks[1])[1] == pytest.approx(6.0, abs=4 * CALL_MS)
    launch(cuda, on, ms=20.0)
    cuda.cudaEventRecord(marks[1], on)
    cuda.spend(5.0)
    launch(cuda, on, ms=1.0)
    cuda.cudaEventRecord(marks[2], on)
    cuda.cudaStreamSynchronize(on)
    assert cuda.cudaEventElapsedTime(marks[1], marks[2])[1] == pytest.approx(1.0)


def test_events_without_timing_have_no_time(cuda: FakeCuda) -> None:
    on, first, last = stream(cuda), event(cuda), event(cuda, cuda.cudaEventDisableTiming)
    for mark in (first, last):
        cuda.cudaEventRecord(mark, on)
    cuda.cudaStreamSynchronize(on)
    assert cuda.cudaEventElapsedTime(first, last)[0] == 400


# the driver's part


def test_whose_a_pointer_and_a_stream_is(cuda: FakeCuda) -> None:
    driver = FakeDriver(cuda)
    assert int(driver.cuCtxGetCurrent()[1]) == 0, "a thread begins without a context"
    memory, on = buffer(cuda), stream(cuda)
    primary = int(driver.cuCtxGetCurrent()[1])
    own = cuda.new_context(0)
    driver.cuCtxSetCurrent(Handle(own))
    assert cuda.cudaGetDevice() == (0, 0)
    other = buffer(cuda)
    context, ordinal = (
        CUpointer_attribute.CU_POINTER_ATTRIBUTE_CONTEXT,
        CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
    )
    assert int(driver.cuPointerGetAttribute(context, memory + 5)[1]) == primary
    assert int(driver.cuPointerGetAttribute(context, other)[1]) == own
    assert driver.cuPointerGetAttribute(ordinal, other) == (0, 0)
    assert driver.cuPointerGetAttribute(ordinal, 64)[0] == 1
    assert int(driver.cuStreamGetCtx(on)[1]) == primary
