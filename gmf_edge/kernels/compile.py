"""Ahead-of-time compilation of the kernels, without a GPU: for exactly the widths of a model, cubin and PTX with launch metadata.

    compile_kernels(spec, ("sm_87", "sm_90"), out) -> KernelTable, and out/kernels.json beside one .cubin and one .ptx a kernel

Triton compiles in a process of its own: the TRITON_INTERPRET of the caller, which turns kernels into NumPy code, has no part in it.
The cubin comes from running ptxas on Triton's PTX here, in place of Triton's own run, with -v: registers and spills are those of the
very bytes that are kept. The PTX of compute capability 8.x is that of 8.0 for another target, which is made once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gmf_edge.errors import EnvironmentProblem, KernelError
from gmf_edge.kernels.layout import Tiling, padded_dim, tilings_of
from gmf_edge.ops.group_mix_attention import INPUT_NAMES, LAYER_NORM_EPSILON, node_attributes
from gmf_edge.spec import ModelSpec

# Ampere, Jetson Orin, Ada, Hopper, Blackwell (data center, Thor, desktop)
ARCHITECTURES = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_103", "sm_110", "sm_120", "sm_121")
# in launch order
KERNELS = ("pack_weights", "aggregate", "attend")
TYPES = ("fp16", "bf16", "fp32")
TABLE_FILE = "kernels.json"
SCHEMA = 3
# Triton appends two pointers (global and profile scratch) that these kernels never read: pass null
HIDDEN_ARGUMENTS = ("global_scratch", "profile_scratch")
# of pack_weights
PACK_WARPS = 4
# of Triton's compiler. Line tables name this machine's paths and triple a cubin's size. The tensor memory of sm_100, which is made
# for tiles of 64 rows and more, costs these products two barriers and a wait each, and more registers: they take mma.sync there as well
COMPILER_SETTINGS = {"TRITON_DISABLE_LINE_INFO": "1", "DISABLE_MMA_V5": "1"}
# beyond this a launch has to opt in
STATIC_SHARED_BYTES = 48 * 1024


@dataclass(frozen=True)
class KernelImage:
    """One compiled kernel.

    Attributes:
        kernel: of KERNELS.
        arch: of ARCHITECTURES; the cubin runs there only.
        segment_dim: S.
        tiling: of layout.TILINGS, or empty for pack_weights, which has none.
        dtype: of TYPES, the type of qkv, weights and output.
        entry: name of the function in the cubin.
        arguments: names in launch order, that is the source's, then HIDDEN_ARGUMENTS.
        tile_tokens, parts, warps: T, programs that share a segment's channels in `attend`, and warps of 32 threads of a block.
        scale, epsilon: what is compiled in; 0 where the kernel reads none.
        registers, spill_bytes, stack_bytes, shared_bytes: by ptxas -v and Triton, per thread and per block.
        cubin, ptx: file names beside the table.
        sha256: of the cubin.
    """

    kernel: str
    arch: str
    segment_dim: int
    tiling: str
    dtype: str
    entry: str
    arguments: tuple[str, ...]
    tile_tokens: int
    parts: int
    warps: int
    scale: float
    epsilon: float
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    cubin: str
    ptx: str
    sha256: str


@dataclass(frozen=True)
class KernelTable:
    """What compile_kernels made: the images, where they lie, and what made them."""

    folder: Path
    images: tuple[KernelImage, ...]
    triton: str
    ptxas: dict[str, str]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row a kernel, for printing."""
        names = (
            "arch",
            "segment_dim",
            "kernel",
            "tiling",
            "dtype",
            "registers",
            "spill_bytes",
            "shared_bytes",
            "warps",
            "tile_tokens",
        )
        return [{name: getattr(image, name) for name in names} | {"sha256": image.sha256[:12]} for image in self.images]

    def image_of(self, kernel: str, arch: str, segment_dim: int, dtype: str, tiling: str) -> KernelImage:
        """The image for one use; pack_weights has the tiling "".

        Raises:
            KernelError: it was not compiled.
        """
        for image in self.images:
            if (image.kernel, image.arch, image.segment_dim, image.dtype, image.tiling) == (
                kernel,
                arch,
                segment_dim,
                dtype,
                tiling,
            ):
                return image
        held = ", ".join(sorted({f"{i.arch} S={i.segment_dim} {i.dtype}" for i in self.images}))
        raise KernelError(
            f"no kernel {kernel} for {arch}, S={segment_dim}, {dtype} in {self.folder}; there are {held}",
            f"run 'gmf-edge kernels compile --arch {arch}' for this model",
        )

    def read_cubin(self, image: KernelImage) -> bytes:
        """The cubin's bytes.

        Raises:
            KernelError: the file is missing or is not the one that was compiled.
        """
        path = self.folder / image.cubin
        try:
            content = path.read_bytes()
        except OSError as error:
            raise KernelError(f"{path} cannot be read: {error.strerror}", "compile the kernels again") from error
        if hashlib.sha256(content).hexdigest() != image.sha256:
            raise KernelError(f"{path} is not the kernel that the table describes", "compile the kernels again")
        return content


