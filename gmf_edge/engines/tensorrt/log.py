"""TensorRT's messages, by one logger for the whole process.

TensorRT keeps the first logger that it is given as its global one, for as long as any builder, runtime or refitter lives, and keeps using
it for messages of plugins and registries (NvInferRuntime.h, ILogger; setLoggerAndIncRefCount in the library). A logger for each engine
would therefore be used after it is gone. This one is never released; it hands every message to the BuildLog that listens.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

from gmf_edge.errors import EngineError

if TYPE_CHECKING:
    import tensorrt as trt

# out of GPU memory, as TensorRT 8.6 to 11 write it
OUT_OF_MEMORY_PATTERN = re.compile(
    r"out ?of ?memory|memory .*could not be allocated|GPU memory allocation failed|cudaErrorMemoryAllocation", re.IGNORECASE
)
# a kernel that exists, but not with so little scratch memory: less of it cannot help
TOO_LITTLE_WORKSPACE_PATTERN = re.compile(
    r"insufficient (?:memory|workspace)|do not have sufficient workspace|increas(?:e|ing)(?: the)? workspace|"
    r"Could not find any implementation",
    re.IGNORECASE,
)
# a pinned type for which TensorRT has no kernel
UNOBEYABLE_PATTERN = re.compile(
    r"OBEY_PRECISION_CONSTRAINTS|obeyPrecisionConstraints|obeys the requested constraints|must obey|"
    r"incompatible with int8 precision constraints",
    re.IGNORECASE,
)
# a failed build ends with the reason; messages of tactics that were tried and dropped come before
REASONS = 4


class BuildLog:
    """TensorRT's messages during one build or for one opened engine: errors and warnings are kept, the rest is dropped.

    It hears what is said from `listen` on, until another one listens.

    Attributes:
        errors: messages of severity ERROR and INTERNAL_ERROR, oldest first.
        warnings: messages of severity WARNING, each once.
        interrupted: a KeyboardInterrupt that arrived while TensorRT was talking; its C++ side would swallow it.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.interrupted: BaseException | None = None
        self.listen()

    def listen(self) -> None:
        """Hear the messages from now on."""
        _listening[:] = [self]

    @property
    def logger(self) -> trt.ILogger:
        """The process's logger, to hand to TensorRT."""
        import tensorrt as trt

        self.listen()
        logger: trt.ILogger = process_logger(trt)
        return logger

    def failed_by(self, pattern: re.Pattern[str]) -> bool:
        """Whether the last errors match: why something failed, not what was tried on the way there."""
        return any(pattern.search(message) for message in self.errors[-REASONS:])

    @property
    def last_errors(self) -> str:
        """The last errors, or warnings where there are none, in one line, for an exception."""
        messages: Sequence[str] = self.errors or self.warnings
        return " | ".join(message.strip() for message in messages[-3:]) or "TensorRT gave no reason"

    def raise_interrupt(self) -> None:
        """Pass on a KeyboardInterrupt that arrived inside TensorRT."""
        if self.interrupted is not None:
            interrupted, self.interrupted = self.interrupted, None
            raise interrupted

    def error(self, problem: str, remedy: str) -> EngineError:
        """An EngineError that quotes the last errors."""
        return EngineError(f"{problem}: {self.last_errors}", remedy)


# the log that hears TensorRT's messages now: one, or none before the first
_listening: list[BuildLog] = []
# files that get every message, the least of them too where that is asked for
_records: list[tuple[IO[str], bool]] = []


@contextmanager
def recorded(path: Path, verbose: bool = False) -> Iterator[None]:
    """Write TensorRT's messages into a file as they come, so that what it said last survives the process.

    Args:
        path: the file; added to where it is there already.
        verbose: also the messages of severity VERBOSE: every kernel that is tried, tens of megabytes a build.
    """
    with path.open("a", encoding="utf-8", buffering=1) as file:
        record = (file, verbose)
        _records.append(record)
        try:
            yield
        finally:
            if record in _records:
                _records.remove(record)


@functools.cache
def process_logger(tensorrt: ModuleType) -> Any:
    """The one logger of this process for that TensorRT module."""
    import tensorrt as trt

    assert tensorrt is trt

    class Logger(trt.ILogger):  # type: ignore[misc]  # untyped where TensorRT is not installed
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        # called from C++, also from other threads: it must not raise
        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            try:
                for file, verbose in _records:
                    if verbose or severity != trt.ILogger.Severity.VERBOSE:
                        file.write(f"{time.strftime('%H:%M:%S')} {severity.name} {msg}\n")
                [listener] = _listening
                if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                    listener.errors.append(msg)
                elif severity == trt.ILogger.Severity.WARNING and msg not in listener.warnings:
                    listener.warnings.append(msg)
            except KeyboardInterrupt as interrupt:
                _listening[0].interrupted = interrupt
            except OSError:  # a full disk costs the record, not the build
                _records.clear()

    return Logger()
