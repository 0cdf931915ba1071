"""What a trained row withstands: attacks on its pixels, and common corruptions of its images."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from statistics import fmean

from common import runs
from pay.runs import changes_of, checkpoint_of
from pay.settings import Table

from moe_det.attacks.plan import FGSM, NOISE, PGD, PGD_LONG

EPS = 4  # of 255
SEVERITY = 3
ATTACKS = (FGSM, PGD)
CORRUPTED = 'corruptions'
UNDER = (*ATTACKS, CORRUPTED)
CLEAN = 'clean'
CLOSER = (NOISE, PGD, PGD_LONG)


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
    asked = ['--attacks', *ATTACKS, '--severities', SEVERITY]
    found = _attacked(table, name, f'seed {seed}: attacks', checkpoint, 'attack', asked, args)
    return {'withstands': summary(found)}


def looked_at_closer(table: Table, name: str, seed: int, checkpoint: Path, args: Namespace) -> dict[str, dict]:
    """``closer`` of a run whose row is named in ``args.closer``: more steps, and images made for the row's control and
    the other way round; empty for other rows, and where nothing is attacked.

    Args:
        table: with the row and its control.
        name: of the row.
        seed: of the run.
        checkpoint: of the run; that of its control is there.
        args: with ``attacked`` and ``closer``.
    """
    control = table[name].against
    if not args.attacked or name not in args.closer or control is None:
        return {}
    also = ['--also', table[control].config, checkpoint_of(table, control, seed, args)]
    asked = [*also, '--attacks', *CLOSER, '--corruptions', 'none']
    found = _attacked(table, name, f'seed {seed}: a closer look', checkpoint, 'closer', asked, args)
    return {'closer': closer_summary(found)}


def _attacked(
    table: Table, name: str, what: str, checkpoint: Path, file: str, asked: list[object], args: Namespace
) -> dict:
    """The attack's JSON, which is made once and lies beside the checkpoint."""
    found = checkpoint.with_name(f'{file}_{args.attacked}.json')
    if not found.is_file():
        print(f'{name}, {what}', flush=True)
        config, options = changes_of(table, name)
        common = ['--eps', EPS, '--rows', 'own', '--limit', args.attacked, '--data-root', args.data_root]
        arguments = [checkpoint, '--out', found, *asked, *common]
        log = found.with_suffix('.log')
        runs.run_tool('analysis_tools/robustness.py', config, arguments, options, log, args.threads)
    return json.loads(found.read_text(encoding='utf-8'))


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


def closer_summary(found: dict) -> dict:
    """What the record keeps of an attack's JSON whose two rows are a mixture and its control.

    Returns:
        ``images``, ``masking`` of the mixture, and for ``'clean'`` and each of ``CLOSER`` the AP of ``own`` and of the
        ``control``, each on images made for itself; for the attack that is shown to others also the mixture's AP on
        images ``from_control``, and the control's ``on_control`` of those made for the mixture.
    """
    own, control = found['rows']
    kept = {'images': found['images'], 'masking': found['masking'][own]}
    kept[CLEAN] = {'own': found['clean'][own]['ap']['AP'], 'control': found['clean'][control]['ap']['AP']}
    keys = {(own, own): 'own', (control, control): 'control', (control, own): 'from_control'}
    keys[own, control] = 'on_control'
    for entry in found['attacks']:
        kept.setdefault(entry['attack'], {})[keys[entry['source'], entry['victim']]] = entry['ap']['AP']
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
