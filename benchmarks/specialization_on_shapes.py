"""Which settings make experts specialise in object size, on the synthetic shapes: trains, analyses, writes a page.

    python benchmarks/specialization_on_shapes.py [--settings NAME ...] [--seeds 0 1 2] [--epochs N] [--jobs N]

Every run that is finished is kept, so the command can be repeated, also with more settings or seeds; the record
(benchmarks/records/specialization_on_shapes.json) and the page (docs/results/shapes.md) hold whatever is finished.
Runs of configs or images that have changed since then are left aside.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path

from common import RECORDS, RESULTS, ROOT
from common.options import add_runs, folder, parser_of
from common.record import origin, read, write
from common.runs import cost_over, curve_of, fingerprint, finished, make_shapes, run_tool, schedule, threads_of, train
from shapes.page import page

RECORD = RECORDS / 'specialization_on_shapes.json'
PAGE = RESULTS / 'shapes.md'
KINDS = ('dense', 'moe_soft', 'moe_hard', 'moe_similarity')
CONFIGS = {kind: ROOT / 'configs' / 'shapes' / f'retinanet_{kind}.py' for kind in KINDS}
HEAD = 'model.bbox_head.moe'
HALF = 0.5  # width of the experts where they are not matched to the dense branch's cost, which is more
FORMAT = 2  # of size_specialization.json, which the record draws on
IMAGE = (256, 256)  # height and width that costs are counted for: the network's input
KEPT = (  # of each layer, as size_specialization.json has it
    *('verdict', 'plain', 'mi_bits', 'mi_p_value', 'mi_cramers_v', 'mi_given_level_bits', 'ceiling_bits', 'p_value'),
    *('p_value_holm', 'cramers_v_given_level', 'level_mi_bits', 'swap', 'routes', 'counterfactual', 'n_objects'),
)
# written down before these runs were measured with swap test, random gates and relative size, after a trial of both on
# one checkpoint each of a setting with one decision per level and of one with one per image
EXPECTED = [
    "The paper's setting (`soft-level-all`) loses 2 to 3 points of AP under the swap, in the class branch and in the "
    'box branch.',
    'Settings with one decision per image lose 1.5 to 2 points.',
    'The box branch of both sorts by relative size with 0.03 to 0.1 bits, hardly more than random gates do.',
    "No setting reaches dense's AP.",
    'Hard and soft constraints cannot be told apart.',
]


def settings() -> dict[str, tuple[str, dict[str, object]]]:
    """Name -> kind of config and its changed keys.

    Dense; the grid of unit, balance and constraint; similarity; the two that cost what dense costs.
    """
    grid: dict[str, tuple[str, dict[str, object]]] = {}
    units = {'level': {}, 'image': {'unit': 'image'}, **{f'patch{n}': {'unit': 'patch', 'grid': n} for n in (2, 3)}}
    for kind in ('soft', 'hard'):
        for unit, keys in units.items():
            grid[f'{kind}-{unit}-all'] = f'moe_{kind}', keys
            if unit != 'image':  # one decision for all levels: nothing to balance inside levels
                grid[f'{kind}-{unit}-level'] = f'moe_{kind}', {**keys, 'balance_over': 'level'}
    for name, distance in (('similarity', 'features'), ('boxes', 'box_sizes')):
        for unit in ('level', 'patch3'):  # balanced inside levels by the config
            grid[f'{name}-{unit}-level'] = 'moe_similarity', {**units[unit], 'constraint.distance': distance}
    for name in ('soft-level-all', 'hard-image-all'):
        kind, keys = grid[name]
        grid[f'{name}-matched'] = kind, {**keys, 'width': 'matched'}

    def changed(keys: dict[str, object]) -> dict[str, object]:
        return {f'{HEAD}.{key}': value for key, value in {'width': HALF, **keys}.items()}

    return {'dense': ('dense', {}), **{name: (kind, changed(keys)) for name, (kind, keys) in grid.items()}}


@cache
def fingerprint_of(name: str, epochs: int) -> str:
    """Digest of a setting's config and of the way the images are drawn."""
    from moe_det.datasets.shapes import FORMAT

    kind, options = settings()[name]
    return fingerprint(CONFIGS[kind], {**options, **schedule(epochs)}, f'shapes {FORMAT}')


def folder_of(name: str, args: argparse.Namespace) -> Path:
    """Where the runs and the analysis of a setting lie, as it is configured now."""
    return args.work_dir / name / fingerprint_of(name, args.epochs)


def trained(name: str, seed: int, args: argparse.Namespace) -> Path:
    """Trains one run unless it is finished; returns its checkpoint."""
    kind, options = settings()[name]
    checkpoint = folder_of(name, args) / f'seed_{seed}' / f'epoch_{args.epochs}.pth'
    options = {**options, **schedule(args.epochs)}
    return train(name, CONFIGS[kind], seed, checkpoint, ['--data-root', args.data_root], options, args.threads)


def analyse(name: str, seeds: list[int], checkpoints: list[Path], args: argparse.Namespace) -> list[dict]:
    """Runs the size-specialisation tool on all seeds of a setting unless it is done; returns the results by seed.

    The folder is the same for any seeds, so that with more of them only the new checkpoints are probed.
    """
    kind, options = settings()[name]
    out_dir = folder_of(name, args) / 'analysis'
    if not analysed(out_dir, seeds):
        print(f'{name}: analysis of {len(checkpoints)} seeds', flush=True)
        arguments = [*checkpoints, '--out-dir', out_dir, '--no-figures', '--data-root', args.data_root, '--no-forcing']
        log = out_dir.with_name(f'{out_dir.name}.log')
        run_tool('analysis_tools/size_specialization.py', CONFIGS[kind], arguments, options, log, args.threads)
        (out_dir / 'seeds.json').write_text(json.dumps({'format': FORMAT, 'seeds': seeds}), encoding='utf-8')
    results = [out_dir if i == 0 else out_dir / f'seed_{i + 1}' for i in range(len(checkpoints))]
    return [json.loads((folder / 'size_specialization.json').read_text(encoding='utf-8')) for folder in results]


