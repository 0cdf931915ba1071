"""Photographs: a detector with a pretrained backbone, fine-tuned with and without experts.

    python benchmarks/real_images.py --data-root DIR [--data-root DIR ...] --weights FILE
        [--backbone nanodet|mobilenetv2|efficientnet-lite|resnet18] [--settings NAME ...] [--seeds 0 1 2]
        [--epochs N] [--jobs N]
    python benchmarks/real_images.py --data-root COCO --weights nanodet.json --check-port

A folder in COCO layout brings its classes with it. A dense detector is trained for every folder and seed; each setting
goes on from it for a third of its epochs. Finished runs are kept and an interrupted one goes on, so the command can be
repeated, also with more folders, settings or seeds. The record (benchmarks/records/real_images.json) and the page
(docs/results/real_images.md) hold whatever is finished; with --record README stays as it is. Errors are one message;
MOE_DET_TRACEBACK=1 in the environment shows where they come from.
"""

from __future__ import annotations

import argparse
import sys

from common.options import add_files, add_runs, add_threads, at_least, parser_of
from common.record import origin, publish, put_run, read, up_to_date
from common.runs import finished, threads_of
from real.settings import EXPECTED, MORE_RATE, SETTINGS, SIZE, START, START_EPOCHS, START_RATE

FORMAT = 1
BACKBONES = ('nanodet', 'mobilenetv2', 'efficientnet-lite', 'resnet18')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before."""
    parser = parser_of(__doc__)
    parser.add_argument(
        '--data-root', action='append', required=True, metavar='DIR', help='folder in COCO layout; may be repeated'
    )
    parser.add_argument(
        '--weights', metavar='FILE', help='of the backbone; without it resnet18 takes those of torchvision://'
    )
    parser.add_argument('--backbone', choices=BACKBONES, default=BACKBONES[0])
    parser.add_argument('--settings', nargs='+', default=list(SETTINGS), choices=list(SETTINGS), metavar='NAME')
    epochs = 'of the dense detector; all others take a third (%(default)s)'
    parser.add_argument('--epochs', type=at_least(1), default=START_EPOCHS, help=epochs)
    add_runs(parser, 'real_images')
    add_threads(parser)
    parser.add_argument('--no-report', action='store_true', help='leave the size report of the experts out')
    parser.add_argument(
        '--check-port', action='store_true', help="only test the whole NanoDet-g on a folder with COCO's categories"
    )
    add_files(parser, 'real_images')
    args = parser.parse_args(argv)
    if args.check_port and (args.backbone != 'nanodet' or args.weights is None or len(args.data_root) > 1):
        parser.error('--check-port: expected --backbone nanodet, its --weights, and one --data-root')
    return args


def run(args: argparse.Namespace) -> None:
    """Works through folders, settings and seeds and writes the record after each run."""
    from real import page  # noqa: F401
    from real.backbones import pretrained
    from real.folder import read_folder
    from real.runs import Plan, measure

    from moe_det.errors import MoEConfigError

    folders = [read_folder(path) for path in args.data_root]
    names = [folder.name for folder in folders]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise MoEConfigError(f'--data-root: two folders are named {twice!r}, and the record tells them by name')
    record = read(args.record, {'rows': []})
    if args.check_port:
        from real.port_check import check_port

        record['port_check'] = check_port(args.weights, folders[0])
        keep(record, args)
        print(f'NanoDet-g on {folders[0].name}: AP {100 * record["port_check"]["AP"]:.1f}')
        return
    weights = pretrained(args.backbone, args.weights, args.work_dir)
    threads = threads_of(args.jobs, args.threads)
    common = (args.backbone, weights, args.epochs, args.work_dir, threads, not args.no_report)
    plans = [Plan(folder, *common) for folder in folders]
    drop_outdated(record, plans)
    # starts first: what goes on from them would else train the same one twice
    for wanted in ([name for name in args.settings if name == START], [s for s in args.settings if s != START]):
        tasks = [(setting, seed, plan) for plan in plans for seed in args.seeds for setting in wanted]
        for (setting, seed, plan), found in finished(measure, tasks, args.jobs):
            add(record, setting, plan, found)
            keep(record, args)
            print(f'{plan.folder.name}, {setting}, seed {seed}: AP {100 * (found["AP"] or 0):.1f}', flush=True)


def drop_outdated(record: dict, plans: list) -> None:
    """Removes rows of these folders and this backbone that were trained in another way, and says so."""
    of_place = {(plan.folder.name, plan.backbone): plan for plan in plans}

    def as_today(row: dict) -> bool:
        plan = of_place.get((row['data'], row['backbone']))
        known = row['setting'] in SETTINGS
        return known and (plan is None or plan.fingerprint_of(row['setting']) == row['fingerprint'])

    name_of = '{data}, {setting}'.format_map
    record['rows'] = up_to_date(record['rows'], name_of, as_today, 'recorded with other settings')


def add(record: dict, setting: str, plan, found: dict) -> None:
    """Puts a run into the record, in place of one of the same row and seed, whose report stays if it has none."""
    from real.backbones import BACKBONES as KNOWN
    from real.runs import cost_of

    folder = plan.folder

    def about_row() -> dict:
        about = {'control': SETTINGS[setting].control, 'fingerprint': plan.fingerprint_of(setting)}
        cost = cost_of(setting, plan.backbone, len(folder.classes))
        return {**about, 'epochs': plan.epochs_of(setting), **cost}

    key = {'data': folder.name, 'backbone': plan.backbone, 'setting': setting}
    put_run(record['rows'], key, found, about_row)
    order = list(SETTINGS)
    record['rows'].sort(key=lambda one: (one['data'], one['backbone'], order.index(one['setting'])))
    about = {'images': list(folder.images), 'classes': list(folder.classes), 'source': folder.source}
    record.setdefault('data', {})[folder.name] = about
    record.setdefault('weights', {})[plan.backbone] = {'file': plan.weights.file, 'source': KNOWN[plan.backbone].source}


def keep(record: dict, args: argparse.Namespace) -> None:
    """Writes the record and the page."""
    from real.page import NAME, page, results  # imported by run() before hours of training

    record |= {
        'format': FORMAT,
        **origin('python benchmarks/real_images.py'),
        'size': SIZE,
        'learning_rates': {'start': START_RATE, 'more': MORE_RATE},
        'expected': EXPECTED,
    }
    publish(args, record, page(record), NAME, results(record))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    args = parse_args(argv)
    from moe_det.running.user_errors import run_main

    return run_main(lambda: run(args))


if __name__ == '__main__':
    sys.exit(main())