def read_table(folder: Path) -> KernelTable:
    """The table of a folder that compile_kernels wrote.

    Raises:
        KernelError: no table, or one of another schema.
    """
    path = folder / TABLE_FILE
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise KernelError(f"{path} has schema {content['schema']}, this version reads {SCHEMA}", "compile the kernels again")
        images = tuple(KernelImage(**{**row, "arguments": tuple(row["arguments"])}) for row in content["kernels"])
        return KernelTable(folder, images, content["triton"], content["ptxas"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KernelError(f"{path} is not a kernel table: {error}", "compile the kernels again") from error


def compile_kernels(
    spec: ModelSpec,
    archs: Iterable[str],
    out: Path,
    *,
    dtype: str = "fp16",
    epsilon: float = LAYER_NORM_EPSILON,
) -> KernelTable:
    """Compiles what a model needs: its widths, for each architecture.

    Args:
        spec: the model.
        archs: of ARCHITECTURES.
        out: folder for kernels.json and the images; made where missing.
        dtype: of TYPES.
        epsilon: of the LayerNorm, compiled in.

    Raises:
        KernelError: an unknown architecture or type, or ptxas or Triton refused.
        EnvironmentProblem: Triton is not installed.
    """
    return compile_widths(sorted(set(spec.segment_dims)), archs, out, dtype=dtype, epsilon=epsilon)


def compile_widths(
    segment_dims: Sequence[int],
    archs: Iterable[str],
    out: Path,
    *,
    dtype: str = "fp16",
    epsilon: float = LAYER_NORM_EPSILON,
) -> KernelTable:
    """compile_kernels for given S instead of a model."""
    archs = list(dict.fromkeys(archs))
    unknown = [arch for arch in archs if arch not in ARCHITECTURES]
    if unknown or not archs:
        raise KernelError(f"unknown GPU architecture {', '.join(unknown) or '(none)'}", f"use {', '.join(ARCHITECTURES)}")
    if dtype not in TYPES:
        raise KernelError(f"unknown kernel type {dtype!r}", f"use {', '.join(TYPES)}")
    for segment_dim in segment_dims:
        tilings_of(segment_dim)  # refuses nonsense before a process is started
    out.mkdir(parents=True, exist_ok=True)
    # a compilation that does not finish must not leave a table
    (out / TABLE_FILE).unlink(missing_ok=True)
    job = {
        "segment_dims": list(segment_dims),
        "archs": archs,
        "dtype": dtype,
        "epsilon": epsilon,
        "out": str(out.resolve()),
    }
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | COMPILER_SETTINGS
    done = subprocess.run(
        [sys.executable, "-m", "gmf_edge.kernels.compile"], input=json.dumps(job), capture_output=True, text=True, env=environment
    )
    if done.returncode == EnvironmentProblem.exit_status:
        raise EnvironmentProblem("Triton is not installed", "install gmf-edge[kernels]")
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in lines if line.startswith("ptxas ")), lines[-1])
        raise KernelError(
            f"the kernels could not be compiled: {reason}",
            "use another --arch, or for sm_110 and newer a ptxas of CUDA 13 (TRITON_PTXAS_BLACKWELL_PATH)",
        )
    return read_table(out)


def _compile_job(job: dict[str, Any]) -> None:
    """Runs in the process of its own: compiles all and writes the folder."""
    import triton

    out = Path(job["out"])
    _prefer_newer_ptxas()
    # what stops at PTX must not be found by programs that launch their kernels
    triton.knobs.cache.dir = str(Path(triton.knobs.cache.dir) / "gmf-edge-ptx")
    triton.knobs.runtime.add_stages_inspection_hook = _stop_at_ptx
    images = [
        _compile_one(kernel, arch, segment_dim, tiling, job["dtype"], job["epsilon"], out)
        for arch in job["archs"]
        for segment_dim in job["segment_dims"]
        for kernel in KERNELS
        for tiling in ((None,) if kernel == "pack_weights" else tilings_of(segment_dim, job["dtype"]))
    ]
    versions = {arch: _ptxas_version(_ptxas_of(arch)) for arch in job["archs"]}
    table = {"schema": SCHEMA, "triton": triton.__version__, "ptxas": versions, "kernels": [asdict(image) for image in images]}
    (out / TABLE_FILE).write_text(json.dumps(table, indent=1) + "\n")


def _stop_at_ptx(_backend: Any, stages: dict[str, Any], *_options: Any) -> None:
    """Triton's hook before a compilation: without its last stage, ptxas."""
    stages["cubin"] = lambda _ptx, _metadata: b""


