"""Is everything right on this GPU, and how fast is it? At most ten minutes; send the json back.

    python benchmarks/gpu_check.py              # writes gpu_check.json here
    python benchmarks/gpu_check.py --small      # a narrow network: whether everything runs; times say nothing

Sections, each with a limit of its own: do heads of every kind compute what they compute on the CPU (agreement); time
and memory of RetinaNet R50, dense and with experts, in fp16 and TF32 for 1, 2, 8 and 16 images (speed); where a step's
time goes (profile); do two deterministic runs give the same (determinism); what cuDNN's search costs (search); are the
stand-ins for mmcv's operators exact (operators). The json is rewritten after each section.

Exit status: 0, 1 when something is wrong, which the last lines name, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import functools
import sys

from common import ROOT
from common.options import json_file, parser_of

sys.path.insert(0, str(ROOT / 'tests'))  # one table of every kind of head
MINUTES = 9.5
# section -> seconds of all of these minutes; --minutes stretches them
LIMITS = {'agreement': 90, 'speed': 260, 'profile': 40, 'determinism': 60, 'search': 60, 'operators': 20}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of(__doc__)
    parser.add_argument('--small', action='store_true', help='a narrow network on small images')
    parser.add_argument('--only', nargs='+', choices=LIMITS, default=tuple(LIMITS), help='sections (default: all)')
    parser.add_argument('--minutes', type=float, default=MINUTES, help=f'limit of all sections (default: {MINUTES})')
    parser.add_argument('--out', type=json_file, default='gpu_check.json', metavar='JSON', help='file to write')
    args = parser.parse_args(argv)
    if not args.minutes > 0:
        parser.error(f'--minutes {args.minutes:g}: expected more than 0')
    return args


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    args = parse_args(argv)
    from moe_det.running.user_errors import run_main

    return run_main(lambda: check(args, sys.argv[1:] if argv is None else argv))


def check(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the sections, writes the json and prints the tables."""
    import logging

    import torch
    from mmengine.logging import MMLogger

    from moe_det.common.console import say
    from moe_det.errors import MoEConfigError

    if not torch.cuda.is_available():
        build = 'this torch was built without CUDA' if torch.version.cuda is None else 'check its driver (nvidia-smi)'
        raise MoEConfigError(f'gpu_check.py: PyTorch {torch.__version__} sees no GPU here; {build}')

    from gpu import numbers
    from gpu.report import Report, problems, tables
    from gpu.steps import Steps, search
    from speed.record import made_on, why_busy

    command = ' '.join(['python', 'benchmarks/gpu_check.py', *argv])
    made = made_on('cuda', command, why_busy())
    say(f'{made["gpu"]}, torch {made["torch"]}, CUDA {made["cuda"]}, mmdet {made["mmdet"]}, mmcv {made["mmcv"]}')
    MMLogger.get_current_instance().setLevel(logging.WARNING)  # else it tells how each tensor was initialised
    report, steps = Report(args.out, made, args.minutes), Steps(args.small)
    measures = {
        'agreement': numbers.agreement,
        'speed': steps.speed,
        'profile': steps.profile,
        'determinism': numbers.determinism,
        'search': functools.partial(search, args.small),
        'operators': numbers.operators,
    }
    for name in LIMITS:
        if name in args.only:
            report.run(name, LIMITS[name] * args.minutes / MINUTES, measures[name])
    say(tables(report.sections))
    found = list(problems(report.sections))
    say('\n' + '\n'.join(['Not as it should be:', *found] if found else ['Everything is as it should be.']))
    say(f'Written: {args.out}')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
