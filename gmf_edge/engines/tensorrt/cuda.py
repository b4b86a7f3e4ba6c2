"""The part of CUDA that an engine needs: device facts, streams, events, graphs, pinned and device memory.

cuda-python is imported when the first call is made, as `cuda.bindings.runtime` and `cuda.bindings.driver` (11.8.6, 12.6 and newer) or
`cuda.cudart` and `cuda.cuda` (older). Each of its functions returns a tuple that starts with the error code; `call` turns that into an
exception and drops it. The driver's part is used for what the runtime cannot say: whose a context, a pointer or a stream is.

Errors: what a machine without a usable GPU or driver gives is an EnvironmentProblem; everything later is an EngineError.
"""

from __future__ import annotations

import ctypes
import functools
import math
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.errors import EngineError, EnvironmentProblem

# cudaError_t values that say "no GPU can be used here" rather than "this call was wrong"; CUDA runtime API, enum cudaError
NO_DEVICE_ERRORS = {
    3: "CUDA could not be initialised",
    34: "only a stub of the CUDA driver is there",
    35: "the NVIDIA driver is too old for this CUDA, or missing",
    46: "all GPUs are busy or out of reach",
    100: "there is no NVIDIA GPU",
    101: "there is no such GPU",
    802: "the system is not ready yet; GPUs joined by NVSwitch need the Fabric Manager (nvidia-fabricmanager) to run",
    803: "the NVIDIA driver and the CUDA compatibility libraries do not fit each other",
    804: "this GPU does not support CUDA forward compatibility",
}
# these can mean anything later on, but a machine that answers the first questions with them has no working driver
START_ERRORS = {
    304: "the operating system refused a call of the driver",
    999: "the driver failed for a reason that it does not know",
}
START_CALLS = {"cudaGetDeviceCount", "cudaGetDevice", "cudaGetDeviceProperties", "cudaDriverGetVersion", "cudaMemGetInfo"}
OUT_OF_MEMORY = 2
# errors of a kernel that stay with the process until it ends; CUDA runtime API, enum cudaError
STICKY_ERRORS = {700, 702, 710, 714, 715, 716, 717, 718, 719}
GPU_REMEDY = (
    "check 'nvidia-smi' (Jetson: 'cat /etc/nv_tegra_release'); in a container start it with '--gpus all' or '--runtime nvidia'; "
    "without a GPU use --backend onnxruntime"
)
LEGACY_STREAM, PER_THREAD_STREAM = 1, 2


@functools.cache
def runtime() -> Any:
    """The cudart module of cuda-python.

    Raises:
        EnvironmentProblem: cuda-python is not installed.
    """
    try:
        from cuda.bindings import runtime as cudart
    except ImportError:
        try:
            from cuda import cudart
        except ImportError as error:
            raise EnvironmentProblem(f"cuda-python cannot be imported: {error}", "pip install cuda-bindings") from error
    return cudart


@functools.cache
def driver() -> Any:
    """The module of cuda-python for libcuda, which comes with `runtime`.

    Raises:
        EnvironmentProblem: cuda-python is not installed.
    """
    try:
        from cuda.bindings import driver as libcuda
    except ImportError:
        try:
            from cuda import cuda as libcuda
        except ImportError as error:
            raise EnvironmentProblem(f"cuda-python cannot be imported: {error}", "pip install cuda-bindings") from error
    return libcuda


def answer_of(name: str, *arguments: Any) -> tuple[int, Any]:
    """(error code, results) of a function of the CUDA runtime ("cudaMalloc") or driver ("cuCtxGetCurrent").

    Results are None, one value, or a tuple. Only an error that says that no GPU can be used is raised here.

    Raises:
        EnvironmentProblem: there is no usable GPU or driver.
    """
    function = getattr(runtime() if name.startswith("cuda") else driver(), name)
    try:
        answer = function(*arguments)
    except RuntimeError as error:  # cuda-python itself: no libcuda.so.1 to load
        raise EnvironmentProblem(f"CUDA cannot be used: {error}", GPU_REMEDY) from error
    code = int(answer[0])
    why = NO_DEVICE_ERRORS.get(code) or (START_ERRORS.get(code) if name in START_CALLS else None)
    if why is not None:
        raise EnvironmentProblem(f"CUDA cannot be used: {why} ({name}: error {code})", GPU_REMEDY)
    results = answer[1:]
    return code, results[0] if len(results) == 1 else (results or None)


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime or driver; its results without the error code (None, one value, or a tuple).

    Raises:
        EnvironmentProblem: there is no usable GPU or driver.
        EngineError: the call failed.
    """
    code, results = answer_of(name, *arguments)
    if code == OUT_OF_MEMORY:
        raise EngineError(f"{name}: the GPU is out of memory", "use smaller batches or fewer streams, or close other programs")
    if code:
        remedy = "CUDA cannot be used in this process any more: start it again" if code in STICKY_ERRORS else ""
        raise EngineError(f"{name} failed with CUDA error {code} ({error_name(code)})", remedy)
    return results


def error_name(code: int) -> str:
    """CUDA's name of an error, such as "cudaErrorLaunchFailure"."""
    try:
        return str(runtime().cudaError_t(code).name)
    except ValueError:
        return "unknown"


