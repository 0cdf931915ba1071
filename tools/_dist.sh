# What dist_train.sh and dist_test.sh share: starting a script with several processes.

# launch SCRIPT 'NAMES OF ITS ARGUMENTS' ARGUMENT...
launch() {
    local script="$1" names
    read -ra names <<<"$2"
    shift 2
    local count="${#names[@]}" tools
    local gpus="${*:count + 1:1}"
    tools="$(dirname "${BASH_SOURCE[0]}")"

    if [[ $1 == -h || $1 == --help ]]; then
        usage
        exit 0
    fi
    if [[ $# -le $count || ! $gpus =~ ^[1-9][0-9]*$ ]]; then
        [[ $# -le $count ]] || echo "error: GPUS must be a whole number above 0, got '$gpus'" >&2
        usage >&2
        exit 2
    fi

    # torchrun would set the same for several processes, with a long notice
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    exec "${PYTHON:-python}" "$tools/misc/torchrun.py" \
        --nnodes="${NNODES:-1}" \
        --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" \
        --master_port="${PORT:-29500}" \
        --nproc_per_node="$gpus" \
        "$tools/$script" "${@:1:count}" --launcher pytorch "${@:count + 2}"
}

usage() {
    cat <<USAGE
usage: $(basename "$0") ${names[*]} GPUS [arguments of $script]
  GPUS is the number of processes on this machine. On several machines, set in the environment of each
  NNODES (1), NODE_RANK (0), MASTER_ADDR (127.0.0.1), PORT (29500); PYTHON (python) names the interpreter.
USAGE
}
