#!/usr/bin/env bash
# Evaluates with several processes, one per GPU, on one machine or on several (then run it on each of them).

usage() {
    cat <<'USAGE'
usage: dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
  GPUS is the number of processes on this machine. On several machines, set in the environment of each
  NNODES (1), NODE_RANK (0), MASTER_ADDR (127.0.0.1), PORT (29500); PYTHON (python) names the interpreter.
USAGE
}

if [[ $1 == -h || $1 == --help ]]; then
    usage
    exit 0
fi
if [[ $# -lt 3 || ! $3 =~ ^[1-9][0-9]*$ ]]; then
    [[ $# -lt 3 ]] || echo "error: GPUS must be a whole number above 0, got '$3'" >&2
    usage >&2
    exit 2
fi

# torchrun would set the same for several processes, with a long notice
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "${PYTHON:-python}" "$(dirname "$0")/misc/torchrun.py" \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$3" \
    "$(dirname "$0")/test.py" "$1" "$2" --launcher pytorch "${@:4}"
