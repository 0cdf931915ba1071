"""Makes a plain mmdet checkpoint from one with experts: one expert of every layer, or their average."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('densify')

if __name__ == '__main__':
    sys.exit(main())
