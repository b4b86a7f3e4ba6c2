"""The GMA kernels against PyTorch eager and torch.compile on the attention core of each stage, on one GPU.

    python benchmarks/kernels.py --variant small --out results.json
    python benchmarks/kernels.py --interpret            small shapes on a CPU: whether everything runs, no times

Right first: every shape, kernels and baseline, is checked against the float64 reference before it is timed. Then they take
turns (A B A B), each turn the median over CUDA graphs of REPEATS calls between two events. Achieved bytes per second (qkv
read once, output written once, the weights) are set against the copy bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

TURNS = 4
WARM_UP_S = 0.2
TURN_S = 0.3
# calls in one graph: enough to make a launch's own cost small beside them
REPEATS = 20
# the share of the signal by which a type may miss float64: some ten units of its last place
LIMITS = {"fp16": 5e-3, "bf16": 4e-2}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="small", help="whose widths and sizes")
    parser.add_argument("--image-size", type=int, default=224, help="pixels")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--dtype", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    parser.add_argument("--interpret", action="store_true", help="on a CPU with Triton's interpreter, no times")
    return parser.parse_args()


def baseline(x: dict[str, Any], height: int, width: int) -> Any:
    """The attention core in ordinary torch calls, q, k and v of a segment as the groups of one convolution."""
    import torch
    from torch.nn import functional as F

    batch, tokens, stacked = x["qkv"].shape
    dim = stacked // 15
    maps = x["qkv"].transpose(1, 2).reshape(batch, stacked, height, width)
    segments = maps.split(3 * dim, 1)
    proxies = [F.hardswish(segments[0])]
    for i, window in ((1, 3), (2, 5), (3, 7)):
        weight = x[f"depthwise_{i}"].repeat(3, 1, 1, 1)
        spread = F.conv2d(segments[i], weight, padding=window // 2, groups=3 * dim)
        mixed = F.conv2d(spread, x[f"pointwise_{i}"].repeat(3, 1, 1, 1), x[f"bias_{i}"].repeat(3), groups=3)
        proxies.append(F.hardswish(mixed))
    q_map, k_map, v_map = (torch.cat([proxy.split(dim, 1)[t] for proxy in proxies], 1) for t in range(3))
    q, k, v = (m.reshape(batch, 8, dim // 2, tokens) for m in (q_map, k_map, v_map))
    context = v @ k.softmax(3).transpose(2, 3)
    parts = v_map.split([dim, 3 * dim // 2, 3 * dim // 2], 1)
    position = torch.cat(
        [
            F.conv2d(part, x[f"crpe_weight_{w}"], x[f"crpe_bias_{w}"], padding=w // 2, groups=part.shape[1])
            for part, w in zip(parts, (3, 5, 7), strict=True)
        ],
        1,
    ).reshape(q.shape)
    mixed = ((5 * dim / 8) ** -0.5 * (context @ q) + q * position).reshape(batch, 4 * dim, tokens).transpose(1, 2)
    local = F.conv2d(segments[4], x["depthwise_0"], padding=1, groups=3 * dim)
    local = F.conv2d(local, x["pointwise_0"]).flatten(2).transpose(1, 2)
    local = F.hardswish(F.layer_norm(local, (dim,), x["norm_weight"], x["norm_bias"], 1e-5))
    return torch.cat([mixed, local], 2)


def error_of(got: Any, inputs: dict[str, Any], height: int, width: int) -> float:
    """Relative L2 distance from the float64 reference, infinite where anything is not a number."""
    import numpy as np

    from gmf_edge.ops import group_mix_attention as op

    attributes = op.node_attributes(height, width, inputs["qkv"].shape[2] // 3)
    arrays = {name: value.cpu().double().numpy() for name, value in inputs.items()}
    exact = op.reference(arrays, height, width, float(attributes["scale"]), float(attributes["epsilon"]))
    error = float(np.linalg.norm(got.cpu().double().numpy() - exact) / np.linalg.norm(exact))
    return error if np.isfinite(error) else float("inf")


def graph_of(call: Callable[[], Any]) -> Callable[[], Any]:
    """REPEATS calls as one CUDA graph, so that the launch cost of Python is in no one's time."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            call()
    return graph.replay


def turn_ms(call: Callable[[], Any], seconds: float) -> float:
    """Median time of one call on the GPU, over as many of graph_of's graphs as fit."""
    import torch

    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / REPEATS)
    return statistics.median(times)


