#!/usr/bin/env bash
# This machine's rows of the table in benchmarks/README.md: build pico, mobile and small in FP32, measure each in turn with PyTorch eager,
# torch.compile and the plain export in ONNX Runtime and OpenVINO, check two of the figures with the libraries' own tools.
#
#   benchmarks/cpu_results.sh [WORK]        with the environment active, on an otherwise idle machine; some 30 minutes on two cores
#
# WORK (out/cpu) keeps the bundles and everything that was compiled, so that a second run only measures.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-out/cpu}
day=$(date +%F)
device=$(python -c 'from gmf_edge.cpu import cpu_name, engine_threads
import re
print(re.sub(r"[^A-Za-z0-9]+", "-", f"cpu-{cpu_name()}-{engine_threads().count}cores").lower())')
mkdir -p "$work"
for variant in pico mobile small; do
    [ -d "$work/$variant" ] || gmf-edge build --variant "$variant" --precision fp32 --output "$work/$variant"
    # torch.compile's first time takes minutes: not while anything is measured
    gmf-edge bench "$work/$variant" --batch 1 --duration 0 --iterations 1 --warmUp 0 --against compile -q > "$work/$variant-compiled.txt"
done
for variant in pico mobile small; do
    gmf-edge bench "$work/$variant" --batch 1 --streams 2 --against eager,compile,onnxruntime,openvino \
        --output "benchmarks/results/$device-$variant-fp32-$day.json" | tee "$work/$variant.txt"
done
python benchmarks/cross_check.py --variant small --out "$work/cross-check.json" | tee "$work/cross-check.txt"
python benchmarks/results_table.py --write
