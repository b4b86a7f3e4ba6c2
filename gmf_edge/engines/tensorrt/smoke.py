"""The first six things that an engine asks of CUDA, tried on a few bytes: what versions promise, this machine must do.

Packages that import and answer questions may still not fit: PyPI's aarch64 wheels bring the CUDA runtime of servers, not that of Jetson
Linux, and fail at their first use (bitsandbytes#1941).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np

from gmf_edge.engines.tensorrt.cuda import DeviceBuffer, Event, Graph, PinnedArray, Stream
from gmf_edge.errors import EngineError

STEPS = ("allocate", "pin", "copy", "event", "capture", "launch")
WORDS = 1 << 16  # of 4 bytes


def smoke_test(done: Callable[[str], None] = lambda step: None) -> float:
    """Allocate GPU memory and page-locked memory, copy there and back, time it by events, capture the copies in a graph, launch that.

    Args:
        done: told each of STEPS when it has worked.

    Returns:
        GPU time in milliseconds of the copies there and back.

    Raises:
        EnvironmentProblem: there is no usable GPU or driver.
        EngineError: a call failed, or the bytes that came back are not those that went.
    """
    with ExitStack() as stack:
        stream = Stream()
        stack.callback(stream.close)
        buffer = DeviceBuffer(4 * WORDS)
        stack.callback(buffer.close)
        done("allocate")
        sent, received = (PinnedArray((WORDS,), np.dtype(np.float32)) for _ in range(2))
        for pinned in (sent, received):
            stack.callback(pinned.close)
        done("pin")

        def there_and_back() -> None:
            stream.copy_to_device(buffer.pointer, sent.pointer, 4 * WORDS)
            stream.copy_to_host(received.pointer, buffer.pointer, 4 * WORDS)

        def check(how: str, seed: int, run: Callable[[], None]) -> None:
            sent.array[:] = np.random.default_rng(seed).random(WORDS, np.float32)
            received.array.fill(-1.0)
            run()
            stream.synchronize()
            if not np.array_equal(sent.array, received.array):
                raise EngineError(f"{how} brought back other bytes than it was given", "check the GPU with 'nvidia-smi' and dmesg")

        check("a copy to the GPU and back", 0, there_and_back)
        done("copy")
        first, last = Event(), Event()
        for event in (first, last):
            stack.callback(event.close)
        first.record(stream)
        there_and_back()
        last.record(stream)
        stream.synchronize()
        copies_ms = last.ms_since(first)
        if not 0 < copies_ms < 10_000:
            raise EngineError(
                f"two events are {copies_ms} ms apart, with a copy of {4 * WORDS >> 10} KiB between them",
                "check the GPU with 'nvidia-smi' and dmesg",
            )
        done("event")
        graph = Graph.capture(stream, there_and_back)
        stack.callback(graph.close)
        done("capture")
        check("a CUDA graph", 1, lambda: graph.launch(stream))
        done("launch")
    return copies_ms
