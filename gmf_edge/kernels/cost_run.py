"""One program of a kernel, walked through its machine code without a GPU: what it executes, and how long it waits for loads.

Only what decides branches is computed: the integer arithmetic behind them, for the first thread of the program. Data are unknown. A
branch that depends on data is counted as not taken (the longer way: compilers branch round code); `assumed` is the number of such branches.

    Follower(code).walk(parameters, block, grid, issue) -> Walk

The chain is an in-order model of one warp scheduler. An instruction of a program's warps takes `issue` cycles: one for each of its warps
that share the scheduler. An instruction that reads a load's result waits until that load is old enough: all loads of global memory hit in
L2 (`chain_l2`: what a program finds that starts on a cold L1), or all in L1 (`chain_l1`: the other end). The truth lies between, but for
DRAM, bank conflicts, the latency of tensor cores and special functions, barriers and the instruction cache, which are not in it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gmf_edge.errors import KernelError
from gmf_edge.kernels.cost_integers import State
from gmf_edge.kernels.cost_sass import BRANCHES, GLOBAL_LOADS, INSTRUCTION_BYTES, SHARED_LOADS, Code, Instruction

# cycles of a dependent load, H100: Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture" (arXiv 2402.13499), table
# of memory latencies; A100 and RTX 4090 stand within 7 % of it there
L1_CYCLES, SHARED_CYCLES, L2_CYCLES = 41, 29, 263
_Pending = tuple[tuple[int, int, bool], ...]
# a walk that passes this has lost its way
MOST_INSTRUCTIONS = 20_000_000


@dataclass(frozen=True)
class Walk:
    """What one warp of a program does.

    Attributes:
        instructions: executed.
        counts: how often each basic block ran, by the index of its first instruction.
        chain_l2, chain_l1: cycles of the model above, loads in L2 or in L1.
        load_rounds: times that it waits for a global load.
        assumed: branches that depended on data.
    """

    instructions: int
    counts: Mapping[int, int]
    chain_l2: int
    chain_l1: int
    load_rounds: int
    assumed: int


class Follower:
    """A kernel prepared for walks: blocks, what each does to the clock, and which instructions decide branches."""

    def __init__(self, code: Code) -> None:
        self.code = code
        leaders = code.leaders
        ends = (*leaders[1:], len(code.instructions))
        self._block_end = dict(zip(leaders, ends, strict=True))
        self._deciding = _deciding(code)
        # by block: the deciding instructions, and (reads, writes, kind of load) of every instruction
        self._evaluated = {
            first: [code.instructions[index] for index in range(first, end) if self._deciding[index]]
            for first, end in self._block_end.items()
        }
        self._traffic = {
            first: [(i.reads, i.writes, _load_kind(i)) for i in code.instructions[first:end]]
            for first, end in self._block_end.items()
        }

    def walk(self, parameters: bytes, block: Sequence[int], grid: Sequence[int], issue: int) -> Walk:
        """One warp of program `block` of a launch of `grid`, each three numbers; `issue` cycles an instruction.

        Raises:
            KernelError: code that this does not know how to follow.
        """
        state = State(self.code, parameters, block, grid)
        clocks = (_Clock(issue, L2_CYCLES), _Clock(issue, L1_CYCLES))
        counts: dict[int, int] = {}
        calls: list[int] = []
        executed, assumed, at = 0, 0, 0
        instructions = self.code.instructions
        while True:
            end = self._block_end[at]
            counts[at] = counts.get(at, 0) + 1
            executed += end - at
            for clock in clocks:
                clock.pass_block(at, self._traffic[at])
            for instruction in self._evaluated[at]:
                state.execute(instruction)
            if executed > MOST_INSTRUCTIONS:
                raise KernelError(f"{self.code.entry} for {self.code.arch} does not end", "report this with the Triton version")
            last = instructions[end - 1]
            taken = state.predicate(last.predicate)
            if last.name == "EXIT":
                if taken:
                    break
                assumed += taken is None
                at = end
            elif last.name in ("BRX", "BRXU"):
                at = state.indirect(last)
            elif last.name == "BRA" and last.target is not None:
                for condition in last.operands[:-1]:
                    other = state.predicate(condition)
                    taken = None if taken is None or other is None else taken and other
                assumed += taken is None
                at = last.target // INSTRUCTION_BYTES if taken else end
            elif last.name == "CALL" and last.target is not None and taken is not False:
                assumed += taken is None
                calls.append(end)
                at = last.target // INSTRUCTION_BYTES
            elif last.name == "CALL":
                at = end
            elif last.name == "RET" and calls:
                at = calls.pop()
            elif last.name in ("BRA", "RET", "JMP", "JMX"):
                raise KernelError(
                    f"{self.code.entry} for {self.code.arch} has a {last.name} at {last.address:#x}, which cannot be followed",
                    "report this with the Triton version",
                )
            else:
                at = end
            if at not in self._block_end:
                raise KernelError(
                    f"{self.code.entry} for {self.code.arch} leads out of its code", "report this with the Triton version"
                )
        return Walk(executed, counts, clocks[0].now, clocks[1].now, clocks[0].rounds, assumed)


def parameter_bytes(names: Sequence[str], integers: Mapping[str, int]) -> bytes:
    """Kernel parameters as a launch lays them out: integers of 4 bytes, null pointers of 8 for all others, each aligned to its size."""
    packed = b""
    for name in names:
        if name in integers:
            packed += struct.pack("<i", integers[name])
        else:
            packed += b"\0" * (-len(packed) % 8 + 8)
    return packed


class _Clock:
    """An in-order warp: when it is, and when the loads that are under way arrive."""

    def __init__(self, issue: int, latency: int) -> None:
        self.now, self.rounds = 0, 0
        self._issue = issue
        self._latency = {"global": latency, "shared": SHARED_CYCLES}
        # loads under way: registers, cycles until they are there, of global memory
        self._pending: _Pending = ()
        self._known: dict[tuple[int, _Pending], tuple[int, int, _Pending]] = {}

    def pass_block(self, first: int, traffic: list[tuple[int, int, str]]) -> None:
        """All instructions of a block; what it does to the clock depends only on the loads under way, so it is worked out once for each."""
        key = (first, self._pending)
        if key not in self._known:
            self._known[key] = self._through(traffic)
        cycles, rounds, self._pending = self._known[key]
        self.now += cycles
        self.rounds += rounds

    def _through(self, traffic: list[tuple[int, int, str]]) -> tuple[int, int, _Pending]:
        now, rounds, pending = 0, 0, list(self._pending)
        for reads, writes, kind in traffic:
            touched = reads | writes
            waited = [load for load in pending if load[0] & touched]
            if waited:
                pending = [load for load in pending if not load[0] & touched]
                for _, arrival, is_global in waited:
                    rounds += is_global and arrival > now
                    now = max(now, arrival)
            now += self._issue
            if kind:
                pending.append((writes, now + self._latency[kind], kind == "global"))
        return now, rounds, tuple((registers, max(arrival - now, 0), is_global) for registers, arrival, is_global in pending)


def _load_kind(instruction: Instruction) -> str:
    return "global" if instruction.name in GLOBAL_LOADS else "shared" if instruction.name in SHARED_LOADS else ""


def _deciding(code: Code) -> list[bool]:
    """Which instructions a branch depends on: registers that are needed, carried backwards through the code until nothing changes."""
    instructions = code.instructions
    needed_after = [0] * len(instructions)
    needed_before = [0] * len(instructions)
    predecessors: dict[int, list[int]] = {}
    for index in range(len(instructions)):
        for following in code.successors(index):
            predecessors.setdefault(following, []).append(index)
    work = list(range(len(instructions)))
    while work:
        index = work.pop()
        instruction = instructions[index]
        after = 0
        for following in code.successors(index):
            after |= needed_before[following]
        needed_after[index] = after
        before = after
        if instruction.writes & after:
            if not instruction.predicate:
                before &= ~instruction.writes
            before |= instruction.reads
        if instruction.name in BRANCHES:
            before |= instruction.reads
        if before != needed_before[index]:
            needed_before[index] = before
            work.extend(predecessors.get(index, ()))
    return [bool(i.writes & after) for i, after in zip(instructions, needed_after, strict=True)]
