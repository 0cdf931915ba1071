"""The neighbours beside each other: other papers' ways to make experts specialise, each continued from one trained
detector, with AP by size, living experts, specialisation, what they withstand, and their cost.

    python benchmarks/neighbours.py [--rows NAME ...] [--seeds 0 1 2] [--jobs N] [--attacked N] [--closer NAME ...]
    python benchmarks/neighbours.py --times --threads 1

Every finished run is kept and an interrupted one goes on, so the command can be repeated, also with more rows or
seeds. Runs lie in the work folder of experts_that_pay.py, with which it shares the detector that all start from. The
record (benchmarks/records/neighbours.json) and the page (docs/results/neighbours.md) hold whatever is finished. Runs of
configs or images that have changed since then are left aside.
"""

from __future__ import annotations

from common.options import at_least, parser_of
from neighbour_rows.page import page
from neighbour_rows.settings import CLOSELY, EXPECTED, TABLE
from pay.command import Work


def main() -> None:
    """Works through rows and seeds."""
    work = Work('neighbours', TABLE, page, EXPECTED)
    parser = work.options(parser_of(__doc__))
    parser.add_argument(
        '--attacked',
        type=at_least(0),
        default=100,
        metavar='N',
        help='validation images that are attacked (%(default)s)',
    )
    parser.add_argument(
        '--closer',
        nargs='*',
        default=CLOSELY,
        choices=list(TABLE.rows),
        metavar='NAME',
        help='rows that are attacked with more steps, and shown images made for their control (default: '
        f'{"; ".join(CLOSELY)})',
    )
    work.run(parser.parse_args())


if __name__ == '__main__':
    main()
