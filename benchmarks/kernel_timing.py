"""Times of GPU calls without the CPU's part: CUDA graphs between two events, with a warm and with a cold L2.

warm   one graph of REPEATS calls on one set of tensors: what small batches leave in L2, the next call finds there
cold   one graph of a call on each of so many sets of tensors that they are twice the size of L2: every call reads its inputs from memory

Alternatives take turns (A B A B), each turn the median over graphs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

TURNS = 4
WARM_UP_S = 0.2
TURN_S = 0.3
# calls in one graph: enough to make a launch's own cost small beside them
REPEATS = 20
# of cold graphs, beyond which memory for the sets is not worth it
MOST_SETS = 512


def graph_of(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """The calls, one after the other, as one CUDA graph."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls[:3]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def turn_ms(replay: Callable[[], Any], calls: int, seconds: float) -> float:
    """Median time of one of the `calls` of a graph, over as many replays as fit into `seconds`, at least ten."""
    import torch

    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / calls)
    return statistics.median(times)


def sets_for_cold(bytes_of_a_set: int) -> int:
    """How many sets of tensors are twice the size of L2."""
    import torch

    size = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, min(MOST_SETS, -(-2 * size // bytes_of_a_set)))


def times_in_turns(calls: Mapping[str, Sequence[Callable[[], Any]]]) -> dict[str, dict[str, Any]]:
    """Warm and cold times of each alternative.

    Args:
        calls: by name, the same call on one set of tensors after the other; the first is the warm one.

    Returns:
        By name: warm_ms and cold_ms, medians over the turns, and the turns themselves.
    """
    graphs = {}
    for name, on_sets in calls.items():
        graphs[name, "warm"] = graph_of([on_sets[0]] * REPEATS), REPEATS
        graphs[name, "cold"] = graph_of(on_sets), len(on_sets)
    for replay, count in graphs.values():
        turn_ms(replay, count, WARM_UP_S)
    turns: dict[tuple[str, str], list[float]] = {key: [] for key in graphs}
    for _ in range(TURNS):
        for key, (replay, count) in graphs.items():
            turns[key].append(turn_ms(replay, count, TURN_S))
    return {
        name: {f"{kind}_ms": statistics.median(turns[name, kind]) for kind in ("warm", "cold")}
        | {f"{kind}_turns_ms": turns[name, kind] for kind in ("warm", "cold")}
        for name in calls
    }


def copy_bytes_per_s() -> float:
    """Read and write of a copy too large for any cache."""
    import torch

    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    replay = graph_of([lambda: target.copy_(source)] * REPEATS)
    turn_ms(replay, REPEATS, WARM_UP_S)
    return 2 * source.numel() / (turn_ms(replay, REPEATS, TURN_S) * 1e-3)
