"""Shows which classes the gates of an image classifier give to which experts."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
import _start

main = _start.command('allocation')

if __name__ == '__main__':
    sys.exit(main())
