"""A compiled kernel as instructions: nvdisasm's JSON, what each instruction reads and writes, basic blocks and loops.

    read_code(cubin_bytes, "sm_90") -> Code

Registers are bits of one Python integer: R0..R254, UR0..UR63, P0..P6, UP0..UP6. RZ, URZ, PT and UPT are constants and have none.
Of an instruction that is no integer arithmetic only the first destination is known, in the width of its modifiers: enough to see who waits
for a load. Instructions are 16 bytes on every architecture of compile.ARCHITECTURES.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gmf_edge.errors import EnvironmentProblem, KernelError

INSTRUCTION_BYTES = 16
_FIRST_BIT = {"R": 0, "UR": 256, "P": 320, "UP": 328}
ALL_PREDICATES = 0x7F << _FIRST_BIT["P"]
_REGISTER = re.compile(r"(?<![\w.])(UR|UP|R|P)(\d+)((?:\.64)?)")
_PREDICATE = re.compile(r"!?U?P(?:\d|T)$")
# fmt: off
_NO_DESTINATION = frozenset({
    "ST", "STG", "STS", "STL", "STSM", "RED", "REDG", "REDS", "BAR", "BRA", "BRX", "BRXU", "EXIT", "BSSY", "BSYNC", "BREAK",
    "WARPSYNC", "NOP", "MEMBAR", "FENCE", "WARPGROUP", "DEPBAR", "LDGDEPBAR", "LDGSTS", "ERRBAR", "CCTL", "CCTLL",
    "NANOSLEEP", "YIELD", "ACQBULK", "PREEXIT", "SYNCS", "UTMALDG", "UTMASTG", "ARRIVES", "BMOV", "CALL", "RET", "KILL",
    "BPT",
})
# fmt: on
# integer arithmetic that may give a carry beside its result
_WITH_CARRY = frozenset(
    {
        *("IADD3", "UIADD3", "IADD", "LEA", "ULEA", "IMAD", "UIMAD", "LOP3", "ULOP3", "VIMNMX", "UVIMNMX"),
        *("R2UR", "SHFL", "VOTE", "VOTEU", "MATCH"),
    }
)
GLOBAL_LOADS = frozenset({"LDG", "LD", "ATOMG", "ATOM", "LDL"})
SHARED_LOADS = frozenset({"LDS", "LDSM", "ATOMS"})
TENSOR = frozenset({"HMMA", "HGMMA", "QGMMA", "UTCHMMA", "UTCQMMA", "DMMA", "IMMA", "BMMA", "OMMA"})
BRANCHES = frozenset({"BRA", "BRX", "BRXU", "EXIT", "RET", "CALL", "JMP", "JMX"})


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        address: in bytes from the kernel's start.
        name, modifiers: of the opcode, such as IMAD and (WIDE, U32).
        operands: as printed, without .reuse.
        predicate: register under which it takes effect, such as !P0 or UP1; empty for always.
        reads, writes: registers as bits; reads includes the predicate.
    """

    address: int
    name: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    predicate: str
    reads: int
    writes: int

    @property
    def multiply_adds(self) -> int:
        """FP32 or FP16 multiply-adds of a thread; packed forms count for two."""
        if self.name == "FFMA":
            return 1
        if self.name == "FFMA2":
            return 2
        # with RZ times RZ it only puts a constant into a register
        return 2 if self.name == "HFMA2" and "RZ" not in self.operands[1] else 0

    @property
    def target(self) -> int | None:
        """Where a direct branch goes, in bytes; None for others."""
        if self.name not in ("BRA", "CALL") or not self.operands[-1].startswith("0x"):
            return None
        return int(self.operands[-1], 16)


@dataclass(frozen=True)
class Loop:
    """Blocks between a backward branch and its target, as indices of instructions: first, last (inclusive)."""

    first: int
    last: int


