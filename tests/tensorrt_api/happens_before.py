"""Whether two accesses to one piece of memory are ordered, whatever the GPU does first: vector clocks, as race detectors use them.

A timeline is a stream, a CUDA graph or the host. Its clock counts its own steps and how far it has seen the other timelines: work is
behind what its stream holds, behind the events that the stream was made to wait for, and behind what the host has waited for. Two
accesses that overlap, of which one writes, must have one behind the other; chance order is a race, although it may go well a thousand
times. Source: L. Lamport, "Time, Clocks, and the Ordering of Events in a Distributed System", 1978; ThreadSanitizer does the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

HOST = "host"
Clock = dict[str, int]


class Violation(AssertionError):
    """What CUDA leaves undefined: a race, memory that is gone, a context on the wrong device."""


@dataclass(frozen=True)
class Access:
    """One step that reads or writes a range: who, when on its timeline, and where."""

    timeline: str
    step: int
    what: str
    start: int
    end: int
    writes: bool


@dataclass
class Order:
    """Timelines, and what has touched which memory."""

    clocks: dict[str, Clock] = field(default_factory=dict)
    accesses: dict[int, list[Access]] = field(default_factory=dict)

    def clock(self, timeline: str) -> Clock:
        """The timeline's clock, which changes with it."""
        return self.clocks.setdefault(timeline, {timeline: 0})

    def now(self, timeline: str) -> Clock:
        """A copy: the moment to wait for later."""
        return dict(self.clock(timeline))

    def wait(self, timeline: str, moment: Clock) -> None:
        """What the timeline does from here on is behind that moment."""
        clock = self.clock(timeline)
        for other, step in moment.items():
            clock[other] = max(clock.get(other, 0), step)

    def step(self, timeline: str) -> int:
        """The number of the next thing that the timeline does."""
        clock = self.clock(timeline)
        clock[timeline] += 1
        return clock[timeline]

    def is_behind(self, moment: Clock, access: Access) -> bool:
        """Whether the access is over at that moment."""
        return moment.get(access.timeline, 0) >= access.step

    def touch(self, place: int, access: Access) -> None:
        """Record an access to a place (an allocation, or anything that one may use at a time).

        Raises:
            Violation: it is not ordered with another that overlaps, where one of the two writes.
        """
        moment = self.clock(access.timeline)
        earlier = self.accesses.setdefault(place, [])
        for other in earlier:
            overlaps = other.start < access.end and access.start < other.end
            if overlaps and (other.writes or access.writes) and not self.is_behind(moment, other):
                raise Violation(
                    f"race: {access.what} ({'write' if access.writes else 'read'}, on {access.timeline}) may run beside "
                    f"{other.what} ({'write' if other.writes else 'read'}, on {other.timeline})"
                )
        # what is covered by this write and behind it can no longer be raced with alone
        self.accesses[place] = [
            other
            for other in earlier
            if not (access.writes and access.start <= other.start and other.end <= access.end and self.is_behind(moment, other))
        ] + [access]

    def in_use(self, place: int, moment: Clock) -> Access | None:
        """An access to the place that may not be over at that moment, or None."""
        return next((access for access in self.accesses.get(place, []) if not self.is_behind(moment, access)), None)
