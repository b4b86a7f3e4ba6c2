"""Costs counted without a GPU: the compiled kernels execute the multiply-adds of their windows, and the figures that matter do not grow."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from gmf_edge.cli.kernels import show_cost
from gmf_edge.cli.screen import out
from gmf_edge.errors import KernelError
from gmf_edge.kernels.compile import KernelTable, compile_widths, read_table
from gmf_edge.kernels.cost import CompiledKernel, cost_of, depthwise_loops, total_rows
from gmf_edge.kernels.cost_devices import DEVICES, LIMITS, blocks_per_multiprocessor
from gmf_edge.kernels.cost_launches import reference_launch
from gmf_edge.kernels.layout import TILINGS
from gmf_edge.spec import ModelSpec

ARCH, S = "sm_90", 8
# the older and the newer way of writing machine code; sm_90's is the older one
NEWEST = "sm_100"
# instructions a multiply-add of the depthwise loops on average, and of windows of 3, which share less, by tiling; more is a regression
MOST_INSTRUCTIONS_PER_FMA, MOST_OF_WINDOW_3 = 2.0, {"small": 2.3, "large": 2.0}
# a model of one width, so that one compilation serves
SPEC = dataclasses.replace(ModelSpec.of("pico"), embed_dims=(5 * S,) * 4)


@pytest.fixture(scope="session")
def cost_table(made_once: Callable[[str, Callable[[Path], object]], Path]) -> KernelTable:
    return read_table(made_once("kernels-s8", lambda folder: compile_widths((S,), (ARCH,), folder)))


@pytest.fixture(scope="session")
def newest_table(made_once: Callable[[str, Callable[[Path], object]], Path]) -> KernelTable:
    return read_table(made_once("kernels-s8-newest", lambda folder: compile_widths((S,), (NEWEST,), folder)))


@pytest.fixture(scope="session")
def costs(cost_table: KernelTable) -> dict[str, Any]:
    found = cost_of(cost_table, [SPEC], batches=(1, 64))
    return {**found, "totals": total_rows(found["launches"])}


@pytest.mark.parametrize("kernel", ["aggregate", "attend"])
def test_the_longest_program_executes_the_multiply_adds_of_its_windows(cost_table: KernelTable, kernel: str) -> None:
    """Trip counts are right: 7 x 7 taps of v' and k', or of CRPE, for S channels of T tokens, and none in vain."""
    image = cost_table.image_of(kernel, ARCH, S, "fp16", "large")
    compiled = CompiledKernel(image, cost_table.read_cubin(image))
    walk = compiled.walk(reference_launch(image), 0, 0)
    instructions = compiled.code.instructions
    executed = (
        32
        * image.warps
        * sum(
            walk.counts.get(loop.first, 0) * sum(i.multiply_adds for i in instructions[loop.first : loop.last + 1])
            for loop in depthwise_loops(compiled.code)
        )
    )
    assert executed == (2 if kernel == "aggregate" else 1) * 49 * S * image.tile_tokens


def test_the_figures_that_matter(costs: dict[str, Any]) -> None:
    assert_figures(costs, ARCH, most_spilled=0)


@pytest.mark.slow
def test_the_figures_that_matter_on_the_newest_gpus(newest_table: KernelTable) -> None:
    # ptxas may spill a register round a loop there where that gives another block
    assert_figures(cost_of(newest_table, [SPEC], batches=(1, 64)), NEWEST, most_spilled=16)


def assert_figures(costs: dict[str, Any], arch: str, most_spilled: int) -> None:
    uses = [(row["arch"], row["kernel"], row["tiling"]) for row in costs["kernels"]]
    assert uses == list(itertools.product((arch,), ("aggregate", "attend"), TILINGS))
    for row in costs["kernels"]:
        assert row["spill_bytes"] <= most_spilled
        assert row["blocks_per_multiprocessor"] >= 2
        assert 1.0 < row["instructions_per_fma"] <= MOST_INSTRUCTIONS_PER_FMA
        assert row["worst_instructions_per_fma"] <= MOST_OF_WINDOW_3[row["tiling"]]
        assert 0 < row["loads_per_fma"] <= 0.4
        assert row["tensor_instructions"] > 0
        assert row["assumed_branches"] == 0
        assert row["loops"] == sorted(row["loops"], key=lambda loop: -loop["runs"] * loop["instructions"])


@pytest.mark.slow
def test_tensor_memory_is_left_alone(newest_table: KernelTable) -> None:
    images = [image for image in newest_table.images if image.tiling]
    assert len(images) == 4
    for image in images:
        ptx = (newest_table.folder / image.ptx).read_text()
        assert "mma.sync" in ptx
        assert "tcgen05" not in ptx


def test_launches_are_counted_for_the_devices_of_the_architecture(costs: dict[str, Any]) -> None:
    assert {row["device"] for row in costs["launches"]} == {"H200"}
    assert [(row["batch"], row["stage"]) for row in costs["launches"]] == list(itertools.product((1, 64), (1, 2, 3, 4)))
    by_key = {(row["batch"], row["stage"]): row for row in costs["launches"]}
    for (batch, stage), row in by_key.items():
        tokens = (56 >> (stage - 1)) ** 2
        assert row["floor_bytes"] == 4 * 5 * S * tokens * batch * 2
        assert row["bytes"] > row["floor_bytes"]
        assert row["chain_l1"] < row["chain_l2"] == sum(launch["chain_l2"] for launch in row["launches"])
        for launch in row["launches"]:
            grid = launch["grid"][0] * launch["grid"][1] * launch["grid"][2]
            # of the first launch's programs for q and x_agg0 every second one has nothing to do
            assert grid // 2 < launch["programs"] <= grid
            assert launch["busy_multiprocessors"] == min(launch["programs"], 132)
            assert launch["waves"] == pytest.approx(launch["programs"] / 132 / launch["blocks_per_multiprocessor"], abs=1e-3)
            assert launch["assumed_branches"] == 0
            # every program issues at least once each of its instructions, and no launch is shorter than its longest program
            warps = launch["thread_instructions"] // 32
            assert (
                launch["longest_instructions"] * launch["warps"] <= warps <= launch["longest_instructions"] * launch["warps"] * grid
            )
    # 64 images are many times the work of one, in larger tiles, which share more
    first, many = by_key[1, 2], by_key[64, 2]
    assert (first["tiling"], many["tiling"]) == ("small", "large")
    assert 30 < many["issue_us"] / first["issue_us"] < 70
    [one, all_images] = costs["totals"]
    assert one["chain_l2"] == sum(row["blocks"] * row["chain_l2"] for row in costs["launches"] if row["batch"] == 1)
    assert all_images["floor_bytes"] == 64 * one["floor_bytes"]
    assert one["least_busy"] == min(
        launch["busy_multiprocessors"] for key in by_key if key[0] == 1 for launch in by_key[key]["launches"]
    )


def test_tables_fit_a_terminal_of_80_columns(costs: dict[str, Any]) -> None:
    with out.capture() as captured:
        show_cost(costs)
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[:3] for line in lines].count([ARCH, str(S), "aggregate"]) == len(TILINGS)
    assert sum(line.startswith("H200") for line in lines) == 2 * 8 + 8


@pytest.mark.parametrize(
    ("arch", "registers", "shared_kib", "warps", "blocks"),
    [
        ("sm_90", 108, 4.5, 4, 4),
        ("sm_90", 72, 2.5, 4, 7),
        # 128 registers are the most with which two blocks of 256 threads fit
        ("sm_90", 128, 8, 8, 2),
        ("sm_90", 129, 8, 8, 1),
        ("sm_90", 32, 64, 8, 3),  # shared memory, with CUDA's own KB of each block
        ("sm_87", 32, 1, 4, 12),  # 48 warps
        ("sm_86", 16, 1, 1, 16),  # blocks
        ("sm_86", 64, 100, 4, 0),  # not even one
    ],
)
def test_blocks_of_a_multiprocessor(arch: str, registers: int, shared_kib: float, warps: int, blocks: int) -> None:
    assert blocks_per_multiprocessor(arch, registers, int(shared_kib * 1024), warps) == blocks


def test_devices_have_known_architectures_and_others_are_refused() -> None:
    assert {device.arch for device in DEVICES} <= set(LIMITS)
    with pytest.raises(KernelError, match="limits of sm_75"):
        blocks_per_multiprocessor("sm_75", 32, 0, 4)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100"])
def test_every_width_can_be_followed_and_none_spills(arch: str, tmp_path: Path) -> None:
    specs = [ModelSpec.of(variant) for variant in ("pico", "mobile", "tiny", "small", "base", "large")]
    widths = sorted({width for spec in specs for width in spec.segment_dims})
    found = cost_of(compile_widths(widths, (arch,), tmp_path), specs, batches=(1,))
    # of sm_100, plugins/README.md tells which spill and which branches are assumed
    assert [row for row in found["kernels"] if row["assumed_branches"] > (4 if arch == "sm_100" else 0)] == []
    assert [row for row in found["kernels"] if row["spill_bytes"] and arch != "sm_100"] == []
    assert [row for row in found["kernels"] if row["instructions_per_fma"] > MOST_INSTRUCTIONS_PER_FMA] == []
    assert [row for row in found["launches"] if row["assumed_branches"]] == []
