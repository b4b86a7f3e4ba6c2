"""The integer arithmetic of machine code, for one thread: what decides branches, such as loop counters and the job of a program.

None is what is not known: data, floating point, and instructions that are not needed here. Conditions of a branch are predicates; R, UR,
P and UP are the register files of cost_sass.py.
"""

from __future__ import annotations

import math
import operator
import re
import struct
from collections.abc import Callable, Sequence

from gmf_edge.errors import KernelError
from gmf_edge.kernels.cost_sass import INSTRUCTION_BYTES, Code, Instruction, register_bit

_MASK = 0xFFFFFFFF
_SMALLEST_NORMAL = 2.0**-126
# first parameter in constant bank 0, and the three numbers of the grid
_PARAMETERS = {8: 0x160, 9: 0x210, 10: 0x380, 11: 0x380, 12: 0x380}
_GRID = {8: 0xC, 9: 0xC, 10: 0x370, 11: 0x370, 12: 0x370}


def _signed(value: int) -> int:
    return value - (1 << 32) if value & 0x80000000 else value


class State:
    """Registers of the first thread of a program; None is unknown."""

    def __init__(self, code: Code, parameters: bytes, block: Sequence[int], grid: Sequence[int]) -> None:
        self._code = code
        self._registers: dict[int, int | None] = {}
        major = int(code.arch.removeprefix("sm_")) // 10
        self._bank0 = {_PARAMETERS[major] + at: byte for at, byte in enumerate(parameters)}
        self._bank0 |= {_GRID[major] + at: byte for at, byte in enumerate(struct.pack("<3I", *grid))}
        self.special = {"SR_TID.X": 0, "SR_TID.Y": 0, "SR_TID.Z": 0, "SR_LANEID": 0, "SRZ": 0}
        self.special |= {f"SR_CTAID.{axis}": number for axis, number in zip("XYZ", block, strict=True)}

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
        value = self.read(found.group(1)) if found else None
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
        destinations = bits_of(instruction.writes)
        if results is None or len(results) != len(destinations):
            for bit in destinations:
                self._registers[bit] = None
            return
        for bit, value in zip(destinations, results, strict=True):
            self._registers[bit] = value

    def read(self, operand: str, plus: int = 0) -> int | None:
        """32 bits of an operand: a register, a constant, an immediate; -, ~ and || applied."""
        text = operand
        if text.startswith("-") and not text.startswith("-0x"):
            value = self.read(text[1:], plus)
            return None if value is None else -value & _MASK
        if text.startswith("~"):
            value = self.read(text[1:], plus)
            return None if value is None else ~value & _MASK
        if text.startswith("|"):
            value = self.read(text.strip("|"), plus)
            return None if value is None else abs(_signed(value))
        text = text.removesuffix(".64").removesuffix(".U32")
        if text in ("RZ", "URZ", "SRZ"):
            return 0
        if re.fullmatch(r"-?0x[0-9a-f]+|-?\d+", text):
            return int(text, 0) & _MASK
        if text.startswith("c["):
            return self.constant(text, plus)
        bit = register_bit(text)
        if bit is None:
            return None
        # sm_87's code begins by asking whether a uniform register that nobody wrote is zero, and sets up its convergence barriers if so
        return self._registers.get(bit + plus, 0 if text.startswith("UR") else None)

    def read_bits(self, operand: str) -> int | None:
        """As read, but nothing where nobody has written: the first predicate that is packed into a register finds the others undefined."""
        bit = register_bit(operand)
        return 0 if bit is not None and bit not in self._registers else self.read(operand)

    def constant(self, text: str, plus: int) -> int | None:
        found = re.fullmatch(r"c\[(0x[0-9a-f]+)\]\[([^\]]*)\]", text)
        if found is None:
            return None
        at = 4 * plus
        for part in found.group(2).split("+"):
            value = self.read(part.strip())
            if value is None:
                return None
            at += _signed(value)
        bank = int(found.group(1), 16)
        held = self._bank0 if bank == 0 else dict(enumerate(self._code.constants.get(bank, b"")))
        content = [held.get(at + byte) for byte in range(4)]
        return None if None in content else int.from_bytes(bytes(byte for byte in content if byte is not None), "little")


