"""Exports a network with all of its experts to ONNX: image -> class logits and box deltas of every level."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('export')

if __name__ == '__main__':
    sys.exit(main())
