#!/usr/bin/env bash
# Evaluates with several processes, one per GPU, on one machine or on several (then run it on each of them).
source "$(dirname "$0")/_dist.sh"
launch test.py 'CONFIG CHECKPOINT' "$@"
