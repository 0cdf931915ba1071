"""Drops experts from a checkpoint and shows what that costs in AP."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('prune')

if __name__ == '__main__':
    sys.exit(main())
