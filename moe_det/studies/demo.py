"""The demo: synthetic data, a few minutes of training with and without experts, what the experts specialise in."""

from __future__ import annotations

import hashlib
import json
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from ..called import command
from ..common.atomic_file import write_atomically
from ..common.checkpoints import latest_checkpoint
from ..common.console import say
from ..common.dense_counterpart import dense_counterpart, type_name
from ..cost.part_costs import WHOLE, model_cost
from ..dataset_check.before_run import check_data
from ..datasets.shapes import FORMAT
from ..hooks.moe_hook import MoEHook, utilisation_table
from ..routing.metrics import Utilisation
from ..running.launch import build_runner, load_config
from .shapes_data import make_shapes_data
from .size_specialization import RESULTS_NAME, AnalysisOptions, analyse

METRICS = ('bbox_mAP', 'bbox_mAP_s', 'bbox_mAP_m', 'bbox_mAP_l')
IMAGE = (256, 256)  # height and width for which multiply-adds are counted


def run_demo(config: str, work_dir: str, data_root: str, train: int, val: int, epochs: int | None = None) -> dict:
    """Makes the data, trains, evaluates, analyses, and prints and writes a summary; keeps whatever is already there.

    The same detector without experts is trained and evaluated too, as a baseline for the AP.

    Args:
        config: config file to train.
        work_dir: folder for checkpoints, logs and ``summary.json``.
        data_root: folder of the shapes; made when it is not there.
        train: number of training images.
        val: number of images to evaluate and to analyse.
        epochs: of each training; None takes the config's.

    Returns:
        The contents of ``summary.json``: ``bbox_mAP`` and its size parts, ``train_seconds``, ``config``,
        ``checkpoint``, ``utilisation`` per layer, ``dense`` with the same of the detector without experts, and
        ``multiply_adds_over_dense``. The report on size specialisation is in the same folder.

    Raises:
        MoEDetError: the data cannot be made, or the config does not fit.
    """
    say(f'1/4 data: {data_root}')
    make_shapes_data(data_root, train=train, val=val)
    cfg = load_config(config, data_root=data_root, work_dir=work_dir, seed=0)  # the same demo each time
    if epochs is not None:
        _train_for(cfg, epochs)
    check_data(cfg, ('train', 'test'))
    folder = Path(work_dir)
    mixed = _Run(cfg, folder, 'experts', f'{train} {val}')
    dense = _Run(_without_experts(cfg, folder / 'dense'), folder / 'dense', 'no experts', f'{train} {val}')
    for run in (mixed, dense):
        run.train()
    summary, of_dense = (run.evaluate() for run in (mixed, dense))
    summary['dense'] = {name: of_dense[name] for name in (*METRICS, 'train_seconds', 'checkpoint')}
    summary['multiply_adds_over_dense'] = round(_cost(cfg) / _cost(dense.cfg), 3)
    _store(folder / 'summary.json', summary)
    report = _analysed(config, data_root, mixed)
    say(_report(summary, folder, data_root, report))
    return summary


def _train_for(cfg: Config, epochs: int) -> None:
    """Sets the number of epochs, and lets the schedule end with them, in place."""
    for scheduler in cfg.get('param_scheduler') or []:
        if scheduler.get('by_epoch', True) and scheduler.get('end') == cfg.train_cfg.max_epochs:
            scheduler.end = epochs
    cfg.train_cfg.max_epochs = epochs


def _without_experts(cfg: Config, folder: Path) -> Config:
    plain = deepcopy(cfg)
    plain.model = dense_counterpart(cfg.model)[0]
    plain.custom_hooks = [hook for hook in cfg.get('custom_hooks') or [] if type_name(hook) != 'MoEHook']
    plain.work_dir = str(folder)
    return plain


def _cost(cfg: Config) -> int:
    """Multiply-adds of a config's model that run for one image."""
    macs = model_cost(cfg.model, IMAGE).parts[WHOLE].active_macs
    assert macs is not None  # RetinaNets can be counted
    return macs


def _stored(path: Path, fingerprint: str) -> dict | None:
    """Reads a stage's result if it belongs to this config."""
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding='utf-8'))
    current = stored.get('fingerprint') == fingerprint and Path(stored.get('checkpoint', '')).is_file()
    return stored if current else None


def _store(path: Path, result: dict) -> None:
    write_atomically(path, json.dumps(result, indent=2) + '\n')


