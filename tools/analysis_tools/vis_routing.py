"""Draws one image with the experts that each level or patch of it is given."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('vis')

if __name__ == '__main__':
    sys.exit(main())