def sources_of(instruction: Instruction) -> list[str]:
    """Operands behind the destinations: a register and the predicates that follow it, or a predicate and what stands beside it."""
    rest = list(instruction.operands[1:])
    if re.fullmatch(r"U?P[0-6T]", instruction.operands[0]):
        return rest[1:]
    # from sm_100 on both carries are always written out, as PT where nobody wants them
    while len(rest) > 1 and re.fullmatch(r"U?P[0-6T]", rest[0]):
        rest.pop(0)
    return rest


def bits_of(mask: int) -> list[int]:
    """The registers of a mask, lowest first."""
    found = []
    while mask:
        found.append((mask & -mask).bit_length() - 1)
        mask &= mask - 1
    return found


# integer arithmetic: what an instruction writes, lowest register first; predicates are above all registers

Result = list[int | None] | None


def _values(state: State, operands: Sequence[str]) -> list[int] | None:
    found = [state.read(operand) for operand in operands]
    return None if None in found else [value for value in found if value is not None]


def _move(state: State, i: Instruction) -> Result:
    return [state.read(i.operands[1])]


def _special(state: State, i: Instruction) -> Result:
    value = state.special.get(i.operands[1])
    return [value] * len(bits_of(i.writes))


def _load_constant(state: State, i: Instruction) -> Result:
    return [state.constant(i.operands[1], plus) for plus in range(len(bits_of(i.writes)))]


def _add(state: State, i: Instruction) -> Result:
    sources = sources_of(i)
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
    return [total & _MASK, total >> 32] if len(bits_of(i.writes)) == 2 else [total & _MASK]


def _multiply_add(state: State, i: Instruction) -> Result:
    a, b, c, *carry = (*sources_of(i), "RZ", "RZ")
    low, more = _values(state, (a, b, c)), state.predicate(carry[0]) if "X" in i.modifiers else False
    if low is None or more is None:
        return None
    unsigned = "U32" in i.modifiers
    x, y = (low[0], low[1]) if unsigned else (_signed(low[0]), _signed(low[1]))
    if "WIDE" in i.modifiers or "HI" in i.modifiers:
        # the third source is 64 bits wide
        high = 0 if c in ("RZ", "URZ") or c.startswith(("0x", "-0x")) else state.read(c.removesuffix(".64"), 1)
        if high is None:
            return None
        total = x * y + (low[2] | high << 32)
        words: list[int | None] = [total & _MASK, total >> 32 & _MASK]
        words = words if "WIDE" in i.modifiers else words[1:]
        return words if len(bits_of(i.writes)) == len(words) else None
    return [(low[0] * low[1] + low[2] + more) & _MASK]


_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}


def _compare(state: State, i: Instruction) -> Result:
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


def _logic(state: State, i: Instruction) -> Result:
    asked = re.match(r"U?P", i.operands[0]) is not None
    operands = i.operands[1:] if asked else i.operands
    found = [state.read_bits(operand) for operand in operands[1:4]]
    values = [value for value in found if value is not None]
    if len(values) < 3:
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


def _predicate_logic(state: State, i: Instruction) -> Result:
    held = [state.predicate(operand) for operand in i.operands[2:5]]
    tables = [int(operand, 16) for operand in i.operands[5:7]]
    if None in held or len(tables) < 2:
        return None
    row = sum(bool(value) << (2 - place) for place, value in enumerate(held))
    return _by_order(i, [table >> row & 1 for table in tables])


def _shift(state: State, i: Instruction) -> Result:
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


def _scaled_add(state: State, i: Instruction) -> Result:
    sources = sources_of(i)
    if "X" in i.modifiers or len(sources) < 3:
        return None
    if "HI" in i.modifiers:
        return _scaled_add_high(state, i, sources)
    values = _values(state, sources[:3])
    if values is None:
        return None
    total = (values[0] << values[2] & _MASK) + values[1]
    return [total & _MASK, total >> 32] if len(bits_of(i.writes)) == 2 else [total & _MASK]


