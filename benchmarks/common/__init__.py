"""What all benchmarks share: their commands, records and pages."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / 'benchmarks' / 'records'
RESULTS = ROOT / 'docs' / 'results'
README = ROOT / 'README.md'
if find_spec('moe_det') is None:  # a clone that was not installed
    sys.path.insert(0, str(ROOT))