@dataclass(frozen=True)
class Code:
    """A kernel.

    Attributes:
        arch: of compile.ARCHITECTURES.
        entry: its name.
        instructions: in order of their addresses.
        constants: bytes of the constant banks that the cubin brings, by number.
    """

    arch: str
    entry: str
    instructions: tuple[Instruction, ...]
    constants: dict[int, bytes]

    @cached_property
    def leaders(self) -> tuple[int, ...]:
        """Indices of the first instructions of basic blocks, ascending."""
        found = {0}
        for index, instruction in enumerate(self.instructions):
            if instruction.name in BRANCHES:
                found.add(index + 1)
            if instruction.target is not None:
                found.add(instruction.target // INSTRUCTION_BYTES)
        found |= set(self.table_targets)
        return tuple(sorted(index for index in found if index < len(self.instructions)))

    @cached_property
    def table_targets(self) -> tuple[int, ...]:
        """Indices that an indirect branch may reach: whatever in the cubin's own constants is an address of this code."""
        if not any(i.name in ("BRX", "BRXU") for i in self.instructions):
            return ()
        end = len(self.instructions) * INSTRUCTION_BYTES
        words = [struct.unpack(f"<{len(bank) // 4}I", bank[: len(bank) // 4 * 4]) for bank in self.constants.values()]
        return tuple(
            word // INSTRUCTION_BYTES for bank in words for word in bank if word % INSTRUCTION_BYTES == 0 and 0 < word < end
        )

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """Every loop by its backward branch; a branch to itself behind the last EXIT is padding."""
        branches = [(index, i.target) for index, i in enumerate(self.instructions) if i.name == "BRA"]
        return tuple(
            Loop(target // INSTRUCTION_BYTES, index)
            for index, target in branches
            if target is not None and target < index * INSTRUCTION_BYTES
        )

    @cached_property
    def innermost(self) -> tuple[Loop, ...]:
        """Loops that contain no other."""
        return tuple(
            loop
            for loop in self.loops
            if not any(other != loop and loop.first <= other.first and other.last <= loop.last for other in self.loops)
        )

    def successors(self, index: int) -> tuple[int, ...]:
        """Instructions that may follow instruction `index`."""
        instruction = self.instructions[index]
        following = (index + 1,) if index + 1 < len(self.instructions) else ()
        if instruction.name in ("BRX", "BRXU"):
            return self.table_targets
        if instruction.name == "RET":
            return tuple(place + 1 for place, i in enumerate(self.instructions) if i.name == "CALL")
        if instruction.name == "CALL" and instruction.target is not None:
            return (*following, instruction.target // INSTRUCTION_BYTES)
        if instruction.name == "EXIT":
            return following if instruction.predicate else ()
        if instruction.target is None:
            return following
        taken = (instruction.target // INSTRUCTION_BYTES,)
        conditional = bool(instruction.predicate) or len(instruction.operands) > 1
        return following + taken if conditional else taken


def read_code(cubin: bytes, arch: str) -> Code:
    """The only kernel of a cubin.

    Raises:
        EnvironmentProblem: there is no nvdisasm, or none that knows the architecture.
        KernelError: nvdisasm refused the cubin.
    """
    listing = _listing(cubin, arch)
    function = listing[1][0]
    instructions = tuple(_instruction(index * INSTRUCTION_BYTES, row) for index, row in enumerate(function["sass-instructions"]))
    return Code(arch, function["function-name"], instructions, _constant_banks(cubin))


def find_nvdisasm(arch: str) -> str:
    """The disassembler for an architecture: TRITON_NVDISASM_PATH, else Triton's own, else for sm_110 and newer CUDA 13's.

    Triton's wheel brings CUDA 12.8's, which knows sm_80 to sm_100 and sm_120. CUDA 13's is looked for in the package
    nvidia-cuda-nvdisasm and on PATH.

    Raises:
        EnvironmentProblem: there is none.
    """
    import os

    candidates = [os.environ.get("TRITON_NVDISASM_PATH")]
    if arch != "sm_110":
        candidates += [_in_package("triton", "backends/nvidia/bin/nvdisasm")]
    candidates += [_in_package("nvidia", "cu13/bin/nvdisasm"), shutil.which("nvdisasm")]
    for candidate in candidates:
        if candidate and Path(candidate).is_file():
            return candidate
    raise EnvironmentProblem(
        f"there is no nvdisasm that reads the code of {arch}",
        "install nvidia-cuda-nvdisasm with pip, or name a CUDA toolkit's nvdisasm in TRITON_NVDISASM_PATH",
    )


def _in_package(package: str, path: str) -> str | None:
    """A file of an installed package, without importing it."""
    for folder in map(Path, sys.path):
        found = folder / package / path
        if found.is_file():
            return str(found)
    return None


def _listing(cubin: bytes, arch: str) -> Any:
    nvdisasm = find_nvdisasm(arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([nvdisasm, "-json", file.name], capture_output=True, text=True)
    if done.returncode != 0:
        raise KernelError(
            f"{nvdisasm} does not read this code of {arch}: {(done.stderr.strip() or 'no message').splitlines()[-1]}",
            "name the nvdisasm of a newer CUDA toolkit in TRITON_NVDISASM_PATH",
        )
    try:
        listing = json.loads(done.stdout)
        # behind a kernel that has tensor memory stand the traps that guard its allocation, as functions of their own
        kernels = [function["function-name"] for function in listing[1] if not function["function-name"].startswith("$")]
        if len(kernels) != 1 or kernels[0] != listing[1][0]["function-name"]:
            raise ValueError(f"{len(kernels)} kernels: {kernels}")
    except (ValueError, LookupError) as error:
        raise KernelError(f"{nvdisasm} gave no listing of one kernel: {error}", "use an nvdisasm of CUDA 12.4 or newer") from error
    return listing


def _constant_banks(cubin: bytes) -> dict[int, bytes]:
    """Sections .nv.constantN of an ELF file of 64 bits, other than N = 0, which a launch fills."""
    table, entry_bytes, count, names_index = (
        *struct.unpack_from("<Q", cubin, 0x28),
        *struct.unpack_from("<HHH", cubin, 0x3A),
    )
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + index * entry_bytes) for index in range(count)]
    names_at = sections[names_index][4]
    banks = {}
    for name_at, _, _, _, offset, size in sections:
        start = names_at + name_at
        found = re.match(rb"\.nv\.constant(\d+)", cubin[start : cubin.index(b"\0", start)])
        if found and found.group(1) != b"0":
            banks[int(found.group(1))] = cubin[offset : offset + size]
    return banks


def register_bit(name: str) -> int | None:
    """The bit of a register such as R4, UR1 or !P0; None for constants such as RZ and PT."""
    found = re.match(r"[!\-~|]*(UR|UP|R|P)(\d+)", name)
    return None if found is None else _FIRST_BIT[found.group(1)] + int(found.group(2))


def _mask(operand: str, width: int = 1) -> int:
    """All registers that an operand names; `width` consecutive ones of the first where it is a register alone."""
    mask = 0
    for number, found in enumerate(_REGISTER.finditer(operand)):
        bits = 2 if found.group(3) else (width if number == 0 and "[" not in operand and found.group(1) in ("R", "UR") else 1)
        mask |= ((1 << bits) - 1) << (_FIRST_BIT[found.group(1)] + int(found.group(2)))
    if operand == "PR":
        mask |= ALL_PREDICATES
    return mask


def _split(operands: str) -> tuple[str, ...]:
    """At the commas outside brackets, and where CUDA 12's listing has none: between a load's destination and its address."""
    operands = re.sub(r"((?:^|,)(?:U?R(?:\d+|Z)|P\d))\[", r"\1,[", operands)
    parts = re.split(r",(?![^\[]*\])", operands.replace(".reuse", "")) if operands else []
    return tuple(part.strip() for part in parts)


def _width(name: str, modifiers: tuple[str, ...], source: int | None = None) -> int:
    """How many registers the destination takes, or operand `source`."""
    if name in TENSOR:
        if name != "HMMA":
            return 1
        shape = {
            None: 4 if "F32" in modifiers else 2,
            1: 4 if "16816" in modifiers else 2,
            2: 2 if "16816" in modifiers else 1,
            3: 4,
        }
        return shape[source]
    if name in ("LDSM", "STSM", "LDS", "STS", "LDG", "STG", "LD", "ST", "LDL", "STL", "LDC", "ULDC", "LDCU"):
        return next(
            (int(m) // 32 for m in modifiers if m in ("64", "128")), next((int(m) for m in modifiers if m in ("2", "4")), 1)
        )
    if "WIDE" in modifiers:
        return 2 if source in (None, 3) else 1
    return 2 if "64" in modifiers or (name == "CS2R" and "32" not in modifiers) or name == "FFMA2" else 1


def _instruction(address: int, row: dict[str, Any]) -> Instruction:
    name, *rest = str(row["opcode"]).split(".")
    modifiers, operands = tuple(rest), _split(str(row.get("operands", "")))
    predicate = str(row.get("predicate", "")).removeprefix("@")
    if predicate == "PR":
        # P2R and R2P of all predicates: CUDA 12's listing has the operand PR here
        operands, predicate = (operands[0], "PR", *operands[1:]) if name == "P2R" else ("PR", *operands), ""
    writes, sources = 0, 0
    if (name not in _NO_DESTINATION or "TRYWAIT" in modifiers) and operands:
        sources = 1
        writes = _mask(operands[0], _width(name, modifiers))
        if _PREDICATE.match(operands[0]) and len(operands) > 1 and "[" not in operands[1]:
            # ISETP P0, PT, ...; LOP3.LUT P0, R1, ...; SHFL.IDX PT, R1, ...
            writes |= _mask(operands[1])
            sources = 2
        while name in _WITH_CARRY and sources < len(operands) - 1 and re.fullmatch(r"U?P[0-6T]", operands[sources]):
            writes |= _mask(operands[sources])
            sources += 1
    reads = _mask(predicate)
    for index in range(sources, len(operands)):
        reads |= _mask(operands[index], _width(name, modifiers, index))
    return Instruction(address, name, modifiers, operands, predicate, reads, writes)
