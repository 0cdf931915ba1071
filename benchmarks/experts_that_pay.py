"""Whether experts pay: mixtures that start from a trained detector, cost as much, and train on, beside the detector
that trains on without experts.

    python benchmarks/experts_that_pay.py [--rows NAME ...] [--seeds 0 1 2] [--jobs N]

Every finished run is kept and an interrupted one goes on, so the command can be repeated, also with more rows or
seeds. The record (benchmarks/records/experts_that_pay.json) and the page (docs/results/experts_that_pay.md) hold
whatever is finished. Runs of configs or images that have changed since then are left aside.
"""

from __future__ import annotations

from common.options import parser_of
from pay.command import Work
from pay.page import NAME, page, results
from pay.settings import EXPECTED, TABLE


def main() -> None:
    """Works through rows and seeds."""
    work = Work(NAME, TABLE, page, EXPECTED, results)
    work.run(work.options(parser_of(__doc__)).parse_args())


if __name__ == '__main__':
    main()
