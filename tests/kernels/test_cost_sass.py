"""Reading machine code: what instructions write and wait for, the integer arithmetic behind branches, the model of waits."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from gmf_edge.errors import EnvironmentProblem, KernelError
from gmf_edge.kernels import cost_sass
from gmf_edge.kernels.cost_integers import State, bits_of
from gmf_edge.kernels.cost_run import L1_CYCLES, L2_CYCLES, Follower, parameter_bytes
from gmf_edge.kernels.cost_sass import Code, Instruction, find_nvdisasm, register_bit


def instruction(line: str, index: int = 0) -> Instruction:
    """A line as nvdisasm -json splits it, such as "@!P0 IADD3 R1,R2,0x1,RZ"."""
    predicate, rest = line.split(" ", 1) if line.startswith("@") else ("", line)
    opcode, _, operands = rest.partition(" ")
    row: dict[str, Any] = {"opcode": opcode, "operands": operands}
    return cost_sass._instruction(16 * index, row | ({"predicate": predicate} if predicate else {}))


def code_of(*lines: str, constants: dict[int, bytes] | None = None) -> Code:
    return Code("sm_90", "test", tuple(instruction(line, index) for index, line in enumerate(lines)), constants or {})


def registers(*names: str) -> set[int | None]:
    return {register_bit(name) for name in names}


@pytest.mark.parametrize(
    ("line", "writes", "reads"),
    [
        ("IADD3 R2,P1,R4,R5,RZ", ("R2", "P1"), ("R4", "R5")),
        ("IADD3.X R9,R3,R5,RZ,P1,!PT", ("R9",), ("R3", "R5", "P1")),
        ("@!P0 IMAD.WIDE.U32 R2,R8,UR12,R6", ("R2", "R3"), ("R8", "UR12", "R6", "R7", "P0")),
        ("ISETP.LT.AND P0,PT,R0,UR6,!P3", ("P0",), ("R0", "UR6", "P3")),
        ("LDG.E.128 R4,desc[UR4][R2.64+0x10]", ("R4", "R5", "R6", "R7"), ("UR4", "R2", "R3")),
        # CUDA 12's listing for Ampere has no comma between the destination and the address
        ("LDG.E.64 R4[R2.64+0x10]", ("R4", "R5"), ("R2", "R3")),
        ("STG.E.64 [R2.64],R8", (), ("R2", "R3", "R8", "R9")),
        ("LDSM.16.M88.4 R28[R98+0xe00]", ("R28", "R29", "R30", "R31"), ("R98",)),
        (
            "HMMA.16816.F32 R12,R36,R34,R12",
            ("R12", "R13", "R14", "R15"),
            ("R36", "R37", "R38", "R39", "R34", "R35", "R12", "R13", "R14", "R15"),
        ),
        ("SHFL.BFLY PT,R5,R4,0x1,0x1f", ("R5",), ("R4",)),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", (), ()),
        # sm_100: packed pairs, predicates written out, a barrier in shared memory that is asked and one that is set up
        ("FFMA2 R52,R70.F32x2.HI_LO,R74.F32x2.HI_LO,R52.F32x2.HI_LO", ("R52", "R53"), ("R70", "R71", "R74", "R75", "R52", "R53")),
        ("VIMNMX R13,PT,PT,R3,UR4,PT", ("R13",), ("R3", "UR4")),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT P1[UR10+0x200],R4", ("P1",), ("UR10", "R4")),
        ("@!UP1 SYNCS.EXCH.64 URZ,[UR10+0x200],UR6", (), ("UR10", "UR6", "UR7", "UP1")),
    ],
)
def test_what_an_instruction_writes_and_reads(line: str, writes: tuple[str, ...], reads: tuple[str, ...]) -> None:
    found = instruction(line)
    assert set(bits_of(found.writes)) == registers(*writes)
    assert set(bits_of(found.reads)) == registers(*reads)


def test_packed_multiply_adds_count_for_two_and_moves_for_none() -> None:
    lines = ("FFMA R1,R2,R3,R1", "HFMA2 R1,R2,R3,R1", "HFMA2.MMA R1,-RZ,RZ,0,0", "FFMA2 R2,R4,R6,R2", "IMAD R1,R2,R3,R1")
    assert [instruction(line).multiply_adds for line in lines] == [1, 2, 0, 2, 0]


@pytest.mark.parametrize(
    ("line", "register", "value"),
    [
        ("MOV R9,R1", "R9", 7),
        ("IADD3 R9,R1,-R2,0x1", "R9", 5),
        ("IADD3 R9,-R2,RZ,RZ", "R9", 0xFFFFFFFD),
        ("IADD3 R9,P1,R3,R3,RZ", "P1", 1),  # R3 = 2^31: a carry
        ("IADD3.X R9,R1,RZ,RZ,P0,!PT", "R9", 8),
        ("IADD3 R9,PT,PT,R1,R2,RZ", "R9", 10),  # as sm_100's code is written
        ("IADD3.X R9,PT,PT,R1,RZ,RZ,P0,!PT", "R9", 8),
        ("IMAD R9,R1,R2,0x10", "R9", 37),
        ("IMAD.X R9,RZ,RZ,R1,P0", "R9", 8),
        ("IMAD.HI.U32 R9,R3,0x4,RZ", "R9", 2),
        ("ISETP.GE.AND P2,PT,R1,R2,PT", "P2", 1),
        ("ISETP.LT.AND P2,PT,R3,R2,PT", "P2", 1),  # signed
        ("ISETP.LT.U32.AND P2,PT,R3,R2,PT", "P2", 0),
        ("ISETP.GE.AND.EX P2,PT,R1,R1,PT,P0", "P2", 1),  # equal above: the halves below decide
        ("ISETP.NE.U32.AND.EX P2,PT,R1,R1,PT,!P0", "P2", 0),
        ("LOP3.LUT R9,R1,0x3,RZ,0xc0,!PT", "R9", 3),  # and
        ("LOP3.LUT R9,R1,R2,RZ,0x3c,!PT", "R9", 4),  # exclusive or
        ("LOP3.LUT P2,RZ,R1,0x8,RZ,0xc0,!PT", "P2", 0),
        ("PLOP3.LUT P2,PT,P0,PT,PT,0x80,0x0", "P2", 1),
        ("SHF.R.S32.HI R9,RZ,0x1f,R3", "R9", 0xFFFFFFFF),
        ("SHF.R.U32.HI R9,RZ,0x1,R1", "R9", 3),
        ("SHF.L.U32 R9,R1,0x2,RZ", "R9", 28),
        ("LEA R9,R1,R2,0x4", "R9", 115),
        ("SEL R9,R1,R2,!P0", "R9", 3),
        ("VIMNMX R9,R1,R3,PT", "R9", 0x80000000),
        ("VIMNMX R9,PT,PT,R1,R2,PT", "R9", 3),
        ("VIMNMX R9,PT,PT,R1,R2,!PT", "R9", 7),
        ("UISETP.NE.U32.AND UP0,UPT,UR1,0x3,UPT", "UP0", 1),
        ("UIADD3 UR9,UPT,UPT,UR1,0xc0,URZ", "UR9", 197),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT P2[UR1+0x200],R1", "P2", 1),  # others have arrived
        ("LOP3.LUT R9,R8,0xfffff7ff,RZ,0xc0,!PT", "R9", 0),  # the first of the predicates that R8 will hold
        ("SGXT R9,R1,0x3", "R9", 0xFFFFFFFF),
        ("SGXT.U32 R9,R1,0x2", "R9", 3),
        ("PRMT R9,R1,0x9910,RZ", "R9", 7),
        ("IABS R9,R3", "R9", 0x80000000),
        ("P2R R9,PR,RZ,0x1", "R9", 1),
        ("LDC R9,c[0x0][0x214]", "R9", 56),
        ("S2R R9,SR_CTAID.Y", "R9", 4),
        ("MUFU.RCP R9,R1", "R9", None),
        ("IADD3 R9,R1,R8,RZ", "R9", None),  # nobody wrote R8
    ],
)
def test_integer_arithmetic_is_the_gpus(line: str, register: str, value: int | None) -> None:
    state = State(code_of("EXIT"), struct.pack("<2i", 14, 56), (2, 4, 0), (8, 5, 1))
    for setup in ("MOV R1,0x7", "MOV R2,0x3", "MOV R3,0x80000000", "UMOV UR1,0x5", "ISETP.EQ.AND P0,PT,RZ,RZ,PT"):
        state.execute(instruction(setup))
    state.execute(instruction(line))
    assert state._registers.get(register_bit(register) or 0) == value


LOOP = (
    "S2R R0,SR_CTAID.X",
    "LDC R5,c[0x0][0x210]",
    "IADD3 R0,R0,0x1,RZ",
    "LDG.E R4,desc[UR4][R2.64]",
    "FFMA R6,R4,R4,R6",
    "ISETP.LT.AND P0,PT,R0,R5,PT",
    "@P0 BRA 0x20",
    "EXIT ",
)


def test_a_loop_runs_as_often_as_its_counter_says_and_every_turn_waits_for_its_load() -> None:
    code = code_of(*LOOP)
    assert [(loop.first, loop.last) for loop in code.innermost] == [(2, 6)]
    walk = Follower(code).walk(parameter_bytes(("turns",), {"turns": 7}), (2, 0, 0), (8, 1, 1), 1)
    turns = 5  # counts from 3 to 7
    assert walk.counts[2] == turns
    assert walk.instructions == 2 + 5 * turns + 1
    assert walk.load_rounds == turns
    # all instructions in order, and every load's latency less what was issued meanwhile: nothing
    assert walk.chain_l2 == walk.instructions + turns * L2_CYCLES
    assert walk.chain_l1 == walk.instructions + turns * L1_CYCLES
    assert walk.assumed == 0


def test_warps_that_share_a_scheduler_hide_each_others_loads() -> None:
    alone, shared = (
        Follower(code_of(*LOOP)).walk(parameter_bytes(("turns",), {"turns": 7}), (0, 0, 0), (8, 1, 1), n) for n in (1, 2)
    )
    assert alone.instructions == shared.instructions
    assert shared.chain_l2 == alone.chain_l2 + alone.instructions


def test_a_branch_on_data_is_counted_as_not_taken_and_reported() -> None:
    code = code_of("LDG.E R4,desc[UR4][R2.64]", "ISETP.NE.AND P0,PT,R4,RZ,PT", "@P0 BRA 0x40", "FADD R1,R1,R1", "EXIT ")
    walk = Follower(code).walk(b"", (0, 0, 0), (1, 1, 1), 1)
    assert walk.instructions == 5
    assert walk.assumed == 1


def test_a_barrier_that_others_reach_is_not_waited_for() -> None:
    """As sm_100's code waits for the tensor cores: not at once, then in a loop behind the kernel's end."""
    wait = "SYNCS.PHASECHK.TRANS64.TRYWAIT P1[UR10+0x200],R4"
    code = code_of("ISETP.NE.AND P1,PT,RZ,RZ,PT", wait, "@!P1 BRA 0x40", "EXIT ", wait, "@P1 BRA 0x30", "BRA 0x40")
    walk = Follower(code).walk(b"", (0, 0, 0), (1, 1, 1), 1)
    assert (walk.instructions, walk.assumed) == (4, 0)


def test_a_table_of_jobs_is_followed() -> None:
    lines = ("S2R R0,SR_CTAID.Y", "SHF.L.U32 R0,R0,0x2,RZ", "LDC R4,c[0x2][R0]", "BRX R4,-0x40", "EXIT ", "FADD R1,R1,R1", "EXIT ")
    code = code_of(*lines, constants={2: struct.pack("<2I", 4 * 16, 5 * 16)})
    assert [Follower(code).walk(b"", (0, job, 0), (1, 2, 1), 1).instructions for job in (0, 1)] == [5, 6]


def test_code_that_never_ends_or_leads_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmf_edge.kernels.cost_run.MOST_INSTRUCTIONS", 1000)
    with pytest.raises(KernelError, match="does not end"):
        Follower(code_of("BRA 0x0", "EXIT ")).walk(b"", (0, 0, 0), (1, 1, 1), 1)
    with pytest.raises(KernelError, match="cannot be known"):
        Follower(code_of("LDG.E R4,desc[UR4][R2.64]", "BRX R4,-0x20", "EXIT ")).walk(b"", (0, 0, 0), (1, 1, 1), 1)


def test_parameters_lie_as_a_launch_lays_them() -> None:
    packed = parameter_bytes(("qkv", "height", "width", "splits", "output"), {"height": 14, "width": 7, "splits": 3})
    assert packed == struct.pack("<Qiii4xQ", 0, 14, 7, 3, 0)


def test_a_machine_without_nvdisasm_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cost_sass.sys, "path", [str(tmp_path)])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("TRITON_NVDISASM_PATH", raising=False)
    with pytest.raises(EnvironmentProblem, match="no nvdisasm that reads the code of sm_90") as caught:
        find_nvdisasm("sm_90")
    assert "nvidia-cuda-nvdisasm" in caught.value.remedy
    own = tmp_path / "nvdisasm"
    own.touch()
    monkeypatch.setenv("TRITON_NVDISASM_PATH", str(own))
    assert find_nvdisasm("sm_110") == str(own)


def test_what_is_no_cubin_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    with pytest.raises(KernelError, match="does not read this code of sm_90"):
        cost_sass.read_code(b"\x7fELF no kernel", "sm_90")
    silent = tmp_path / "nvdisasm"
    silent.write_text("#!/bin/sh\necho '[{}, []]'\n")
    silent.chmod(0o755)
    monkeypatch.setenv("TRITON_NVDISASM_PATH", str(silent))
    with pytest.raises(KernelError, match="no listing of one kernel: 0 kernels"):
        cost_sass.read_code(b"", "sm_90")
