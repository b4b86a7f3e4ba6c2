"""Ahead-of-time compilation without a GPU: metadata to trust; registers, spills and shared memory do not regress."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("triton")

from gmf_edge.errors import KernelError
from gmf_edge.kernels.compile import (
    HIDDEN_ARGUMENTS,
    KERNELS,
    STATIC_SHARED_BYTES,
    TABLE_FILE,
    KernelTable,
    compile_kernels,
    compile_widths,
    read_table,
)
from gmf_edge.kernels.cost_devices import blocks_per_multiprocessor
from gmf_edge.kernels.layout import TILINGS
from gmf_edge.spec import VARIANTS, ModelSpec

# registers per thread with which three and four blocks of 128 threads fit a multiprocessor, and two where a tile is large
MOST_REGISTERS = {("aggregate", "small"): 168, ("attend", "small"): 128, ("aggregate", "large"): 255, ("attend", "large"): 255}


def test_no_kernel_spills_or_grows(orin_table: KernelTable) -> None:
    assert [(image.kernel, image.tiling) for image in orin_table.images] == [
        ("pack_weights", ""),
        *((kernel, tiling) for kernel in KERNELS[1:] for tiling in TILINGS),
    ]
    for image in orin_table.images:
        assert image.spill_bytes == 0, image
        assert image.stack_bytes == 0, image
        assert 0 <= image.shared_bytes <= STATIC_SHARED_BYTES, image
        assert 0 < image.registers <= MOST_REGISTERS.get((image.kernel, image.tiling), 64), image


def test_every_launch_of_the_library_fits_the_images(orin_table: KernelTable) -> None:
    """The number of arguments that launch_core.cpp hands over is that of the compiled kernels."""
    source = (Path(__file__).parents[2] / "plugins/gma/launch_core.cpp").read_text()
    for image in orin_table.images:
        name = {"pack_weights": "Pack", "aggregate": "Aggregate", "attend": "Attend"}[image.kernel]
        [sum_of] = re.findall(rf"k{name}Arguments = ([0-9 +]+);", source)
        assert sum(map(int, sum_of.split("+"))) == len(image.arguments), image


def test_table_reads_back_and_names_every_argument(pico_kernels: KernelTable) -> None:
    again = read_table(pico_kernels.folder)
    assert again == pico_kernels
    aggregate = again.image_of("aggregate", "sm_87", 16, "fp16", "small")
    inputs, integers = ("qkv", "vectors", "matrices"), ("height", "width", "tiles_per_split")
    assert aggregate.arguments == (*inputs, *integers, "scratch", "partials", "output", *HIDDEN_ARGUMENTS)
    attend = again.image_of("attend", "sm_87", 16, "fp16", "large")
    inputs, integers = ("vectors", "matrices", "scratch", "partials"), ("height", "width", "splits")
    assert attend.arguments == (*inputs, *integers, "output", *HIDDEN_ARGUMENTS)
    assert attend.scale == pytest.approx((80 / 8) ** -0.5)
    assert aggregate.epsilon == pytest.approx(1e-5)
    assert len(again.rows) == len(again.images)


def test_cubins_are_of_the_architecture_and_name_no_folder(orin_table: KernelTable) -> None:
    for image in orin_table.images:
        cubin = orin_table.read_cubin(image)
        assert cubin.startswith(b"\x7fELF")
        assert image.entry.encode() in cubin
        assert str(Path(__file__).parents[2]).encode() not in cubin
        assert ".target sm_87" in (orin_table.folder / image.ptx).read_text()


def test_a_changed_or_missing_image_is_refused(orin_table: KernelTable, tmp_path: Path) -> None:
    shutil.copytree(orin_table.folder, tmp_path / "copy")
    copy = read_table(tmp_path / "copy")
    image = copy.images[0]
    (copy.folder / image.cubin).write_bytes(copy.read_cubin(image)[:-1] + b"x")
    with pytest.raises(KernelError, match="not the kernel that the table describes"):
        copy.read_cubin(image)
    (copy.folder / image.cubin).unlink()
    with pytest.raises(KernelError, match="compile the kernels again"):
        copy.read_cubin(image)
    with pytest.raises(KernelError, match="--arch sm_90"):
        copy.image_of("attend", "sm_90", 16, "fp16", "small")
    (copy.folder / TABLE_FILE).write_text("{}")
    with pytest.raises(KernelError, match="not a kernel table"):
        read_table(copy.folder)


@pytest.mark.parametrize(
    ("archs", "dtype", "message"), [(("sm_75",), "fp16", "sm_75"), ((), "fp16", "none"), (("sm_87",), "int8", "type 'int8'")]
)
def test_requests_that_cannot_be_met_say_so(archs: tuple[str, ...], dtype: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=message):
        compile_kernels(ModelSpec.of("pico"), archs, tmp_path, dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_the_code_of_compute_capability_8_is_made_once_and_named_for_each(orin_table: KernelTable) -> None:
    """What stands beside Orin's image is PTX for Orin, and the cubin is what ptxas makes of it."""
    for image in orin_table.images:
        ptx = (orin_table.folder / image.ptx).read_text()
        assert re.findall(r"^\.target (\w+)$", ptx, re.MULTILINE) == ["sm_87"]
        # the flags of the ELF header end with the architecture
        assert orin_table.read_cubin(image)[0x30] == 87


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_other_types_compile_and_say_so(dtype: str, tmp_path: Path) -> None:
    table = compile_widths((16,), ("sm_87",), tmp_path, dtype=dtype)
    assert {image.dtype for image in table.images} == {dtype}
    assert [image for image in table.images if image.shared_bytes > STATIC_SHARED_BYTES] == []


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_87", "sm_89", "sm_90"])
def test_no_kernel_of_any_variant_spills(arch: str, tmp_path: Path) -> None:
    widths = sorted({width for name in VARIANTS for width in ModelSpec.of(name).segment_dims})
    table = compile_widths(widths, (arch,), tmp_path)
    assert len(table.images) == 5 * len(widths)
    assert [image for image in table.images if image.spill_bytes] == []
    # a block fits into a multiprocessor at all: 8.6 and 8.9 have 100 KB of shared memory
    for image in table.images:
        assert blocks_per_multiprocessor(arch, image.registers, image.shared_bytes, image.warps) >= 1, image
