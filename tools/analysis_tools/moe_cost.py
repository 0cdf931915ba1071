"""Counts parameters and multiply-adds of a config, total and active, compared with the same model without experts."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('cost')

if __name__ == '__main__':
    sys.exit(main())
