#!/usr/bin/env bash
# Six questions to the first machine with a GPU, in order; each answer is a file in the results folder. Nothing of it has run yet.
#
#   benchmarks/kernel_experiments.sh [RESULTS]          default: benchmarks/results/experiments-<device>
#   ONLY="1 3" benchmarks/kernel_experiments.sh         some of them
#
#   1  memcheck and racecheck of the kernels' tests and of every shape of `small` through the plugin's launch code
#   2  Nsight Compute of the first launch at S = 64, batch 1 and 64: active warps, stalls on loads, L1 wavefronts, issue slots.
#      Predicted: stalls on loads above 60 % at batch 1, issue slots about 65 % busy at batch 64
#   3  S = 64, 14 x 14, batch 1 with the tiling for few and for many programs. Predicted from the model: 5.8 against 18 us for the first
#      launch, 9.8 against 20 us for the second; if they are equal, its assumption of a cold L1 is wrong
#   4  the same launch with caches kept (--cache-control none) and flushed (all): what cold weights cost
#   5  layer times of the engine without the plugin: how many kernels TensorRT runs a block, and how long each takes (predicted: 25, 2.5 to 4 us)
#   6  the whole table: kernels against PyTorch and stock TensorRT, warm and cold, batches 1, 8, 64 of small and base
#
# Needs: PyTorch with CUDA, Triton, a C++ compiler; compute-sanitizer (1), ncu (2, 4), TensorRT and a bundle in BUNDLE (5).
# Exit status: 0 all that were asked for ran, 1 one failed or lacks its tool (it is named on standard error), 4 there is no GPU.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
device=$("$python" -c 'import torch; print(torch.cuda.get_device_name(0).replace(" ", "-"))' 2>/dev/null) || {
    echo "there is no GPU that PyTorch can use" >&2
    exit 4
}
results=${1:-$here/results/experiments-$device}
mkdir -p "$results"
only=${ONLY:-1 2 3 4 5 6}
status=0

ask() { # number, tool or -, command...
    local number=$1 tool=$2
    shift 2
    [[ " $only " == *" $number "* ]] || return 0
    if [ "$tool" != - ] && ! command -v "$tool" >/dev/null; then
        echo "experiment $number: $tool is not on PATH" >&2
        status=1
        return 0
    fi
    echo "experiment $number: $*"
    if ! "$@" >>"$results/$number.txt" 2>&1; then
        echo "experiment $number failed; see $results/$number.txt" >&2
        status=1
    fi
}

shapes=("$python" "$here/kernels.py" --kernels-only --variant small)
metrics=sm__warps_active.avg.pct_of_peak_sustained_active,smsp__issue_active.avg.pct_of_peak_sustained_active
metrics+=,smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio
metrics+=,l1tex__data_pipe_lsu_wavefronts_mem_lg.sum,smsp__inst_executed_op_global_ld.sum
profile=(ncu --metrics "$metrics" --kernel-name "regex:aggregate|attend" --launch-skip 2 --launch-count 2)

for number in $only; do : >"$results/$number.txt"; done
for check in memcheck racecheck; do
    ask 1 compute-sanitizer compute-sanitizer --tool "$check" --error-exitcode 1 "$python" -m pytest -q -m "not slow" "$here/../tests/kernels/test_group_mix_attention_kernels.py"
    ask 1 compute-sanitizer compute-sanitizer --tool "$check" --error-exitcode 1 "${shapes[@]}" --batch 1 8
done
for batch in 1 64; do
    ask 2 ncu "${profile[@]}" "${shapes[@]}" --stage 3 --batch "$batch"
done
for tiling in small large; do
    ask 3 - "${shapes[@]}" --stage 3 --batch 1 --tiling "$tiling" --out "$results/3-$tiling.json"
done
for control in none all; do
    ask 4 ncu "${profile[@]}" --cache-control "$control" "${shapes[@]}" --stage 3 --batch 1
done
ask 5 - "$python" -m gmf_edge inspect "${BUNDLE:-out/gpu/small-fp16}" --layers 400
for variant in small base; do
    ask 6 - "$python" "$here/kernels.py" --variant "$variant" --out "$here/results/kernels-$variant-$device.json"
done
exit $status
