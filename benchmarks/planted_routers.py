"""Do the tests of size specialisation hold their promises? Worlds whose truth is known.

Objects look like COCO's: size and feature level nearly coincide, sizes of one image agree (scene scale), images hold
from one to very many objects. Gates that know nothing of size given the level must be called significant in 1 % of the
simulations at p <= 0.01, gates with Cramer's V = 0.2 given the level must be found; the swap test must tell detectors
whose experts differ from those whose experts do not.

    python benchmarks/planted_routers.py            # 1,000 simulations per world: an hour of one core
    python benchmarks/planted_routers.py --quick    # 60, some minutes; nothing is written unless --out says where
    python benchmarks/planted_routers.py --resume --only swap 'most crowded'

Every case goes into the record as soon as it is done. Results do not depend on --jobs.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import numpy as np
import scipy
from common import RECORDS
from common.options import at_least, parser_of
from common.record import Sections, today, write
from planted.page import page
from planted.study import FULL, QUICK, Case, Plan, all_cases, measure, planted_strengths

from moe_det.common.software import cores, processor
from moe_det.errors import DataError

RECORD = RECORDS / 'planted_routers.json'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of(__doc__)
    parser.add_argument('--quick', action='store_true', help='few simulations')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='sections, or parts of names of cases (default: all)')
    parser.add_argument('--jobs', type=at_least(1), default=1, metavar='N', help='processes (default %(default)s)')
    parser.add_argument('--resume', action='store_true', help='keep what the record has with the same settings')
    parser.add_argument('--seed', type=at_least(0), default=0)
    parser.add_argument('--out', type=Path, metavar='JSON', help=f'the record; the page lies beside it ({RECORD.name})')
    return parser.parse_args(argv)


def chosen(cases: list[Case], only: list[str] | None) -> list[Case]:
    """The cases of some sections or names.

    Raises:
        DataError: a name that fits no case.
    """
    if only is None:
        return cases
    sections = list(dict.fromkeys(case.section for case in cases))
    found = set()
    for name in only:
        fits = [case.name for case in cases if (name == case.section if name in sections else name in case.name)]
        if not fits:
            raise DataError(f'--only {name!r}: no such case; sections are {", ".join(sections)}')
        found.update(fits)
    return [case for case in cases if case.name in found]


class Record(Sections):
    """Measured cases by section and name.

    Args:
        path: the file; None keeps everything in memory.

    Raises:
        DataError: the file is no record.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__(path, 'planted_routers.py', 'cases')
        self.about['made'] = {
            'command': shlex.join(['python', 'benchmarks/planted_routers.py', *sys.argv[1:]]),
            'cpu': processor(),
            'cores': cores(),
            'python': platform.python_version(),
            'numpy': np.__version__,
            'scipy': scipy.__version__,
            'date': today(),
        }

    def has(self, case: Case, plan: Plan) -> bool:
        """Whether a resumed run need not measure this again."""
        return self.get(case.section, case.name).get('plan') == asdict(plan)

    def measured(self, case: Case, entry: dict, order: list[Case]) -> None:
        """Adds or replaces a case and writes record and page; cases that are no longer in ``order`` go."""
        self.sections.setdefault(case.section, {})[case.name] = entry
        old, self.sections = self.sections, {}
        for known in order:
            if known.name in old.get(known.section, {}):
                self.sections.setdefault(known.section, {})[known.name] = old[known.section][known.name]
        self.write()
        if self.path is not None:
            write(self.path.with_suffix('.md'), page(self.content()))


def run(cases: list[Case], plan: Plan, jobs: int) -> Iterator[tuple[Case, dict]]:
    """Measures cases, those that are timed alone and first."""
    alone = [case for case in cases if case.section == 'time' or jobs == 1]
    for case in sorted(alone, key=lambda case: case.section != 'time'):
        yield case, measure(case, plan)
    together = {case.name: case for case in cases if case not in alone}
    if not together:
        return
    with ProcessPoolExecutor(jobs, initializer=_start, initargs=(plan,)) as pool:
        waiting = {pool.submit(_measure, name): case for name, case in together.items()}
        for done in as_completed(waiting):
            yield waiting[done], done.result()


def _start(plan: Plan) -> None:
    """Gives a process its own cases: their functions cannot be sent."""
    global _PLAN, _CASES
    _PLAN = plan
    _CASES = {case.name: case for case in all_cases(planted_strengths(plan.seed))}


def _measure(name: str) -> dict:
    return measure(_CASES[name], _PLAN)


def main(argv: list[str] | None = None) -> None:
    """Runs the study, prints the page and writes the record."""
    args = parse_args(argv)
    plan = Plan(**{**asdict(QUICK if args.quick else FULL), 'seed': args.seed})
    order = all_cases(planted_strengths(args.seed))
    record = Record(args.out or (None if args.quick else RECORD))
    wanted = [case for case in chosen(order, args.only) if not (args.resume and record.has(case, plan))]
    for done, (case, entry) in enumerate(run(wanted, plan, args.jobs), 1):
        record.measured(case, entry, order)
        print(f'{done} of {len(wanted)}: {case.section}, {case.name} ({entry["seconds"]} s)', flush=True)
    print(page(record.content()))


if __name__ == '__main__':
    try:
        main()
    except DataError as error:
        sys.exit(f'error: {error}')
