"""Checks a data set in COCO's format: annotation file and images, with every problem by file and id."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('check-data')

if __name__ == '__main__':
    sys.exit(main())
