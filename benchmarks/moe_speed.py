"""What mixtures of experts cost in time and memory: against plain RetinaNet, against the arithmetic, against others.

    python benchmarks/moe_speed.py              # everything on this machine's CPU, an hour or more
    python benchmarks/moe_speed.py --device cuda
    python benchmarks/moe_speed.py --quick      # two minutes, few rounds; nothing is written unless --out says where

Runs that are compared take turns in one process, and every ratio is taken within a round. Each measurement goes into
benchmarks/records/moe_speed_<device>.json as soon as it is done, and docs/performance.md is filled from it.
docs/performance.md says how to read it.
"""

from __future__ import annotations

import argparse
import sys

from common.options import at_least, json_file, parser_of

SECTIONS = ('whole', 'separate', 'profile', 'layer', 'patterns', 'tokens', 'memory', 'optimizer')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of(__doc__)
    parser.add_argument('--quick', action='store_true', help='few rounds, small sizes')
    parser.add_argument('--only', nargs='+', choices=SECTIONS, default=SECTIONS, help='sections (default: all)')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--precision', nargs='+', choices=('fp32', 'tf32', 'bf16'), help='default: fp32, or tf32 bf16')
    parser.add_argument('--batch', nargs='+', type=at_least(1), metavar='B', help='batch sizes of the whole detector')
    parser.add_argument('--size', nargs=2, type=at_least(64), metavar=('H', 'W'), help='of images, whole detector')
    parser.add_argument('--experts', nargs='+', type=at_least(2), metavar='E', help='experts of the layer alone')
    parser.add_argument('--rounds', type=at_least(1), metavar='N', help='rounds of every comparison')
    parser.add_argument('--threads', type=at_least(1), metavar='N', help="CPU threads (default: this process's cores)")
    parser.add_argument('--resume', action='store_true', help='keep what the record has with the same settings')
    parser.add_argument('--force', action='store_true', help='measure on a busy machine; the record says so')
    parser.add_argument('--out', type=json_file, metavar='JSON', help='record to write (default with --quick: none)')
    parser.add_argument('--page', action='store_true', help='measure nothing, write page and plots from the records')
    args = parser.parse_args(argv)
    if args.device == 'cpu' and 'tf32' in (args.precision or ()):
        parser.error('--precision tf32: a CPU has no TF32; expected fp32 or bf16')
    return args


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 on a busy machine, 2 after an error of the user's."""
    args = parse_args(argv)
    from moe_det.running.user_errors import run_main

    return run_main(lambda: measure(args, sys.argv[1:] if argv is None else argv))


def measure(args: argparse.Namespace, argv: list[str]) -> int:
    """Measures what the command line asks for and writes the record, the page and the plots."""
    import torch
    from speed import page, record
    from speed.measurement import Plan, quick_or_full
    from speed.sections import Measurement

    from moe_det.common.console import say, warn
    from moe_det.common.software import cores
    from moe_det.errors import MoEConfigError

    if args.page:
        for path in page.write():
            say(f'written: {path}')
        return 0
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise MoEConfigError('--device cuda: PyTorch sees no CUDA device here')
    busy = record.why_busy()
    if busy is not None and not args.force:
        warn(f'{busy}: times would mean little. Wait, or add --force, and the record will say so')
        return 1
    torch.set_num_threads(args.threads or cores())
    default = record.record_path(args.device)
    out = args.out or (None if args.quick else default)
    values = quick_or_full(args.device, args.quick)
    given = {'precisions': args.precision, 'batches': args.batch, 'size': args.size, 'experts': args.experts}
    given.update(rounds=args.rounds, detector_rounds=args.rounds)
    values.update({key: tuple(v) if isinstance(v, list) else v for key, v in given.items() if v is not None})
    if args.batch or args.size:
        values['larger'] = ()
    plan = Plan(device=args.device, **values)
    command = ' '.join(['python', 'benchmarks/moe_speed.py', *argv])
    kept = record.Record(out, args.resume)
    for section in args.only:
        made = record.made_on(args.device, command, busy)
        Measurement(plan, kept, made).run(section)
        if out == default:
            page.write()
    say(page.tables(kept.sections))
    return 0


if __name__ == '__main__':
    sys.exit(main())
