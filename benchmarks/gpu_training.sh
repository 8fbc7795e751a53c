#!/usr/bin/env bash
# What a GPU that is there for longer is for: the full schedule of dynamic_cifar10 and a GPT of 100
# million parameters. Runs are checkpointed every epoch; the same command resumes them.
set -uo pipefail

usage() {
    cat <<'TEXT'
usage: benchmarks/gpu_training.sh DATA [WORK]

Trains on a GPU, with the data sets in DATA, until everything is finished or it is stopped; runs and
checkpoints go to WORK (out/gpu). A second call goes on where the first was stopped.

environment:
  PYTHON    the interpreter that has torch with CUDA (python3)
  DEVICE    cuda
  ONLY      "cifar" or "gpt": one of the two
TEXT
}

case "${1:-}" in -h | --help | "") usage; [[ -n "${1:-}" ]]; exit ;; esac

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
PYTHON="${PYTHON:-python3}"
DEVICE="${DEVICE:-cuda}"
DATA="$1"
WORK="${2:-out/gpu}"
STATUS=0

run() {
    echo "== $*"
    "$PYTHON" -m "$@" || STATUS=$?
}

if [[ "${ONLY:-cifar}" == cifar ]]; then
    for seed in 0 1 2; do
        for config in dense "2:4T exact, every step" "4:8T exact, every step" \
            "2:4T 2-approx, every 40" "4:8T 2-approx, every 40"; do
            run experiments.dynamic_cifar10.run --data "$DATA" --device "$DEVICE" \
                --work "$WORK/dynamic_cifar10" --long --config "$config" --seed "$seed"
        done
    done
fi
if [[ "${ONLY:-gpt}" == gpt ]]; then
    for config in dense "2:4T, dense tail"; do
        run experiments.pretrain_gpt.run --data "$DATA" --device "$DEVICE" \
            --work "$WORK/pretrain_gpt" --long --config "$config" --seed 0
    done
fi
exit "$STATUS"
