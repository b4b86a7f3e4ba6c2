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

import operator
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gmf_edge.errors import KernelError
from gmf_edge.kernels.cost_sass import BRANCHES, GLOBAL_LOADS, INSTRUCTION_BYTES, SHARED_LOADS, Code, Instruction, register_bit

# cycles of a dependent load, H100: Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture" (arXiv 2402.13499), table
# of memory latencies; A100 and RTX 4090 stand within 7 % of it there
L1_CYCLES, SHARED_CYCLES, L2_CYCLES = 41, 29, 263
# a walk that passes this has lost its way
MOST_INSTRUCTIONS = 20_000_000
_MASK = 0xFFFFFFFF
# first parameter in constant bank 0, and the three numbers of the grid
_PARAMETERS = {8: 0x160, 9: 0x210, 10: 0x380, 11: 0x380, 12: 0x380}
_GRID = {8: 0xC, 9: 0xC, 10: 0x370, 11: 0x370, 12: 0x370}


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
        state = _State(self.code, parameters, block, grid)
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
                clock.pass_block(self._traffic[at])
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
        self._pending = 0
        self._arrivals: list[tuple[int, int, bool]] = []

    def pass_block(self, traffic: list[tuple[int, int, str]]) -> None:
        for reads, writes, kind in traffic:
            touched = (reads | writes) & self._pending
            if touched:
                self._wait(touched)
            self.now += self._issue
            if kind:
                self._pending |= writes
                self._arrivals.append((writes, self.now + self._latency[kind], kind == "global"))

    def _wait(self, touched: int) -> None:
        kept = []
        for registers, arrival, is_global in self._arrivals:
            if registers & touched:
                if arrival > self.now:
                    self.now = arrival
                    self.rounds += is_global
            else:
                kept.append((registers, arrival, is_global))
        self._arrivals = kept
        self._pending = 0
        for registers, _, _ in kept:
            self._pending |= registers


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


def _signed(value: int) -> int:
    return value - (1 << 32) if value & 0x80000000 else value