def copy_bytes_per_s() -> float:
    """Read and write of a copy too large for any cache."""
    import torch

    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    call = graph_of(lambda: target.copy_(source))
    turn_ms(call, WARM_UP_S)
    return 2 * source.numel() / (turn_ms(call, TURN_S) * 1e-3)


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


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    import numpy as np
    import torch

    from gmf_edge.kernels.layout import plan, tilings_of
    from gmf_edge.kernels.run import group_mix_attention, packed_weights
    from gmf_edge.ops import group_mix_attention as op
    from gmf_edge.spec import ModelSpec

    size = (options.image_size, options.image_size)
    spec = ModelSpec.of("pico" if options.interpret else options.variant, image_size=(64, 32) if options.interpret else size)
    device = "cpu" if options.interpret else "cuda"
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[options.dtype]
    bandwidth = None if options.interpret else copy_bytes_per_s()
    compiled = None if options.interpret else torch.compile(baseline, mode="max-autotune-no-cudagraphs", dynamic=False)
    rows = []
    for stage, (channels, (height, width)) in enumerate(zip(spec.embed_dims, spec.stage_sizes, strict=True)):
        for batch in [1] if options.interpret else options.batch:
            arrays = op.random_inputs(np.random.default_rng(0), channels, batch, height * width)
            x = {name: torch.from_numpy(array).to(dtype).to(device) for name, array in arrays.items()}
            row: dict[str, Any] = {"stage": stage, "channels": channels, "height": height, "width": width, "batch": batch}
            for name, run in (("kernels", group_mix_attention), ("baseline", baseline)):
                row[f"{name}_error"] = error_of(run(x, height, width), x, height, width)
                if not row[f"{name}_error"] <= LIMITS[options.dtype]:
                    raise SystemExit(f"{name}: wrong at {row}; nothing was timed")
            rows.append(row)
            if options.interpret:
                continue
            geometry = plan(batch, height, width, channels // 5, tilings_of(channels // 5)[0], 1)
            packed = packed_weights(x, geometry)
            calls = {
                "kernels": lambda x=x, h=height, w=width: group_mix_attention(x, h, w),
                "kernels_packed": lambda x=x, h=height, w=width, p=packed: group_mix_attention(x, h, w, packed=p),
                "eager": lambda x=x, h=height, w=width: baseline(x, h, w),
                "compile": lambda x=x, h=height, w=width: compiled(x, h, w),
            }
            graphs = {name: graph_of(call) for name, call in calls.items()}
            for call in graphs.values():
                turn_ms(call, WARM_UP_S)
            turns: dict[str, list[float]] = {name: [] for name in graphs}
            for _ in range(TURNS):
                for name, call in graphs.items():
                    turns[name].append(turn_ms(call, TURN_S))
            times = {f"{name}_ms": statistics.median(values) for name, values in turns.items()}
            moved = (
                sum(tensor.numel() * tensor.element_size() for tensor in x.values())
                + x["qkv"].numel() // 3 * x["qkv"].element_size()
            )
            rows[-1] |= times | {
                "turns_ms": turns,
                "compile_over_kernels": times["compile_ms"] / times["kernels_ms"],
                "eager_over_kernels": times["eager_ms"] / times["kernels_ms"],
                "share_of_copy_bandwidth": moved / (times["kernels_ms"] * 1e-3) / bandwidth,
                "copy_bytes_per_s": bandwidth,
            }
    return rows


def main() -> None:
    options = arguments()
    if options.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if not options.interpret and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --interpret checks the shapes on a CPU")
    rows = rows_of(options)
    for row in rows:
        shape = f"stage {row['stage']} C {row['channels']:>3} {row['height']}x{row['width']} batch {row['batch']:>2}"
        if options.interpret:
            print(f"{shape}  relative error {row['kernels_error']:.1e}, of plain torch {row['baseline_error']:.1e}")
        else:
            print(
                f"{shape}  kernels {row['kernels_ms']:.4f} ms (packed {row['kernels_packed_ms']:.4f})  "
                f"eager {row['eager_ms']:.4f}  compile {row['compile_ms']:.4f}  x{row['compile_over_kernels']:.2f}  "
                f"{row['share_of_copy_bandwidth']:.0%} of a copy"
            )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": machine(), "dtype": options.dtype, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
