"""Tells what gates and experts know about a detector's errors: doubts of each detection, and calibration."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('uncertainty')

if __name__ == '__main__':
    sys.exit(main())