def analysed(out_dir: Path, seeds: list[int]) -> bool:
    """Whether a folder holds the analysis of these seeds in the present format."""
    done = out_dir / 'seeds.json'
    return done.is_file() and json.loads(done.read_text(encoding='utf-8')) == {'format': FORMAT, 'seeds': seeds}


def multiply_adds_over_dense(name: str) -> dict[str, float]:
    """Multiply-adds of a setting's detector for one image over those of the same detector without experts.

    Returns:
        ``head`` and ``model``.
    """
    from moe_det.common.dense_counterpart import dense_counterpart
    from moe_det.running.launch import load_config

    kind, options = settings()[name]
    model = load_config(CONFIGS[kind], options).model
    found = cost_over(model, dense_counterpart(model)[0], IMAGE)
    return {'head': found['head_over_dense'], 'model': found['multiply_adds_over_dense']}


def summarise(results: dict) -> dict:
    """What the record keeps of one analysis."""
    layers = {}
    for layer in results['layers']:
        gates, relative = layer['random_gates'], layer['relative_size']
        layers[layer['name']] = {
            **{key: layer[key] for key in KEPT},
            # intervals are in the report; the page judges by what the seeds say
            'relative_size': relative and {key: value for key, value in relative.items() if key != 'mi_ci'},
            # the place among random gates is kept, not the bits of each of them
            'random_gates': gates and {key: value for key, value in gates.items() if key != 'values'},
            'sorts': {unit: layer['units'][unit].get('sorts') for unit in ('detection', 'training')},
            'living': layer['utilisation']['living'],
        }
    return {'ap': results['ap']['natural'], 'swap': results['swap'], 'layers': layers}


def over_seeds(results: dict) -> dict | None:
    """What the record keeps of the verdict over several seeds; the runs themselves stand beside it."""
    return {'layers': results['seeds']['layers']} if results['seeds'] else None


def main() -> None:
    """Works through the settings, seed by seed, and writes the record after each."""
    parser = parser_of(__doc__)
    parser.add_argument('--settings', nargs='+', default=list(settings()), choices=list(settings()), metavar='NAME')
    add_runs(parser, 'specialization_on_shapes')
    parser.add_argument('--epochs', type=int, default=4)
    parser.add_argument('--data-root', type=folder, default='data/shapes')
    args = parser.parse_args()
    args.threads = threads_of(args.jobs)
    make_shapes(args.data_root, args.work_dir / 'shapes.log')
    record = read(RECORD, {'settings': {}})
    drop_outdated(record, args.epochs)
    recorded = dict(record['settings'])

    def measured(name: str) -> tuple[dict, dict | None]:
        return measure(name, recorded.get(name), args)

    for (name,), (setting, versions) in finished(measured, [(name,) for name in args.settings], args.jobs):
        record['settings'][name] = setting
        record['versions'] = versions or record.get('versions')
        keep(record)
        print(f'{name}: recorded in {RECORD.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}', flush=True)


def drop_outdated(record: dict, epochs: int) -> None:
    """Removes settings from the record that were trained or analysed in another way, and says so."""
    known = settings()
    for name, setting in list(record['settings'].items()):
        if name not in known or setting.get('fingerprint') != fingerprint_of(name, epochs):
            print(f'{name}: recorded with another config, not kept', flush=True)
            del record['settings'][name]
        elif name != 'dense' and setting.get('format') != FORMAT:
            print(f'{name}: analysed in another format, not kept', flush=True)
            del record['settings'][name]


def measure(name: str, old: dict | None, args: argparse.Namespace) -> tuple[dict, dict | None]:
    """Trains and analyses one setting, beside the seeds of its ``old`` record; returns its record and the versions."""
    kept = [run['seed'] for run in old['runs']] if old else []
    seeds = sorted({*args.seeds, *kept})
    checkpoints = [trained(name, seed, args) for seed in seeds]
    if name == 'dense':
        curves = [curve_of(checkpoint) for checkpoint in checkpoints]
        runs = [{'ap': curve[max(curve, key=int)], 'layers': {}} for curve in curves]
        across = versions = None
    else:
        found = analyse(name, seeds, checkpoints, args)
        runs, across = [summarise(results) for results in found], over_seeds(found[0])
        versions = found[0]['provenance']['versions']
    cost = {'head': 1.0, 'model': 1.0} if name == 'dense' else multiply_adds_over_dense(name)
    for seed, run in zip(seeds, runs, strict=True):
        run |= {'seed': seed, 'multiply_adds_over_dense': cost}
    digest = fingerprint_of(name, args.epochs)
    setting = {'fingerprint': digest, 'format': FORMAT, 'epochs': args.epochs, 'runs': runs, 'seeds': across}
    return setting, versions


def keep(record: dict) -> None:
    """Writes the record and the page."""
    versions = record['versions']  # those of the analysis
    record |= origin('python benchmarks/specialization_on_shapes.py') | {'versions': versions, 'expected': EXPECTED}
    write(RECORD, record)
    write(PAGE, page(record, list(settings())))


if __name__ == '__main__':
    main()
