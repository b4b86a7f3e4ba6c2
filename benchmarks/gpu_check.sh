#!/usr/bin/env bash
# Everything that needs a GPU, in one command: deploy, verify and bench prepared bundles with TensorRT, run the tests marked gpu,
# write one JSON.
#
#   benchmarks/gpu_check.sh BUNDLES [--results DIR] [--work DIR] [--budget-minutes N] [trtexec options ...]
#
# BUNDLES is a folder of bundles made by `gmf-edge export` on a workstation, in any layout: pico, mobile and small in FP32, FP16 and
# INT8 are looked for, and what is missing is listed as not run. The host needs numpy, pillow, polygraphy, cuda-bindings and TensorRT;
# neither torch nor onnx. pytest is optional (without it the gpu tests are listed as not run).
#
# Beside the JSON it leaves a folder of the same name: TensorRT's messages, the engine inspector's answer and the layers' times of each
# bundle. The JSON is written after every step, each step has a process of its own, and the most telling ones come first: with
# --budget-minutes N it stops after N minutes with what it has.
#
#   PYTHON=python3          the interpreter to use
#   TRT_HOME=DIR            an unpacked air-gap pack (DIR/env.sh defines trt-python); its cuBLAS and cuDNN are stand-ins, so they are
#                           taken from the tactic sources
#
# Exit status: 0 everything that was run PASSED, 1 something FAILED, 4 there is no usable GPU or TensorRT, 130 it was interrupted.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$(dirname "$here")
if [ $# -lt 1 ]; then
    sed -n '2,19p' "$0" | sed 's/^# \{0,1\}//' >&2
    exit 2
fi
# the host may have a copy without its history
GMF_EDGE_COMMIT=${GMF_EDGE_COMMIT:-$(git -C "$repository" rev-parse HEAD 2>/dev/null || echo unknown)}
export GMF_EDGE_COMMIT
if [ -n "${TRT_HOME:-}" ]; then
    # shellcheck disable=SC1091
    . "$TRT_HOME/env.sh"
    export TRT_PYTHONPATH="$repository${TRT_PYTHONPATH:+:$TRT_PYTHONPATH}"
    trt-python "$here/gpu_check.py" "$@" --tacticSources=-CUBLAS,-CUBLAS_LT,-CUDNN
else
    PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" "${PYTHON:-python3}" "$here/gpu_check.py" "$@"
fi
