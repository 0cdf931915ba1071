"""Evaluates a checkpoint: mmdet's test.py, plus --data-root, --seed, a look at the data first and readable errors."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # of _start.py
import _start

main = _start.command('test')

if __name__ == '__main__':
    _start.leave(main())
