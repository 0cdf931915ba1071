"""What a trained row withstands: attacks on its pixels, and common corruptions of its images."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from statistics import fmean

from common import runs
from pay.runs import changes_of
from pay.settings import Table

EPS = 4  # of 255
SEVERITY = 3
ATTACKS = ('fgsm', 'pgd-10')
CORRUPTED = 'corruptions'
UNDER = (*ATTACKS, CORRUPTED)
CLEAN = 'clean'


def withstood(table: Table, name: str, seed: int, checkpoint: Path, args: Namespace) -> dict[str, dict]:
    """``withstands`` of a run; empty where it is not asked for.

    Args:
        table: with the row.
        name: of the row.
        seed: of the run.
        checkpoint: of the run.
        args: with ``attacked``, the number of validation images; 0 attacks nothing.
    """
    if not args.attacked:
        return {}
    found = checkpoint.with_name(f'attack_{args.attacked}.json')
    if not found.is_file():
        print(f'{name}, seed {seed}: attacks', flush=True)
        config, options = changes_of(table, name)
        asked = f'--attacks {" ".join(ATTACKS)} --eps {EPS} --severities {SEVERITY} --rows own --limit {args.attacked}'
        arguments = [checkpoint, '--out', found, *asked.split(), '--data-root', args.data_root]
        log = found.with_suffix('.log')
        runs.run_tool('analysis_tools/robustness.py', config, arguments, options, log, args.threads)
    return {'withstands': summary(json.loads(found.read_text(encoding='utf-8')))}


def summary(found: dict) -> dict:
    """What the record keeps of an attack's JSON that has one row.

    Returns:
        ``images``, ``masking`` (signs of gradient masking), and for ``'clean'`` and each of ``UNDER`` ``AP``; for the
        latter also ``drop``, the share of AP lost, and ``agreement``, the share of decisions that stay, mean over
        layers (None without experts). Corruptions are the mean over all kinds.
    """
    (row,) = found['rows']
    kept = {'images': found['images'], 'masking': found['masking'][row], CLEAN: {'AP': found['clean'][row]['ap']['AP']}}
    for entry in found['attacks']:
        kept[entry['attack']] = _mean([entry])
    kept[CORRUPTED] = _mean(found['corruptions'])
    return kept


def _mean(entries: list[dict]) -> dict[str, float | None]:
    precisions = [entry['ap']['AP'] for entry in entries]
    drops = [entry['drop'] for entry in entries]
    shares = [share for entry in entries for share in entry['agreement'].values()]
    return {
        'AP': None if None in precisions else fmean(precisions),
        'drop': None if None in drops else fmean(drops),
        'agreement': fmean(shares) if shares else None,
    }
