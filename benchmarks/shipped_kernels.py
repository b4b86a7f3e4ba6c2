"""The compiled images behind the plugin's own launch code, on any memory that has a device pointer: what an engine runs, without TensorRT.

    library = build_library(folder)                              # plugins/gma without its adapters, with the C++ compiler of PATH
    node = ShippedNode(library, archive, height, width, channels)
    node.load()                                                  # into the current CUDA context
    node.enqueue(batch, [qkv, vectors, matrices], output, workspace, stream)    # device pointers

The same geometry, argument layout and cuLaunchKernel calls as an engine's enqueue: they are the same object files' source.
"""

from __future__ import annotations

import base64
import ctypes
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gmf_edge.errors import EnvironmentProblem, KernelError
from gmf_edge.ops.group_mix_attention import node_attributes

PLUGIN = Path(__file__).parents[1] / "plugins" / "gma"
SOURCES = ("launch_api.cpp", "launch_core.cpp", "driver.cpp", "kernel_archive.cpp", "sha256.cpp")
ERROR_BYTES = 1024


def build_library(folder: Path, *flags: str) -> Path:
    """libgmf_edge_launch.so in `folder`; `flags` go to the compiler.

    Raises:
        EnvironmentProblem: no C++ compiler, or no cuda.h (a CUDA toolkit has one, and so has Triton's wheel).
        KernelError: it does not compile.
    """
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise EnvironmentProblem("there is no C++ compiler", "install g++")
    headers = cuda_headers()
    library = folder / "libgmf_edge_launch.so"
    command = [compiler, "-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-isystem", str(headers), *flags]
    sources = [str(PLUGIN / name) for name in SOURCES]
    done = subprocess.run([*command, *sources, "-o", str(library), "-ldl"], capture_output=True, text=True)
    if done.returncode != 0:
        raise KernelError(f"the launch code does not compile: {done.stderr.strip()}", "use a compiler that knows C++17")
    return library


def cuda_headers() -> Path:
    """The folder with cuda.h: a CUDA toolkit's, or the one in Triton's wheel.

    Raises:
        EnvironmentProblem: there is none.
    """
    toolkit = [Path(folder) / "include" for folder in ("/usr/local/cuda", "/opt/cuda")]
    wheel = [Path(folder) / "triton/backends/nvidia/include" for folder in sys.path]
    for folder in (*toolkit, *wheel):
        if (folder / "cuda.h").is_file():
            return folder
    raise EnvironmentProblem("cuda.h was not found", "install triton or a CUDA toolkit")


class ShippedNode:
    """One GmfGroupMixAttention node with packed weights, its kernels, and the launch code of the plugin."""

    def __init__(self, library: Path, archive: bytes, height: int, width: int, channels: int) -> None:
        """
        Args:
            library: what build_library made.
            archive: kernels.archive.kernel_archive of this width, packed.
            height, width, channels: H, W, C.

        Raises:
            KernelError: the archive is not for this node.
        """
        self._functions = ctypes.CDLL(str(library))
        self._functions.gmfLaunchCreate.restype = ctypes.c_void_p
        self._functions.gmfLaunchWorkspaceBytes.restype = ctypes.c_size_t
        self._error = ctypes.create_string_buffer(ERROR_BYTES)
        attributes = node_attributes(height, width, channels)
        handle = self._functions.gmfLaunchCreate(
            ctypes.c_int32(height),
            ctypes.c_int32(width),
            ctypes.c_float(float(attributes["scale"])),
            ctypes.c_float(float(attributes["epsilon"])),
            ctypes.c_int32(channels // 5),
            ctypes.c_int32(1),
            base64.b64encode(archive),
            self._error,
            ctypes.c_size_t(ERROR_BYTES),
        )
        self._handle = ctypes.c_void_p(self._checked(handle))

    def workspace_bytes(self, max_batch: int) -> int:
        """Of the workspace for any batch up to `max_batch`."""
        return int(self._functions.gmfLaunchWorkspaceBytes(self._handle, ctypes.c_int64(max_batch)))

    def load(self) -> None:
        """The kernels into the current CUDA context.

        Raises:
            KernelError: no driver, no context, or no kernel for this GPU.
        """
        self._checked(self._functions.gmfLaunchLoad(self._handle, self._error, ctypes.c_size_t(ERROR_BYTES)))

    def enqueue(self, batch: int, inputs: Sequence[int], output: int, workspace: int, stream: int) -> None:
        """The launches of an engine's enqueue.

        Args:
            batch: images.
            inputs: device pointers of qkv, vectors and matrices.
            output, workspace: device pointers.
            stream: a CUstream as a number; one that is being captured will do.

        Raises:
            KernelError: what the plugin would put into TensorRT's log.
        """
        pointers = (ctypes.c_void_p * len(inputs))(*inputs)
        places = (ctypes.c_void_p(output), ctypes.c_void_p(workspace), ctypes.c_void_p(stream))
        count = ctypes.c_int64(batch)
        self._checked(
            self._functions.gmfLaunchEnqueue(self._handle, count, pointers, *places, self._error, ctypes.c_size_t(ERROR_BYTES))
        )

    def close(self) -> None:
        """Gives the kernels back; further calls are not allowed."""
        self._functions.gmfLaunchDestroy(self._handle)

    def _checked(self, result: int | None) -> int:
        if not result:
            problem, _, remedy = self._error.value.decode(errors="replace").partition("; ")
            raise KernelError(problem or "the launch code failed", remedy)
        return result
