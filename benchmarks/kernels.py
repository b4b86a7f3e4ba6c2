"""The GMA kernels that ship against PyTorch and TensorRT on the attention core of each stage, on one GPU.

    python benchmarks/kernels.py --variant small --out benchmarks/results/kernels-small.json
    python benchmarks/kernels.py --interpret            small shapes on a CPU: whether everything runs, no times

"kernels" are the compiled images of a model's archive, launched by the plugin's own code (shipped_kernels.py): no TensorRT, no
just-in-time specialisation, weights packed beforehand as in an engine. Right first: every shape and alternative is checked against the
float64 reference before it is timed. Then they take turns, with a warm and with a cold L2 (kernel_timing.py). Achieved bytes per
second (qkv read once, output written once, the weights) are set against the copy bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

if TYPE_CHECKING:
    from gmf_edge.kernels.compile import KernelTable

# the share of the signal by which a type may miss float64: some ten units of its last place
LIMITS = {"fp16": 5e-3, "bf16": 4e-2}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="small", help="whose widths and sizes")
    parser.add_argument("--image-size", type=int, default=224, help="pixels")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--stage", type=int, nargs="+", default=[1, 2, 3, 4], help="stages, from 1")
    parser.add_argument("--dtype", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--tiling", help="this tiling's images for every launch, instead of the launch code's choice")
    parser.add_argument("--kernels-only", action="store_true", help="no PyTorch, no TensorRT: for profilers and compute-sanitizer")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    parser.add_argument("--interpret", action="store_true", help="on a CPU with Triton's interpreter, no times")
    return parser.parse_args()


def error_of(got: Any, inputs: dict[str, Any], height: int, width: int) -> float:
    """Relative L2 distance from the float64 reference, infinite where anything is not a number."""
    import numpy as np

    from gmf_edge.ops import group_mix_attention as op

    attributes = op.node_attributes(height, width, inputs["qkv"].shape[2] // 3)
    arrays = {name: value.cpu().double().numpy() for name, value in inputs.items()}
    exact = op.reference(arrays, height, width, float(attributes["scale"]), float(attributes["epsilon"]))
    error = float(np.linalg.norm(got.cpu().double().numpy() - exact) / np.linalg.norm(exact))
    return error if np.isfinite(error) else float("inf")


def checked(name: str, got: Any, inputs: dict[str, Any], height: int, width: int, dtype: str) -> float:
    """error_of, within the limit.

    Raises:
        SystemExit: it is not.
    """
    error = error_of(got, inputs, height, width)
    if not error <= LIMITS[dtype]:
        raise SystemExit(
            f"{name}: relative error {error:.1e} at {tuple(inputs['qkv'].shape)}, {height} x {width}; nothing was timed"
        )
    return error


def machine() -> dict[str, Any]:
    """What a row must carry to mean anything later."""
    import torch
    import triton

    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    device = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "device": device.name if device else platform.processor() or platform.machine(),
        "multiprocessors": device.multi_processor_count if device else None,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "commit": commit,
    }


def random_tensors(channels: int, batch: int, tokens: int, dtype: str, device: str, seed: int) -> dict[str, Any]:
    """The operator's inputs as torch tensors."""
    import numpy as np
    import torch

    from gmf_edge.ops import group_mix_attention as op

    arrays = op.random_inputs(np.random.default_rng(seed), channels, batch, tokens)
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    return {name: torch.from_numpy(array).to(kind).to(device) for name, array in arrays.items()}


def with_one_tiling(table: KernelTable, tiling: str) -> KernelTable:
    """The table with the images of one tiling under the names of all of them, so that the launch code has no choice.

    Raises:
        SystemExit: the kernels have no such tiling.
    """
    names = {name for image in table.images if (name := getattr(image, "tiling", ""))}
    if tiling not in names:
        raise SystemExit(f"these kernels have no tiling {tiling!r}; there are {', '.join(sorted(names)) or 'none'}")
    chosen = [image for image in table.images if image.tiling == tiling]
    free = [image for image in table.images if not image.tiling]
    images = (*free, *(replace(image, tiling=name) for image in chosen for name in sorted(names)))
    return replace(table, images=images)