@dataclass
class _Run:
    """One training and its evaluation; each is done once.

    Attributes:
        cfg: what is trained.
        folder: its checkpoints, logs and results.
        name: for messages.
        data: what the data set was made from.
    """

    cfg: Config
    folder: Path
    name: str
    data: str

    @property
    def fingerprint(self) -> str:
        """Of config and data: results of others do not count."""
        return hashlib.sha256(f'{self.cfg.pretty_text} {self.data} {FORMAT}'.encode()).hexdigest()[:16]

    def train(self) -> None:
        """Trains, unless the same config was trained here before; continues an interrupted training."""
        record, fingerprint = self.folder / 'trained.json', self.fingerprint
        stored = _stored(record, fingerprint)
        if stored is not None:
            self.trained = stored
            say(f'2/4 training, {self.name}: already done, {stored["checkpoint"]}')
            return
        started = self.folder / 'started.txt'
        same_run = started.is_file() and started.read_text(encoding='utf-8') == fingerprint
        training = deepcopy(self.cfg)  # copy() shares its parts
        last = latest_checkpoint(str(self.folder)) if same_run else None
        if last is not None:
            training.resume, training.load_from = True, last
        # evaluated once, afterwards
        training.train_cfg.val_begin = training.train_cfg.max_epochs + 1
        say(f'2/4 training, {self.name}' + (f': continued from {last}' if last else ''))
        runner = build_runner(training)
        started.write_text(fingerprint, encoding='utf-8')
        begin = time.perf_counter()
        runner.train()
        self.trained = {
            'fingerprint': fingerprint,
            'train_seconds': round(time.perf_counter() - begin, 1),
            'checkpoint': latest_checkpoint(str(self.folder)),
        }
        _store(record, self.trained)

    def evaluate(self) -> dict:
        """Evaluates the checkpoint, unless that was done before."""
        record, fingerprint = self.folder / 'summary.json', self.fingerprint
        stored = _stored(record, fingerprint)
        if stored is not None:
            say(f'3/4 evaluation, {self.name}: already done, {record}')
            return stored
        say(f'3/4 evaluation, {self.name}')
        testing = deepcopy(self.cfg)
        testing.load_from, testing.resume = self.trained['checkpoint'], False
        runner = build_runner(testing)
        metrics = runner.test()
        hook = next((hook for hook in runner.hooks if isinstance(hook, MoEHook)), None)
        result = {name: metrics[f'coco/{name}'] for name in METRICS}
        result |= {
            'train_seconds': self.trained['train_seconds'],
            'config': self.cfg.filename,
            'checkpoint': self.trained['checkpoint'],
            'fingerprint': fingerprint,
            'utilisation': {} if hook is None else {layer: used.to_dict() for layer, used in hook.utilisation.items()},
        }
        _store(record, result)
        return result


def _analysed(config: str, data_root: str, run: _Run) -> Path:
    """Analyses which experts fire for which sizes, unless that was done before; returns the report's path."""
    fingerprint, trained = run.fingerprint, run.trained
    out_dir = run.folder / 'size_specialization'
    record, report = run.folder / 'analysed.json', out_dir / 'report.html'
    if _stored(record, fingerprint) is not None and report.is_file() and (out_dir / RESULTS_NAME).is_file():
        say(f'4/4 size specialisation: already done, {report}')
        return report
    say('4/4 size specialisation: routes swapped between images, every expert forced and knocked out')
    # the page shows every figure; files of each would take a quarter of the time
    options = AnalysisOptions(data_root=data_root, out_dir=str(out_dir), command=command('demo'), figures=False)
    analyse(config, [trained['checkpoint']], options)
    _store(record, {'fingerprint': fingerprint, 'checkpoint': trained['checkpoint']})
    return report


def _report(summary: dict, folder: Path, data_root: str, report: Path) -> str:
    """The closing table and what to do next."""
    layers = {layer: Utilisation(**used) for layer, used in summary['utilisation'].items()}
    config, dense = summary['config'], summary['dense']
    cost = summary['multiply_adds_over_dense']
    return '\n'.join(
        [
            '',
            '              AP    AP_S   AP_M   AP_L   (COCO, all IoU thresholds)   multiply-adds   training',
            _row('experts', summary, f'{cost:.2f}'),
            _row('no experts', dense, '1.00'),
            '',
            utilisation_table(layers),
            '',
            f'Summary: {folder / "summary.json"}    Checkpoint: {summary["checkpoint"]}',
            f'Which experts fire for small and for large objects: open {report} in a browser',
            'Next:',
            f'  {command("test", config, summary["checkpoint"], "--data-root", data_root, "--show-dir", "pictures")}',
            f'  {command("train", "shapes/retinanet_moe_hard", "--data-root", data_root)}',
            f'  {command("train", "retinanet_moe_soft", "--data-root", "/path/to/coco")}',
            '  The README shows how to add experts to a config of your own.',
        ]
    )


def _row(name: str, of: dict, cost: str) -> str:
    precisions = ' '.join(f'{of[metric]:6.3f}' for metric in METRICS)
    return f'{name:11}{precisions}{cost:>45}{of["train_seconds"]:9.0f} s'
