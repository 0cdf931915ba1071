"""Trains and measures one setting of benchmarks/real_images.py; what is done is kept and found again."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from common import runs
from common.page import MEASURES
from common.runs import cost_over, curve_of, fingerprint, run_tool

from .backbones import Pretrained, config_of
from .folder import Folder
from .intervals import packed
from .settings import CONFIGS, MORE_RATE, SETTINGS, SIZE, START, START_RATE, more_epochs

RESAMPLES = 200  # of the images
SPLITS = ('train', 'val', 'test')
OF_UNIT = ('mi_bits', 'p_value_holm', 'cramers_v')  # of relative size


@dataclass(frozen=True)
class Plan:
    """What the runs on one folder have in common.

    Attributes:
        folder: the images.
        backbone: name of it.
        weights: of it.
        epochs: of the dense detector.
        work_dir: folder of all runs.
        threads: of each command; None leaves it to the command.
        report: measure size specialisation as well.
    """

    folder: Folder
    backbone: str
    weights: Pretrained
    epochs: int
    work_dir: Path
    threads: int | None = None
    report: bool = True

    def __str__(self) -> str:
        return f'{self.folder.name} ({self.backbone})'

    def epochs_of(self, setting: str) -> int:
        """Epochs that a setting trains."""
        return self.epochs if setting == START else more_epochs(self.epochs)

    def changes_of(self, setting: str) -> tuple[Path, dict[str, object]]:
        """Config and changed keys of a setting, without paths of this machine."""
        what = SETTINGS[setting]
        rate = START_RATE if setting == START else MORE_RATE
        changes = config_of(self.backbone, what.frozen)
        changes |= {
            'model.bbox_head.num_classes': len(self.folder.classes),
            **runs.schedule(self.epochs_of(setting), 3, rate),
            'load_from': None,
        }
        for split in SPLITS:
            changes[f'{split}_dataloader.dataset.metainfo.classes'] = self.folder.classes
            resize = 2 if split == 'train' else 1
            changes[f'{split}_dataloader.dataset.pipeline.{resize}.scale'] = (SIZE, SIZE)
        return CONFIGS[what.config], {**changes, **what.options}

    def fingerprint_of(self, setting: str) -> str:
        """Digest of a setting's config, of images and weights, and of the detector that it starts from."""
        return _fingerprint(self, setting)

    def place_of(self, setting: str) -> Path:
        """Folder of a setting's runs, as it is configured now."""
        of_folder = self.work_dir / self.folder.name / self.backbone
        return of_folder / runs.folder_of(setting) / self.fingerprint_of(setting)

    def config_file(self, setting: str) -> Path:
        """The setting's config, written on first use."""
        path = self.place_of(setting) / 'config.py'
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f'config_{os.getpid()}_{id(path)}.py')
            draft.write_text(self.config(setting).pretty_text, encoding='utf-8')
            os.replace(draft, path)
        return path

    def config(self, setting: str) -> object:
        """The setting's config with the folder and the weights of this machine."""
        from mmengine.config import Config

        from moe_det.common.config_edit import set_data_root

        file, changes = self.changes_of(setting)
        if setting == START:  # what goes on from it gets the weights with its checkpoint
            changes['model.backbone'] = {
                **changes['model.backbone'],
                'init_cfg': {'type': 'Pretrained', 'checkpoint': self.weights.checkpoint},
            }
        cfg = Config.fromfile(file, import_custom_modules=False)
        cfg.merge_from_dict(changes)
        set_data_root(cfg, self.folder.path)
        return cfg


@cache
def _fingerprint(plan: Plan, setting: str) -> str:
    start = [] if setting == START else [plan.fingerprint_of(START)]
    return fingerprint(*plan.changes_of(setting), plan.folder.digest, plan.weights.digest, *start)


def train(setting: str, seed: int, plan: Plan) -> Path:
    """Trains one run, and what it starts from, unless they are finished; goes on with one that was interrupted.

    Returns:
        The run's checkpoint.
    """
    checkpoint = plan.place_of(setting) / f'seed_{seed}' / f'epoch_{plan.epochs_of(setting)}.pth'
    arguments = []
    if setting != START and not checkpoint.is_file():
        arguments = ['--cfg-options', f'load_from={train(START, seed, plan)}']
    name = f'{plan.folder.name}, {setting}'
    return runs.train(name, plan.config_file(setting), seed, checkpoint, arguments, {}, plan.threads)


def precision_of(setting: str, seed: int, checkpoint: Path, plan: Plan) -> dict:
    """Average precisions of a run, on the images as they are and on resamples of them; kept beside the checkpoint."""
    kept = checkpoint.parent / 'precision.json'
    if kept.is_file():
        return json.loads(kept.read_text(encoding='utf-8'))
    print(f'{plan.folder.name}, {setting}, seed {seed}: test', flush=True)
    found = checkpoint.parent / 'detections.pkl'
    arguments = [checkpoint, '--work-dir', checkpoint.parent / 'test', '--out', found]
    run_tool('test.py', plan.config_file(setting), arguments, {}, checkpoint.parent / 'test.log', plan.threads)
    result = resampled(found, plan.folder)
    kept.write_text(json.dumps(result), encoding='utf-8')
    found.unlink()
    return result


