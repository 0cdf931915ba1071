"""Measures how often the experts of an image stay when the image changes."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('agreement')

if __name__ == '__main__':
    sys.exit(main())
