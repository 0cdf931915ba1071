"""Makes a checkpoint with experts from one of a dense mmdet model: every expert starts as a copy of the dense part."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('upcycle')

if __name__ == '__main__':
    sys.exit(main())
