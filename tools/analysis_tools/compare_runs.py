"""Compares checkpoints (dense, soft, hard; several seeds): AP by size and cost, as a Markdown table."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('compare')

if __name__ == '__main__':
    sys.exit(main())
