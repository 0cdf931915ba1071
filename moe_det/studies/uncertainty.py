"""Behind the command uncertainty: what gates and experts know about the errors of a detector."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from tqdm import tqdm

from ..analysis.ground_truth import GroundTruth
from ..analysis.uncertainty import BINS, binary_entropy, box_disagreement, calibration, certainty, mutual_information
from ..analysis.units import NO_ROW
from ..attacks.corruptions import with_corruption
from ..attacks.rows import FORCED, Row, rows_of_detector
from ..common.atomic_file import write_atomically
from ..common.console import say
from ..common.software import versions
from ..dataset_check.dataset_paths import annotation_file
from ..errors import DataError, MoEConfigError
from ..figures.reliability import reliability_chart
from ..figures.style import PAPER, Wording, drawing, save_figure
from ..probing.findings import LayerFindings, detection_table
from ..probing.layer_description import layer_infos
from ..probing.opinions import cannot_ask, followed_detections, opinions
from ..probing.probe import Probe
from ..probing.run import truths_of
from ..routing.intervention import intervene
from ..running.launch import Options, load_config
from ..running.trained_model import TestBatches, load_trained_model, test_batches
from .withstanding_tables import table

CLEAN = 'clean'
MEASURES = ('gate_entropy', 'score_std', 'box_disagreement', 'mutual_information', 'score_entropy')


@dataclass
class Detections:
    """The detections on one kind of images that are asked about.

    Attributes:
        table: (n, 8) as the analysis takes them.
        columns: (n,) numbers of each, by name: the measures, and the gate entropy of each layer.
    """

    table: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)


def measure_uncertainty(
    config: str,
    checkpoint: str,
    *,
    out_dir: str | None = None,
    score_thr: float = 0.3,
    bins: int = BINS,
    corruption: Sequence[tuple[str, int]] = (),
    limit: int | None = None,
    seed: int = 0,
    data_root: str | None = None,
    device: str | None = None,
    cfg_options: Options = None,
) -> dict:
    """Asks every expert about every detection, and compares scores and doubts with the ground truth.

    Writes ``uncertainty.csv``, ``uncertainty.json``, ``uncertainty.md`` and ``reliability.png`` and ``.svg``.

    Args:
        config: config of a detector with experts.
        checkpoint: its weights.
        out_dir: where the files go; None takes ``uncertainty`` in the config's work folder.
        score_thr: detections of a lower score are left out.
        bins: intervals of scores.
        corruption: names and severities of corruptions that are looked at beside the clean images.
        limit: the first images of the test set; None takes all.
        seed: of what corruptions draw.
        data_root: folder that replaces the config's data folder.
        device: see :func:`.trained_model.analysis_device`.
        cfg_options: changes of the config.

    Returns:
        The record, as ``uncertainty.json`` has it.

    Raises:
        MoEDetError: config, checkpoint or data cannot be used, or detections cannot be followed.
    """
    cfg = load_config(config, cfg_options, data_root)
    folder = Path(out_dir or Path(cfg.work_dir) / 'uncertainty')
    model = load_trained_model(cfg, checkpoint, device)
    reason = cannot_ask(model)
    if reason:
        raise MoEConfigError(f'{config}: experts cannot be asked about single detections: {reason}')
    rows = rows_of_detector('own', model, (FORCED,))
    if isinstance(cfg.get('test_dataloader'), dict):
        cfg.test_dataloader.batch_size = 1
    batches = test_batches(cfg, limit, model.trained_labels)
    if not hasattr(batches.dataset, 'cat_ids'):
        raise MoEConfigError(f'test_dataloader.dataset: {type(batches.dataset).__name__} has no COCO categories')
    ids = [batches.dataset.get_data_info(number)['img_id'] for number in range(batches.num_images)]
    truth = GroundTruth(annotation_file(cfg), ids, batches.dataset.cat_ids)
    kinds = {CLEAN: batches}
    for name, severity in corruption:
        kinds[f'{name} {severity}'] = TestBatches(_corrupted(cfg, name, severity, seed), limit)
    found: dict[str, Any] = {
        'config': str(config),
        'checkpoint': str(checkpoint),
        'images': batches.num_images,
        'experts': len(rows),
        'score_thr': score_thr,
        'versions': versions(),
        'kinds': {},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / 'uncertainty.csv').open('w', newline='', encoding='utf-8') as file:
            for kind, images in kinds.items():
                detections = _ask(model, rows, images, truth, score_thr, kind)
                correct = np.zeros(len(detections.table), dtype=bool)
                matches = truth.match(detections.table)
                correct[matches[matches >= 0]] = True
                _write_lines(file, kind, detections, correct, truth, header=kind == CLEAN)
                found['kinds'][kind] = _judged(detections, correct, bins)
        page = uncertainty_page(found)
        write_atomically(folder / 'uncertainty.json', json.dumps(found, indent=1, allow_nan=False) + '\n')
        write_atomically(folder / 'uncertainty.md', page)
        with drawing(PAPER):
            caption = f'{batches.num_images} images, detections of score {score_thr:g} or more, IoU 0.5, {bins} bins.'
            curves = {kind: of_kind['calibration'] for kind, of_kind in found['kinds'].items()}
            figure = reliability_chart(curves, PAPER, Wording('Reliability of scores', caption))
            if figure is not None:
                save_figure(figure, folder / 'reliability')
    except OSError as error:
        raise DataError(f'{error.filename or folder} cannot be written: {error.strerror}') from error
    say(page)
    say(f'Written to {folder}')
    return found


def _corrupted(cfg: Config, name: str, severity: int, seed: int) -> Config:
    cfg = copy.deepcopy(cfg)
    dataset = cfg.test_dataloader.dataset
    dataset.pipeline = with_corruption(dataset.get('pipeline') or [], name, severity, seed)
    return cfg


@torch.no_grad()
def _ask(model, rows: Sequence[Row], batches: TestBatches, truth: GroundTruth, score_thr: float, kind: str):
    probe = Probe(model, (), {info.name: info.grid for info in layer_infos(model) if info.grid})
    tables, columns = [], []
    for image_ids, batch in tqdm(batches, desc=f'{kind} images', unit='img', disable=None):
        images = truth.positions_of(image_ids)
        layers = probe(images, batch, truths_of(truth, images)).layers
        data = model.data_preprocessor(batch, False)
        inputs, sample = data['inputs'], data['data_samples'][0]
        own, asked = followed_detections(model, inputs, sample)
        said = []
        for row in rows:
            with intervene(model, row.interventions):
                said.append(opinions(model, inputs, sample, asked))
        scores = torch.stack([score for score, _ in said]).double().cpu().numpy()
        boxes = torch.stack([box for _, box in said]).double().cpu().numpy()
        entropies = {name: gate_entropies(layer, len(own.scores)) for name, layer in layers.items()}
        every = np.stack(list(entropies.values()))
        known = np.isfinite(every)
        mean = np.where(known, every, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        measures = {
            'gate_entropy': np.where(known.any(axis=0), mean, np.nan),
            'score_std': scores.std(axis=0),
            'box_disagreement': box_disagreement(boxes),
            'mutual_information': mutual_information(scores),
            'score_entropy': binary_entropy(own.scores.double().cpu().numpy()),
            **{f'gate_entropy {name}': values for name, values in entropies.items()},
        }
        kept = own.scores.cpu().numpy() >= score_thr
        tables.append(detection_table([own], images)[kept])
        columns.append({name: values[kept] for name, values in measures.items()})
    joined = {name: np.concatenate([of_image[name] for of_image in columns]) for name in columns[0]}
    return Detections(np.concatenate(tables), joined)


def gate_entropies(layer: LayerFindings, detections: int) -> np.ndarray:
    """(n,) entropy of the gate in nats at the routing row that served each detection of one image.

    A layer that decides once per image has one row for all; NaN where a layer's rows cannot be told apart by detection.
    """
    probs = layer.probs.astype(np.float64)
    entropies = -(probs * np.log(np.clip(probs, 1e-12, None))).sum(axis=1)
    if len(entropies) == 1:
        return np.full(detections, entropies[0])
    rows = layer.detection_rows
    return np.where(rows == NO_ROW, np.nan, entropies[np.clip(rows, 0, None)])


def _judged(detections: Detections, correct: np.ndarray, bins: int) -> dict:
    judged: dict[str, Any] = {'calibration': calibration(detections.table[:, 5], correct, bins), 'measures': {}}
    for name in MEASURES:
        values = detections.columns[name]
        known = np.isfinite(values)
        if known.any():
            of_correct, of_wrong = (values[known & which] for which in (correct, ~correct))
            judged['measures'][name] = {
                **certainty(values[known], correct[known]),
                'mean_if_correct': float(of_correct.mean()) if len(of_correct) else None,
                'mean_if_wrong': float(of_wrong.mean()) if len(of_wrong) else None,
            }
    return judged


def _write_lines(file, kind: str, detections: Detections, correct, truth: GroundTruth, header: bool) -> None:
    writer = csv.writer(file)
    if header:
        places = ['images', 'image', 'x', 'y', 'width', 'height', 'score', 'class', 'level', 'correct']
        writer.writerow([*places, *detections.columns])
    for number, line in enumerate(detections.table):
        place = [kind, truth.image_ids[int(line[0])], *(f'{value:.2f}' for value in line[1:5]), f'{line[5]:.4f}']
        place += [truth.category_names[int(line[6])], int(line[7]), int(correct[number])]
        writer.writerow([*place, *(f'{values[number]:.5g}' for values in detections.columns.values())])


def uncertainty_page(found: dict) -> str:
    """The record as Markdown."""
    parts = [
        f'# Uncertainty\n\n{found["images"]} images, {found["experts"]} experts, detections of score '
        f'{found["score_thr"]:g} or more. Correct: matched at IoU 0.5.'
    ]
    rows = []
    for kind, judged in found['kinds'].items():
        of_kind = judged['calibration']
        errors = ['-' if of_kind[key] is None else f'{100 * of_kind[key]:.1f} %' for key in ('d_ece', 'd_mce')]
        rows.append([kind, str(of_kind['detections']), *errors])
    parts.append('## Calibration of scores\n\n' + table(['images', 'detections', 'D-ECE', 'largest error'], rows))
    keys = ('pavpu', 'accurate_if_certain', 'uncertain_if_inaccurate', 'mean_if_correct', 'mean_if_wrong')
    rows = []
    for kind, judged in found['kinds'].items():
        for name, values in judged['measures'].items():
            rows.append([kind, name, *('-' if values[key] is None else f'{values[key]:.3f}' for key in keys)])
    heads = ['images', 'measure', 'PAvPU', 'accurate if certain', 'uncertain if wrong', 'mean if correct', 'if wrong']
    parts.append('## Doubts, above the median\n\n' + table(heads, rows))
    return '\n\n'.join(parts) + '\n'
