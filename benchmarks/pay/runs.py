"""Trains and measures one row of benchmarks/experts_that_pay.py; what is done is kept and found again."""

from __future__ import annotations

import json
from argparse import Namespace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from common import runs
from common.page import MEASURES
from common.runs import cost_over, curve_of, fingerprint

from .settings import CONFIGS, DATA, FORCED, MORE_EPOCHS, MORE_RATE, ROWS, START_EPOCHS, START_RATE, STARTS

if TYPE_CHECKING:
    from mmengine.config import Config

IMAGE = (128, 128)  # height and width that costs are counted for: the network's input


def schedule(epochs: int, rate: float, tests: int) -> dict[str, object]:
    """The changed keys of a training of so many epochs at this peak learning rate, tested so many times."""
    return {
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': max(1, epochs // tests),
        'param_scheduler.1.end': epochs,
        'param_scheduler.1.eta_min': rate / 100,
        'optim_wrapper.optimizer.lr': rate,
        'default_hooks.checkpoint.max_keep_ckpts': 1,
    }


def changes_of(name: str) -> tuple[Path, dict[str, object]]:
    """Config and changed keys of a start or a row."""
    if name in STARTS:
        return CONFIGS['dense'], {**STARTS[name].options, **schedule(START_EPOCHS, START_RATE, 4)}
    row = ROWS[name]
    return CONFIGS[row.config], {**row.options, **schedule(MORE_EPOCHS, MORE_RATE, 2)}


def config_of(name: str) -> Config:
    """The config of a start or a row."""
    from moe_det.running.launch import load_config

    config, options = changes_of(name)
    return load_config(str(config), [f'{key}={value}' for key, value in options.items()])


@cache
def fingerprint_of(name: str) -> str:
    """Digest of a row's config, of the detector that it starts from, of the images and of the way they are drawn."""
    from moe_det.datasets.shapes import FORMAT

    start = [] if name in STARTS else [fingerprint_of(ROWS[name].start)]
    return fingerprint(*changes_of(name), f'shapes {FORMAT}', DATA, *start)


def folder_of(name: str, seed: int, args: Namespace) -> Path:
    """Where a run lies, as it is configured now."""
    return Path(args.work_dir) / name.replace(', ', '_').replace(' ', '-') / fingerprint_of(name) / f'seed_{seed}'


def checkpoint_of(name: str, seed: int, args: Namespace) -> Path:
    """The checkpoint that a run ends with."""
    epochs = START_EPOCHS if name in STARTS else MORE_EPOCHS
    return folder_of(name, seed, args) / f'epoch_{epochs}.pth'


def train(name: str, seed: int, args: Namespace) -> Path:
    """Trains one run, and what it starts from, unless they are finished; goes on with one that was interrupted.

    Returns:
        The run's checkpoint.
    """
    checkpoint = checkpoint_of(name, seed, args)
    config, options = changes_of(name)
    if name not in STARTS and not checkpoint.is_file():
        options = {**options, 'load_from': train(ROWS[name].start, seed, args).resolve()}
    return runs.train(name, config, seed, checkpoint, ['--data-root', args.data_root], options, args.threads)


def swap_of(name: str, seed: int, checkpoint: Path, args: Namespace) -> dict[str, dict]:
    """What the size-specialisation tool says of a run's layers: swap test, verdict and use of the experts.

    Of the row ``FORCED`` also the average precisions with each copy forced in its shard.
    """
    out_dir = checkpoint.parent / 'analysis'
    results = out_dir / 'size_specialization.json'
    if not results.is_file():
        print(f'{name}, seed {seed}: swap test', flush=True)
        config, options = changes_of(name)
        arguments = ['--data-root', args.data_root, *([] if name == FORCED else ['--no-forcing'])]
        runs.report(config, [checkpoint], out_dir, arguments, options, args.threads)
    found = {}
    content = json.loads(results.read_text(encoding='utf-8'))
    for layer in content['layers']:
        kept = {key: layer[key] for key in ('verdict', 'swap', 'relative_size', 'mi_given_level_bits')}
        used = layer['utilisation']
        if layer['forced']:
            kept['forced'] = [{key: one.get(key) for key in ('expert', *MEASURES)} for one in layer['forced']]
            kept['shards'] = layer['top_k']
        found[layer['name']] = {**kept, 'living': used['living'], 'gate_entropy_bits': used['row_entropy']}
    return {'whole': content['swap'], 'layers': found}


def measure(name: str, seed: int, args: Namespace) -> dict:
    """Trains and measures one run."""
    checkpoint = train(name, seed, args)
    curve = curve_of(checkpoint)
    run = {'seed': seed, **curve[max(curve, key=int)], 'curve': curve}
    if name in ROWS and not ROWS[name].control and not args.no_swap:
        run['swap'] = swap_of(name, seed, checkpoint, args)
    return run


@cache
def cost_of(name: str) -> dict[str, float]:
    """Multiply-adds for one image, in head and model, over those of the dense start; parameters likewise."""
    return cost_over(*(config_of(of).model for of in (name, 'dense')), IMAGE)
