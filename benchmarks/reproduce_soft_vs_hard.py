"""Soft against hard constraints on CIFAR (arXiv 2204.10598): trains ResNet-18 with experts, tests it with k = 1 ... E.

    python benchmarks/reproduce_soft_vs_hard.py --data-root DIR [--datasets cifar10 cifar100] [--seeds 0 1 2]
    python benchmarks/reproduce_soft_vs_hard.py --data-root DIR --epochs 20 --limit-train 5000 --width 16   # reduced

What the record has is not trained again, unless its config has changed, and a run that was interrupted goes on from its
last checkpoint, so the command can be repeated, also with more settings or seeds. The record
(benchmarks/records/soft_vs_hard.json) and the page (docs/results/soft_vs_hard.md) hold whatever is finished, the full
schedule and each reduced one apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path

from common import ROOT
from common.options import add_data_sets, add_files, add_runs, command_of, parser_of
from common.record import Runs, origin
from common.runs import as_options, call, fingerprint, finished, metrics_of, run_tool, threads_of
from soft_hard.page import DATA_SETS, FULL, GATES, NAMES, page

CONFIGS = {name: f'moe_{name}' for name in ('importance', 'relative', 'mean')} | {'kl': 'moe_soft', 'dense': 'dense'}
TRAINED_K = 2
DROPS = {'dense': (60, 100)}  # of 150 epochs
DROPS_MOE = (80, 120)


def config_of(dataset: str, setting: str) -> Path:
    """The config of a setting."""
    return ROOT / 'configs' / 'classification' / f'resnet18_{CONFIGS[setting]}_{dataset}.py'


def scale_of(args: argparse.Namespace) -> dict:
    """How much is trained and tested; the full schedule is :data:`FULL`."""
    return {key: getattr(args, key) for key in FULL}


def scale_key(scale: dict) -> str:
    """Name of a scale, for folders."""
    if scale == FULL:
        return 'full'
    parts = [f'{scale["epochs"]}epochs']
    parts += [f'{name}{scale[key]}' for name, key in (('train', 'limit_train'), ('test', 'limit_test')) if scale[key]]
    return '_'.join([*parts, f'width{scale["width"]}'])


def options_of(setting: str, args: argparse.Namespace) -> dict[str, object]:
    """Changes of the setting's config: number of experts, and the scale."""
    drops = DROPS.get(setting, DROPS_MOE)
    options: dict[str, object] = {
        'default_hooks.checkpoint.interval': min(10, args.epochs),
        'default_hooks.checkpoint.max_keep_ckpts': 1,
    }
    if setting != 'dense':
        options |= {'model.backbone.moe.num_experts': args.num_experts, 'model.backbone.moe.stages': f'[{args.stage}]'}
        options['model.backbone.moe.residual'] = args.residual
    if args.epochs != FULL['epochs']:
        milestones = ','.join(str(round(epoch * args.epochs / FULL['epochs'])) for epoch in drops)
        options |= {
            'train_cfg.max_epochs': args.epochs,
            'train_cfg.val_interval': args.epochs,
            'param_scheduler.0.end': args.epochs,
            'param_scheduler.0.milestones': f'[{milestones}]',
        }
    if args.width != FULL['width']:
        options['model.backbone.base_channels'] = args.width
    if args.limit_train is not None:
        options['train_dataloader.dataset.subset'] = args.limit_train
    if args.limit_test is not None:
        options |= {f'{split}_dataloader.dataset.subset': args.limit_test for split in ('val', 'test')}
    return options


def fingerprint_of(found: dict) -> str:
    """Digest of the config that a recorded run would be trained with today."""
    layer = {key: found[key] for key in ('num_experts', 'stage', 'residual')}
    options = options_of(found['setting'], argparse.Namespace(**found['scale'], **layer))
    return fingerprint(config_of(found['dataset'], found['setting']), options)


def error_of(metrics: dict) -> float:
    """The test error among the metrics of an evaluation."""
    (error,) = (value for key, value in metrics.items() if key.rpartition('/')[2] == 'error')
    return error


def tested(
    setting: str, config: Path, checkpoint: Path, options: dict, data: list, threads: int | None
) -> tuple[dict[str, float], dict[str, float] | None]:
    """Test error by number of active experts, and ``I_EY``, ``H_s`` and ``H_u`` with the number trained with.

    The error of a network without experts stands under 0, and it has no gates.
    """
    if setting == 'dense':
        return {'0': error_of(metrics_of(config, checkpoint, checkpoint.parent, data, options, threads))}, None
    sweep = checkpoint.with_name('sweep.json')
    arguments = [checkpoint, '--json', sweep, *data]
    run_tool('analysis_tools/sweep_top_k.py', config, arguments, options, sweep.with_suffix('.log'), threads)
    return of_sweep(sweep)


def of_sweep(sweep: Path) -> tuple[dict[str, float], dict[str, float]]:
    """See :func:`tested`."""
    by_k = {found['top_k']: found['metrics'] for found in json.loads(sweep.read_text(encoding='utf-8'))['results']}
    errors = {str(k): error_of(metrics) for k, metrics in by_k.items()}
    return errors, {name: by_k[TRAINED_K][name] for name in GATES}