class _State:
    """Registers of the first thread of a program; None is unknown."""

    def __init__(self, code: Code, parameters: bytes, block: Sequence[int], grid: Sequence[int]) -> None:
        self._code = code
        self._registers: dict[int, int | None] = {}
        major = int(code.arch.removeprefix("sm_")) // 10
        self._bank0 = {_PARAMETERS[major] + at: byte for at, byte in enumerate(parameters)}
        self._bank0 |= {_GRID[major] + at: byte for at, byte in enumerate(struct.pack("<3I", *grid))}
        self._special = {"SR_TID.X": 0, "SR_TID.Y": 0, "SR_TID.Z": 0, "SR_LANEID": 0, "SRZ": 0}
        self._special |= {f"SR_CTAID.{axis}": number for axis, number in zip("XYZ", block, strict=True)}

    def predicate(self, name: str) -> bool | None:
        """Whether a predicate such as !P0 holds; true for an empty one."""
        bare = name.removeprefix("!")
        if bare in ("", "PT", "UPT"):
            value: int | None = 1
        else:
            bit = register_bit(bare)
            value = None if bit is None else self._registers.get(bit)
        return None if value is None else bool(value) != name.startswith("!")

    def indirect(self, instruction: Instruction) -> int:
        """Where a branch through a register goes: BRX R4,-0x260 is relative to the instruction behind it."""
        found = re.match(r"(U?R\d+),?\s*(-?0x[0-9a-f]+)?", ",".join(instruction.operands))
        value = self._read(found.group(1)) if found else None
        if value is None or found is None:
            raise KernelError(
                f"{self._code.entry} for {self._code.arch} branches at {instruction.address:#x} to what cannot be known",
                "report this with the Triton version",
            )
        away = _signed(value) + int(found.group(2) or "0", 16)
        return (instruction.address + INSTRUCTION_BYTES + away) // INSTRUCTION_BYTES

    def execute(self, instruction: Instruction) -> None:
        """What a deciding instruction writes; unknown where it is not understood or its operands are unknown."""
        if self.predicate(instruction.predicate) is False:
            return
        evaluate = _EVALUATE.get(instruction.name)
        results: Sequence[int | None] | None = None
        if evaluate is not None and self.predicate(instruction.predicate):
            results = evaluate(self, instruction)
        destinations = _bits(instruction.writes)
        if results is None or len(results) != len(destinations):
            for bit in destinations:
                self._registers[bit] = None
            return
        for bit, value in zip(destinations, results, strict=True):
            self._registers[bit] = value

    def _read(self, operand: str, plus: int = 0) -> int | None:
        """32 bits of an operand: a register, a constant, an immediate; -, ~ and || applied."""
        text = operand
        if text.startswith("-") and not text.startswith("-0x"):
            value = self._read(text[1:], plus)
            return None if value is None else -value & _MASK
        if text.startswith("~"):
            value = self._read(text[1:], plus)
            return None if value is None else ~value & _MASK
        if text.startswith("|"):
            value = self._read(text.strip("|"), plus)
            return None if value is None else abs(_signed(value))
        text = text.removesuffix(".64").removesuffix(".U32")
        if text in ("RZ", "URZ", "SRZ"):
            return 0
        if re.fullmatch(r"-?0x[0-9a-f]+|-?\d+", text):
            return int(text, 0) & _MASK
        if text.startswith("c["):
            return self._constant(text, plus)
        bit = register_bit(text)
        if bit is None:
            return None
        # sm_87's code begins by asking whether a uniform register that nobody wrote is zero, and sets up its convergence barriers if so
        return self._registers.get(bit + plus, 0 if text.startswith("UR") else None)

    def _constant(self, text: str, plus: int) -> int | None:
        found = re.fullmatch(r"c\[(0x[0-9a-f]+)\]\[([^\]]*)\]", text)
        if found is None:
            return None
        at = 4 * plus
        for part in found.group(2).split("+"):
            value = self._read(part.strip())
            if value is None:
                return None
            at += _signed(value)
        bank = int(found.group(1), 16)
        held = self._bank0 if bank == 0 else dict(enumerate(self._code.constants.get(bank, b"")))
        content = [held.get(at + byte) for byte in range(4)]
        return None if None in content else int.from_bytes(bytes(byte for byte in content if byte is not None), "little")

    def _sources(self, instruction: Instruction) -> list[str]:
        """Operands behind the destinations, which are registers of the `writes`."""
        rest = list(instruction.operands[1:])
        if re.fullmatch(r"U?P[0-6T]", instruction.operands[0]):
            return rest[1:]
        while (
            rest and len(rest) > 1 and re.fullmatch(r"U?P[0-6]", rest[0]) and instruction.name not in ("MOV", "UMOV", "SEL", "P2R")
        ):
            rest.pop(0)
        return rest


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        found.append((mask & -mask).bit_length() - 1)
        mask &= mask - 1
    return found


# integer arithmetic: what an instruction writes, lowest register first; predicates are above all registers

Result = list[int | None] | None


def _values(state: _State, operands: Sequence[str]) -> list[int] | None:
    found = [state._read(operand) for operand in operands]
    return None if None in found else [value for value in found if value is not None]


def _move(state: _State, i: Instruction) -> Result:
    return [state._read(i.operands[1])]


def _special(state: _State, i: Instruction) -> Result:
    value = state._special.get(i.operands[1])
    return [value] * len(_bits(i.writes))


def _load_constant(state: _State, i: Instruction) -> Result:
    return [state._constant(i.operands[1], plus) for plus in range(len(_bits(i.writes)))]


def _add(state: _State, i: Instruction) -> Result:
    sources = state._sources(i)
    carries = [s for s in sources if re.fullmatch(r"!?U?P[0-6T]", s)]
    values = _values(state, [s for s in sources if s not in carries])
    if values is None:
        return None
    total = sum(values)
    if "X" in i.modifiers:
        held = [state.predicate(carry) for carry in carries]
        if None in held:
            return None
        total += sum(bool(carry) for carry in held)
    return [total & _MASK, total >> 32] if len(_bits(i.writes)) == 2 else [total & _MASK]