@dataclass(frozen=True)
class Device:
    """A GPU and what drives it; what an engine is tied to.

    Attributes:
        name: as the driver writes it.
        compute_capability: such as "8.7"; sm_87 in compiler spelling.
        multiprocessors: number of streaming multiprocessors; two GPUs of one architecture may differ.
        memory_mib: total memory in MiB, shared with the CPU where integrated.
        integrated: GPU and CPU share their memory (Jetson).
        driver_cuda: CUDA version that the driver supports, such as "12.6".
        runtime_cuda: CUDA version of the runtime in use.
        driver: the driver's own version, or "" where it cannot be read.
        power_mode: the Jetson's nvpmodel mode, or "".
    """

    name: str
    compute_capability: str
    multiprocessors: int
    memory_mib: int
    integrated: bool
    driver_cuda: str
    runtime_cuda: str
    driver: str
    power_mode: str

    @property
    def architecture(self) -> str:
        """Such as "sm_87"."""
        return "sm_" + self.compute_capability.replace(".", "")

    @classmethod
    def here(cls) -> Device:
        """The current GPU.

        Raises:
            EnvironmentProblem: there is none, or its driver cannot be used.
        """
        _check_driver()
        if call("cudaGetDeviceCount") < 1:
            raise EnvironmentProblem("CUDA cannot be used: there is no NVIDIA GPU", GPU_REMEDY)
        index = call("cudaGetDevice")
        properties = call("cudaGetDeviceProperties", index)
        name = properties.name
        return cls(
            name=(name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0"),
            compute_capability=f"{properties.major}.{properties.minor}",
            multiprocessors=int(properties.multiProcessorCount),
            memory_mib=int(properties.totalGlobalMem) >> 20,
            integrated=bool(properties.integrated),
            driver_cuda=cuda_version_text(call("cudaDriverGetVersion")),
            runtime_cuda=cuda_version_text(call("cudaRuntimeGetVersion")),
            driver=driver_version(),
            power_mode=power_mode(),
        )


def _check_driver() -> None:
    """Tell a missing driver from one that is older than the CUDA of cuda-python: CUDA itself has one error for both.

    Raises:
        EnvironmentProblem: either.
    """
    # these two work without a driver
    driver, own = call("cudaDriverGetVersion"), call("cudaRuntimeGetVersion")
    if driver == 0:
        raise EnvironmentProblem("CUDA cannot be used: no NVIDIA driver is loaded (libcuda.so.1)", GPU_REMEDY)
    if driver // 1000 < own // 1000:
        versions = f"the NVIDIA driver supports CUDA {cuda_version_text(driver)}, cuda-python is for {cuda_version_text(own)}"
        raise EnvironmentProblem(
            f"CUDA cannot be used: {versions}",
            f"pip install 'cuda-bindings=={driver // 1000}.*', or install a newer driver",
        )


def cuda_version_text(number: int) -> str:
    """1000 * major + 10 * minor, CUDA's numbering, as "major.minor"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The kernel driver's version such as "550.54.15", or "" where there is none to read."""
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", path.read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def power_mode() -> str:
    """The name of a Jetson's power mode such as "MAXN", or "" on other machines."""
    tool = shutil.which("nvpmodel")
    if tool is None or platform.machine() != "aarch64":
        return ""
    try:
        answer = subprocess.run([tool, "-q"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"NV Power Mode:\s*(\S+)", answer.stdout)
    return found[1] if found else ""


def free_memory_mib() -> int:
    """Free GPU memory in MiB.

    Raises:
        EnvironmentProblem: there is no usable GPU.
    """
    free, _total = call("cudaMemGetInfo")
    return int(free) >> 20


def available_memory_mib(device: Device, meminfo: Path = Path("/proc/meminfo")) -> int:
    """What a build may count on, in MiB: free GPU memory, on a Jetson also what the kernel would give back.

    GPU and CPU share the memory there, and cudaMemGetInfo counts neither the page cache, which is full after a bundle was copied, nor
    swap (CUDA for Tegra application note); Linux' MemAvailable counts the former.

    Raises:
        EnvironmentProblem: there is no usable GPU.
    """
    free = free_memory_mib()
    if not device.integrated:
        return free
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return free
    return max(free, int(found[1]) >> 10) if found else free


class DeviceBuffer:
    """Bytes in GPU memory, freed by close."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pointer = int(call("cudaMalloc", size))

    def close(self) -> None:
        """Free it; a second close does nothing."""
        pointer, self.pointer = self.pointer, 0
        if pointer:
            call("cudaFree", pointer)


class PinnedArray:
    """A NumPy array in page-locked memory, which the GPU's copy engines read without a detour; freed by close."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        size = max(1, math.prod(shape) * dtype.itemsize)
        self.pointer = int(call("cudaMallocHost", size))
        memory = memoryview((ctypes.c_byte * size).from_address(self.pointer))
        self.array: NDArray[Any] = np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)

    def close(self) -> None:
        """Free it; the array must no longer be used."""
        pointer, self.pointer = self.pointer, 0
        if pointer:
            call("cudaFreeHost", pointer)


class Stream:
    """A CUDA stream that does not wait for the legacy default stream; destroyed by close."""

    def __init__(self) -> None:
        self.handle = int(call("cudaStreamCreateWithFlags", runtime().cudaStreamNonBlocking))

    def synchronize(self) -> None:
        """Wait for all work on it."""
        call("cudaStreamSynchronize", self.handle)

    def wait_for(self, producer: int) -> None:
        """Let later work here wait for what is on the stream `producer` now, without stopping the CPU."""
        order(producer, self.handle)

    def copy_to_device(self, destination: int, source: int, size: int) -> None:
        """Enqueue a copy of `size` bytes from host to device memory."""
        call("cudaMemcpyAsync", destination, source, size, runtime().cudaMemcpyKind.cudaMemcpyHostToDevice, self.handle)

    def copy_to_host(self, destination: int, source: int, size: int) -> None:
        """Enqueue a copy of `size` bytes from device to host memory."""
        call("cudaMemcpyAsync", destination, source, size, runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost, self.handle)

    def close(self) -> None:
        """Destroy it; a second close does nothing."""
        handle, self.handle = self.handle, 0
        if handle:
            call("cudaStreamDestroy", handle)


def order(first: int, then: int) -> None:
    """Let later work on the stream `then` wait for what is on the stream `first` now, without stopping the CPU."""
    event = call("cudaEventCreateWithFlags", runtime().cudaEventDisableTiming)
    try:
        call("cudaEventRecord", event, first)
        call("cudaStreamWaitEvent", then, event, 0)
    finally:
        call("cudaEventDestroy", event)  # CUDA keeps it alive until it has fired


class Event:
    """A point in time on a stream; destroyed by close.

    Args:
        blocking: a CPU that waits for it sleeps, instead of spinning.
    """

    def __init__(self, blocking: bool = False) -> None:
        self.handle = call("cudaEventCreateWithFlags", runtime().cudaEventBlockingSync if blocking else runtime().cudaEventDefault)

    def record(self, stream: Stream) -> None:
        """Mark the end of the work that is on the stream now."""
        call("cudaEventRecord", self.handle, stream.handle)

    def synchronize(self) -> None:
        """Wait until the stream has reached it."""
        call("cudaEventSynchronize", self.handle)

    def ms_since(self, earlier: Event) -> float:
        """Milliseconds of GPU time between two events that have fired."""
        return float(call("cudaEventElapsedTime", earlier.handle, self.handle))

    def close(self) -> None:
        """Destroy it; a second close does nothing."""
        handle, self.handle = self.handle, None
        if handle is not None:
            call("cudaEventDestroy", handle)


class Graph:
    """Work recorded once and launched with one call; destroyed by close, which must not come while it runs."""

    def __init__(self, executable: Any) -> None:
        self.executable = executable

    @classmethod
    def capture(cls, stream: Stream, enqueue: Callable[[], None]) -> Graph:
        """Record what enqueue() puts on the stream, without running it; whatever fails leaves nothing behind.

        Raises:
            EngineError: something in it cannot be captured.
        """
        # only this thread: another thread's allocation must not break the capture
        call("cudaStreamBeginCapture", stream.handle, runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        graph = None
        try:
            try:
                enqueue()
            finally:
                # the stream stays unusable until the capture is ended; where enqueue failed, its error is the one to tell
                code, graph = answer_of("cudaStreamEndCapture", stream.handle)
            if code:
                raise EngineError(f"the capture was invalidated: CUDA error {code} ({error_name(code)})")
            # CUDA 11, 12 and 13 agree on this one; cudaGraphInstantiate changed its arguments with 12
            return cls(call("cudaGraphInstantiateWithFlags", graph, 0))
        except BaseException:
            # the next call must not be blamed for the error that this one leaves
            answer_of("cudaGetLastError")
            raise
        finally:
            if graph is not None and int(graph):
                call("cudaGraphDestroy", graph)

    def launch(self, stream: Stream) -> None:
        """Enqueue the recorded work."""
        call("cudaGraphLaunch", self.executable, stream.handle)

    def close(self) -> None:
        """Destroy it; a second close does nothing."""
        executable, self.executable = self.executable, None
        if executable is not None:
            call("cudaGraphExecDestroy", executable)
