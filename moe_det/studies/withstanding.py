"""Behind the command attack: what a detector and its experts withstand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from tqdm import tqdm

from ..analysis.ground_truth import GroundTruth
from ..attacks.corruptions import check_corruptions, with_corruption
from ..attacks.masking import signs_of_masking
from ..attacks.plan import ATTACKS, CORRUPTIONS, EXPERT, NOISE, PARTS, SEVERITIES, TRANSFERRED, UNIVERSAL
from ..attacks.rows import ALL, FORCED, OWN, Row, rows_of_detector
from ..common.checkpoints import check_checkpoint, file_sha256
from ..common.config_edit import is_remote
from ..common.console import say, write_result
from ..common.software import versions
from ..dataset_check.before_run import check_data
from ..dataset_check.dataset_paths import annotation_file
from ..errors import MoEConfigError
from ..running.launch import Options, load_config
from ..running.trained_model import TestBatches, analysis_device, load_trained_model, test_batches
from .attacked_images import Found, Maker, scenes_of, sources_of, trials_of, victims_of
from .withstanding_tables import withstanding_page

FORMAT = 1


@dataclass(frozen=True)
class Questions:
    """What is asked.

    Attributes:
        attacks: names of attacks; None takes all that the rows allow.
        eps: largest changes of a pixel, of 255.
        loss: parts of the detection loss to attack; the transfer matrix takes the first.
        rows: kinds of rows of the first checkpoint.
        corruptions: names of corruptions; none where it is empty.
        severities: of corruptions.
        limit: the first images of the test set; None takes all.
        universal_images: number of images that universal perturbations are fitted to, from the end of the test set.
        universal_passes: passes over these.
        seed: of everything random.
    """

    attacks: Sequence[str] | None = None
    eps: Sequence[float] = (2.0, 4.0, 8.0)
    loss: Sequence[str] = PARTS[:1]
    rows: Sequence[str] = (OWN, FORCED, ALL)
    corruptions: Sequence[str] = CORRUPTIONS
    severities: Sequence[int] = SEVERITIES
    limit: int | None = None
    universal_images: int = 64
    universal_passes: int = 5
    seed: int = 0


@dataclass
class Bench:
    """The rows, the images and what was found on them without any change.

    Attributes:
        cfg: of the first checkpoint.
        rows: of all checkpoints.
        batches: the test set, one image each.
        numbers: positions of the images that are looked at.
        ground_truth: of these.
        device: where the detectors are.
        clean: numbers of each row on clean images, by its name.
        choices: of its gates on each, by name of the row, image by image.
    """

    cfg: Config
    rows: list[Row]
    batches: TestBatches
    numbers: range
    ground_truth: GroundTruth
    device: torch.device
    clean: dict[str, dict] = field(default_factory=dict)
    choices: dict[str, list[dict]] = field(default_factory=dict)

    def scenes(self, batches: TestBatches | None = None, words: str = 'images'):
        """The images, or what another pipeline makes of them."""
        scenes = scenes_of(batches or self.batches, self.numbers, self.ground_truth, self.device)
        return tqdm(scenes, desc=words, total=len(self.numbers), unit='img', disable=None)


def attack(
    config: str,
    checkpoint: str,
    questions: Questions = Questions(),
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
    bench = _bench(config, checkpoint, questions, also, data_root, device, cfg_options)
    questions = replace(questions, attacks=_attacks_on(bench.rows, questions.attacks))
    worst = _look_at_clean_images(bench, questions)
    maker = Maker(questions.seed, worst)
    fitted = _fit_universal(bench, questions, maker)
    found: dict[str, Any] = {
        'format': FORMAT,
        'config': str(config),
        'checkpoint': str(checkpoint),
        'sha256': None if is_remote(checkpoint) else file_sha256(check_checkpoint(checkpoint, 'checkpoint')),
        'also': [list(map(str, pair)) for pair in also],
        'questions': {key: list(v) if isinstance(v, tuple) else v for key, v in vars(questions).items()},
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


def _bench(config, checkpoint, questions: Questions, also, data_root, device, cfg_options) -> Bench:
    cfg = load_config(config, cfg_options, data_root)
    model = load_trained_model(cfg, checkpoint, device, require_moe=False)
    rows = rows_of_detector(Path(config).stem, model, questions.rows)
    if isinstance(cfg.get('test_dataloader'), dict):
        cfg.test_dataloader.batch_size = 1  # no image's loss depends on another, nor is any padded to its size
    batches = test_batches(cfg, None, model.trained_labels)
    if not hasattr(batches.dataset, 'cat_ids'):
        raise MoEConfigError(
            f'test_dataloader.dataset: {type(batches.dataset).__name__} has no COCO categories (cat_ids), which '
            'average precision needs'
        )
    for other_config, other_checkpoint in also:
        other = load_config(other_config, None, data_root)
        detector = load_trained_model(other, other_checkpoint, device, require_moe=False)
        _check_same_images(cfg, other)
        check_data(cfg, ('test',), detector.trained_labels)
        rows += rows_of_detector(_free_name(Path(other_config).stem, rows), detector, (OWN,))
    numbers = range(min(questions.limit or len(batches), len(batches)))
    ground_truth = _truth_of(cfg, batches, numbers)
    return Bench(cfg, rows, batches, numbers, ground_truth, analysis_device(device))


def _attacks_on(rows: Sequence[Row], wanted: Sequence[str] | None) -> tuple[str, ...]:
    decide = any(row.decides for row in rows)
    forced = any(row.expert is not None for row in rows)
    missing = {}
    for name, attack in ATTACKS.items():
        if attack.on_gate and not decide:
            missing[name] = 'no row has gates that decide (experts, and --rows own)'
        elif attack.objective == EXPERT and not forced:
            missing[name] = 'which expert is the worst is known by --rows forced alone'
    if wanted is None:
        return tuple(name for name in ATTACKS if name not in missing)
    for name in wanted:
        if name in missing:
            raise MoEConfigError(f'--attacks {name}: {missing[name]}')
    return tuple(wanted)


def _truth_of(cfg: Config, batches: TestBatches, numbers: Sequence[int]) -> GroundTruth:
    ids = [batches.dataset.get_data_info(number)['img_id'] for number in numbers]
    return GroundTruth(annotation_file(cfg), ids, batches.dataset.cat_ids)


def _check_same_images(cfg: Config, other: Config) -> None:
    pipelines = [(c.get('test_dataloader') or {}).get('dataset', {}).get('pipeline') for c in (cfg, other)]
    if pipelines[0] != pipelines[1]:
        raise MoEConfigError(
            f'--also {other.filename}: its test pipeline differs from that of {cfg.filename}, so the same pixels '
            'cannot be shown to both'
        )


def _free_name(name: str, rows: Sequence[Row]) -> str:
    names = {row.name for row in rows}
    return next(free for n in range(1, len(names) + 2) if (free := name if n == 1 else f'{name} ({n})') not in names)


def _look_at_clean_images(bench: Bench, questions: Questions) -> Row | None:
    """Fills ``clean`` and ``choices``; returns the row of the forced expert with the lowest AP, where it is needed."""
    found = {row.name: Found() for row in bench.rows}
    bench.choices = {row.name: [] for row in bench.rows}
    for scene in bench.scenes(words='clean images'):
        for row in bench.rows:
            bench.choices[row.name].append(found[row.name].add(row, scene.images, scene))
    bench.clean = {name: of_row.numbers(bench.ground_truth) for name, of_row in found.items()}
    if not any(ATTACKS[name].objective == EXPERT for name in questions.attacks or ()):
        return None
    forced = [row for row in bench.rows if row.expert is not None]
    return min(forced, key=lambda row: bench.clean[row.name]['ap']['AP'] or 0.0)


def _fit_universal(bench: Bench, questions: Questions, maker: Maker) -> dict | None:
    if UNIVERSAL not in (questions.attacks or ()):
        return None
    total = len(bench.batches)
    numbers = range(total - min(questions.universal_images, total), total)
    truth = _truth_of(bench.cfg, bench.batches, numbers)
    pairs = [
        (trial, row)
        for trial in trials_of([ATTACKS[UNIVERSAL]], questions.eps, questions.loss)
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
    trials = trials_of([ATTACKS[name] for name in questions.attacks or ()], questions.eps, questions.loss)
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
