"""Evaluates a checkpoint with K = 1 ... E active experts: how much a prediction needs more than its best expert."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('sweep')

if __name__ == '__main__':
    sys.exit(main())
