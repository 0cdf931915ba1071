"""Trains the detectors and the gates of one seed, and tests every row on all scenes."""

from __future__ import annotations

import json
from argparse import Namespace
from functools import cache
from pathlib import Path

from common import runs
from common.runs import OF_EPOCH, RunError, cost_over, fingerprint

from .settings import DATA, DENSE, GATE, GATE_EPOCHS, IMAGE, MIXTURE, ROWS

EXPERTS = ('far scenes alone', 'near scenes alone')  # in the order of the mixture's config


def changes_of(name: str) -> tuple[Path, dict[str, object]]:
    """Config and changed keys of a row."""
    row = ROWS[name]
    if not row.scenes:
        return MIXTURE, {**row.options, **row.in_test}
    return DENSE, runs.schedule(row.epochs)


@cache
def fingerprint_of(name: str) -> str:
    """Digest of a row's config, of the detectors that it is made of, and of the images."""
    from moe_det.datasets.shapes import FORMAT

    experts = [] if ROWS[name].scenes else [fingerprint_of(expert) for expert in EXPERTS]
    return fingerprint(*changes_of(name), f'shapes {FORMAT}', DATA, ROWS[name].scenes, *experts)


def measure(seed: int, args: Namespace) -> dict[str, dict]:
    """All rows of one seed: average precisions, and of the gate what the size report says."""
    found, checkpoints = {}, {}
    shared = ['--data-root', args.data_root / 'all']
    for name, row in ROWS.items():
        folder = args.work_dir / runs.folder_of(name) / fingerprint_of(name) / f'seed_{seed}'
        config, options = changes_of(name)
        if not row.scenes:
            options |= {f'model.detectors.{number}.checkpoint': checkpoints[one] for number, one in enumerate(EXPERTS)}
        if row.in_test:
            checkpoint = checkpoints[GATE]  # which holds the detectors
        else:
            arguments = ['--data-root', args.data_root / (row.scenes or 'all')]
            checkpoint = folder / f'epoch_{row.epochs if row.scenes else GATE_EPOCHS}.pth'
            runs.train(name, config, seed, checkpoint, arguments, options, args.threads)
        checkpoints[name] = checkpoint
        found[name] = tested(config, checkpoint, folder, shared, options, args.threads)
        if name == GATE:
            found[name] |= reported(config, checkpoint, folder / 'report', shared, options, args.threads)
    return found


def tested(
    config: Path, checkpoint: Path, folder: Path, arguments: list, options: dict, threads: int | None
) -> dict[str, float]:
    """Average precisions on all scenes; kept in the folder."""
    kept = folder / 'precision.json'
    if not kept.is_file():
        metrics = runs.metrics_of(config, checkpoint, folder, arguments, options, threads)
        if OF_EPOCH['AP'] not in {key.partition('/')[2] for key in metrics}:
            raise RunError(f'{folder}: no average precision in the test, as nothing was detected')
        kept.write_text(json.dumps({name: metrics[f'coco/{key}'] for name, key in OF_EPOCH.items()}), encoding='utf-8')
    return json.loads(kept.read_text(encoding='utf-8'))


def reported(
    config: Path, checkpoint: Path, out_dir: Path, arguments: list, options: dict, threads: int | None
) -> dict:
    """What the size report says of a gate: swap test, verdict and use of the detectors."""
    content = runs.report(config, checkpoint, out_dir, [*arguments, '--no-forcing'], options, threads)
    (layer,) = content['layers']
    return {
        'swap': content['swap'],
        'verdict': layer['verdict'],
        'importance_share': layer['utilisation']['importance_share'],
        'gate_entropy_bits': layer['utilisation']['row_entropy'],
    }


def about(name: str) -> dict[str, object]:
    """What a new row of the record says beside its runs."""
    return {'fingerprint': fingerprint_of(name), **cost_of(name)}


def cost_of(name: str) -> dict[str, float]:
    """Multiply-adds and parameters over those of one detector."""
    from moe_det.running.launch import load_config

    def model(row: str) -> dict:
        config, options = changes_of(row)
        return load_config(config, options).model

    return cost_over(model(name), model(EXPERTS[0]), IMAGE)
