"""One checkpoint: from the detector and its data to the results of the size report."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from mmengine.config import Config
from torch import nn
from tqdm import tqdm

from ..analysis.assembly import LayerAnalysis, conclude, layer_results, relative_sizes_of
from ..analysis.definitions import DEFINITIONS
from ..analysis.ground_truth import COCO_LIMITS, GroundTruth
from ..analysis.inputs import Analysed, LayerInfo, Settings
from ..analysis.layer_numbers import relative_table, size_table
from ..analysis.resampled_precision import ResampledPrecision
from ..analysis.result import SpecializationResult
from ..analysis.swap_results import Donors, RoutePrecision, swap_results, thirds_of
from ..analysis.units import training_unit
from ..common.checkpoints import file_sha256
from ..common.share import ALONE, Share
from ..common.software import machine, versions
from ..dataset_check.dataset_paths import annotation_file
from ..errors import MoEConfigError, MoEDetError
from ..figures.values import RESULTS_FORMAT
from ..probing.conditions import NATURAL, conditions_of
from ..probing.findings import Findings
from ..probing.layer_description import layer_infos, pyramid_levels
from ..probing.probe import Probe
from ..probing.run import PartStore, probe_images
from ..probing.swaps import swap_conditions, swap_donors
from ..routing.router import find_routers
from ..running.launch import Options
from ..running.trained_model import TestBatches, load_trained_model, test_batches
from .detection_table import write_detections
from .image_groups import image_groups
from .size_pictures import add_pictures


@dataclass(frozen=True)
class AnalysisOptions:
    """Options of the size report.

    Attributes:
        data_root: folder that replaces the one of the config's data sets.
        cfg_options: changes of the config.
        out_dir: folder of the report.
        settings: of the statistics.
        area_ranges: limits in pixels between small, medium and large sides.
        limit: only the first N images.
        device: ``'cpu'``, ``'cuda'`` or None for CUDA where there is one.
        groups: key of the json's images that says which of them belong together, such as ``'video_id'``; None takes
            images as independent.
        force: evaluate forced and knocked-out experts, routes that all images share, and other numbers of experts.
        layers: look at these layers only; None takes all.
        figures: also write the figures as files next to the page.
        launcher: ``'pytorch'`` when torchrun has started several processes that share the images; else ``'none'``.
        command: the command line, for the record.
    """

    data_root: str | None = None
    cfg_options: Options = None
    out_dir: str | None = None
    settings: Settings = Settings()
    area_ranges: tuple[float, float] = COCO_LIMITS
    limit: int | None = None
    device: str | None = None
    groups: str | None = None
    force: bool = True
    layers: tuple[str, ...] | None = None
    figures: bool = True
    launcher: str = 'none'
    command: str = ''


def analyse_checkpoint(
    cfg: Config, checkpoint: str, folder: Path, options: AnalysisOptions, share: Share = ALONE
) -> tuple[dict, dict[str, SpecializationResult]] | None:
    """Probes one checkpoint; returns its results and the measurement of each layer.

    Processes of another rank than 0 probe their share of the images and return None.
    """
    begin = time.perf_counter()
    model = load_trained_model(cfg, checkpoint, options.device)
    infos = layer_infos(model, options.layers)
    batches = test_batches(cfg, options.limit, model.trained_labels)
    dataset = batches.dataset
    if not hasattr(dataset, 'cat_ids'):
        raise MoEConfigError(
            f'test_dataloader.dataset: {type(dataset).__name__} has no COCO categories (cat_ids); of '
            'wrapped or joined data sets make one at a time test_dataloader.dataset and its file that of test_evaluator'
        )
    items = [dataset.get_data_info(i) for i in range(batches.num_images)]
    path = annotation_file(cfg)
    ground_truth = GroundTruth(path, [item['img_id'] for item in items], dataset.cat_ids, options.area_ranges)
    groups = None if options.groups is None else image_groups(path, options.groups, ground_truth.image_ids)
    settings = options.settings
    grids = {info.name: info.grid for info in infos if info.grid}
    conditions = conditions_of(model, [info.name for info in infos]) if options.force else []
    question = {
        'config': cfg.model.to_dict() if hasattr(cfg.model, 'to_dict') else dict(cfg.model),
        'pipeline': cfg.test_dataloader.dataset.get('pipeline'),
        'checkpoint': file_sha256(checkpoint),
        'annotations': file_sha256(path),
        'images': [str(image_id) for image_id in ground_truth.image_ids],
        'conditions': [condition.name for condition in conditions],
    }
    question = json.loads(json.dumps(question, default=str))
    probe = Probe(model, conditions, grids)
    findings = _probe(probe, batches, ground_truth, folder / 'findings', question, share, 'images', everywhere=True)
    assert findings is not None  # everywhere
    counts = np.bincount(ground_truth.objects.image_ids, minlength=len(ground_truth.image_ids))
    donors = swap_donors(findings, infos, counts, settings.swaps, settings.seed, groups)
    swapped = None
    if settings.swaps:
        swaps = swap_conditions(findings, infos, donors, settings.seed, fixed=options.force)
        question |= {'conditions': [condition.name for condition in swaps], 'draws': settings.swaps}
        question |= {'seed': settings.seed, 'groups': None if groups is None else [str(group) for group in groups]}
        second = Probe(model, swaps, grids, rows=False)
        place = folder / 'findings_of_swaps'
        swapped = _probe(second, batches, ground_truth, place, question, share, 'other routes')
    if share.rank:
        return None

    matches = ground_truth.match(findings.detections)
    if not (matches >= 0).any() and probe.no_provenance is None:
        raise MoEDetError(
            f'none of the {len(matches)} objects is matched by a detection at IoU 0.5: the checkpoint detects nothing '
            'here (too little training, or model.test_cfg.score_thr too high)'
        )
    sizes = size_table(ground_truth, matches)
    precisions = {}
    for name, detections in tqdm(
        {NATURAL: findings.detections, **findings.conditions}.items(), desc='average precision', file=sys.stderr
    ):
        precisions[name] = ground_truth.average_precision(detections)
    thirds, relative = None, None
    if probe.no_assignment is None:
        unit = training_unit(findings.layers[infos[0].name], findings.positives, ground_truth.objects.sizes)
        relative = relative_sizes_of(unit, ground_truth)
        thirds = thirds_of(unit, relative, len(matches))
    routes = None
    if swapped is not None:
        precision = ResampledPrecision(ground_truth, settings.resamples, settings.seed, groups, thirds)
        routes = RoutePrecision(precision, {**swapped.conditions, NATURAL: swapped.detections})
    analysed = Analysed(
        findings=findings,
        matches=matches,
        ground_truth=ground_truth,
        precisions=precisions,
        routes=routes,
        losses={} if swapped is None else swapped.losses,
        donors=Donors.of(donors),
        unavailable={'detection': probe.no_provenance, 'training': probe.no_assignment},
        groups=groups,
        settings=settings,
        of_queries=probe.of_queries,
    )
    layers: list[LayerAnalysis] = []
    for info in tqdm(infos, desc='statistics', unit='layer', file=sys.stderr):
        layers.append(layer_results(info, analysed))
    by_layer = conclude(layers)
    results = {
        'format': RESULTS_FORMAT,
        'title': f'Size specialisation of {Path(cfg.filename).stem}',
        'definitions': DEFINITIONS,
        'provenance': {
            'config': cfg.filename,
            'checkpoint': str(checkpoint),
            'checkpoint_sha256': question['checkpoint'] if os.path.isfile(checkpoint) else None,  # of a URL: unknown
            'ann_file': path,
            'source': ground_truth.source,
            'images': batches.num_images,
            'groups': None if groups is None else len(set(groups)),
            'objects': len(matches),
            'crowds_excluded': ground_truth.crowds,
            'matched': int((matches >= 0).sum()),
            'seed': settings.seed,
            'permutations': settings.permutations,
            'bootstrap': settings.bootstrap,
            'swap_draws': settings.swaps,
            'resamples': settings.resamples,
            'random_gates': settings.random_gates,
            'area_ranges': list(ground_truth.limits),
            'versions': versions(),
            'device': str(next(model.parameters()).device),
            'machine': machine(),
            'command': options.command,
            'date': datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
            'seconds': round(time.perf_counter() - begin, 1),
        },
        'sizes': sizes,
        'relative_sizes': None if relative is None else relative_table(relative),
        'conditioned_on': probe.following.conditioned_on,
        'levels': pyramid_levels(model, findings),
        'ap': {'natural': precisions[NATURAL], 'top_k': _sweep(model, precisions)},
        'swap': None if routes is None else swap_results(routes, 'all', analysed.donors),
        'layers': [layer.numbers for layer in layers],
        'examples': [],
        'seeds': None,
        'notes': _notes(probe, infos, model),
    }
    write_detections(folder, findings, matches, ground_truth, infos)
    add_pictures(results, folder, findings, matches, ground_truth, [item['img_path'] for item in items])
    return results, by_layer


def _probe(
    probe: Probe,
    batches: TestBatches,
    ground_truth: GroundTruth,
    folder: Path,
    question: dict,
    share: Share,
    words: str,
    everywhere: bool = False,
) -> Findings | None:
    """Probes the images, of which a folder may hold some already.

    Processes of another rank than 0 get None, unless ``everywhere``.
    """
    if share.rank:
        share.wait()  # rank 0 throws away what answers another question
    store = PartStore(folder, question)
    if not share.rank:
        share.wait()
    total = batches.num_images // share.processes
    with tqdm(total=total, desc=words, unit='img', file=sys.stderr, disable=share.rank > 0) as bar:
        return probe_images(probe, batches, ground_truth, store, bar.update, share, everywhere)


def _sweep(model: nn.Module, precisions: dict[str, dict]) -> list[dict]:
    """Average precision for every K that was tried, the detector's own among them."""
    own = {router.test_top_k for router in find_routers(model).values() if router.slots == 1}
    rows = [
        {'k': int(name.rpartition('/')[2]), **values}
        for name, values in precisions.items()
        if name.startswith('top_k/')
    ]
    if rows and len(own) == 1:
        rows.append({'k': own.pop(), **precisions['natural']})
    return sorted(rows, key=lambda row: row['k'])


def _notes(probe: Probe, infos: Sequence[LayerInfo], model: nn.Module) -> list[str]:
    notes = []
    if probe.no_provenance and probe.no_assignment:
        place = 'query' if probe.of_queries else 'level'
        notes.append(
            f'Detections cannot be followed to a {place}: {probe.no_provenance}. Layers that decide once per image are '
            "measured at each object's centre."
        )
    elif probe.no_assignment:
        notes.append(f'There is no training unit: {probe.no_assignment}.')
    left_out = [name for name in find_routers(model) if name not in {info.name for info in infos}]
    if left_out:
        notes.append(f'Not looked at: {", ".join(left_out)}.')
    return notes