def _multiply_add(state: _State, i: Instruction) -> Result:
    a, b, c, *carry = (*state._sources(i), "RZ", "RZ")
    low, more = _values(state, (a, b, c)), state.predicate(carry[0]) if "X" in i.modifiers else False
    if low is None or more is None:
        return None
    unsigned = "U32" in i.modifiers
    x, y = (low[0], low[1]) if unsigned else (_signed(low[0]), _signed(low[1]))
    if "WIDE" in i.modifiers:
        high = 0 if c in ("RZ", "URZ") or c.startswith(("0x", "-0x")) else state._read(c.removesuffix(".64"), 1)
        if high is None:
            return None
        total = x * y + (low[2] | high << 32)
        words: list[int | None] = [total & _MASK, total >> 32 & _MASK]
        return words if len(_bits(i.writes)) == 2 else None
    if "HI" in i.modifiers:
        return [(x * y + (low[2] << 32 if "RZ" not in c else 0) >> 32) & _MASK] if "RZ" in c else None
    return [(low[0] * low[1] + low[2] + more) & _MASK]


_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}


def _compare(state: _State, i: Instruction) -> Result:
    a, b, combined = i.operands[2], i.operands[3], i.operands[4]
    values, other = _values(state, (a, b)), state.predicate(combined)
    if values is None or other is None or i.modifiers[0] not in _COMPARISONS:
        return None
    x, y = values if "U32" in i.modifiers else map(_signed, values)
    answer = _COMPARISONS[i.modifiers[0]](x, y)
    if "EX" in i.modifiers:
        # the upper halves of two numbers of 64 bits; the last operand is what their lower halves gave
        lower = state.predicate(i.operands[5])
        if lower is None:
            return None
        answer = lower if x == y else answer

    def join(held: bool, with_: bool) -> int:
        if "OR" in i.modifiers:
            return int(held or with_)
        return int(held != with_ if "XOR" in i.modifiers else held and with_)

    # the second predicate gets the opposite
    first, second = join(answer, other), join(not answer, other)
    return _by_order(i, [first, second])


def _by_order(i: Instruction, results: list[int]) -> Result:
    """Results of the predicates that operands 0 and 1 name, in the order of their bits; PT is none."""
    named = [(register_bit(operand), result) for operand, result in zip(i.operands[:2], results, strict=True)]
    return [result for _, result in sorted((bit, result) for bit, result in named if bit is not None)]


def _logic(state: _State, i: Instruction) -> Result:
    asked = re.match(r"U?P", i.operands[0]) is not None
    operands = i.operands[1:] if asked else i.operands
    values = _values(state, operands[1:4])
    if values is None:
        # x & 0 and the like are not worth the trouble
        return None
    result = _look_up(int(operands[4], 16), values)
    # the predicate says whether any bit is set, and stands above the register, which may be none
    named = ([result] if register_bit(operands[0]) is not None else []) + ([int(result != 0)] if asked else [])
    return list(named)


def _look_up(table: int, values: Sequence[int]) -> int:
    a, b, c = values
    result = 0
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result & _MASK


def _predicate_logic(state: _State, i: Instruction) -> Result:
    held = [state.predicate(operand) for operand in i.operands[2:5]]
    tables = [int(operand, 16) for operand in i.operands[5:7]]
    if None in held or len(tables) < 2:
        return None
    row = sum(bool(value) << (2 - place) for place, value in enumerate(held))
    return _by_order(i, [table >> row & 1 for table in tables])


def _shift(state: _State, i: Instruction) -> Result:
    values = _values(state, i.operands[1:4])
    if values is None or "64" in i.modifiers or "U64" in i.modifiers or "S64" in i.modifiers:
        return None
    low, by, high = values
    by = min(by, 32) if "W" not in i.modifiers else by & 31
    if "L" in i.modifiers:
        return [(high << by | low >> (32 - by)) & _MASK if "HI" in i.modifiers else low << by & _MASK]
    if "HI" in i.modifiers:
        return [(_signed(high) if "S32" in i.modifiers else high) >> by & _MASK]
    return [(high << 32 | low) >> by & _MASK]


