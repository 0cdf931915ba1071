"""Tells which experts fire for small and for large objects, and whether that is more than the pyramid level."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('report')

if __name__ == '__main__':
    sys.exit(main())