def _compile_one(
    kernel: str, arch: str, segment_dim: int, tiling: Tiling | None, dtype: str, epsilon: float, out: Path
) -> KernelImage:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gmf_edge.kernels import group_mix_attention as kernels

    function = getattr(kernels, kernel)
    names = tuple(function.arg_names)
    scale = float(node_attributes(1, 1, 5 * segment_dim)["scale"])
    constants: dict[str, int | float] = {"S": segment_dim, "P": padded_dim(segment_dim)}
    options = {"num_warps": PACK_WARPS, "num_stages": 1}
    if tiling is not None:
        constants = {**tiling.constants_of(kernel, segment_dim), **({"SCALE": scale} if "SCALE" in names else {"EPSILON": epsilon})}
        options = tiling.tile_of(kernel).options
    signature = {name: "constexpr" if name in constants else argument_type(name, dtype) for name in names}
    pointers = [index for index, name in enumerate(names) if signature[name].startswith("*")]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        # without this, loads stay scalar; TensorRT's tensors and workspace are aligned to 256 bytes
        attrs={(index,): [["tt.divisibility", 16]] for index in pointers},
    )
    made_for = "sm_80" if arch.startswith("sm_8") else arch
    target = GPUTarget("cuda", int(made_for.removeprefix("sm_")), 32)
    compiled = triton.compile(source, target=target, options=options)

    arguments = (*(name for name in names if name not in constants), *HIDDEN_ARGUMENTS)
    ptx = re.sub(rf"^(\.target\s+){made_for}\b", rf"\g<1>{arch}", compiled.asm["ptx"], flags=re.MULTILINE)
    found = _entry_parameters(ptx)
    if found != len(arguments):
        raise KernelError(
            f"{kernel} takes {found} arguments, expected {len(arguments)}", "use the Triton version of constraints.txt"
        )
    if compiled.metadata.global_scratch_size or compiled.metadata.profile_scratch_size:
        raise KernelError(f"{kernel} wants scratch memory of Triton's", "use the Triton version of constraints.txt")

    stem = "-".join((kernel, arch, f"s{segment_dim}", *(() if tiling is None else (tiling.name,)), dtype))
    (out / f"{stem}.ptx").write_text(ptx)
    usage = _assemble(out / f"{stem}.ptx", out / f"{stem}.cubin", arch, ptx)
    return KernelImage(
        kernel=kernel,
        arch=arch,
        segment_dim=segment_dim,
        tiling="" if tiling is None else tiling.name,
        dtype=dtype,
        entry=compiled.metadata.name,
        arguments=arguments,
        tile_tokens=0 if tiling is None else tiling.tile_of(kernel).tokens,
        parts=tiling.parts if tiling is not None and kernel == "attend" else 1,
        warps=options["num_warps"],
        scale=scale if "SCALE" in constants else 0.0,
        epsilon=epsilon if "EPSILON" in constants else 0.0,
        shared_bytes=int(compiled.metadata.shared),
        cubin=f"{stem}.cubin",
        ptx=f"{stem}.ptx",
        sha256=hashlib.sha256((out / f"{stem}.cubin").read_bytes()).hexdigest(),
        **usage,
    )


def argument_type(name: str, dtype: str) -> str:
    """Triton's type of a run-time argument."""
    if name in ("vectors", "partials"):
        return "*fp32"
    if name in INPUT_NAMES or name in ("matrices", "scratch", "output"):
        return f"*{dtype}"
    return "i32"


def _entry_parameters(ptx: str) -> int:
    """How many parameters the only entry of a PTX module takes."""
    found = re.search(r"\.entry\s+\w+\s*\((.*?)\)", ptx, re.DOTALL)
    return len(re.findall(r"\.param\b", found.group(1))) if found else -1


def _assemble(ptx_path: Path, cubin_path: Path, arch: str, ptx: str) -> dict[str, int]:
    """Runs ptxas; returns what it says about registers, spills and stack."""
    found = re.search(r"^\.target\s+(sm_\w+)", ptx, re.MULTILINE)
    target = found.group(1) if found else arch
    ptxas = _ptxas_of(arch)
    done = subprocess.run(
        [ptxas, "-v", f"--gpu-name={target}", str(ptx_path), "-o", str(cubin_path)], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise KernelError(f"ptxas refused {ptx_path.name}: {done.stderr.strip()}", "use a ptxas that knows this architecture")
    stack = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)[-1]
    registers = re.findall(r"Used (\d+) registers", done.stderr)[-1]
    return {"registers": int(registers), "stack_bytes": int(stack[0]), "spill_bytes": int(stack[1]) + int(stack[2])}


def _ptxas_of(arch: str) -> str:
    """The ptxas that Triton uses for this architecture: up to Hopper CUDA 12's, whose cubins the drivers of JetPack 6 load."""
    from triton import knobs

    blackwell = int(arch.removeprefix("sm_")) >= 100
    return str((knobs.nvidia.ptxas_blackwell if blackwell else knobs.nvidia.ptxas).path)


def _prefer_newer_ptxas() -> None:
    """For Blackwell: the ptxas on PATH if it is CUDA 13's or newer, because the one in Triton's wheel does not know sm_110."""
    variable = "TRITON_PTXAS_BLACKWELL_PATH"
    found = shutil.which("ptxas")
    if variable not in os.environ and found and int(_ptxas_version(found).split(".")[0]) >= 13:
        os.environ[variable] = found


def _ptxas_version(ptxas: str) -> str:
    text = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", text)
    return found.group(1) if found else "0"


if __name__ == "__main__":
    try:
        import triton  # noqa: F401
    except ImportError:
        raise SystemExit(EnvironmentProblem.exit_status) from None
    _compile_job(json.load(sys.stdin))
