"""Clusters the training images by the features of a trained backbone."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('cluster')

if __name__ == '__main__':
    sys.exit(main())
