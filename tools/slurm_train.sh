#!/usr/bin/env bash
# Trains on a Slurm cluster, one task per GPU.

usage() {
    cat <<'USAGE'
usage: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]
  In the environment: GPUS (8) in all, GPUS_PER_NODE (8 or GPUS, whichever is less), CPUS_PER_TASK (5),
  SRUN_ARGS (more arguments of srun), PYTHON (python) names the interpreter.
USAGE
}

if [[ $1 == -h || $1 == --help ]]; then
    usage
    exit 0
fi
if [[ $# -lt 4 ]]; then
    usage >&2
    exit 2
fi

GPUS="${GPUS:-8}"
GPUS_PER_NODE="${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}"

# SRUN_ARGS holds several words on purpose
# shellcheck disable=SC2086
exec srun -p "$1" \
    --job-name="$2" \
    --gres=gpu:"$GPUS_PER_NODE" \
    --ntasks="$GPUS" \
    --ntasks-per-node="$GPUS_PER_NODE" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$3" --work-dir="$4" --launcher=slurm "${@:5}"
