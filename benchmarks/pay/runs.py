"""Trains and measures one row of a table of continued detectors; what is done is kept and found again."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from common import runs
from common.page import MEASURES
from common.runs import RunError, cost_over, curve_of, fingerprint

from .settings import DATA, MORE_EPOCHS, MORE_RATE, START_EPOCHS, START_RATE, Table

if TYPE_CHECKING:
    from mmengine.config import Config

IMAGE = (128, 128)  # height and width that costs are counted for: the network's input


def changes_of(table: Table, name: str) -> tuple[Path, dict[str, object]]:
    """Config and changed keys of a start or a row."""
    is_start = name in table.starts
    of_training = runs.schedule(START_EPOCHS, 4, START_RATE) if is_start else runs.schedule(MORE_EPOCHS, 2, MORE_RATE)
    return table[name].config, {**table[name].options, **of_training}


def config_of(table: Table, name: str, more: Mapping[str, object] = {}) -> Config:
    """The config of a start or a row, with more changed keys."""
    from moe_det.running.launch import load_config

    config, options = changes_of(table, name)
    return load_config(config, {**options, **more})


@cache
def fingerprint_of(table: Table, name: str) -> str:
    """Digest of a row's config, of the detector that it starts from, of the images and of the way they are drawn."""
    from moe_det.datasets.shapes import FORMAT

    start = [] if name in table.starts else [fingerprint_of(table, table.rows[name].start)]
    return fingerprint(*changes_of(table, name), f'shapes {FORMAT}', DATA, *start)


def folder_of(table: Table, name: str, seed: int, args: Namespace) -> Path:
    """Where a run lies, as it is configured now; tables that share a row and the work folder share its runs."""
    return Path(args.work_dir) / runs.folder_of(name) / fingerprint_of(table, name) / f'seed_{seed}'


def checkpoint_of(table: Table, name: str, seed: int, args: Namespace) -> Path:
    """The checkpoint that a run ends with."""
    epochs = START_EPOCHS if name in table.starts else MORE_EPOCHS
    return folder_of(table, name, seed, args) / f'epoch_{epochs}.pth'


def train(table: Table, name: str, seed: int, args: Namespace) -> Path:
    """Trains one run, and what it starts from, unless they are finished; goes on with one that was interrupted.

    Returns:
        The run's checkpoint.
    """
    checkpoint = checkpoint_of(table, name, seed, args)
    config, options = changes_of(table, name)
    if name not in table.starts and not checkpoint.is_file():
        load_from = train(table, table.rows[name].start, seed, args).resolve()
        options = {**options, 'load_from': load_from, **clusters_of(table, name, seed, args)}
    return runs.train(name, config, seed, checkpoint, ['--data-root', args.data_root], options, args.threads)


def clusters_of(table: Table, name: str, seed: int, args: Namespace) -> dict[str, Path]:
    """The changed key that names the clusters of the training images by the features of the detector that a run starts
    from, which are made once; none where the run needs no clusters."""
    row = table[name]
    if name in table.starts or row.clusters is None:
        return {}
    checkpoint = checkpoint_of(table, row.start, seed, args).resolve()
    found = checkpoint.with_name('clusters.json')
    if not found.is_file():
        print(f'{row.start}, seed {seed}: clusters', flush=True)
        config, options = changes_of(table, row.start)
        arguments = [checkpoint, found, '--data-root', args.data_root]
        runs.run_tool('misc/cluster_images.py', config, arguments, options, found.with_suffix('.log'), args.threads)
    return {row.clusters: found}


def swap_of(table: Table, name: str, seed: int, checkpoint: Path, args: Namespace) -> dict[str, dict]:
    """What the size-specialisation tool says of a run's layers: swap test, verdict and use of the experts.

    Of rows with ``forced`` also the average precisions with each expert forced (with shards, each copy in its shard).
    """
    out_dir = checkpoint.parent / 'analysis'
    if not (out_dir / 'size_specialization.json').is_file():
        print(f'{name}, seed {seed}: swap test', flush=True)
    config, options = changes_of(table, name)
    arguments = ['--data-root', args.data_root, *([] if table.rows[name].forced else ['--no-forcing'])]
    content = runs.report(config, checkpoint, out_dir, arguments, options, args.threads)
    found = {}
    for layer in content['layers']:
        kept = {key: layer[key] for key in ('verdict', 'swap', 'relative_size', 'mi_given_level_bits')}
        used = layer['utilisation']
        if layer['forced']:
            kept['forced'] = [{key: one.get(key) for key in ('expert', *MEASURES)} for one in layer['forced']]
            kept['shards'] = layer['top_k']
        found[layer['name']] = {**kept, 'living': used['living'], 'gate_entropy_bits': used['row_entropy']}
    return {'whole': content['swap'], 'layers': found}


def measure(table: Table, name: str, seed: int, args: Namespace) -> dict:
    """Trains and measures one run."""
    checkpoint = train(table, name, seed, args)
    curve = curve_of(checkpoint)
    if not curve:
        raise RunError(f'{checkpoint.parent}: no average precision in the logs, as nothing was detected')
    run = {'seed': seed, **curve[max(curve, key=int)], 'curve': curve}
    if name in table.rows:
        if not table.rows[name].control and not args.no_swap:
            run['swap'] = swap_of(table, name, seed, checkpoint, args)
        for more in table.measured:
            run |= more(table, name, seed, checkpoint, args)
    return run


def cost_of(table: Table, name: str, more: Mapping[str, object] = {}) -> dict[str, float]:
    """Multiply-adds for one image, in head and model, over those of the dense start; parameters likewise.

    Args:
        table: with the row.
        name: of the row.
        more: changed keys, such as of :func:`clusters_of`, without whose file nothing can be routed.
    """
    return cost_over(config_of(table, name, more).model, config_of(table, 'dense').model, IMAGE)
