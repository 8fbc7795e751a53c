#!/usr/bin/env bash
# Everything that a GPU is needed for, in one command and under 9 minutes: build and install without
# a package index, the GPU tests, then the GPU benchmarks. A part that fails does not keep the next
# from running; the exit status is that of the first part that failed.
set -uo pipefail

usage() {
    cat <<'TEXT'
usage: benchmarks/gpu_all.sh [FOLDER]

Builds and installs the package offline, runs tests/gpu and the GPU benchmarks, and writes into FOLDER
(benchmarks/results): gpu_masks.json, gpu_matmul.json, gpu_block.json, gpu_tests.txt, gpu_all.txt.

environment:
  PYTHON         the interpreter that has torch with CUDA (python3)
  SECONDS_ALL    for everything, 530; what has no time left is not begun, and said
  PARTS          what to do, "install tests masks matmul block"; to repeat one: PARTS=masks
TEXT
}

case "${1:-}" in -h | --help) usage; exit 0 ;; esac

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
PYTHON="${PYTHON:-python3}"
OUT="${1:-benchmarks/results}"
LIMIT="${SECONDS_ALL:-530}"
PARTS=" ${PARTS:-install tests masks matmul block} "
mkdir -p "$OUT" || exit 1
OUT="$(cd "$OUT" && pwd)"
SUMMARY="$OUT/gpu_all.txt"
: > "$SUMMARY"
STATUS=0
SECONDS=0
# Tuned algorithms and plans of this run only; cuBLAS where torch is to be deterministic.
TRANSPOSABLE_CACHE="$(mktemp -d)" || exit 1
export TRANSPOSABLE_CACHE
trap 'rm -rf "$TRANSPOSABLE_CACHE"' EXIT
export CUBLAS_WORKSPACE_CONFIG=":4096:8"
export PIP_DISABLE_PIP_VERSION_CHECK=1
export PYTHONUNBUFFERED=1

wanted() { [[ "$PARTS" == *" $1 "* ]]; }

# part NAME MOST COMMAND...: at most MOST seconds, and never beyond the limit of the whole.
part() {
    local name="$1" most="$2" left=$((LIMIT - SECONDS)) began=$SECONDS code
    shift 2
    if ((left < 15)); then
        echo "$name: not run, $left s left of $LIMIT" | tee -a "$SUMMARY"
        ((STATUS)) || STATUS=124
        return 1
    fi
    ((most > left)) && most=$left
    echo "== $name (at most $most s): $*"
    timeout --kill-after=10 "$most" "$@"
    code=$?
    echo "$name: status $code, $((SECONDS - began)) s" | tee -a "$SUMMARY"
    ((code == 0 || STATUS)) || STATUS=$code
    return $code
}

versions() {
    "$PYTHON" - <<'PY'
import platform, torch
print("python", platform.python_version(), "torch", torch.__version__, "cuda", torch.version.cuda)
print("cuSPARSELt", torch.backends.cusparselt.version())
try:
    import triton
    print("triton", triton.__version__)
except ImportError:
    print("triton: none")
if torch.cuda.is_available():
    print("GPU", torch.cuda.get_device_name(), torch.cuda.get_device_capability())
else:
    print("GPU: none (torch.cuda.is_available() is False)")
PY
    nvidia-smi --query-gpu=driver_version,memory.total --format=csv,noheader 2> /dev/null || true
}

versions 2>&1 | tee -a "$SUMMARY"

if wanted install; then
    # Without isolation pip takes the build tools that are there, of whatever version: the one that
    # pyproject.toml names only decides the text of the stub.
    CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}" part install 150 \
        "$PYTHON" -m pip install -q --no-build-isolation --no-deps --no-index . ||
        echo "install failed: what follows runs with what is installed, if anything" | tee -a "$SUMMARY"
fi

# The tests and benchmarks are not part of the package; the package is the installed one.
if wanted tests; then
    part tests 170 "$PYTHON" -m pytest -q --maxfail=20 -p no:cacheprovider -rs tests/gpu \
        > "$OUT/gpu_tests.txt" 2>&1
    tail -n 25 "$OUT/gpu_tests.txt"
fi
wanted masks && part masks 130 "$PYTHON" -m benchmarks.gpu_masks --json "$OUT/gpu_masks.json"
wanted matmul &&
    part matmul 170 "$PYTHON" -m benchmarks.gpu_matmul --seconds 120 --json "$OUT/gpu_matmul.json"
wanted block && part block 110 "$PYTHON" -m benchmarks.gpu_block --seconds 70 --json "$OUT/gpu_block.json"

echo "all: status $STATUS, $SECONDS s" | tee -a "$SUMMARY"
exit "$STATUS"