def _scaled_add(state: _State, i: Instruction) -> Result:
    sources = state._sources(i)
    if {"HI", "X"} & set(i.modifiers) or len(sources) < 3:
        return None
    values = _values(state, sources[:3])
    if values is None:
        return None
    total = (values[0] << values[2] & _MASK) + values[1]
    return [total & _MASK, total >> 32] if len(_bits(i.writes)) == 2 else [total & _MASK]


def _select(state: _State, i: Instruction) -> Result:
    held = state.predicate(i.operands[3])
    return None if held is None else [state._read(i.operands[1 if held else 2])]


def _extreme(state: _State, i: Instruction) -> Result:
    sources = [s for s in i.operands[1:] if not re.fullmatch(r"U?P[0-6]", s)]
    values, least = _values(state, sources[:2]), state.predicate(sources[2] if len(sources) > 2 else "PT")
    if values is None or least is None:
        return None
    keyed: Callable[[int], int] = (lambda v: v) if "U32" in i.modifiers else _signed
    return [min(values, key=keyed) if least else max(values, key=keyed)]


def _permute(state: _State, i: Instruction) -> Result:
    values = _values(state, i.operands[1:4])
    if values is None or i.modifiers:
        return None
    a, selector, b = values
    content = (a | b << 32).to_bytes(8, "little")
    result = 0
    for place in range(4):
        chosen = selector >> (4 * place) & 15
        byte = content[chosen & 7]
        result |= ((0xFF if byte & 0x80 else 0) if chosen & 8 else byte) << (8 * place)
    return [result]


def _extend(state: _State, i: Instruction) -> Result:
    values = _values(state, i.operands[1:3])
    if values is None:
        return None
    value, bits = values[0] & (1 << values[1]) - 1, values[1]
    return [value if "U32" in i.modifiers or not value >> (bits - 1) & 1 else (value - (1 << bits)) & _MASK]


def _absolute(state: _State, i: Instruction) -> Result:
    value = state._read(i.operands[1])
    return None if value is None else [abs(_signed(value))]


def _pack_predicates(state: _State, i: Instruction) -> Result:
    # P2R R4, PR, RZ, 0x4: the masked predicates into the low bits
    mask, base = int(i.operands[3], 16), state._read(i.operands[2])
    held = [state.predicate(f"P{number}") if mask >> number & 1 else False for number in range(7)]
    if base is None or None in held or i.modifiers:
        return None
    return [base & ~mask & _MASK | sum(bool(value) << number for number, value in enumerate(held))]


def _usual_division(state: _State, i: Instruction) -> Result:
    """FCHK asks whether a quotient needs the slow way for denormal and huge numbers: a LayerNorm's does not."""
    return [0]


_EVALUATE: dict[str, Callable[[_State, Instruction], Result]] = {
    **dict.fromkeys(("MOV", "UMOV", "R2UR"), _move),
    **dict.fromkeys(("S2R", "S2UR", "CS2R"), _special),
    **dict.fromkeys(("LDC", "ULDC", "LDCU"), _load_constant),
    **dict.fromkeys(("IADD3", "UIADD3", "IADD", "VIADD", "UIADD"), _add),
    **dict.fromkeys(("IMAD", "UIMAD"), _multiply_add),
    **dict.fromkeys(("ISETP", "UISETP"), _compare),
    **dict.fromkeys(("LOP3", "ULOP3"), _logic),
    **dict.fromkeys(("PLOP3", "UPLOP3"), _predicate_logic),
    **dict.fromkeys(("SHF", "USHF"), _shift),
    **dict.fromkeys(("LEA", "ULEA"), _scaled_add),
    **dict.fromkeys(("SEL", "USEL"), _select),
    **dict.fromkeys(("IMNMX", "VIMNMX", "UIMNMX", "UVIMNMX"), _extreme),
    **dict.fromkeys(("SGXT", "USGXT"), _extend),
    **dict.fromkeys(("PRMT", "UPRMT"), _permute),
    "IABS": _absolute,
    "FCHK": _usual_division,
    "P2R": _pack_predicates,
}