def resampled(detections: Path, folder: Folder) -> dict:
    """Average precisions of what tools/test.py wrote on a folder's images of validation."""
    from moe_det.analysis.ground_truth import GroundTruth
    from moe_det.analysis.resampled_precision import ResampledPrecision

    truth = GroundTruth(folder.val_file, [image['id'] for image in folder.val_images()], folder.category_ids)
    with open(detections, 'rb') as file:
        samples = pickle.load(file)  # written by a command of this run
    rows = []
    for sample in samples:
        found = sample['pred_instances']
        boxes = np.asarray(found['bboxes'], dtype=np.float64).reshape(-1, 4)
        position = np.full((len(boxes), 1), truth.positions_of([sample['img_id']])[0])
        scores, labels = (np.asarray(found[key], dtype=np.float64)[:, None] for key in ('scores', 'labels'))
        level = np.full_like(position, -1)
        rows.append(
            np.concatenate([position, boxes[:, :2], boxes[:, 2:] - boxes[:, :2], scores, labels, level], axis=1)
        )
    every = np.concatenate(rows)
    drawn = ResampledPrecision(truth, RESAMPLES, seed=0).of(every)
    columns = {name: column for column, name in enumerate(drawn.names)}
    whole = truth.average_precision(every)
    return {
        **{name: whole[name] for name in ('AP', 'AP50', 'AP_S', 'AP_M', 'AP_L')},
        'resampled': {name: packed(drawn.samples[:, columns[name]]) for name in MEASURES},
        'freedom': {name: round(drawn.freedom[name], 2) for name in MEASURES},
    }


def experts_of(setting: str, seed: int, checkpoint: Path, plan: Plan) -> dict:
    """What the size report says of a run: use, verdicts, both units, the swap test, single experts and other k."""
    out_dir = checkpoint.parent / 'report'
    if not (out_dir / 'size_specialization.json').is_file():
        print(f'{plan.folder.name}, {setting}, seed {seed}: report', flush=True)
    arguments = [] if SETTINGS[setting].forced else ['--no-forcing']
    return summary_of(runs.report(plan.config_file(setting), checkpoint, out_dir, arguments, {}, plan.threads))


def summary_of(report: dict) -> dict:
    """What the record keeps of a size report."""
    layers = {}
    for layer in report['layers']:
        units = {}
        for name in ('detection', 'training'):
            unit = layer['units'][name]
            if 'unavailable' in unit:
                continue
            units[name] = {
                'verdict': unit['verdict'],
                'sorts': unit['sorts'],
                'coco_bins': {
                    'mi_bits': unit['mi_given_level_bits'],
                    'p_value_holm': unit['p_value_holm'],
                    'cramers_v': unit['cramers_v_given_level'],
                },
                'relative_size': {key: unit['relative_size'][key] for key in OF_UNIT}
                if unit['relative_size']
                else None,
            }
        used, random_gates = layer['utilisation'], layer['random_gates']
        layers[layer['name']] = {
            'verdict': layer['verdict'],
            'units': units,
            'random_gates': random_gates and random_gates['quantile'],
            'swap': _differences(layer['swap']),
            'living': used['living'],
            'num_experts': layer['num_experts'],
            'gate_entropy_bits': used['row_entropy'],
            'forced': [{key: row[key] for key in ('expert', *MEASURES)} for row in layer['forced']],
        }
    sweep = [{key: row[key] for key in ('k', *MEASURES)} for row in report['ap']['top_k']]
    return {'swap': _differences(report['swap']), 'top_k': sweep, 'layers': layers}


def _differences(swap: dict | None) -> dict | None:
    if swap is None:
        return None
    return {measure: swap[measure] for measure in MEASURES} | {'costs': swap['costs']}


def measure(setting: str, seed: int, plan: Plan) -> dict:
    """Trains and measures one run."""
    checkpoint = train(setting, seed, plan)
    run = {'seed': seed, **precision_of(setting, seed, checkpoint, plan), 'curve': curve_of(checkpoint)}
    if not SETTINGS[setting].control and plan.report:
        run['experts'] = experts_of(setting, seed, checkpoint, plan)
    return run


@cache
def cost_of(setting: str, backbone: str, classes: int) -> dict[str, float]:
    """Multiply-adds for one image, in head and model, over those of the dense detector; parameters likewise."""
    return cost_over(*(_model_of(of, backbone, classes) for of in (setting, START)), (SIZE, SIZE))


def _model_of(setting: str, backbone: str, classes: int) -> dict:
    from mmengine.config import Config

    from . import networks  # noqa: F401  registers them

    what = SETTINGS[setting]
    cfg = Config.fromfile(CONFIGS[what.config], import_custom_modules=False)
    cfg.merge_from_dict({**config_of(backbone), 'model.bbox_head.num_classes': classes, **what.options})
    return cfg.model
