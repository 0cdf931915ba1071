"""Tells what a detector withstands: attacks on its pixels and its gates, and common corruptions."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('attack')

if __name__ == '__main__':
    sys.exit(main())
