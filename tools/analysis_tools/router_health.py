"""Checks that a checkpoint's experts are in use, for the CI of training jobs: exit status 1 when routing collapsed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('health')

if __name__ == '__main__':
    sys.exit(main())
