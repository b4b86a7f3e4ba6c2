#!/usr/bin/env bash
# Makes an environment beside this script, deploys the bundle on this device, proves it and measures it. See README.md.
#
#   PYTHON         python3          the interpreter; on JetPack the system's, which sees TensorRT
#   VENV           env              where the environment goes
#   BACKEND        tensorrt         or onnxruntime, for a try on a machine without a GPU
#   BENCH_SECONDS  3                of each batch size
#   DEPLOY_OPTIONS                  for 'gmf-edge deploy', such as --memPoolSize=workspace:1024
set -euo pipefail
cd "$(dirname "$0")"
PYTHON=${PYTHON:-python3}
VENV=${VENV:-env}
BACKEND=${BACKEND:-tensorrt}
BENCH_SECONDS=${BENCH_SECONDS:-3}
DEPLOY_OPTIONS=${DEPLOY_OPTIONS:-}

# what is wrong, and what to do about it; 4 is gmf-edge's status for a machine that lacks something
lacks() {
    echo "error: $1" >&2
    echo "what to do: $2" >&2
    exit 4
}

command -v "$PYTHON" >/dev/null || lacks "there is no $PYTHON here" "set PYTHON to a Python of 3.10 or newer"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    lacks "$("$PYTHON" --version) is too old" "set PYTHON to a Python of 3.10 or newer (JetPack 6 has 3.10, JetPack 7 has 3.12)"
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || lacks "$PYTHON cannot make environments" "sudo apt install python3-venv"

requirements=()
if [ "$BACKEND" = tensorrt ]; then
    release=$(sed -n 's/^# R\([0-9]*\) .*/\1/p' /etc/nv_tegra_release 2>/dev/null || true)
    case "$release" in
    36) jetpack=6 cuda_bindings='cuda-bindings==12.*' ;;
    38 | 39) jetpack=7 cuda_bindings='cuda-bindings==13.*' ;;
    '') lacks "this is no Jetson: /etc/nv_tegra_release is missing" "run it on the Jetson, or set BACKEND=onnxruntime for a try here" ;;
    *) lacks "Jetson Linux R$release is neither JetPack 6 (R36) nor JetPack 7 (R38, R39)" "flash the device with one of them" ;;
    esac
    version=$("$PYTHON" -c 'import tensorrt; print(tensorrt.__version__)' 2>/dev/null) ||
        lacks "$PYTHON does not see TensorRT" "sudo apt install python3-libnvinfer, and leave PYTHON at the system's python3"
    [ "${version%%.*}" -ge 10 ] || lacks "TensorRT $version is too old for this bundle" "JetPack 6 and 7 have TensorRT 10 or newer"
    echo "JetPack $jetpack (R$release), TensorRT $version, $("$PYTHON" --version)"
    requirements=('polygraphy>=0.49.26' "$cuda_bindings")
elif [ "$BACKEND" = onnxruntime ]; then
    requirements=('onnxruntime>=1.18')
else
    lacks "BACKEND is $BACKEND" "use tensorrt or onnxruntime"
fi

wheel=$(ls wheels/gmf_edge-*.whl)
"$PYTHON" -m venv --system-site-packages "$VENV"
# what lies in wheels/ first; an index only for what is missing
install=("$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -f wheels)
"${install[@]}" --no-index "$wheel" "${requirements[@]}" 2>/dev/null || "${install[@]}" "$wheel" "${requirements[@]}" ||
    lacks "the packages cannot be installed" "connect the device to a network once, or put the wheels into wheels/ (README.md)"

options=()
for library in plugins/*.so; do
    [ "$BACKEND" = tensorrt ] && [ -f "$library" ] && options+=("--plugins=$library")
done
# DEPLOY_OPTIONS is split at spaces on purpose
"$VENV/bin/gmf-edge" deploy bundle --backend "$BACKEND" "${options[@]}" $DEPLOY_OPTIONS
"$VENV/bin/gmf-edge" verify bundle
"$VENV/bin/gmf-edge" bench bundle --duration "$BENCH_SECONDS"
echo "PASSED: deployed into $PWD/bundle; '$VENV/bin/gmf-edge predict bundle PICTURES' uses it"
