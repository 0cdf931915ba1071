"""Makes the synthetic shapes data set in COCO format."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('make-shapes')

if __name__ == '__main__':
    sys.exit(main())