def _scaled_add_high(state: State, i: Instruction, sources: Sequence[str]) -> Result:
    """The upper half of 64 bits shifted, plus the second source; the third is their upper half unless they are a sign-extended number."""
    values = _values(state, sources[:4])
    if values is None or len(bits_of(i.writes)) != 1:
        return None
    low, added, shift = values[0], values[1], values[-1]
    high = _MASK * (low >> 31) if "SX32" in i.modifiers else values[2]
    return [((high << 32 | low) << shift >> 32) + added & _MASK]


def _select(state: State, i: Instruction) -> Result:
    held = state.predicate(i.operands[3])
    return None if held is None else [state.read(i.operands[1 if held else 2])]


def _extreme(state: State, i: Instruction) -> Result:
    sources = sources_of(i)
    values, least = _values(state, sources[:2]), state.predicate(sources[2] if len(sources) > 2 else "PT")
    if values is None or least is None:
        return None
    keyed: Callable[[int], int] = (lambda v: v) if "U32" in i.modifiers else _signed
    return [min(values, key=keyed) if least else max(values, key=keyed)]


def _permute(state: State, i: Instruction) -> Result:
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


def _extend(state: State, i: Instruction) -> Result:
    values = _values(state, i.operands[1:3])
    if values is None:
        return None
    value, bits = values[0] & (1 << values[1]) - 1, values[1]
    return [value if "U32" in i.modifiers or not value >> (bits - 1) & 1 else (value - (1 << bits)) & _MASK]


def _absolute(state: State, i: Instruction) -> Result:
    value = state.read(i.operands[1])
    return None if value is None else [abs(_signed(value))]


def _pack_predicates(state: State, i: Instruction) -> Result:
    # P2R R4, PR, RZ, 0x4: the masked predicates into the low bits
    mask, base = int(i.operands[3], 16), state.read(i.operands[2])
    held = [state.predicate(f"P{number}") if mask >> number & 1 else False for number in range(7)]
    if base is None or None in held or i.modifiers:
        return None
    return [base & ~mask & _MASK | sum(bool(value) << number for number, value in enumerate(held))]


def _arrived(state: State, i: Instruction) -> Result:
    """SYNCS...TRYWAIT asks whether others have reached a barrier in shared memory: they have, so that nobody waits."""
    return [1] if "TRYWAIT" in i.modifiers else None


def _usual_division(state: State, i: Instruction) -> Result:
    """FCHK asks whether a quotient needs the slow way for denormal and huge numbers: a LayerNorm's does not."""
    return [0]


def _to_float(state: State, i: Instruction) -> Result:
    value = state.read(i.operands[1])
    if value is None:
        return None
    # integers are divided by way of a reciprocal: the numbers are small, and the rounding mode does not matter
    return [_float_bits(float(value if "U32" in i.modifiers else _signed(value)))]


def _reciprocal(state: State, i: Instruction) -> Result:
    value = state.read(i.operands[1])
    # of a denormal, as a small integer's bits are, the reciprocal is beyond FP32
    if value is None or "RCP" not in i.modifiers or abs(_float_of(value)) < _SMALLEST_NORMAL:
        return None
    return [_float_bits(1.0 / _float_of(value))]


def _from_float(state: State, i: Instruction) -> Result:
    value = state.read(i.operands[1])
    if value is None or "TRUNC" not in i.modifiers or not math.isfinite(_float_of(value)):
        return None
    return [int(_float_of(value)) & _MASK]


def _float_bits(value: float) -> int:
    return int.from_bytes(struct.pack("<f", value), "little")


def _float_of(bits: int) -> float:
    return float(struct.unpack("<f", bits.to_bytes(4, "little"))[0])


_EVALUATE: dict[str, Callable[[State, Instruction], Result]] = {
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
    "I2F": _to_float,
    "MUFU": _reciprocal,
    "F2I": _from_float,
    "P2R": _pack_predicates,
    "SYNCS": _arrived,
}
