"""Trains the detectors and the gates of one seed, and tests every row on all scenes."""

from __future__ import annotations

import json
from argparse import Namespace
from functools import cache
from pathlib import Path

from common import runs
from common.runs import OF_EPOCH, RunError, cost_over, fingerprint, run_tool

from .settings import DATA, DENSE, GATE, GATE_EPOCHS, IMAGE, MIXTURE, ROWS

EXPERTS = ('far scenes alone', 'near scenes alone')  # in the order of the mixture's config


def changes_of(name: str) -> tuple[Path, dict[str, object]]:
    """Config and changed keys of a row."""
    row = ROWS[name]
    if not row.scenes:
        return MIXTURE, {**row.options, **row.in_test}
    epochs = row.epochs
    return DENSE, {
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': epochs,
        'param_scheduler.1.end': epochs,
        'default_hooks.checkpoint.max_keep_ckpts': 1,
    }


@cache
def fingerprint_of(name: str) -> str:
    """Digest of a row's config, of the detectors that it is made of, and of the images."""
    from moe_det.datasets.shapes import FORMAT

    experts = [] if ROWS[name].scenes else [fingerprint_of(expert) for expert in EXPERTS]
    return fingerprint(*changes_of(name), f'shapes {FORMAT}', DATA, ROWS[name].scenes, *experts)


def measure(seed: int, args: Namespace) -> dict[str, dict]:
    """All rows of one seed: average precisions, and of the gate what the size report says."""
    found, checkpoints = {}, {}
    shared = ['--data-root', str(Path(args.data_root) / 'all')]
    for name, row in ROWS.items():
        folder = Path(args.work_dir) / name.replace(', ', '_').replace(' ', '-') / fingerprint_of(name) / f'seed_{seed}'
        config, options = changes_of(name)
        if not row.scenes:
            options |= {f'model.detectors.{number}.checkpoint': checkpoints[one] for number, one in enumerate(EXPERTS)}
        if row.in_test:
            checkpoint = checkpoints[GATE]  # which holds the detectors
        else:
            arguments = ['--data-root', str(Path(args.data_root) / (row.scenes or 'all'))]
            checkpoint = folder / f'epoch_{row.epochs if row.scenes else GATE_EPOCHS}.pth'
            runs.train(name, config, seed, checkpoint, arguments, options, args.threads)
        checkpoints[name] = checkpoint
        found[name] = tested(config, checkpoint, folder, shared, options, args.threads)
        if name == GATE:
            found[name] |= reported(config, checkpoint, folder / 'report', shared, options, args.threads)
    return found


def tested(
    config: Path, checkpoint: Path, folder: Path, arguments: list[str], options: dict, threads: int | None
) -> dict[str, float]:
    """Average precisions on all scenes; kept in the folder."""
    kept = folder / 'precision.json'
    if not kept.is_file():
        arguments = [str(checkpoint), '--work-dir', str(folder / 'test'), *arguments]
        run_tool('test.py', config, arguments, options, folder / 'test.log', threads)
        written = max((folder / 'test').glob('*/*.json'), key=lambda path: path.stat().st_mtime)
        metrics = json.loads(written.read_text(encoding='utf-8').splitlines()[-1])
        if OF_EPOCH['AP'] not in {key.partition('/')[2] for key in metrics}:
            raise RunError(f'{folder}: no average precision in the test, as nothing was detected')
        kept.write_text(json.dumps({name: metrics[f'coco/{key}'] for name, key in OF_EPOCH.items()}), encoding='utf-8')
    return json.loads(kept.read_text(encoding='utf-8'))


def reported(
    config: Path, checkpoint: Path, out_dir: Path, arguments: list[str], options: dict, threads: int | None
) -> dict:
    """What the size report says of a gate: swap test, verdict and use of the detectors."""
    content = runs.report(config, checkpoint, out_dir, [*arguments, '--no-forcing'], options, threads)
    (layer,) = content['layers']
    return {
        'swap': content['swap'] or layer['swap'],
        'verdict': layer['verdict'],
        'importance_share': layer['utilisation']['importance_share'],
        'gate_entropy_bits': layer['utilisation']['row_entropy'],
    }


def cost_of(name: str) -> dict[str, float]:
    """Multiply-adds and parameters over those of one detector."""
    from moe_det.running.launch import load_config

    def model(row: str) -> dict:
        config, options = changes_of(row)
        if 'model.test_top_k' in options:  # costs are those of a test
            options['model.top_k'] = options.pop('model.test_top_k')
        return load_config(str(config), [f'{key}={value}' for key, value in options.items()]).model

    return cost_over(model(name), model(EXPERTS[0]), IMAGE)
