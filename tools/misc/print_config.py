"""Prints a config with its bases merged, as train.py and test.py see it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('print-config')

if __name__ == '__main__':
    sys.exit(main())