class Shipped:
    """Nodes of the shapes of a model on this GPU, from one compilation."""

    def __init__(self, segment_dims: list[int], dtype: str, folder: Path, tiling: str | None = None) -> None:
        import torch
        from shipped_kernels import build_library

        from gmf_edge.kernels.compile import compile_widths

        major, minor = torch.cuda.get_device_capability()
        self.dtype = dtype
        self.library = build_library(folder)
        table = compile_widths(segment_dims, (f"sm_{major}{minor}",), folder / "kernels", dtype=dtype)
        self.table = table if tiling is None else with_one_tiling(table, tiling)

    def calls(self, sets: list[dict[str, Any]], height: int, width: int) -> list[Callable[[], Any]]:
        """The node on each set of the operator's inputs; each call returns its output, whose memory it keeps."""
        import numpy as np
        import torch
        from shipped_kernels import ShippedNode

        from gmf_edge.kernels.archive import kernel_archive
        from gmf_edge.kernels.pack import packed_arrays

        batch, tokens, stacked = sets[0]["qkv"].shape
        node = ShippedNode(
            self.library, kernel_archive(self.table, stacked // 15, self.dtype, packed=True), height, width, stacked // 3
        )
        node.load()

        def call_on(x: dict[str, Any]) -> Callable[[], Any]:
            qkv = x["qkv"]
            weights = {name: value.float().cpu().numpy() for name, value in x.items() if name != "qkv"}
            vectors, matrices = packed_arrays(weights)
            tensors = [qkv, torch.from_numpy(vectors).to(qkv.device), torch.from_numpy(matrices).to(qkv)]
            output = qkv.new_full((batch, tokens, stacked // 3), np.nan)
            workspace = torch.full((node.workspace_bytes(batch),), 0xFF, dtype=torch.uint8, device=qkv.device)
            pointers = [tensor.data_ptr() for tensor in tensors]

            def call() -> Any:
                stream = torch.cuda.current_stream().cuda_stream
                node.enqueue(batch, pointers, output.data_ptr(), workspace.data_ptr(), stream)
                return output

            # what the pointers point to lives as long as the call
            call.tensors = tensors  # type: ignore[attr-defined]
            return call

        return [call_on(x) for x in sets]


def alternatives(
    sets: list[dict[str, Any]], height: int, width: int, dtype: str, compiled: Any
) -> dict[str, list[Callable[[], Any]]]:
    """PyTorch in two layouts, eager and compiled, and stock TensorRT where it is installed."""
    import torch
    from kernel_alternatives import attention_core, stock_model, stock_tensorrt, torch_inputs

    calls: dict[str, list[Callable[[], Any]]] = {}
    for layout, channels_last in (("contiguous", False), ("channels_last", True)):
        given = [torch_inputs(x, height, width, channels_last) for x in sets]
        calls[f"eager_{layout}"] = [lambda g=g: attention_core(g) for g in given]
        calls[f"compile_{layout}"] = [lambda g=g: compiled(g) for g in given]
    # BF16 constants have no NumPy type, and FP16 is what an engine gets
    run = stock_tensorrt(stock_model(sets[0], height, width), True) if dtype == "fp16" else None
    if run is not None:
        batch, tokens, stacked = sets[0]["qkv"].shape
        outputs = [x["qkv"].new_empty((batch, tokens, stacked // 3)) for x in sets]

        def engine_call(x: dict[str, Any], output: Any) -> Any:
            run(x["qkv"], output, torch.cuda.current_stream().cuda_stream)
            return output

        calls["tensorrt"] = [lambda x=x, o=o: engine_call(x, o) for x, o in zip(sets, outputs, strict=True)]
    return calls


def interpreted_rows(dtype: str) -> list[dict[str, Any]]:
    """Pico's stages at 64 x 32 by Triton's interpreter, beside PyTorch: errors, no times."""
    from kernel_alternatives import attention_core, torch_inputs

    from gmf_edge.kernels.run import group_mix_attention
    from gmf_edge.spec import ModelSpec

    spec = ModelSpec.of("pico", image_size=(64, 32))
    rows = []
    for stage, (channels, (height, width)) in enumerate(zip(spec.embed_dims, spec.stage_sizes, strict=True), 1):
        x = random_tensors(channels, 1, height * width, dtype, "cpu", 0)
        row: dict[str, Any] = {"stage": stage, "channels": channels, "height": height, "width": width, "batch": 1}
        row["errors"] = {"kernels": checked("kernels", group_mix_attention(x, height, width), x, height, width, dtype)}
        for layout, channels_last in (("contiguous", False), ("channels_last", True)):
            got = attention_core(torch_inputs(x, height, width, channels_last))
            row["errors"][f"eager_{layout}"] = checked(layout, got, x, height, width, dtype)
        rows.append(row)
    return rows


def timed_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a stage and batch."""
    import torch
    from kernel_alternatives import attention_core
    from kernel_timing import copy_bytes_per_s, sets_for_cold, times_in_turns

    from gmf_edge.spec import ModelSpec

    spec = ModelSpec.of(options.variant, image_size=(options.image_size, options.image_size))
    bandwidth = copy_bytes_per_s()
    compiled = torch.compile(attention_core, mode="max-autotune-no-cudagraphs", dynamic=False)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shipped = Shipped(
            sorted({spec.segment_dims[stage - 1] for stage in options.stage}), options.dtype, Path(folder), options.tiling
        )
        for stage in options.stage:
            channels, (height, width) = spec.embed_dims[stage - 1], spec.stage_sizes[stage - 1]
            for batch in options.batch:
                x = random_tensors(channels, batch, height * width, options.dtype, "cuda", 0)
                weights = sum(t.numel() * t.element_size() for name, t in x.items() if name != "qkv")
                moved = weights + x["qkv"].numel() * x["qkv"].element_size() * 4 // 3
                # copies are enough: what is in L2 goes by address
                sets = [x] + [{name: t.clone() for name, t in x.items()} for _ in range(sets_for_cold(moved) - 1)]
                calls = {"kernels": shipped.calls(sets, height, width)}
                if not options.kernels_only:
                    calls |= alternatives(sets, height, width, options.dtype, compiled)
                errors = {name: checked(name, on[0](), x, height, width, options.dtype) for name, on in calls.items()}
                times = times_in_turns(calls)
                ours = times["kernels"]
                rows.append(
                    {"stage": stage, "channels": channels, "height": height, "width": width, "batch": batch, "sets": len(sets)}
                    | {"errors": errors, "times": times, "copy_bytes_per_s": bandwidth}
                    | {f"share_of_copy_{k}": moved / (ours[f"{k}_ms"] * 1e-3) / bandwidth for k in ("warm", "cold")}
                    | {f"over_kernels_{k}": {n: t[f"{k}_ms"] / ours[f"{k}_ms"] for n, t in times.items()} for k in ("warm", "cold")}
                )
    return rows


def show(row: dict[str, Any]) -> None:
    print(f"stage {row['stage']} C {row['channels']:>3} {row['height']}x{row['width']} batch {row['batch']:>2}")
    for name, error in row["errors"].items():
        line = f"  {name:<22} relative error {error:.1e}"
        if "times" in row:
            times = row["times"][name]
            line += f"  warm {times['warm_ms']:.4f} ms (x{row['over_kernels_warm'][name]:.2f})"
            line += f"  cold {times['cold_ms']:.4f} ms (x{row['over_kernels_cold'][name]:.2f})"
        print(line)


def main() -> None:
    options = arguments()
    if options.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if not options.interpret and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --interpret checks the shapes on a CPU")
    rows = interpreted_rows(options.dtype) if options.interpret else timed_rows(options)
    for row in rows:
        show(row)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": machine(), "dtype": options.dtype, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