def run(dataset: str, setting: str, seed: int, args: argparse.Namespace) -> dict:
    """Trains and tests one run, from its last checkpoint on; returns what the record keeps of it."""
    name = setting if setting == 'dense' else f'{setting}_e{args.num_experts}_stage{args.stage}'
    name += '_residual' if args.residual and setting != 'dense' else ''
    work_dir = args.work_dir / scale_key(scale_of(args)) / dataset / name / f'seed_{seed}'
    print(f'{dataset}, {name}, seed {seed}: training ({scale_key(scale_of(args))})', flush=True)
    config = config_of(dataset, setting)
    options, threads = options_of(setting, args), threads_of(args.jobs)
    data = ['--data-root', args.data_root] if args.data_root is not None else []
    command = [sys.executable, 'tools/train.py', config, '--work-dir', work_dir, '--seed', seed, '--resume', *data]
    seconds = call([*command, *as_options(options)], work_dir / 'train.log', threads)
    error, gates = tested(setting, config, work_dir / f'epoch_{args.epochs}.pth', options, data, threads)
    found = begun(dataset, setting, seed, args)
    return found | {
        'fingerprint': fingerprint_of(found),
        'error': error,
        'gates': gates,
        'train_seconds': seconds,  # of the last piece, where training was interrupted
        **origin(args.command),
    }


def begun(dataset: str, setting: str, seed: int, args: argparse.Namespace) -> dict:
    """What is known of a run before it is trained."""
    layer = {key: None if setting == 'dense' else getattr(args, key) for key in ('num_experts', 'stage', 'residual')}
    return {'dataset': dataset, 'setting': setting, **layer, 'seed': seed, 'scale': scale_of(args)}


def name_of(found: dict) -> str:
    """A recorded run, for the user."""
    return f'{found["dataset"]}, {found["setting"]}, seed {found["seed"]}, {scale_key(found["scale"])}'


def identity(found: dict) -> tuple:
    """What tells a run from the others, as words: a dense network has no number of experts."""
    keys = ('dataset', 'setting', 'num_experts', 'stage', 'residual', 'seed')
    return (scale_key(found['scale']), *(str(found[key]) for key in keys))


def grouped(runs: list[dict]) -> dict[str, dict]:
    """Runs as the page takes them: by scale, then by data set and layer; the dense network beside each layer."""
    groups: dict[str, dict] = {}
    for found in sorted(runs, key=identity):
        key = scale_key(found['scale'])
        group = groups.setdefault(
            key, {'full': found['scale'] == FULL, 'scale': found['scale'], 'data': {}, 'runs': []}
        )
        group['runs'].append(found)
    for group in groups.values():
        for dataset in dict.fromkeys(found['dataset'] for found in group['runs']):
            of_data = [found for found in group['runs'] if found['dataset'] == dataset]
            layers = dict.fromkeys(layer_of(found) for found in of_data if found['setting'] != 'dense')
            group['data'][dataset] = {
                layer: [found for found in of_data if found['setting'] == 'dense' or layer_of(found) == layer]
                for layer in layers or {(10, 4, False): None}
            }
    return groups


def layer_of(found: dict) -> tuple[int, int, bool]:
    """Number of experts, stage and variant of a run."""
    return found['num_experts'], found['stage'], found['residual']


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of(__doc__)
    add_data_sets(parser)
    parser.add_argument('--datasets', nargs='+', choices=list(DATA_SETS), default=['cifar10'])
    parser.add_argument('--settings', nargs='+', choices=list(NAMES), default=list(NAMES))
    add_runs(parser, 'soft_vs_hard')
    parser.add_argument('--num-experts', type=int, default=10, help='E (default: %(default)s, as the published sweep)')
    parser.add_argument('--stage', type=int, choices=(1, 2, 3, 4), default=4, help='default: %(default)s')
    parser.add_argument('--residual', action='store_true', help='outer skip around the experts')
    reduced = parser.add_argument_group('reduced runs, which are labelled as such')
    reduced.add_argument('--epochs', type=int, default=FULL['epochs'], help='schedule in proportion')
    reduced.add_argument('--limit-train', type=int, metavar='N', help='train on N images')
    reduced.add_argument('--limit-test', type=int, metavar='N', help='test on N images')
    reduced.add_argument('--width', type=int, default=FULL['width'], help='base channels (default: %(default)s)')
    add_files(parser, 'soft_vs_hard')
    args = parser.parse_args(argv)
    keys = ('datasets', 'settings', 'seeds', 'num_experts', 'stage', 'residual', 'jobs', *FULL)
    args.command = command_of('reproduce_soft_vs_hard.py', args, parser, keys)
    return args


def main(argv: list[str] | None = None) -> None:
    """Works through the settings, seed by seed, and writes record and page after each run."""
    args = parse_args(argv)
    runs = Runs(
        args,
        identity,
        name_of,
        lambda found: found.get('fingerprint') == fingerprint_of(found),
        lambda found: page(grouped(found)),
    )
    runs.add()
    # whole rows late, but every setting early
    tasks = [
        (dataset, seed, setting)
        for dataset, seed, setting in product(args.datasets, args.seeds, args.settings)
        if identity(begun(dataset, setting, seed, args)) not in runs.known
    ]

    def trained(dataset: str, seed: int, setting: str) -> dict:
        return run(dataset, setting, seed, args)

    for (dataset, seed, setting), found in finished(trained, tasks, args.jobs):
        runs.add(found)
        errors = ', '.join(f'k={k}: {100 * (1 - error):.2f}' for k, error in found['error'].items())
        print(f'{dataset}, {setting}, seed {seed}: accuracy {errors}', flush=True)


if __name__ == '__main__':
    main()
