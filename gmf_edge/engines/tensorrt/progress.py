"""The builder's nested phases as a fraction and the time left.

TensorRT calls an IProgressMonitor from several threads, and takes an exception, like the answer False, for the wish to stop the build
(NvInfer.h, IProgressMonitor; the Python bindings' trampoline). Progress is decoration: only what the display raises, such as Ctrl-C, stops.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

from gmf_edge.engines.protocol import Progress
from gmf_edge.engines.tensorrt.versions import TensorRTVersion


class BuildProgress:
    """Turns the builder's nested phases into a fraction and the time left.

    A phase of n steps may contain phases of its own; each running phase stands for one step of its parent. Calls may come from
    several threads of the builder; the fraction that is shown never goes back.

    Attributes:
        stopped_by: what the display raised, to be raised again when the builder has returned; None while all is well.
    """

    def __init__(self, show: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self.show = show
        self.clock = clock
        self.started = clock()
        self.phases: dict[str, tuple[str | None, int]] = {}
        self.done_steps: dict[str, int] = {}
        self.fraction = 0.0
        self.stopped_by: BaseException | None = None
        # reentrant: a signal handler or a display that asks TensorRT something must not wait for itself
        self._lock = threading.RLock()

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins within its parent, or at the top where parent is None."""
        with self._lock:
            self.phases[name] = (parent, max(1, steps))
            self.done_steps[name] = 0
            self._show(name)

    def step_complete(self, name: str, step: int) -> bool:
        """Steps 0..step of the phase are done; False asks the builder to stop."""
        with self._lock:
            if name in self.phases:
                self.done_steps[name] = max(self.done_steps[name], step + 1)
            self._show(name)
            return self.stopped_by is None

    def phase_finish(self, name: str) -> None:
        """The phase is over, whether all its steps were told or not."""
        with self._lock:
            if name in self.phases:
                self.done_steps[name] = self.phases[name][1]
                self._show(name)
                del self.phases[name], self.done_steps[name]

    def _fraction_of(self, name: str, above: frozenset[str] = frozenset()) -> float:
        steps = self.phases[name][1]
        around = above | {name}
        # a phase that names one of those around it as its child would never end
        inside = [
            self._fraction_of(child, around) for child, (parent, _) in self.phases.items() if parent == name and child not in around
        ]
        return min(1.0, (self.done_steps[name] + min(1.0, sum(inside))) / steps)

    def _show(self, name: str) -> None:
        tops = [phase for phase, (parent, _) in self.phases.items() if parent not in self.phases]
        if tops:
            # the builder has one phase at the top; later ones start again from 0, which must not be shown
            self.fraction = max(self.fraction, max(self._fraction_of(phase) for phase in tops))
        try:
            self.show(self.fraction, f"building the TensorRT engine: {name}{self._time_left()}")
        except BaseException as error:  # also KeyboardInterrupt: an exception cannot pass through the builder's C++
            self.stopped_by = error

    def _time_left(self) -> str:
        elapsed = self.clock() - self.started
        if elapsed < 3 or self.fraction < 0.02:
            return ""
        left = elapsed * (1 - self.fraction) / self.fraction
        return f", about {math.ceil(left)} s left" if left < 90 else f", about {math.ceil(left / 60)} min left"


def progress_monitor(progress: BuildProgress, version: TensorRTVersion) -> Any:
    """TensorRT's callback interface over BuildProgress, or None where the version has none."""
    if version.has_progress_monitor:
        import tensorrt as trt

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # untyped where TensorRT is not installed
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                _unless_it_fails(lambda: progress.phase_start(phase_name, parent_phase, num_steps))

            def step_complete(self, phase_name: str, step: int) -> bool:
                return _unless_it_fails(lambda: progress.step_complete(phase_name, step)) is not False

            def phase_finish(self, phase_name: str) -> None:
                _unless_it_fails(lambda: progress.phase_finish(phase_name))

        def _unless_it_fails(tell: Callable[[], bool | None]) -> bool | None:
            try:
                return tell()
            except KeyboardInterrupt as interrupt:  # between the lines of ours: the user's wish to stop
                progress.stopped_by = interrupt
                return False
            except Exception:  # whatever a later TensorRT may tell: no progress is better than no engine
                return None

        return Monitor()
    return None
