#!/usr/bin/env bash
# Trains with several processes, one per GPU, on one machine or on several (then run it on each of them).
source "$(dirname "$0")/_dist.sh"
launch train.py 'CONFIG' "$@"
