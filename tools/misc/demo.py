"""Trains and evaluates a small MoE RetinaNet on synthetic shapes: ``make demo``."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('demo')

if __name__ == '__main__':
    sys.exit(main())
