"""Behind the command attack: what a detector and its experts withstand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from ..attacks.corruptions import check_corruptions, with_corruption
from ..attacks.masking import signs_of_masking
from ..attacks.plan import EXPERT, NOISE, TRANSFERRED, UNIVERSAL
from ..attacks.rows import Row
from ..common.checkpoints import check_checkpoint, file_sha256
from ..common.config_edit import is_remote
from ..common.console import check_result, say, write_result
from ..common.software import versions
from ..running.launch import Options
from ..running.trained_model import TestBatches
from .attack_bench import Bench, Questions, prepare, truth_of
from .attacked_images import Found, Maker, scenes_of, sources_of, trials_of, victims_of
from .withstanding_tables import withstanding_page

FORMAT = 1


def attack(
    config: str,
    checkpoint: str,
    questions: Questions,
    *,
    also: Sequence[Sequence[str]] = (),
    out: Sequence[str] = (),
    data_root: str | None = None,
    device: str | None = None,
    cfg_options: Options = None,
) -> dict:
    """Attacks checkpoints, prints the tables and writes them; the function behind ``robustness.py``.

    Args:
        config: config of the detector; its test pipeline makes the images of all.
        checkpoint: its weights.
        questions: what is asked.
        also: config and checkpoint of others that are shown the same images, such as the dense model.
        out: .json and .md files to write.
        data_root: folder that replaces the config's data folder.
        device: see :func:`.trained_model.analysis_device`.
        cfg_options: changes of the config.

    Returns:
        The record, as the .json file has it.

    Raises:
        MoEDetError: a config, a checkpoint or the data cannot be used, or nothing can answer a question.
    """
    if questions.corruptions:
        check_corruptions()
    for path in out:
        check_result('--out', path)
    bench = prepare(config, checkpoint, questions, also, data_root, device, cfg_options)
    worst = _look_at_clean_images(bench)
    maker = Maker(questions.seed, worst)
    fitted = _fit_universal(bench, questions, maker)
    found: dict[str, Any] = {
        'format': FORMAT,
        'config': str(config),
        'checkpoint': str(checkpoint),
        'sha256': None if is_remote(checkpoint) else file_sha256(check_checkpoint(checkpoint, 'checkpoint')),
        'also': [list(map(str, pair)) for pair in also],
        'questions': {**_plain(questions), 'attacks': [attack.name for attack in bench.attacks]},
        'images': len(bench.numbers),
        'universal': fitted,
        'worst_expert': None if worst is None else worst.expert,
        'versions': versions(),
        'rows': [row.name for row in bench.rows],
        'clean': bench.clean,
        'attacks': _attacked(bench, questions, maker),
        'corruptions': _corrupted(bench, questions),
    }
    found['masking'] = _masking(found)
    page = withstanding_page(found)
    for path in out:
        write_result('--out', path, found if path.endswith('.json') else page)
    say(page)
    return found


def _plain(questions: Questions) -> dict:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(questions).items()}


def _look_at_clean_images(bench: Bench) -> Row | None:
    """Fills ``clean`` and ``choices``; returns the row of the forced expert with the lowest AP, where it is needed."""
    found = {row.name: Found() for row in bench.rows}
    bench.choices = {row.name: [] for row in bench.rows}
    for scene in bench.scenes(words='clean images'):
        for row in bench.rows:
            bench.choices[row.name].append(found[row.name].add(row, scene.images, scene))
    bench.clean = {name: of_row.numbers(bench.ground_truth) for name, of_row in found.items()}
    if not any(attack.objective == EXPERT for attack in bench.attacks):
        return None
    forced = [row for row in bench.rows if row.expert is not None]
    return min(forced, key=lambda row: bench.clean[row.name]['ap']['AP'] or 0.0)


def _fit_universal(bench: Bench, questions: Questions, maker: Maker) -> dict | None:
    fitted = [attack for attack in bench.attacks if attack.name == UNIVERSAL]
    if not fitted:
        return None
    total = len(bench.batches)
    numbers = range(total - min(questions.universal_images, total), total)
    truth = truth_of(bench.cfg, bench.batches, numbers)
    pairs = [
        (trial, row)
        for trial in trials_of(fitted, questions.eps, questions.loss)
        for row in sources_of(trial, bench.rows)
    ]
    for trial, row in tqdm(pairs, desc='universal', unit='fit', disable=None):
        maker.fit(
            trial,
            row,
            lambda: scenes_of(bench.batches, numbers, truth, bench.device),
            questions.universal_passes,
        )
    return {'images': len(numbers), 'of_these_evaluated': len(set(numbers) & set(bench.numbers))}


def _attacked(bench: Bench, questions: Questions, maker: Maker) -> list[dict]:
    trials = trials_of(bench.attacks, questions.eps, questions.loss)
    keys = [
        (trial, source, victim)
        for trial in trials
        for source in sources_of(trial, bench.rows)
        for victim in victims_of(trial, source, bench.rows, questions.loss)
    ]
    if not keys:
        return []
    found = {(trial, source.name, victim.name): Found() for trial, source, victim in keys}
    rows = {row.name: row for row in bench.rows}
    for number, scene in enumerate(bench.scenes(words='attacked images')):
        made: dict[tuple, torch.Tensor] = {}
        for (trial, source, victim), of_key in found.items():
            if (trial, source) not in made:
                made = {(trial, source): maker(trial, rows[source], scene)}  # keys come source by source
            of_key.add(rows[victim], made[trial, source], scene, bench.choices[victim][number])
    return [
        {
            'attack': trial.attack.name,
            'eps': trial.eps,
            'loss': trial.part,
            'source': source,
            'victim': victim,
            **of_key.numbers(bench.ground_truth, bench.clean[victim]),
        }
        for (trial, source, victim), of_key in found.items()
    ]


def _corrupted(bench: Bench, questions: Questions) -> list[dict]:
    entries = []
    pipeline = bench.cfg.test_dataloader.dataset.get('pipeline') or []
    for name in questions.corruptions:
        for severity in questions.severities:
            cfg = copy.deepcopy(bench.cfg)
            cfg.test_dataloader.dataset.pipeline = with_corruption(pipeline, name, severity, questions.seed)
            found = {row.name: Found() for row in bench.rows}
            scenes = bench.scenes(TestBatches(cfg, None), f'{name} {severity}')
            for number, scene in enumerate(scenes):
                for row in bench.rows:
                    found[row.name].add(row, scene.images, scene, bench.choices[row.name][number])
            entries += [
                {
                    'corruption': name,
                    'severity': severity,
                    'row': row,
                    **of_row.numbers(bench.ground_truth, bench.clean[row]),
                }
                for row, of_row in found.items()
            ]
    return entries


def _masking(found: dict) -> dict[str, list[str]]:
    """Signs of gradient masking of each row, from the attacks on the first part of the loss."""
    part = found['questions']['loss'][0]
    counted = [e for e in found['attacks'] if e['loss'] in (None, part) and e['ap']['AP'] is not None]
    of_loss = [e for e in counted if e['loss'] == part or e['attack'] == NOISE]
    signs = {}
    for row in found['rows']:
        under = {(e['attack'], e['eps']): e['ap']['AP'] for e in of_loss if e['source'] == e['victim'] == row}
        foreign: dict[float, dict[str, float]] = {}
        for entry in of_loss:
            if entry['attack'] == TRANSFERRED and entry['victim'] == row != entry['source']:
                foreign.setdefault(entry['eps'], {})[entry['source']] = entry['ap']['AP']
        signs[row] = signs_of_masking(under, foreign)
    return signs
